// The kernel for AVX-512.
#include "kernels.h"

#if defined(__x86_64__)
#include "simd/avx512_begin.h"

#include "overlaps_impl.h"

#include "simd/avx512_end.h"

namespace mrcnn_ext {
namespace detections {
bool overlaps_any_avx512(const BoxColumns& others, const Box& box, float threshold) {
  return avx512::overlaps_any(others, box, threshold);
}
}  // namespace detections
}  // namespace mrcnn_ext
#endif
