// CUDA's words for a compiler that has none: kernels run on the CPU, one block after the other, the threads
// of a block as fibers that change places at barriers only.
//
// - The threads of a block run in one of three orders: ascending, descending, or shuffled anew at every
//   barrier. A result that depends on the order is a race.
// - __syncthreads and the operations of warps check that all their threads stand at the same line and that
//   none has ended.
// - Shared memory is a block of exactly the bytes that were asked for, between guards, filled with garbage
//   before every block. All of it has to be dynamic: `__shared__` variables of a kernel are not supported.
// - __fmul_rn and __dmul_rn are products that no optimizer fuses; everything else is as -ffp-contract says.
// - A launch is refused as CUDA's runtime would refuse it.
//
// Not emulated: the memory model of warps, the device's own log2f, time. One thread of the host at a time.
//
// Include after every header of the C++ library, ATen and c10: the macros below change what they declare.
#pragma once

#include <setjmp.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <functional>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

using cudaError_t = int;
constexpr cudaError_t cudaSuccess = 0;
using cudaStream_t = void*;

struct cudaLaunchConfig_t {
  dim3 gridDim;
  dim3 blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
};

namespace cuda_emulation {

constexpr int kWarpSize = 32;
constexpr int kMostThreads = 1024;
constexpr size_t kStackBytes = 256 << 10;
constexpr size_t kGuardBytes = 256;
constexpr unsigned char kGuard = 0xa5;

enum class Order { kAscending, kDescending, kShuffled };

// What the kernels count by MRCNN_EXT_COUNT.
struct Counts {
  uint64_t locate = 0;
  uint64_t read = 0;
  uint64_t written = 0;
  uint64_t multiply_adds = 0;
  uint64_t visits = 0;
};

enum class State { kReady, kAtBlockBarrier, kAtWarpBarrier, kEnded };

struct Fiber {
  State state = State::kEnded;
  const char* file = "";
  int line = 0;
  void* stack = nullptr;
#if defined(__SANITIZE_ADDRESS__)
  ucontext_t context;
  void* fake_stack = nullptr;
#else
  jmp_buf context;
#endif
};

struct WarpValues {
  uint64_t values[2][kWarpSize];
  int parity[kWarpSize];
};

struct Machine {
  Order order = Order::kAscending;
  Counts counts;
  std::string error;  // of the launch; empty if all went well

  dim3 grid, block;
  dim3 thread;  // the one that runs
  unsigned char* shared = nullptr;
  std::function<void()> kernel;

  std::vector<Fiber> fibers;
  int running = -1;
  std::vector<WarpValues> warps;
  std::mt19937 random{20240607};
#if defined(__SANITIZE_ADDRESS__)
  ucontext_t scheduler;
  void* scheduler_fake_stack = nullptr;
  const void* scheduler_stack = nullptr;
  size_t scheduler_stack_size = 0;
#else
  jmp_buf scheduler;
#endif
};

inline Machine the_machine;
inline Machine& machine() { return the_machine; }

// Changes from the fiber that runs to the scheduler.
inline void leave_fiber() {
  Machine& m = machine();
  Fiber& fiber = m.fibers[m.running];
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(&fiber.fake_stack, m.scheduler_stack, m.scheduler_stack_size);
  swapcontext(&fiber.context, &m.scheduler);
  __sanitizer_finish_switch_fiber(fiber.fake_stack, &m.scheduler_stack, &m.scheduler_stack_size);
#else
  if (_setjmp(fiber.context) == 0) _longjmp(m.scheduler, 1);
#endif
}

// A fiber runs the kernel once for every block.
inline void fiber_main() {
  Machine& m = machine();
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, &m.scheduler_stack, &m.scheduler_stack_size);
#endif
  for (;;) {
    m.kernel();
    m.fibers[m.running].state = State::kEnded;
    leave_fiber();
  }
}

inline void* make_stack() {
  return mmap(nullptr, kStackBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1,
              0);
}

