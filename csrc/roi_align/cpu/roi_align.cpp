// RoI pooling on the CPU: the operators, and the average modes as two banded products per RoI.
//
// Results do not depend on the number of threads: threads share out output elements, never the terms of a
// sum. A RoI's output, or the gradient of one image's block of channels, is computed by one thread, RoIs in
// one fixed order.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <ATen/Version.h>
#include <torch/library.h>

#include <algorithm>
#include <numeric>
#include <tuple>
#include <vector>

#include "kernels.h"
#include "layout.h"
#include "maximum.h"
#include "memory.h"
#include "parallel.h"
#include "plan.h"
#include "roi_align/arguments.h"
#include "work.h"

namespace mrcnn_ext {
namespace {

// Working memory of this thread, kept from call to call.
template <typename acc>
Scratch<acc> scratch_for(const Band<acc>& rows, const Band<acc>& columns, int64_t pooled_width) {
  thread_local std::vector<acc> values, weights;
  thread_local std::vector<int32_t> indices;
  thread_local std::vector<ColumnGroup> groups;
  const auto reserve = [](auto& memory, int64_t size) {
    if (int64_t(memory.size()) < size) memory.resize(size);
  };
  reserve(values, scratch_values(rows, columns, pooled_width));
  reserve(weights, lookup_table_size(columns));
  reserve(indices, lookup_table_size(columns));
  reserve(groups, columns.outputs);
  return {values.data(), weights.data(), indices.data(), groups.data()};
}

// Pools the RoIs of one level straight from it, in either layout.
template <typename T>
void pool_level(const at::Tensor& feature, c10::ArrayRef<PlannedRoI<OwnedBand<acc_t<T>>>> plan,
                const PoolingOptions& options, bool nhwc, const at::Tensor& output) {
  using acc = acc_t<T>;
  const Kernels<T>& kernels = select_kernels<T>(nhwc);
  const T* data = feature.const_data_ptr<T>();
  T* out = output.mutable_data_ptr<T>();
  for_each_output(plan, output.size(1), nhwc ? 256 : 16,
                  [&](const auto& planned, int64_t channel, int64_t channels) {
                    const Band<acc> rows = planned.rows.view();
                    const Band<acc> columns = planned.columns.view();
                    kernels.pool(image_of(data, feature, planned.roi.image, channel, channels), rows, columns,
                                 image_of(out, output, planned.roi.index, channel, channels),
                                 scratch_for(rows, columns, options.pooled_width));
                  });
}

// The same from a copy in NHWC of an NCHW level.
template <typename T>
void pool_level_from_pixels(const at::Tensor& feature, c10::ArrayRef<PlannedRoI<OwnedBand<acc_t<T>>>> plan,
                            const PoolingOptions& options, const at::Tensor& output) {
  using acc = acc_t<T>;
  const Kernels<T>& kernels = select_kernels<T>(true);
  const int64_t bins = options.pooled_height * options.pooled_width;
  T* out = output.mutable_data_ptr<T>();
  for_each_output_from_pixels<T>(
      feature, plan, [&](const auto& planned, const Image<const T>& map, int64_t channel) {
        thread_local std::vector<T> pooled;
        const int64_t channels = map.channels;
        pooled.resize(std::max<size_t>(pooled.size(), bins * channels));
        const Image<T> pixels{pooled.data(), options.pooled_width * channels, channels, 1, channels};
        const Band<acc> rows = planned.rows.view();
        const Band<acc> columns = planned.columns.view();
        kernels.pool(map, rows, columns, pixels, scratch_for(rows, columns, options.pooled_width));
        planes_from_pixels(pixels, image_of(out, output, planned.roi.index, channel, channels), bins);
      });
}

template <typename T>
void pool_average(const std::vector<at::Tensor>& features, const at::Tensor& rois,
                  const PoolingOptions& options, bool nhwc, const at::Tensor& output) {
  using Plan = c10::ArrayRef<PlannedRoI<OwnedBand<acc_t<T>>>>;
  const auto owned = make_plan<OwnedBand<acc_t<T>>, acc_t<T>>(features, rois, options);
  for_each_level(features, Plan(owned), [&](const at::Tensor& feature, const Plan& plan, int64_t cells) {
    // Pooling from pixels is so much faster that a copy pays once the RoIs read more cells than it has.
    if (nhwc || cells <= feature.size(0) * feature.size(2) * feature.size(3)) {
      pool_level<T>(feature, plan, options, nhwc, output);
    } else {
      pool_level_from_pixels<T>(feature, plan, options, output);
    }
  });
}

template <typename T>
void scatter_average(const at::Tensor& grad, const at::Tensor& rois, const PoolingOptions& options, bool nhwc,
                     const std::vector<at::Tensor>& grad_features) {
  using acc = acc_t<T>;
  const Kernels<T>& kernels = select_kernels<T>(nhwc);
  auto plan = make_plan<OwnedBand<acc>, acc>(grad_features, rois, options);
  at::parallel_for(0, plan.size(), 64, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      plan[i].rows.transpose();
      plan[i].columns.transpose();
    }
  });
  const T* grad_data = grad.const_data_ptr<T>();
  for_each_gradient<T>(
      plan, grad_features, nhwc, [&](int64_t) { return nhwc; }, nhwc ? 64 : 16,
      [&](const auto& planned, int64_t, int64_t channel, int64_t channels, const Image<acc>& sums) {
        const Band<acc> rows = planned.rows.view();
        const Band<acc> columns = planned.columns.view();
        kernels.scatter(image_of(grad_data, grad, planned.roi.index, channel, channels), rows, columns, sums,
                        scratch_for(rows, columns, options.pooled_width));
      });
}

