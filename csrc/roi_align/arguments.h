// What the CPU and the CUDA implementation do with their arguments alike.
#pragma once

#include <ATen/ATen.h>

#include <limits>
#include <string>
#include <string_view>
#include <vector>

#include "roi_align/axis_weights.h"

namespace mrcnn_ext {

struct PoolingOptions {
  std::vector<double> scales;  // feature cells per pixel, one per level
  int64_t pooled_height;
  int64_t pooled_width;
  int64_t sampling_ratio;
  bool aligned;
  RoIMode mode;
  double canonical_box_size;
  int64_t canonical_level;
  int64_t min_level;  // log2 of the strides of the first and the last level
  int64_t max_level;
};

inline RoIMode parse_mode(std::string_view mode) {
  if (mode == "avg") return RoIMode::kAvg;
  if (mode == "max") return RoIMode::kMax;
  if (mode == "warp_avg") return RoIMode::kWarpAvg;
  if (mode == "warp_max") return RoIMode::kWarpMax;
  if (mode == "pool") return RoIMode::kPool;
  if (mode == "exact") return RoIMode::kExact;
  TORCH_CHECK_VALUE(false,
                    "mode must be one of 'avg', 'max', 'warp_avg', 'warp_max', 'pool' and 'exact', got '",
                    mode, "'");
}

inline void check_features(at::TensorList features) {
  TORCH_CHECK_VALUE(!features.empty(), "features must have at least one level, got an empty list");
  const at::Tensor& first = features[0];
  for (size_t level = 0; level < features.size(); ++level) {
    const at::Tensor& feature = features[level];
    TORCH_CHECK_VALUE(feature.dim() == 4, "features[", level, "] must have the shape (N, C, H, W), got ",
                      feature.sizes());
    TORCH_CHECK_VALUE(feature.size(0) == first.size(0) && feature.size(1) == first.size(1), "features[",
                      level, "] must have the N and C of features[0], ", first.sizes(), ", got ",
                      feature.sizes());
    TORCH_CHECK_VALUE(feature.size(2) <= std::numeric_limits<int32_t>::max() &&
                          feature.size(3) <= std::numeric_limits<int32_t>::max(),
                      "features[", level, "] must be smaller than 2^31 cells on either side, got ",
                      feature.sizes());
    TORCH_CHECK_TYPE(feature.scalar_type() == first.scalar_type(), "features[", level,
                     "] must have the dtype of features[0], ", first.scalar_type(), ", got ",
                     feature.scalar_type());
    TORCH_CHECK_VALUE(feature.device() == first.device(), "features[", level,
                      "] must be on the device of features[0], ", first.device(), ", got ", feature.device());
  }
  TORCH_CHECK_TYPE(at::isFloatingType(first.scalar_type()) && first.element_size() > 1,
                   "features must be float64, float32, bfloat16 or float16, got ", first.scalar_type());
}

inline void check_rois(const at::Tensor& rois, const at::Tensor& feature) {
  TORCH_CHECK_VALUE(rois.dim() == 2 && rois.size(1) == 5,
                    "rois must have the shape (R, 5), rows of [batch index, x0, y0, x1, y1], got ",
                    rois.sizes());
  TORCH_CHECK_TYPE(at::isFloatingType(rois.scalar_type()), "rois must be of a floating dtype, got ",
                   rois.scalar_type());
  TORCH_CHECK_VALUE(rois.device() == feature.device(), "rois must be on the device of features, ",
                    feature.device(), ", got ", rois.device());
}

// Levels are numbered by the log2 of their strides, so the scales have to be a pyramid of powers of two.
inline int64_t level_of_scale(double scale, size_t index) {
  const double level = -std::log2(scale);
  TORCH_CHECK_VALUE(std::abs(level - std::round(level)) < 1e-6, "spatial_scales[", index,
                    "] must be a power of two when there are several levels, got ", scale);
  return int64_t(std::round(level));
}

inline PoolingOptions check_arguments(at::TensorList features, const at::Tensor& rois,
                                      at::ArrayRef<double> scales, int64_t pooled_height,
                                      int64_t pooled_width, int64_t sampling_ratio, bool aligned,
                                      std::string_view mode, double canonical_box_size,
                                      int64_t canonical_level) {
  check_features(features);
  check_rois(rois, features[0]);
  TORCH_CHECK_VALUE(scales.size() == features.size(), "spatial_scales must have one number per level, ",
                    features.size(), ", got ", scales.size());
  TORCH_CHECK_VALUE(pooled_height > 0 && pooled_width > 0,
                    "pooled_height and pooled_width must be positive, got ", pooled_height, " and ",
                    pooled_width);
  TORCH_CHECK_VALUE(pooled_height <= (1 << 20) && pooled_width <= (1 << 20),
                    "pooled_height and pooled_width must be at most 2^20, got ", pooled_height, " and ",
                    pooled_width);
  for (size_t i = 0; i < scales.size(); ++i) {
    TORCH_CHECK_VALUE(scales[i] > 0 && is_finite(scales[i]), "spatial_scales[", i,
                      "] must be positive and finite, got ", scales[i]);
  }
  PoolingOptions options{scales.vec(),
                         pooled_height,
                         pooled_width,
                         sampling_ratio,
                         aligned,
                         parse_mode(mode),
                         canonical_box_size,
                         canonical_level,
                         0,
                         0};
  if (scales.size() == 1) return options;
  TORCH_CHECK_VALUE(canonical_box_size > 0 && is_finite(canonical_box_size),
                    "canonical_box_size must be positive and finite, got ", canonical_box_size);
  options.min_level = level_of_scale(scales.front(), 0);
  options.max_level = level_of_scale(scales.back(), scales.size() - 1);
  for (size_t i = 0; i < scales.size(); ++i) {
    TORCH_CHECK_VALUE(level_of_scale(scales[i], i) == options.min_level + int64_t(i),
                      "spatial_scales must halve from level to level, got ", scales);
  }
  return options;
}

inline void check_grad(const at::Tensor& grad, const at::Tensor& feature, const at::Tensor& rois,
                       const PoolingOptions& options) {
  const std::vector<int64_t> expected{rois.size(0), feature.size(1), options.pooled_height,
                                      options.pooled_width};
  TORCH_CHECK_VALUE(grad.sizes() == at::IntArrayRef(expected), "grad must have the shape of the output, ",
                    at::IntArrayRef(expected), ", got ", grad.sizes());
  TORCH_CHECK_TYPE(grad.scalar_type() == feature.scalar_type(), "grad must have the dtype of features, ",
                   feature.scalar_type(), ", got ", grad.scalar_type());
  TORCH_CHECK_VALUE(grad.device() == feature.device(), "grad must be on the device of features, ",
                    feature.device(), ", got ", grad.device());
}

// contiguous() leaves the stride of a dimension of size 1 as it is, which may be anything.
inline at::Tensor dense(const at::Tensor& tensor, at::MemoryFormat format) {
  const at::Tensor contiguous = tensor.contiguous(format);
  if (format == at::MemoryFormat::ChannelsLast)
    return contiguous.as_strided(tensor.sizes(), c10::get_channels_last_strides_2d(tensor.sizes()));
  return contiguous.as_strided(tensor.sizes(), c10::contiguous_strides(tensor.sizes()));
}

// The RoIs in the dtype that coordinates are computed in, whatever that of the features.
inline at::Tensor coordinates_of(const at::Tensor& rois, const at::Tensor& feature) {
  return rois.to(feature.scalar_type() == at::kDouble ? at::kDouble : at::kFloat).contiguous();
}

}  // namespace mrcnn_ext