// Changes from the scheduler to a fiber, until that waits or ends.
inline void enter_fiber(int number) {
  Machine& m = machine();
  Fiber& fiber = m.fibers[number];
  m.running = number;
  m.thread = dim3(number);
  const bool fresh = fiber.stack == nullptr;
#if defined(__SANITIZE_ADDRESS__)
  if (fresh) {
    fiber.stack = make_stack();
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack;
    fiber.context.uc_stack.ss_size = kStackBytes;
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, fiber_main, 0);
  }
  __sanitizer_start_switch_fiber(&m.scheduler_fake_stack, fiber.stack, kStackBytes);
  swapcontext(&m.scheduler, &fiber.context);
  __sanitizer_finish_switch_fiber(m.scheduler_fake_stack, nullptr, nullptr);
#else
  if (_setjmp(m.scheduler) != 0) return;
  if (!fresh) _longjmp(fiber.context, 1);
  static ucontext_t start;
  fiber.stack = make_stack();
  getcontext(&start);
  start.uc_stack.ss_sp = fiber.stack;
  start.uc_stack.ss_size = kStackBytes;
  start.uc_link = nullptr;
  makecontext(&start, fiber_main, 0);
  setcontext(&start);
#endif
}

// After an error fibers stand amid a kernel: they are given up, stacks and all.
inline void abandon_fibers() {
  Machine& m = machine();
  for (Fiber& fiber : m.fibers) {
    if (fiber.stack != nullptr) munmap(fiber.stack, kStackBytes);
  }
  m.fibers.clear();
}

inline void wait(State state, const char* file, int line) {
  Machine& m = machine();
  Fiber& fiber = m.fibers[m.running];
  fiber.state = state;
  fiber.file = file;
  fiber.line = line;
  leave_fiber();
}

// True if all of [begin, end) wait for each other, at one line; then they may go on.
inline bool release(int begin, int end, State state) {
  Machine& m = machine();
  for (int i = begin; i < end; ++i) {
    if (m.fibers[i].state != state || m.fibers[i].line != m.fibers[begin].line ||
        m.fibers[i].file != m.fibers[begin].file)
      return false;
  }
  for (int i = begin; i < end; ++i) m.fibers[i].state = State::kReady;
  return true;
}

inline std::string describe_divergence(int threads) {
  Machine& m = machine();
  std::string text = "threads do not meet:";
  std::string before;
  for (int i = 0; i < threads; ++i) {
    const Fiber& fiber = m.fibers[i];
    const std::string here = fiber.state == State::kEnded
                                 ? " has ended"
                                 : " waits at " + std::string(fiber.file) + ":" + std::to_string(fiber.line);
    if (here != before) text += " thread " + std::to_string(i) + here + ";";
    before = here;
  }
  return text;
}

// Lets each ready lane of a warp run until it waits or ends. True if one did.
inline bool run_lanes(int begin, int end, std::vector<int>& turn) {
  Machine& m = machine();
  if (m.order == Order::kShuffled) std::shuffle(turn.begin(), turn.end(), m.random);
  bool ran = false;
  for (const int lane : turn) {
    if (begin + lane >= end || m.fibers[begin + lane].state != State::kReady) continue;
    ran = true;
    enter_fiber(begin + lane);
  }
  return ran;
}

inline std::vector<int> turns(int count) {
  std::vector<int> turn(count);
  std::iota(turn.begin(), turn.end(), 0);
  if (machine().order == Order::kDescending) std::reverse(turn.begin(), turn.end());
  return turn;
}

inline void run_block(int threads) {
  Machine& m = machine();
  std::vector<int> warps = turns((threads + kWarpSize - 1) / kWarpSize);
  std::vector<int> lanes = turns(kWarpSize);
  for (int i = 0; i < threads; ++i) m.fibers[i].state = State::kReady;
  for (WarpValues& warp : m.warps) std::fill_n(warp.parity, kWarpSize, 0);
  for (;;) {
    if (m.order == Order::kShuffled) std::shuffle(warps.begin(), warps.end(), m.random);
    bool ran = false;
    bool released = false;
    for (const int warp : warps) {
      const int begin = warp * kWarpSize;
      const int end = std::min(begin + kWarpSize, threads);
      // A warp runs ahead of the others as far as the barriers of the block allow; shuffled, a few steps.
      for (int steps = m.order == Order::kShuffled ? 1 + int(m.random() % 4) : -1;; --steps) {
        if (steps == 0) {
          released = true;
          break;
        }
        ran |= run_lanes(begin, end, lanes);
        if (m.fibers[begin].state != State::kAtWarpBarrier || !release(begin, end, State::kAtWarpBarrier))
          break;
      }
    }
    if (m.fibers[0].state == State::kAtBlockBarrier) released |= release(0, threads, State::kAtBlockBarrier);
    if (released) continue;
    const bool ended = std::all_of(m.fibers.begin(), m.fibers.begin() + threads,
                                   [](const Fiber& fiber) { return fiber.state == State::kEnded; });
    if (!ended && !ran) m.error = describe_divergence(threads);
    if (ended || !ran) return;
  }
}