// Gradient of "exact" by the coordinates of the boxes: the RoI is pooled once more per coordinate, with the
// derivative of that coordinate's weights, and multiplied with the incoming gradient.
template <typename T>
void box_gradient(const std::vector<at::Tensor>& features, const at::Tensor& grad, const at::Tensor& rois,
                  const PoolingOptions& options, bool nhwc, const at::Tensor& grad_rois) {
  using acc = acc_t<T>;
  const Kernels<T>& kernels = select_kernels<T>(nhwc);
  const std::vector<RoI> located = locate_rois<acc>(rois, features[0].size(0), options);
  const acc* boxes = rois.const_data_ptr<acc>();
  acc* result = grad_rois.mutable_data_ptr<acc>();
  const T* grad_data = grad.const_data_ptr<T>();
  const int64_t channels = grad.size(1);
  const int64_t values = channels * options.pooled_height * options.pooled_width;
  share_out(located.size(), [&](int64_t i) {
    thread_local std::vector<T> pooled;
    const RoI& roi = located[i];
    std::fill_n(result + i * 5, 5, acc(0));
    const RoIAxes<acc> axes = make_axes(roi, boxes + i * 5, features, options);
    if (axes.rows.samples == 0) return;
    const at::Tensor& feature = features[roi.level];
    pooled.resize(values);
    const Image<T> target =
        nhwc ? Image<T>{pooled.data(), options.pooled_width * channels, channels, 1, channels}
             : Image<T>{pooled.data(), options.pooled_width, 1, options.pooled_height * options.pooled_width,
                        channels};
    for (int coordinate = 0; coordinate < 4; ++coordinate) {
      const bool of_columns = coordinate % 2 == 0;
      const acc scale = acc(options.scales[roi.level]);
      OwnedBand<acc> rows, columns;
      if (of_columns) {
        rows.set_bins(options.mode, axes.rows, options.pooled_height);
        columns.set_gradient(axes.columns, options.pooled_width, scale, coordinate >= 2);
      } else {
        rows.set_gradient(axes.rows, options.pooled_height, scale, coordinate >= 2);
        columns.set_bins(options.mode, axes.columns, options.pooled_width);
      }
      kernels.pool(image_of(feature.const_data_ptr<T>(), feature, roi.image, 0, channels), rows.view(),
                   columns.view(), target, scratch_for(rows.view(), columns.view(), options.pooled_width));
      acc sum = 0;
      for (int64_t k = 0; k < values; ++k) sum += acc(pooled[k]) * acc(grad_data[i * values + k]);
      result[i * 5 + 1 + coordinate] = sum;
    }
  });
}

