// Proposals and detections on the CPU: decoding, clipping and non-maximum suppression in one pass from the
// best box down, which ends as soon as an image is full. The results are those of detectron2 and torchvision,
// ties included: equal scores in the order of their places, a box compared with those kept of its group.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <ATen/Version.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "kernels.h"

namespace mrcnn_ext {
namespace detections {

namespace plain {
#include "overlaps_impl.h"
}  // namespace plain

bool overlaps_any_plain(const BoxColumns& others, const Box& box, float threshold) {
  return plain::overlaps_any(others, box, threshold);
}

namespace {

OverlapsAny best_kernel() {
#if defined(__x86_64__)
  static const std::string capability = at::get_cpu_capability();
  if (capability == "AVX512") return overlaps_any_avx512;
  if (capability == "AVX2") return overlaps_any_avx2;
#endif
  return overlaps_any_plain;
}

// What a float is above if and only if it is above `value`, with which torchvision compares as a double.
float largest_float_up_to(double value) {
  const float rounded = float(value);
  return double(rounded) > value ? std::nextafter(rounded, -std::numeric_limits<float>::infinity()) : rounded;
}

// From so many coordinates on torchvision's batched_nms takes group by group. Below it moves the boxes of
// each group apart, which rounds them.
constexpr int64_t kGroupByGroup = 4000;

struct Candidate {
  float x0, y0, x1, y1;
  float score;
  int64_t group;
  int64_t place;  // where it comes from
};

bool is_better(const Candidate& a, const Candidate& b) {
  return a.score > b.score || (a.score == b.score && a.place < b.place);
}

// The boxes that were kept of one group.
class Kept {
 public:
  bool overlap(const Box& box, float threshold, OverlapsAny overlaps) const {
    const BoxColumns columns{x0_.data(), y0_.data(),   x1_.data(),
                             y1_.data(), area_.data(), int64_t(area_.size())};
    return overlaps(columns, box, threshold);
  }
  void add(const Box& box) {
    x0_.push_back(box.x0);
    y0_.push_back(box.y0);
    x1_.push_back(box.x1);
    y1_.push_back(box.y1);
    area_.push_back(box.area);
  }

 private:
  std::vector<float> x0_, y0_, x1_, y1_, area_;
};

// As torchvision's batched_nms puts in order what it keeps group by group: by ATen's sort, which is not
// stable and depends on all of them.
std::vector<const Candidate*> sorted_by_aten(std::vector<const Candidate*> kept, at::ScalarType dtype) {
  std::sort(kept.begin(), kept.end(),
            [](const Candidate* a, const Candidate* b) { return a->place < b->place; });
  const at::Tensor scores = at::empty({int64_t(kept.size())}, at::kFloat);
  std::transform(kept.begin(), kept.end(), scores.mutable_data_ptr<float>(),
                 [](const Candidate* one) { return one->score; });
  const at::Tensor order = std::get<1>(scores.to(dtype).sort(0, /*descending=*/true));
  const int64_t* const places = order.const_data_ptr<int64_t>();
  std::vector<const Candidate*> sorted(kept.size());
  for (size_t i = 0; i < sorted.size(); ++i) sorted[i] = kept[places[i]];
  return sorted;
}

// The best `wanted` after greedy suppression within groups. next() gives the candidates from the best down,
// nullptr after the last.
template <typename Next>
std::vector<const Candidate*> suppress(const std::vector<Candidate>& candidates, int64_t groups,
                                       double threshold, int64_t wanted, at::ScalarType dtype,
                                       const Next& next) {
  const OverlapsAny overlaps = best_kernel();
  const float limit = largest_float_up_to(threshold);
  const bool group_by_group = int64_t(4 * candidates.size()) > kGroupByGroup;
  float apart = 0;
  if (!group_by_group) {
    float largest = -std::numeric_limits<float>::infinity();
    for (const Candidate& one : candidates) largest = std::max({largest, one.x0, one.y0, one.x1, one.y1});
    apart = largest + 1;
  }
  std::vector<Kept> kept_of(groups);
  std::vector<const Candidate*> kept;
  if (wanted == 0) return kept;
  bool ties = false;
  while (const Candidate* const one = next()) {
    const bool tie = !kept.empty() && one->score == kept.back()->score;
    if (int64_t(kept.size()) >= wanted && !tie && !ties) break;
    const float offset = float(one->group) * apart;
    Box box{one->x0 + offset, one->y0 + offset, one->x1 + offset, one->y1 + offset, 0};
    box.area = (box.x1 - box.x0) * (box.y1 - box.y0);
    Kept& others = kept_of[one->group];
    if (others.overlap(box, limit, overlaps)) continue;
    others.add(box);
    kept.push_back(one);
    // Then all have to be known.
    ties = ties || (tie && group_by_group);
  }
  if (ties) kept = sorted_by_aten(std::move(kept), dtype);
  kept.resize(std::min<int64_t>(kept.size(), wanted));
  return kept;
}

float clamped(float value, float largest) { return std::min(std::max(value, 0.0f), largest); }

bool is_finite(const Candidate& one) {
  return std::isfinite(one.x0) && std::isfinite(one.y0) && std::isfinite(one.x1) && std::isfinite(one.y1);
}

void clip(Candidate& one, int64_t height, int64_t width) {
  one.x0 = clamped(one.x0, float(width));
  one.y0 = clamped(one.y0, float(height));
  one.x1 = clamped(one.x1, float(width));
  one.y1 = clamped(one.y1, float(height));
}

void store_box(const Candidate& one, float* to) {
  to[0] = one.x0;
  to[1] = one.y0;
  to[2] = one.x1;
  to[3] = one.y1;
}

// The best of one level of one image: places in it, and scores, best first.
struct Best {
  at::Tensor scores, places;
};

// Deltas (dx, dy, dw, dh) applied to anchors, as detectron2's Box2BoxTransform does.
class Decoder {
 public:
  Decoder(at::ArrayRef<double> weights, double scale_clamp) : largest_(float(scale_clamp)) {
    for (int i = 0; i < 4; ++i) weights_[i] = float(weights[i]);
  }
  // What the exponential is taken of.
  float log_side(float delta, int coordinate) const {
    const float scaled = delta / weights_[coordinate];
    return scaled > largest_ ? largest_ : scaled;
  }
  void decode(const float* anchor, const float* deltas, const float* sides, Candidate& one) const {
    const float width = anchor[2] - anchor[0], height = anchor[3] - anchor[1];
    const float x = deltas[0] / weights_[0] * width + (anchor[0] + 0.5f * width);
    const float y = deltas[1] / weights_[1] * height + (anchor[1] + 0.5f * height);
    const float half_width = 0.5f * (sides[0] * width), half_height = 0.5f * (sides[1] * height);
    one.x0 = x - half_width;
    one.y0 = y - half_height;
    one.x1 = x + half_width;
    one.y1 = y + half_height;
  }

