// The kernels for AVX2 with FMA and F16C.
#include "kernels.h"

#if defined(__x86_64__)
#include "simd/avx2_begin.h"

#include "kernels_impl.h"

#include "simd/avx2_end.h"

namespace mrcnn_ext {
const KernelSet& avx2_kernels() {
  static const KernelSet kernels = avx2::all_kernels();
  return kernels;
}
}  // namespace mrcnn_ext
#endif
