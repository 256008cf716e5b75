// What is known about every RoI before a feature is read: its level, its image and its two banded matrices.
#pragma once

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <vector>

#include "kernels.h"
#include "roi_align/arguments.h"
#include "roi_align/axis_weights.h"

namespace mrcnn_ext {

struct RoI {
  int64_t index;  // row of `rois` and of the output
  int64_t level;
  int64_t image;
};

// The detectron2 level of every row of `rois` as an index into the levels, -1 where the area has no square
// root. With ATen's own operators, because a logarithm that differs in its last bit would move boxes to
// another level.
inline std::vector<int64_t> assign_levels(const at::Tensor& rois, const PoolingOptions& options) {
  std::vector<int64_t> levels(rois.size(0), 0);
  if (options.scales.size() == 1) return levels;
  const at::Tensor boxes = rois.to(at::kFloat);
  const at::Tensor area =
      (boxes.select(1, 3) - boxes.select(1, 1)) * (boxes.select(1, 4) - boxes.select(1, 2));
  const at::Tensor exact = area.sqrt().div_(options.canonical_box_size).add_(1e-8).log2_();
  const at::Tensor floored = exact.add_(double(options.canonical_level)).floor_();
  const float* values = floored.const_data_ptr<float>();
  for (size_t i = 0; i < levels.size(); ++i) {
    levels[i] = std::isnan(values[i])
                    ? -1
                    : int64_t(clamp_to(values[i], float(options.min_level), float(options.max_level))) -
                          options.min_level;
  }
  return levels;
}

template <typename acc>
std::vector<RoI> locate_rois(const at::Tensor& rois, int64_t images, const PoolingOptions& options) {
  const std::vector<int64_t> levels = assign_levels(rois, options);
  std::vector<RoI> located(rois.size(0));
  const auto rows = rois.accessor<acc, 2>();
  for (int64_t i = 0; i < rois.size(0); ++i) {
    const acc image = std::trunc(rows[i][0]);
    TORCH_CHECK_VALUE(image >= 0 && image < acc(images), "boxes: row ", i, " has batch index ", rows[i][0],
                      ", which must lie in [0, ", images, "), the images of the features");
    located[i] = {i, levels[i], int64_t(image)};
  }
  return located;
}

// The two axes of a RoI; both without samples where either is, so that its output is 0.
template <typename acc>
struct RoIAxes {
  Axis<acc> rows;
  Axis<acc> columns;
};

template <typename acc>
RoIAxes<acc> make_axes(const RoI& roi, const acc* row, const std::vector<at::Tensor>& features,
                       const PoolingOptions& options) {
  if (roi.level < 0) return {};
  const acc scale = acc(options.scales[roi.level]);
  const auto axis = [&](acc lo, acc hi, int64_t bins, int64_t size) {
    return make_axis(options.mode, lo, hi, scale, bins, size, options.sampling_ratio, options.aligned);
  };
  const RoIAxes<acc> axes{axis(row[2], row[4], options.pooled_height, features[roi.level].size(2)),
                          axis(row[1], row[3], options.pooled_width, features[roi.level].size(3))};
  return axes.rows.samples > 0 && axes.columns.samples > 0 ? axes : RoIAxes<acc>{};
}

// A Band that owns its memory.
template <typename acc>
class OwnedBand {
 public:
  Band<acc> view() const {
    return {taps_.data(), weights_.data(), int32_t(taps_.size()), output_begin_, begin_, end_, widest_};
  }

  // Bins over the cells of the map. Without a sample the bins are empty.
  void set_bins(RoIMode mode, const Axis<acc>& axis, int64_t bins) {
    set_supports(mode, axis, bins);
    for (int64_t bin = 0; bin < bins; ++bin) {
      const Tap& tap = taps_[bin];
      bin_weights(mode, axis, bin, Support{tap.first, tap.count}, weights_.data() + tap.offset);
    }
  }

  // The derivative of set_bins by one coordinate of the box.
  void set_gradient(const Axis<acc>& axis, int64_t bins, acc scale, bool of_hi) {
    set_supports(RoIMode::kExact, axis, bins);
    for (int64_t bin = 0; bin < bins; ++bin) {
      const Tap& tap = taps_[bin];
      bin_weight_gradients(axis, bin, bins, scale, of_hi, Support{tap.first, tap.count},
                           weights_.data() + tap.offset);
    }
  }

