#include "memory.h"

#include <ATen/EmptyTensor.h>
#include <c10/core/Allocator.h>
#include <c10/core/CPUAllocator.h>
#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <list>
#include <mutex>

#if defined(__SANITIZE_ADDRESS__)  // GCC's
#define MRCNN_EXT_ADDRESS_SANITIZER
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define MRCNN_EXT_ADDRESS_SANITIZER
#endif
#endif

namespace mrcnn_ext {
namespace {

constexpr size_t kHugePage = size_t(1) << 21;

struct Block {
  void* data;
  size_t bytes;
};

void release(Block* block) {
#if defined(__linux__)
  munmap(block->data, block->bytes);
#endif
  delete block;
}

// Blocks of whole huge pages, those that are not in use last used first. Results of one network on one size
// of image come in the same sizes at every call. Never destroyed: tensors may outlive every static object.
// Nobody waits for the lock: a forked process may have been born with it taken.
class Pool : public c10::Allocator {
 public:
  static Pool& get() {
    static Pool* const pool = new Pool();
    return *pool;
  }

  static bool serves([[maybe_unused]] size_t bytes) {
    // AddressSanitizer would not see what is read beyond the end of a block, or after it was given back.
#if defined(__linux__) && !defined(MRCNN_EXT_ADDRESS_SANITIZER)
    return bytes >= kHugePage;
#else
    return false;
#endif
  }

  c10::DataPtr allocate(size_t bytes) override {
    const size_t whole = (bytes + kHugePage - 1) / kHugePage * kHugePage;
    Block* block = take(whole);
    if (block == nullptr) block = map(whole);
    const size_t in_use = in_use_ += block->bytes;
    size_t peak = peak_;
    while (in_use > peak && !peak_.compare_exchange_weak(peak, in_use)) {
    }
    return {block->data, block, &Pool::give_back, c10::Device(c10::kCPU)};
  }

  // None: what only the data point to cannot be given back.
  c10::DeleterFnPtr raw_deleter() const override { return nullptr; }

  void copy_data(void* to, const void* from, size_t count) const override { std::memcpy(to, from, count); }

 private:
  Pool() {
    const char* megabytes = std::getenv("MRCNN_EXT_KEEP_MB");
    if (megabytes != nullptr) {
      char* end = nullptr;
      const auto number = std::strtoull(megabytes, &end, 10);
      const bool is_number = *megabytes >= '0' && *megabytes <= '9' && *end == '\0' && number < (1ull << 40);
      TORCH_CHECK_VALUE(is_number, "the environment variable MRCNN_EXT_KEEP_MB must be a whole number of ",
                        "megabytes, got '", megabytes, "'");
      most_ = size_t(number) << 20;
      grows_ = false;
    }
  }

  // The smallest that is large enough, unless a quarter of it or more would be left over.
  Block* take(size_t bytes) {
    const std::unique_lock<std::mutex> lock(mutex_, std::try_to_lock);
    if (!lock) return nullptr;
    auto best = unused_.end();
    for (auto it = unused_.begin(); it != unused_.end(); ++it)
      if ((*it)->bytes >= bytes && (*it)->bytes - bytes <= (*it)->bytes / 4 &&
          (best == unused_.end() || (*it)->bytes < (*best)->bytes))
        best = it;
    if (best == unused_.end()) return nullptr;
    Block* const block = *best;
    unused_.erase(best);
    kept_ -= block->bytes;
    return block;
  }

  static Block* map(size_t bytes) {
#if defined(__linux__)
    // From a whole huge page on: what is around it goes back.
    void* const mapped =
        mmap(nullptr, bytes + kHugePage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    TORCH_CHECK_WITH(OutOfMemoryError, mapped != MAP_FAILED, "mrcnn_ext: cannot allocate ", bytes, " bytes");
    const uintptr_t start = reinterpret_cast<uintptr_t>(mapped);
    const uintptr_t begin = (start + kHugePage - 1) / kHugePage * kHugePage;
    if (begin > start) munmap(mapped, begin - start);
    munmap(reinterpret_cast<void*>(begin + bytes), start + kHugePage - begin);
    void* const data = reinterpret_cast<void*>(begin);
#if defined(MADV_HUGEPAGE)
    // Best effort: without huge pages the result is the same.
    (void)madvise(data, bytes, MADV_HUGEPAGE);
#endif
    return new Block{data, bytes};
#else
    return nullptr;
#endif
  }

  static void give_back(void* context) {
    Block* const block = static_cast<Block*>(context);
    Pool& pool = get();
    std::list<Block*> dropped;
    pool.in_use_ -= block->bytes;
    {
      const std::unique_lock<std::mutex> lock(pool.mutex_, std::try_to_lock);
      if (lock) {
        pool.unused_.push_front(block);
        pool.kept_ += block->bytes;
      } else {
        dropped.push_back(block);
      }
      while (lock && pool.is_full()) {  // what was used the longest time ago
        pool.kept_ -= pool.unused_.back()->bytes;
        dropped.splice(dropped.end(), pool.unused_, std::prev(pool.unused_.end()));
      }
    }
    for (Block* old : dropped) release(old);
  }

  // Training keeps what its backward pass needs: together with what is in use, as much as was in use at once
  // may be kept, too. The process is no larger for it than it was.
  bool is_full() const {
    if (kept_ <= most_) return false;
    return !grows_ || kept_ + in_use_ > peak_;
  }

  size_t most_ = size_t(512) << 20;
  bool grows_ = true;
  std::atomic<size_t> in_use_{0}, peak_{0};  // bytes
  std::mutex mutex_;
  std::list<Block*> unused_;
  size_t kept_ = 0;  // bytes of these
};

}  // namespace

at::Tensor empty_result(at::IntArrayRef size, const at::TensorOptions& options) {
  const auto dtype = c10::typeMetaToScalarType(options.dtype());
  const size_t bytes = size_t(c10::multiply_integers(size)) * c10::elementSize(dtype);
  if (!options.device().is_cpu() || !Pool::serves(bytes)) return at::empty(size, options);
  return at::Tensor(at::detail::empty_generic(size, &Pool::get(), c10::DispatchKeySet(c10::DispatchKey::CPU),
                                              dtype, options.memory_format_opt()));
}

}  // namespace mrcnn_ext
