// The kernels of float32 for AVX-512 (F, BW, DQ, VL).
#include "kernels.h"

#if defined(__x86_64__)
#include <algorithm>

#include "simd/avx512_begin.h"

namespace stem_kernels {
namespace float32 {
using namespace stem;

inline F32::Register larger_bits(F32::Register a, F32::Register b) {
  return _mm512_castsi512_ps(_mm512_max_epu32(_mm512_castps_si512(a), _mm512_castps_si512(b)));
}

constexpr int64_t kWidth = kOutputs;
#include "float32_impl.h"

}  // namespace float32
}  // namespace stem_kernels

#include "simd/avx512_end.h"

namespace mrcnn_ext {
namespace stem {
const Kernels<float>& avx512_kernels() {
  namespace kernels = avx512::stem_kernels::float32;
  static const Kernels<float> all = {kernels::interleave, kernels::convolve, kernels::pool};
  return all;
}
}  // namespace stem
}  // namespace mrcnn_ext
#endif