  // From bins over cells to the cells [begin, end) over bins. The bins that read a cell are consecutive but
  // for gaps between sparse samples, which become zero weights.
  void transpose() {
    OwnedBand bins = std::move(*this);
    const Band<acc> other = bins.view();
    taps_.assign(other.end - other.begin, Tap{0, 0, 0});
    output_begin_ = other.begin;
    for (int32_t bin = 0; bin < other.outputs; ++bin) {
      const Tap& source = other.taps[bin];
      for (int32_t cell = source.first; cell < source.first + source.count; ++cell) {
        Tap& tap = taps_[cell - other.begin];
        if (tap.count == 0) tap.first = bin;
        tap.count = bin - tap.first + 1;
      }
    }
    allocate_weights();
    for (int32_t bin = 0; bin < other.outputs; ++bin) {
      const Tap& source = other.taps[bin];
      for (int32_t k = 0; k < source.count; ++k) {
        const Tap& tap = taps_[source.first + k - other.begin];
        weights_[tap.offset + bin - tap.first] = other.weights[source.offset + k];
      }
    }
  }

 private:
  void set_supports(RoIMode mode, const Axis<acc>& axis, int64_t bins) {
    taps_.resize(bins);
    output_begin_ = 0;
    for (int64_t bin = 0; bin < bins; ++bin) {
      const Support support = bin_support(mode, axis, bin);
      taps_[bin] = Tap{int32_t(support.first), int32_t(support.count), 0};
    }
    allocate_weights();
  }

  void allocate_weights() {
    int32_t size = 0;
    widest_ = 0;
    begin_ = std::numeric_limits<int32_t>::max();
    end_ = 0;
    for (Tap& tap : taps_) {
      tap.offset = size;
      size += tap.count;
      widest_ = std::max(widest_, tap.count);
      if (tap.count == 0) continue;
      begin_ = std::min(begin_, tap.first);
      end_ = std::max(end_, tap.first + tap.count);
    }
    begin_ = std::min(begin_, end_);
    weights_.assign(size, acc(0));
  }

  std::vector<Tap> taps_;
  std::vector<acc> weights_;
  int32_t output_begin_ = 0;
  int32_t begin_ = 0;
  int32_t end_ = 0;
  int32_t widest_ = 0;
};

// A SampleAxis that owns its memory.
template <typename acc>
class OwnedSamples {
 public:
  SampleAxis<acc> view() const {
    return {bins_.data(), points_.data(), int32_t(bins_.size()), begin_, end_, cells_, 0};
  }

  // The same for an image that begins at the first cell that is read.
  SampleAxis<acc> view_of_window() const {
    SampleAxis<acc> axis = view();
    axis.first = begin_;
    return axis;
  }

  void set_bins(RoIMode mode, const Axis<acc>& axis, int64_t bins) {
    cells_ = mode == RoIMode::kPool;
    bins_.reserve(bins);
    points_.reserve(2 * bins);
    for (int64_t bin = 0; bin < bins; ++bin) {
      const int32_t offset = int32_t(points_.size());
      const bool outside = cells_ ? add_cells(axis, bin) : add_samples(axis, bin);
      const int32_t count = int32_t(points_.size()) - offset;
      bins_.push_back(SampleBin{offset, count, outside, count > 0 ? (65535 + count) / count : 0});
      most_ = std::max(most_, count);
    }
    if (points_.empty()) return;
    begin_ = std::numeric_limits<int32_t>::max();
    for (const SamplePoint<acc>& point : points_) {
      begin_ = std::min(begin_, point.low);
      end_ = std::max(end_, point.high + 1);
    }
  }

  // No bin of a RoI with these rows and columns has more.
  static int64_t most_samples(const OwnedSamples& rows, const OwnedSamples& columns) {
    return int64_t(rows.most_) * columns.most_;
  }

 private:
  bool add_cells(const Axis<acc>& axis, int64_t bin) {
    const Support support = pool_support(axis, bin);
    for (int64_t i = support.first; i < support.first + support.count; ++i) {
      points_.push_back({int32_t(i), int32_t(i), acc(1), acc(0)});
    }
    return false;
  }

  bool add_samples(const Axis<acc>& axis, int64_t bin) {
    const SampleRange range = samples_inside(axis, bin);
    for (int64_t i = range.begin; i < range.end; ++i) {
      const Sample<acc> sample = make_sample(axis, sample_position(axis, bin, i));
      points_.push_back({int32_t(sample.low), int32_t(sample.high), sample.low_weight, sample.high_weight});
    }
    return range.end - range.begin < axis.samples;
  }

  std::vector<SampleBin> bins_;
  std::vector<SamplePoint<acc>> points_;
  int32_t begin_ = 0;
  int32_t end_ = 0;
  int32_t most_ = 0;  // samples of a bin
  bool cells_ = false;
};

}  // namespace mrcnn_ext
