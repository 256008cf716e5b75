// The kernels of float32 for AVX2.
#include "kernels.h"

#if defined(__x86_64__)
#include <algorithm>
#include <cstring>

#include "simd/avx2_begin.h"

#include "float32_impl.h"

#include "simd/avx2_end.h"

namespace mrcnn_ext {
namespace stem {
const Kernels<float>& avx2_kernels() {
  namespace kernels = avx2::stem_kernels;
  static const Kernels<float> all = {kernels::make_line, kernels::convolve, kernels::pool};
  return all;
}
}  // namespace stem
}  // namespace mrcnn_ext
#endif
