// The loops for AVX2 with FMA.
#include "kernels.h"

#if defined(__x86_64__)
#include <cstring>

#include "simd/avx2_begin.h"
namespace rate_loops {
using namespace rates;

#include "loops_impl.h"

float float32(int64_t repeats) {
  using Factor = F32::Register;
  return repeat(repeats, F32::zero(), F32::broadcast(0.5f),
                [&](F32::Register sum, Factor factor) { return F32::fma(sum, factor, factor); });
}

float int16(int64_t repeats) {
  using Factor = I32::Register;
  return repeat(repeats, I32::zero(), I32::Register(_mm256_set1_epi16(3)),
                [&](I32::Register sum, Factor factor) { return I32::add_products(sum, factor, factor); });
}

}  // namespace rate_loops
#include "simd/avx2_end.h"

namespace mrcnn_ext {
namespace rates {
Loops avx2_loops() {
  namespace loops = avx2::rate_loops;
  const Loop int16 = {loops::int16, kSums * 16};
  // Values of 8 bits are multiplied as 16.
  return {{loops::float32, kSums * 8}, {}, int16, int16};
}
}  // namespace rates
}  // namespace mrcnn_ext
#endif
