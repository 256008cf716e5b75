// The kernel of kernels.h in plain loops, which compilers vectorise. Included by each instruction set inside
// its own namespace.

inline bool overlaps_by_more(const detections::BoxColumns& others, int64_t i, const detections::Box& box,
                             float threshold) {
  const float x0 = others.x0[i] > box.x0 ? others.x0[i] : box.x0;
  const float y0 = others.y0[i] > box.y0 ? others.y0[i] : box.y0;
  const float x1 = others.x1[i] < box.x1 ? others.x1[i] : box.x1;
  const float y1 = others.y1[i] < box.y1 ? others.y1[i] : box.y1;
  const float width = x1 - x0 > 0 ? x1 - x0 : 0;
  const float height = y1 - y0 > 0 ? y1 - y0 : 0;
  const float shared = width * height;
  return shared / (others.area[i] + box.area - shared) > threshold;
}

inline bool overlaps_any(const detections::BoxColumns& others, const detections::Box& box, float threshold) {
  constexpr int64_t kAtOnce = 32;
  int64_t i = 0;
  for (; i + kAtOnce <= others.count; i += kAtOnce) {
    int32_t any = 0;
    for (int64_t k = 0; k < kAtOnce; ++k) any |= overlaps_by_more(others, i + k, box, threshold);
    if (any) return true;
  }
  for (; i < others.count; ++i) {
    if (overlaps_by_more(others, i, box, threshold)) return true;
  }
  return false;
}
