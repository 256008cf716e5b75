// The kernels for AVX-512 (F, BW, DQ, VL).
#include "kernels.h"

#if defined(__x86_64__)
#include "simd/avx512_begin.h"

#include "kernels_impl.h"

#include "simd/avx512_end.h"

namespace mrcnn_ext {
const KernelSet& avx512_kernels() {
  static const KernelSet kernels = avx512::all_kernels();
  return kernels;
}
}  // namespace mrcnn_ext
#endif
