// The kernel for AVX2.
#include "kernels.h"

#if defined(__x86_64__)
#include "simd/avx2_begin.h"

#include "overlaps_impl.h"

#include "simd/avx2_end.h"

namespace mrcnn_ext {
namespace detections {
bool overlaps_any_avx2(const BoxColumns& others, const Box& box, float threshold) {
  return avx2::overlaps_any(others, box, threshold);
}
}  // namespace detections
}  // namespace mrcnn_ext
#endif
