// The loops for AVX2 with FMA.
#include "kernels.h"

#if defined(__x86_64__)
#include <cstring>

#include "simd/avx2_begin.h"
namespace rate_loops {
using namespace rates;

#include "loops_impl.h"
#include "plain_loops_impl.h"

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
