// Non-maximum suppression, box after box.
#pragma once

#include <cstdint>

namespace mrcnn_ext {
namespace detections {

// A box and its area, as torchvision's nms computes that.
struct Box {
  float x0, y0, x1, y1, area;
};

// Boxes, one coordinate after the other.
struct BoxColumns {
  const float *x0, *y0, *x1, *y1, *area;
  int64_t count;
};

// Whether the intersection over union of a box with any of others is above the threshold, in the arithmetic
// of torchvision's nms.
using OverlapsAny = bool (*)(const BoxColumns& others, const Box& box, float threshold);

bool overlaps_any_plain(const BoxColumns& others, const Box& box, float threshold);
#if defined(__x86_64__)
bool overlaps_any_avx2(const BoxColumns& others, const Box& box, float threshold);
bool overlaps_any_avx512(const BoxColumns& others, const Box& box, float threshold);
#endif

}  // namespace detections
}  // namespace mrcnn_ext
