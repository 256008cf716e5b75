// The kernel of float32 for AVX-512 (F, BW, DQ, VL).
#include "kernels.h"

#if defined(__x86_64__)
#include <algorithm>
#include <limits>
#include <type_traits>
#include <utility>

#include "simd/avx512_begin.h"

namespace pointwise_kernels {
namespace float32 {
using namespace pointwise;

// Four registers: 24 sums, and what they are made of, are as many as there are.
constexpr int64_t kWidth = kChunk;
#include "float32_impl.h"

}  // namespace float32
}  // namespace pointwise_kernels

#include "simd/avx512_end.h"

namespace mrcnn_ext {
namespace pointwise {
const Float32Kernels& avx512_kernels() {
  namespace kernels = avx512::pointwise_kernels::float32;
  static const Float32Kernels all = {kernels::multiply, kernels::kPartChannels};
  return all;
}
}  // namespace pointwise
}  // namespace mrcnn_ext
#endif