#define MRCNN_DISPATCH_FLOATING(TYPE, ...) \
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, TYPE, "mrcnn_ext::roi_align", __VA_ARGS__)

std::vector<at::Tensor> empty_like_all(at::TensorList features, at::MemoryFormat format) {
  std::vector<at::Tensor> results;
  for (const at::Tensor& feature : features) {
    results.push_back(empty_result(feature.sizes(), feature.options().memory_format(format)));
  }
  return results;
}

at::Tensor roi_align(at::TensorList features, const at::Tensor& rois, at::ArrayRef<double> spatial_scales,
                     int64_t pooled_height, int64_t pooled_width, int64_t sampling_ratio, bool aligned,
                     std::string_view mode, double canonical_box_size, int64_t canonical_level) {
  at::AutoDispatchBelowADInplaceOrView guard;
  const PoolingOptions options =
      check_arguments(features, rois, spatial_scales, pooled_height, pooled_width, sampling_ratio, aligned,
                      mode, canonical_box_size, canonical_level);
  const at::MemoryFormat format = common_format(features);
  const at::Tensor output = empty_result({rois.size(0), features[0].size(1), pooled_height, pooled_width},
                                         features[0].options().memory_format(format));
  const at::Tensor coordinates = coordinates_of(rois, features[0]);
  const std::vector<at::Tensor> levels = readable(features, format);
  const bool nhwc = format == at::MemoryFormat::ChannelsLast;
  MRCNN_DISPATCH_FLOATING(features[0].scalar_type(), [&] {
    if (is_max_mode(options.mode)) {
      pool_maximum<scalar_t>(levels, coordinates, options, nhwc, output, at::Tensor());
    } else {
      pool_average<scalar_t>(levels, coordinates, options, nhwc, output);
    }
  });
  return output;
}

std::tuple<std::vector<at::Tensor>, at::Tensor> roi_align_backward(
    const at::Tensor& grad, at::TensorList features, const at::Tensor& rois,
    at::ArrayRef<double> spatial_scales, int64_t pooled_height, int64_t pooled_width, int64_t sampling_ratio,
    bool aligned, std::string_view mode, double canonical_box_size, int64_t canonical_level,
    bool rois_need_grad) {
  at::AutoDispatchBelowADInplaceOrView guard;
  const PoolingOptions options =
      check_arguments(features, rois, spatial_scales, pooled_height, pooled_width, sampling_ratio, aligned,
                      mode, canonical_box_size, canonical_level);
  check_grad(grad, features[0], rois, options);
  const at::MemoryFormat format = common_format(features);
  const at::Tensor dense_grad = dense(grad, format);
  const at::Tensor coordinates = coordinates_of(rois, features[0]);
  const std::vector<at::Tensor> grad_features = empty_like_all(features, format);
  at::Tensor grad_rois = at::zeros({rois_need_grad ? rois.size(0) : 0, 5}, coordinates.options());
  const std::vector<at::Tensor> levels = readable(features, format);
  const bool nhwc = format == at::MemoryFormat::ChannelsLast;
  MRCNN_DISPATCH_FLOATING(features[0].scalar_type(), [&] {
    if (is_max_mode(options.mode)) {
      scatter_maximum<scalar_t>(levels, dense_grad, at::Tensor(), coordinates, options, nhwc, grad_features);
    } else {
      scatter_average<scalar_t>(dense_grad, coordinates, options, nhwc, grad_features);
    }
    if (rois_need_grad && options.mode == RoIMode::kExact) {
      // What is pooled is multiplied with the gradient afterwards: half precision would round it, or
      // overflow.
      using acc = acc_t<scalar_t>;
      std::vector<at::Tensor> wide;
      for (const at::Tensor& level : levels) {
        wide.push_back(level.to(c10::CppTypeToScalarType<acc>::value).contiguous(format));
      }
      const at::Tensor wide_grad = dense_grad.to(wide[0].scalar_type()).contiguous(format);
      box_gradient<acc>(wide, wide_grad, coordinates, options, nhwc, grad_rois);
    }
  });
  return {grad_features, grad_rois.to(rois.scalar_type())};
}