// Shared memory of one block.
class SharedMemory {
 public:
  SharedMemory(size_t bytes, Order order, std::mt19937& random)
      : bytes_(bytes), memory_(static_cast<unsigned char*>(std::aligned_alloc(256, round_up(bytes)))) {
    std::fill_n(memory_, round_up(bytes), kGuard);
    unsigned char* const data = this->data();
    for (size_t i = 0; i < bytes; ++i) {
      data[i] = order == Order::kAscending    ? 0xff
                : order == Order::kDescending ? 0x7f
                                              : static_cast<unsigned char>(random());
    }
    set_poison(true);
  }
  ~SharedMemory() {
    set_poison(false);
    std::free(memory_);
  }
  unsigned char* data() const { return memory_ + kGuardBytes; }
  bool guards_are_whole() {
    set_poison(false);
    const auto whole = [](const unsigned char* from, const unsigned char* to) {
      return std::all_of(from, to, [](unsigned char byte) { return byte == kGuard; });
    };
    return whole(memory_, data()) && whole(data() + bytes_, data() + bytes_ + kGuardBytes);
  }

 private:
  static size_t round_up(size_t bytes) { return (bytes + 2 * kGuardBytes + 255) / 256 * 256; }
  void set_poison(bool on) {
#if defined(__SANITIZE_ADDRESS__)
    const auto set = on ? __asan_poison_memory_region : __asan_unpoison_memory_region;
    set(memory_, kGuardBytes);
    set(data() + bytes_, kGuardBytes);
#else
    (void)on;
#endif
  }
  size_t bytes_;
  unsigned char* memory_;
};

inline std::string refuse_launch(const cudaLaunchConfig_t& config, size_t parameter_bytes) {
  const dim3& grid = config.gridDim;
  const uint64_t threads = uint64_t(config.blockDim.x) * config.blockDim.y * config.blockDim.z;
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return "an empty grid";
  if (grid.x > 0x7fffffffu || grid.y > 65535 || grid.z > 65535) return "a grid that is too large";
  if (threads == 0 || threads > kMostThreads) return "a block of " + std::to_string(threads) + " threads";
  if (config.blockDim.y != 1 || config.blockDim.z != 1) return "a block that is not emulated: not 1-D";
  if (threads % kWarpSize != 0) return "a block that is not emulated: of parts of warps";
  if (config.dynamicSmemBytes > (48 << 10)) return "more than 48 KB of shared memory";
  if (parameter_bytes > 4096) return "more than 4 KB of parameters";
  return "";
}

inline void run_grid(const cudaLaunchConfig_t& config) {
  Machine& m = machine();
  const int threads = config.blockDim.x;
  m.grid = config.gridDim;
  if (int(m.fibers.size()) < threads) m.fibers.resize(threads);
  m.warps.resize(threads / kWarpSize);
  const uint64_t blocks = uint64_t(m.grid.x) * m.grid.y * m.grid.z;
  for (uint64_t i = 0; i < blocks && m.error.empty(); ++i) {
    const uint64_t number = m.order == Order::kDescending ? blocks - 1 - i : i;
    m.block = dim3(number % m.grid.x, number / m.grid.x % m.grid.y, number / m.grid.x / m.grid.y);
    SharedMemory shared(config.dynamicSmemBytes, m.order, m.random);
    m.shared = shared.data();
    run_block(threads);
    if (!shared.guards_are_whole() && m.error.empty()) m.error = "a write outside of shared memory";
  }
  if (!m.error.empty()) abandon_fibers();
}

