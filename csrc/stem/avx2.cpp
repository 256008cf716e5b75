// The kernels of float32 for AVX2 with FMA and F16C.
#include "kernels.h"

#if defined(__x86_64__)
#include <algorithm>

#include "simd/avx2_begin.h"

namespace stem_kernels {
namespace float32 {
using namespace stem;

inline F32::Register larger_bits(F32::Register a, F32::Register b) {
  return _mm256_castsi256_ps(_mm256_max_epu32(_mm256_castps_si256(a), _mm256_castps_si256(b)));
}

constexpr int64_t kWidth = kPanel;
#include "float32_impl.h"

}  // namespace float32
}  // namespace stem_kernels

#include "simd/avx2_end.h"

namespace mrcnn_ext {
namespace stem {
const Kernels<float>& avx2_kernels() {
  namespace kernels = avx2::stem_kernels::float32;
  static const Kernels<float> all = {kernels::interleave, kernels::convolve, kernels::pool};
  return all;
}
}  // namespace stem
}  // namespace mrcnn_ext
#endif
