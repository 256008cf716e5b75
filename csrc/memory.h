// Fresh memory for large results.
#pragma once

#include <ATen/ATen.h>
#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <cstdint>

namespace mrcnn_ext {

// A result of tens of megabytes is fresh memory from the kernel at every call, and faulting it in page by
// page costs more than computing it. Asks for huge pages where the system leaves that to the program.
inline at::Tensor empty_result(at::IntArrayRef size, const at::TensorOptions& options) {
  const at::Tensor result = at::empty(size, options);
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr uintptr_t kHugePage = uintptr_t(1) << 21;
  const uintptr_t begin =
      (reinterpret_cast<uintptr_t>(result.mutable_data_ptr()) + kHugePage - 1) & ~(kHugePage - 1);
  const uintptr_t end =
      (reinterpret_cast<uintptr_t>(result.mutable_data_ptr()) + result.nbytes()) & ~(kHugePage - 1);
  // Best effort: without huge pages the result is the same.
  if (begin < end && result.nbytes() >= 8 * kHugePage)
    (void)madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
  return result;
}

}  // namespace mrcnn_ext