// The values of all lanes of the warp, each brought by its own.
template <typename T>
const uint64_t* exchange(T value, const char* file, int line) {
  static_assert(sizeof(T) <= sizeof(uint64_t));
  Machine& m = machine();
  WarpValues& warp = m.warps[m.running / kWarpSize];
  const int lane = m.running % kWarpSize;
  // In turns: a lane may go on to the next exchange while others read this one.
  const int parity = warp.parity[lane] ^= 1;
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  warp.values[parity][lane] = bits;
  wait(State::kAtWarpBarrier, file, line);
  return warp.values[parity];
}

template <typename T>
T value_of(uint64_t bits) {
  T value;
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}

inline void check_mask(unsigned mask) {
  Machine& m = machine();
  if (mask != 0xffffffffu) m.error = "an operation of a part of a warp, which is not emulated";
}

// Keeps the optimizer from fusing a product into a sum.
template <typename T>
T rounded(T product) {
#if defined(__x86_64__)
  asm("" : "+x"(product));
#else
  volatile T kept = product;
  product = kept;
#endif
  return product;
}

}  // namespace cuda_emulation

template <typename... Expected, typename... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Expected...),
                               Arguments&&... arguments) {
  cuda_emulation::Machine& m = cuda_emulation::machine();
  const std::tuple<Expected...> copies{static_cast<Expected>(std::forward<Arguments>(arguments))...};
  m.error = cuda_emulation::refuse_launch(*config, (sizeof(Expected) + ... + 0));
  m.kernel = [&] { std::apply(kernel, copies); };
  if (m.error.empty()) cuda_emulation::run_grid(*config);
  m.kernel = nullptr;
  return m.error.empty() ? cudaSuccess : 1;
}

#define MRCNN_EXT_HERE const char *file = __builtin_FILE(), int line = __builtin_LINE()

inline void __syncthreads(MRCNN_EXT_HERE) {
  cuda_emulation::wait(cuda_emulation::State::kAtBlockBarrier, file, line);
}
inline void __syncwarp(unsigned mask = 0xffffffffu, MRCNN_EXT_HERE) {
  cuda_emulation::check_mask(mask);
  cuda_emulation::wait(cuda_emulation::State::kAtWarpBarrier, file, line);
}
inline unsigned __ballot_sync(unsigned mask, bool vote, MRCNN_EXT_HERE) {
  cuda_emulation::check_mask(mask);
  const uint64_t* votes = cuda_emulation::exchange(vote, file, line);
  unsigned bits = 0;
  for (int i = 0; i < cuda_emulation::kWarpSize; ++i) bits |= unsigned(votes[i] & 1) << i;
  return bits;
}
template <typename T>
T __shfl_sync(unsigned mask, T value, int lane, MRCNN_EXT_HERE) {
  cuda_emulation::check_mask(mask);
  return cuda_emulation::value_of<T>(cuda_emulation::exchange(value, file, line)[lane % 32]);
}
template <typename T>
T __shfl_up_sync(unsigned mask, T value, unsigned step, MRCNN_EXT_HERE) {
  cuda_emulation::check_mask(mask);
  const int lane = cuda_emulation::machine().running % 32;
  return cuda_emulation::value_of<T>(
      cuda_emulation::exchange(value, file, line)[lane >= int(step) ? lane - int(step) : lane]);
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int bits, MRCNN_EXT_HERE) {
  cuda_emulation::check_mask(mask);
  const int lane = cuda_emulation::machine().running % 32;
  return cuda_emulation::value_of<T>(cuda_emulation::exchange(value, file, line)[(lane ^ bits) % 32]);
}

inline int __popc(unsigned bits) { return std::popcount(bits); }
inline int __ffs(int bits) { return bits == 0 ? 0 : std::countr_zero(unsigned(bits)) + 1; }
inline int __clz(int bits) { return std::countl_zero(unsigned(bits)); }
inline float __fmul_rn(float a, float b) { return cuda_emulation::rounded(a * b); }
inline double __dmul_rn(double a, double b) { return cuda_emulation::rounded(a * b); }

#define threadIdx (cuda_emulation::machine().thread)
#define blockIdx (cuda_emulation::machine().block)
// Neither gridDim nor blockDim: macros of these names would change cudaLaunchConfig_t.
#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __CUDACC__ 13
#define __CUDA_ARCH__ 900
#define MRCNN_EXT_SHARED_MEMORY (cuda_emulation::machine().shared)
#define MRCNN_EXT_COUNT(kind, amount) (cuda_emulation::machine().counts.kind += (amount))