 private:
  float weights_[4];
  float largest_;
};

void check_level(const at::Tensor& logits, const at::Tensor& deltas, const at::Tensor& anchors,
                 int64_t images, size_t level) {
  TORCH_CHECK_VALUE(logits.dim() == 2 && logits.size(0) == images, "rpn_proposals: logits[", level,
                    "] must be (N, n) of ", images, " images, got ", logits.sizes());
  const int64_t count = logits.size(1);
  TORCH_CHECK_VALUE(deltas.sizes() == at::IntArrayRef({images, count, 4}), "rpn_proposals: deltas[", level,
                    "] must be (", images, ", ", count, ", 4), got ", deltas.sizes());
  TORCH_CHECK_VALUE(anchors.sizes() == at::IntArrayRef({count, 4}), "rpn_proposals: anchors[", level,
                    "] must be (", count, ", 4), got ", anchors.sizes());
  for (const at::Tensor& one : {logits, deltas})
    TORCH_CHECK_TYPE(one.scalar_type() == at::kFloat || one.scalar_type() == at::kBFloat16 ||
                         one.scalar_type() == at::kHalf,
                     "rpn_proposals: logits and deltas must be float32, bfloat16 or float16, got ",
                     one.scalar_type());
  TORCH_CHECK_TYPE(anchors.scalar_type() == at::kFloat, "rpn_proposals: anchors must be float32, got ",
                   anchors.scalar_type());
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> rpn_proposals(
    at::TensorList logits, at::TensorList deltas, at::TensorList anchors, at::IntArrayRef heights,
    at::IntArrayRef widths, at::ArrayRef<double> weights, double scale_clamp, double nms_thresh,
    int64_t pre_topk, int64_t post_topk, double min_size, bool drop_not_finite) {
  const int64_t images = heights.size(), levels = logits.size();
  TORCH_CHECK_VALUE(levels > 0 && deltas.size() == logits.size() && anchors.size() == logits.size(),
                    "rpn_proposals: logits, deltas and anchors must have one tensor per level, got ", levels,
                    ", ", deltas.size(), " and ", anchors.size());
  TORCH_CHECK_VALUE(widths.size() == heights.size(), "rpn_proposals: there are ", images, " heights and ",
                    widths.size(), " widths");
  TORCH_CHECK_VALUE(weights.size() == 4, "rpn_proposals: weights must be 4 numbers, got ", weights);
  TORCH_CHECK_VALUE(pre_topk >= 0 && post_topk >= 0,
                    "rpn_proposals: pre_topk and post_topk must not be negative, got ", pre_topk, " and ",
                    post_topk);
  std::vector<Best> best;
  std::vector<at::Tensor> rows_of_deltas, rows_of_anchors;
  std::vector<int64_t> firsts{0};  // of the candidates of each level
  for (int64_t level = 0; level < levels; ++level) {
    check_level(logits[level], deltas[level], anchors[level], images, level);
    const int64_t count = std::min(pre_topk, logits[level].size(1));
    auto [scores, places] = logits[level].topk(count, 1);
    best.push_back({scores.to(at::kFloat).contiguous(), places.contiguous()});
    const at::Tensor rows = deltas[level].to(at::kFloat);
    rows_of_deltas.push_back(rows.stride(2) == 1 ? rows : rows.contiguous());
    rows_of_anchors.push_back(anchors[level].contiguous());
    firsts.push_back(firsts.back() + count);
  }
  const int64_t total = firsts.back(), most = std::min(post_topk, total);
  const Decoder decoder(weights, scale_clamp);
  const auto delta_of = [&](int64_t image, int64_t level, int64_t place) {
    const at::Tensor& rows = rows_of_deltas[level];
    return rows.const_data_ptr<float>() + image * rows.stride(0) + place * rows.stride(1);
  };
  // By ATen, whose exponential is not the standard library's in the last bit.
  const auto options = logits[0].options().dtype(at::kFloat);
  const at::ScalarType dtype = logits[0].scalar_type();
  const at::Tensor sides = at::empty({images, total, 2}, options);
  float* const side = sides.mutable_data_ptr<float>();
  for (int64_t image = 0; image < images; ++image) {
    for (int64_t level = 0; level < levels; ++level) {
      const int64_t count = firsts[level + 1] - firsts[level];
      const int64_t* places = best[level].places.const_data_ptr<int64_t>() + image * count;
      for (int64_t i = 0; i < count; ++i) {
        const float* delta = delta_of(image, level, places[i]);
        float* to = side + 2 * (image * total + firsts[level] + i);
        to[0] = decoder.log_side(delta[2], 2);
        to[1] = decoder.log_side(delta[3], 3);
      }
    }
  }
  sides.exp_();

  const at::Tensor boxes = at::empty({images, most, 4}, options);
  const at::Tensor found_logits = at::empty({images, most}, options);
  const at::Tensor counts = at::zeros({images}, options.dtype(at::kLong));
  float* const to_boxes = boxes.mutable_data_ptr<float>();
  float* const to_logits = found_logits.mutable_data_ptr<float>();
  int64_t* const to_counts = counts.mutable_data_ptr<int64_t>();
  at::parallel_for(0, images, 1, [&](int64_t begin, int64_t end) {
    for (int64_t image = begin; image < end; ++image) {
      std::vector<Candidate> candidates;
      candidates.reserve(total);
      std::vector<size_t> heads(levels), ends(levels);
      bool finite = true;
      for (int64_t level = 0; level < levels; ++level) {
        const int64_t count = firsts[level + 1] - firsts[level];
        const int64_t* places = best[level].places.const_data_ptr<int64_t>() + image * count;
        const float* scores = best[level].scores.const_data_ptr<float>() + image * count;
        const float* rows = rows_of_anchors[level].const_data_ptr<float>();
        heads[level] = candidates.size();
        for (int64_t i = 0; i < count; ++i) {
          Candidate one{0, 0, 0, 0, scores[i], level, firsts[level] + i};
          decoder.decode(rows + 4 * places[i], delta_of(image, level, places[i]),
                         side + 2 * (image * total + firsts[level] + i), one);
          if (!is_finite(one) || !std::isfinite(one.score)) {
            finite = false;
            continue;
          }
          clip(one, heights[image], widths[image]);
          if (one.x1 - one.x0 > float(min_size) && one.y1 - one.y0 > float(min_size))
            candidates.push_back(one);
        }
        ends[level] = candidates.size();
      }
      // Each level is in order.
      const auto next = [&]() -> const Candidate* {
        const Candidate* first = nullptr;
        int64_t of = 0;
        for (int64_t level = 0; level < levels; ++level) {
          if (heads[level] == ends[level]) continue;
          const Candidate& head = candidates[heads[level]];
          if (first == nullptr || is_better(head, *first)) {
            first = &head;
            of = level;
          }
        }
        if (first != nullptr) ++heads[of];
        return first;
      };
      const auto kept = suppress(candidates, levels, nms_thresh, most, dtype, next);
      for (size_t place = 0; place < kept.size(); ++place) {
        store_box(*kept[place], to_boxes + 4 * (image * most + place));
        to_logits[image * most + place] = kept[place]->score;
      }
      to_counts[image] = kept.size();
      // What is left says nothing, but the same each time.
      const int64_t end = image * most + to_counts[image];
      std::fill(to_boxes + 4 * end, to_boxes + 4 * (image + 1) * most, 0.0f);
      std::fill(to_logits + end, to_logits + (image + 1) * most, 0.0f);
      if (!finite && !drop_not_finite) to_counts[image] = -1;
    }
  });
  return {boxes, found_logits.to(dtype), counts};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor> select_detections(
    const at::Tensor& boxes, const at::Tensor& scores, int64_t height, int64_t width, double score_thresh,
    double nms_thresh, int64_t topk, std::optional<double> min_size) {
  TORCH_CHECK_VALUE(scores.dim() == 2, "select_detections: scores must be (R, K), got ", scores.sizes());
  const int64_t rows = scores.size(0), classes = scores.size(1);
  TORCH_CHECK_VALUE(boxes.dim() == 3 && boxes.size(0) == rows && boxes.size(2) == 4 &&
                        (boxes.size(1) == 1 || boxes.size(1) == classes),
                    "select_detections: boxes must be (", rows, ", 1, 4) or (", rows, ", ", classes,
                    ", 4), got ", boxes.sizes());
  TORCH_CHECK_TYPE(boxes.scalar_type() == at::kFloat && scores.scalar_type() == at::kFloat,
                   "select_detections: boxes and scores must be float32, got ", boxes.scalar_type(), " and ",
                   scores.scalar_type());
  TORCH_CHECK_VALUE(topk >= 0, "select_detections: topk must not be negative, got ", topk);
  const at::Tensor corners = boxes.stride(2) == 1 ? boxes : boxes.contiguous();
  const float* const from = corners.const_data_ptr<float>();
  const float* const values = scores.const_data_ptr<float>();
  const float lowest = float(score_thresh);
  std::vector<Candidate> candidates;
  bool finite = true;
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t of = 0; of < classes; ++of) {
      const float score = values[row * scores.stride(0) + of * scores.stride(1)];
      if (!(score > lowest)) continue;
      const float* box = from + row * corners.stride(0) + (boxes.size(1) == 1 ? 0 : of) * corners.stride(1);
      Candidate one{box[0], box[1], box[2], box[3], score, of, row * classes + of};
      finite = finite && is_finite(one);
      clip(one, height, width);
      if (min_size && !(one.x1 - one.x0 >= float(*min_size) && one.y1 - one.y0 >= float(*min_size))) continue;
      candidates.push_back(one);
    }
  }
  const int64_t most = std::min(topk, rows * classes);
  const at::Tensor found = at::zeros({most, 4}, boxes.options().memory_format(at::MemoryFormat::Contiguous));
  const at::Tensor found_scores = at::zeros({most}, found.options());
  const at::Tensor found_classes = at::zeros({most}, found.options().dtype(at::kLong));
  const at::Tensor found_rows = at::zeros({most}, found_classes.options());
  const at::Tensor count = at::zeros({}, found_classes.options());
  int64_t& counted = *count.mutable_data_ptr<int64_t>();
  if (!finite) {
    counted = -1;
    return {found, found_scores, found_classes, found_rows, count};
  }
  // A heap in another order than the candidates', of which few are taken as a rule.
  std::vector<const Candidate*> heap(candidates.size());
  for (size_t i = 0; i < heap.size(); ++i) heap[i] = &candidates[i];
  const auto is_worse = [](const Candidate* a, const Candidate* b) { return is_better(*b, *a); };
  std::make_heap(heap.begin(), heap.end(), is_worse);
  const auto next = [&]() -> const Candidate* {
    if (heap.empty()) return nullptr;
    std::pop_heap(heap.begin(), heap.end(), is_worse);
    const Candidate* const first = heap.back();
    heap.pop_back();
    return first;
  };
  float* const to_boxes = found.mutable_data_ptr<float>();
  float* const to_scores = found_scores.mutable_data_ptr<float>();
  int64_t* const to_classes = found_classes.mutable_data_ptr<int64_t>();
  int64_t* const to_rows = found_rows.mutable_data_ptr<int64_t>();
  const auto kept = suppress(candidates, classes, nms_thresh, most, at::kFloat, next);
  for (size_t place = 0; place < kept.size(); ++place) {
    const Candidate& one = *kept[place];
    store_box(one, to_boxes + 4 * place);
    to_scores[place] = one.score;
    to_classes[place] = one.group;
    to_rows[place] = one.place / classes;
  }
  counted = kept.size();
  return {found, found_scores, found_classes, found_rows, count};
}

}  // namespace

TORCH_LIBRARY_IMPL(mrcnn_ext, CPU, m) {
  m.impl("rpn_proposals", rpn_proposals);
  m.impl("select_detections", select_detections);
}

}  // namespace detections
}  // namespace mrcnn_ext
