// Memory for large results; see memory.h.
#include "memory.h"

#include <ATen/EmptyTensor.h>
#include <c10/core/Allocator.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/impl/alloc_cpu.h>
#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <algorithm>
#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

namespace mrcnn_ext {
namespace {

constexpr size_t kHugePage = size_t(1) << 21;
// The C library keeps smaller ones itself.
constexpr size_t kSmallest = 8 * kHugePage;
// Bytes that are kept free, and for how many results without a use.
constexpr size_t kMostKept = size_t(1) << 29;
constexpr int64_t kPatience = 64;

void ask_for_huge_pages(void* data, size_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(data) + kHugePage - 1) & ~(kHugePage - 1);
  const uintptr_t end = (reinterpret_cast<uintptr_t>(data) + bytes) & ~(kHugePage - 1);
  // Best effort: without huge pages the result is the same.
  if (begin < end) (void)madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
}

struct Block {
  void* data;
  size_t bytes;
  int64_t freed;  // when, counted in results
};

class ResultMemory final : public c10::Allocator {
 public:
  c10::DataPtr allocate(size_t bytes) override {
    Block block = take((bytes + kHugePage - 1) / kHugePage * kHugePage);
    auto owned = std::make_unique<Block>(block);
    void* const data = owned->data;
    return {data, owned.release(), release, c10::Device(c10::DeviceType::CPU)};
  }
  void copy_data(void* to, const void* from, size_t bytes) const override {
    default_copy_data(to, from, bytes);
  }

 private:
  // Nobody waits for the lock, which another thread may have had when this process was forked.
  Block take(size_t bytes) {
    std::vector<Block> unused;
    Block found{nullptr, bytes, 0};
    if (std::unique_lock<std::mutex> lock(mutex_, std::try_to_lock); lock.owns_lock()) {
      ++results_;
      for (size_t i = 0; i < free_.size();) {
        const bool fits = found.data == nullptr && free_[i].bytes == bytes;
        if (!fits && results_ - free_[i].freed <= kPatience) {
          ++i;
          continue;
        }
        if (fits) {
          found = free_[i];
        } else {
          unused.push_back(free_[i]);
        }
        kept_ -= free_[i].bytes;
        free_.erase(free_.begin() + i);
      }
    }
    for (const Block& block : unused) c10::free_cpu(block.data);
    if (found.data == nullptr) {
      found.data = c10::alloc_cpu(bytes);
      ask_for_huge_pages(found.data, bytes);
    }
    return found;
  }

  bool keep(Block block) {
    const std::unique_lock<std::mutex> lock(mutex_, std::try_to_lock);
    if (!lock.owns_lock() || kept_ + block.bytes > kMostKept) return false;
    block.freed = results_;
    free_.push_back(block);
    kept_ += block.bytes;
    return true;
  }

  static void release(void* context);

  std::mutex mutex_;
  std::vector<Block> free_;
  size_t kept_ = 0;
  int64_t results_ = 0;
};

// Never destroyed: tensors may live longer than what is static.
ResultMemory& result_memory() {
  static ResultMemory* const memory = new ResultMemory;
  return *memory;
}

void ResultMemory::release(void* context) {
  const std::unique_ptr<Block> block(static_cast<Block*>(context));
  if (!result_memory().keep(*block)) c10::free_cpu(block->data);
}

}  // namespace

at::Tensor empty_result(at::IntArrayRef size, const at::TensorOptions& options) {
#if !defined(__SANITIZE_ADDRESS__)  // which would not see what is read beyond the end of a block, or after it
  const size_t bytes = c10::multiply_integers(size) * options.dtype().itemsize();
  if (bytes >= kSmallest) {
    return at::Tensor(at::detail::empty_generic(
        size, &result_memory(), c10::DispatchKeySet(c10::DispatchKey::CPU),
        c10::typeMetaToScalarType(options.dtype()), options.memory_format_opt()));
  }
#endif
  return at::empty(size, options);
}

}  // namespace mrcnn_ext
