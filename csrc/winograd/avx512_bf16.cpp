// The kernels for AVX-512 with BF16 that differ: results are rounded in one instruction.
#include "kernels.h"

#if defined(__x86_64__)
#include <algorithm>
#include <cmath>
#include <limits>
#include <type_traits>

#include "simd/avx512_bf16_begin.h"

namespace winograd_kernels {
namespace bf16 {
using namespace winograd;
using F32 = F32WithBf16;

#include "kernels_impl.h"

}  // namespace bf16
}  // namespace winograd_kernels

#include "simd/avx512_bf16_end.h"

namespace mrcnn_ext {
namespace winograd {
TransformOutputs<c10::BFloat16> avx512_bf16_outputs() {
  return avx512::winograd_kernels::bf16::transform_outputs<c10::BFloat16>;
}
}  // namespace winograd
}  // namespace mrcnn_ext
#endif