PoolingOptions check_max_arguments(at::TensorList features, const at::Tensor& rois,
                                   at::ArrayRef<double> spatial_scales, int64_t pooled_height,
                                   int64_t pooled_width, int64_t sampling_ratio, bool aligned,
                                   std::string_view mode, double canonical_box_size,
                                   int64_t canonical_level) {
  const PoolingOptions options =
      check_arguments(features, rois, spatial_scales, pooled_height, pooled_width, sampling_ratio, aligned,
                      mode, canonical_box_size, canonical_level);
  TORCH_CHECK_VALUE(is_max_mode(options.mode), "mode must be one of 'max', 'warp_max' and 'pool', got '",
                    mode, "'");
  return options;
}

std::tuple<at::Tensor, at::Tensor> roi_max_pool(at::TensorList features, const at::Tensor& rois,
                                                at::ArrayRef<double> spatial_scales, int64_t pooled_height,
                                                int64_t pooled_width, int64_t sampling_ratio, bool aligned,
                                                std::string_view mode, double canonical_box_size,
                                                int64_t canonical_level) {
  at::AutoDispatchBelowADInplaceOrView guard;
  const PoolingOptions options =
      check_max_arguments(features, rois, spatial_scales, pooled_height, pooled_width, sampling_ratio,
                          aligned, mode, canonical_box_size, canonical_level);
  const at::MemoryFormat format = common_format(features);
  const std::vector<int64_t> size{rois.size(0), features[0].size(1), pooled_height, pooled_width};
  const auto like = features[0].options().memory_format(format);
  const at::Tensor output = empty_result(size, like);
  const at::Tensor codes = empty_result(size, like.dtype(at::kByte));
  const at::Tensor coordinates = coordinates_of(rois, features[0]);
  const std::vector<at::Tensor> levels = readable(features, format);
  MRCNN_DISPATCH_FLOATING(features[0].scalar_type(), [&] {
    pool_maximum<scalar_t>(levels, coordinates, options, format == at::MemoryFormat::ChannelsLast, output,
                           codes);
  });
  return {output, codes};
}

std::vector<at::Tensor> roi_max_pool_backward(const at::Tensor& grad, const at::Tensor& codes,
                                              at::TensorList features, const at::Tensor& rois,
                                              at::ArrayRef<double> spatial_scales, int64_t pooled_height,
                                              int64_t pooled_width, int64_t sampling_ratio, bool aligned,
                                              std::string_view mode, double canonical_box_size,
                                              int64_t canonical_level) {
  at::AutoDispatchBelowADInplaceOrView guard;
  const PoolingOptions options =
      check_max_arguments(features, rois, spatial_scales, pooled_height, pooled_width, sampling_ratio,
                          aligned, mode, canonical_box_size, canonical_level);
  check_grad(grad, features[0], rois, options);
  TORCH_CHECK_VALUE(codes.sizes() == grad.sizes() && codes.device() == grad.device(),
                    "codes must have the shape and the device of grad, ", grad.sizes(), ", got ",
                    codes.sizes());
  TORCH_CHECK_TYPE(codes.scalar_type() == at::kByte, "codes must be uint8, got ", codes.scalar_type());
  const at::MemoryFormat format = common_format(features);
  const std::vector<at::Tensor> grad_features = empty_like_all(features, format);
  const at::Tensor coordinates = coordinates_of(rois, features[0]);
  const std::vector<at::Tensor> levels = readable(features, format);
  MRCNN_DISPATCH_FLOATING(features[0].scalar_type(), [&] {
    scatter_maximum<scalar_t>(levels, dense(grad, format), dense(codes, format), coordinates, options,
                              format == at::MemoryFormat::ChannelsLast, grad_features);
  });
  return grad_features;
}

}  // namespace

TORCH_LIBRARY_IMPL(mrcnn_ext, CPU, m) {
  m.impl("roi_align", roi_align);
  m.impl("roi_align_backward", roi_align_backward);
  m.impl("roi_max_pool", roi_max_pool);
  m.impl("roi_max_pool_backward", roi_max_pool_backward);
}

}  // namespace mrcnn_ext
