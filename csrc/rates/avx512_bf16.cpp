// The loop for AVX512-BF16.
#include "kernels.h"

#if defined(__x86_64__)
#include <cstring>

#include "simd/avx512_bf16_begin.h"
namespace rate_loops {
using namespace rates;

#include "loops_impl.h"

float bf16(int64_t repeats) {
  using Factor = BF16::Register;
  return repeat(repeats, F32::zero(), BF16::Register(_mm512_set1_epi16(0x3f00)),
                [&](F32::Register sum, Factor factor) { return BF16::add_products(sum, factor, factor); });
}

}  // namespace rate_loops
#include "simd/avx512_bf16_end.h"

namespace mrcnn_ext {
namespace rates {
Loop avx512_bf16_loop() { return {avx512::rate_loops::bf16, kSums * 32}; }
}  // namespace rates
}  // namespace mrcnn_ext
#endif
