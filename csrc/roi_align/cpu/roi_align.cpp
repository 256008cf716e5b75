// RoI pooling on the CPU: average modes as two banded products per RoI.
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
#include "memory.h"
#include "parallel.h"
#include "plan.h"
#include "roi_align/arguments.h"

namespace mrcnn_ext {
namespace {

// As ATen chose for its own kernels, so that ATEN_CPU_CAPABILITY governs these too.
const KernelSet& best_kernels() {
#if defined(__x86_64__)
  static const std::string capability = at::get_cpu_capability();
  if (capability == "AVX512") return avx512_kernels();
  if (capability == "AVX2") return avx2_kernels();
#endif
  return plain_kernels();
}

template <typename T>
const Kernels<T>& select_kernels(bool nhwc) {
  const KernelSet& set = best_kernels();
  const LayoutKernels<T>* layouts;
  if constexpr (std::is_same_v<T, float>) layouts = &set.f32;
  if constexpr (std::is_same_v<T, double>) layouts = &set.f64;
  if constexpr (std::is_same_v<T, c10::BFloat16>) layouts = &set.bf16;
  if constexpr (std::is_same_v<T, c10::Half>) layouts = &set.f16;
  return nhwc ? layouts->nhwc : layouts->nchw;
}

at::MemoryFormat common_format(at::TensorList features) { return features[0].suggest_memory_format(); }

// Levels as the kernels can read them: any strides, but for the innermost dimension.
std::vector<at::Tensor> readable(at::TensorList features, at::MemoryFormat format) {
  const int64_t innermost = format == at::MemoryFormat::ChannelsLast ? 1 : 3;
  std::vector<at::Tensor> levels;
  for (const at::Tensor& feature : features) {
    const bool dense = feature.stride(innermost) == 1 || feature.size(innermost) == 1;
    levels.push_back(dense ? feature : feature.contiguous(format));
  }
  return levels;
}

template <typename T>
Image<T> image_of(T* data, const at::Tensor& tensor, int64_t image, int64_t channel, int64_t channels) {
  return {data + image * tensor.stride(0) + channel * tensor.stride(1), tensor.stride(2), tensor.stride(3),
          tensor.stride(1), channels};
}

// What is known of one RoI before a feature is read. Table: OwnedBand (average modes) or OwnedSamples (max
// modes).
template <typename Table>
struct PlannedRoI {
  RoI roi;
  Table rows;
  Table columns;
  int32_t top;  // rows of the map that it reads: [top, bottom)
  int32_t bottom;
};

// By level, image and top row, so that neighbours share cached features and each image is one range.
template <typename Table, typename acc>
std::vector<PlannedRoI<Table>> make_plan(const std::vector<at::Tensor>& features, const at::Tensor& rois,
                                         const PoolingOptions& options) {
  const std::vector<RoI> located = locate_rois<acc>(rois, features[0].size(0), options);
  std::vector<PlannedRoI<Table>> plan(located.size());
  const acc* boxes = rois.const_data_ptr<acc>();
  at::parallel_for(0, plan.size(), 64, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      PlannedRoI<Table>& planned = plan[i];
      planned.roi = located[i];
      const RoIAxes<acc> axes = make_axes(planned.roi, boxes + i * 5, features, options);
      planned.roi.level = std::max<int64_t>(planned.roi.level, 0);
      planned.rows.set_bins(options.mode, axes.rows, options.pooled_height);
      planned.columns.set_bins(options.mode, axes.columns, options.pooled_width);
      planned.top = planned.rows.view().begin;
      planned.bottom = planned.rows.view().end;
    }
  });
  const auto key = [](const PlannedRoI<Table>& planned) {
    return std::make_tuple(planned.roi.level, planned.roi.image, planned.top, planned.roi.index);
  };
  std::sort(plan.begin(), plan.end(), [&](const auto& a, const auto& b) { return key(a) < key(b); });
  return plan;
}

// Calls pool(planned, channel, channels) for every RoI and block of channels.
template <typename Table, typename Pool>
void for_each_output(c10::ArrayRef<PlannedRoI<Table>> plan, int64_t channels, int64_t block,
                     const Pool& pool) {
  constexpr int64_t kRoIsPerUnit = 8;
  const int64_t count = plan.size();
  const int64_t chunks = (count + kRoIsPerUnit - 1) / kRoIsPerUnit;
  const int64_t blocks = (channels + block - 1) / block;
  share_out(blocks * chunks, [&](int64_t unit) {
    const int64_t channel = unit / chunks * block;
    const int64_t begin = unit % chunks * kRoIsPerUnit;
    for (int64_t i = begin; i < std::min(begin + kRoIsPerUnit, count); ++i) {
      pool(plan[i], channel, std::min(block, channels - channel));
    }
  });
}

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

// Pools the RoIs of one NCHW level from a copy in NHWC, of as many channels at a time as stay in the cache.
template <typename T>
void pool_level_from_pixels(const at::Tensor& feature, c10::ArrayRef<PlannedRoI<OwnedBand<acc_t<T>>>> plan,
                            const PoolingOptions& options, const at::Tensor& output) {
  using acc = acc_t<T>;
  const Kernels<T>& kernels = select_kernels<T>(true);
  const int64_t images = feature.size(0);
  const int64_t height = feature.size(2);
  const int64_t width = feature.size(3);
  const int64_t block = std::min<int64_t>(feature.size(1), 64);
  const int64_t bins = options.pooled_height * options.pooled_width;
  const T* data = feature.const_data_ptr<T>();
  T* out = output.mutable_data_ptr<T>();
  const at::Tensor memory = empty_result({images * height * width * block}, feature.options());
  T* copies = memory.mutable_data_ptr<T>();
  for (int64_t channel = 0; channel < feature.size(1); channel += block) {
    const int64_t channels = std::min(block, feature.size(1) - channel);
    const auto copy_of = [&](int64_t image) { return copies + image * height * width * channels; };
    share_out(images * height, [&](int64_t unit) {
      const int64_t image = unit / height;
      pixels_from_planes<T>(image_of(data, feature, image, channel, channels),
                            {copy_of(image), width * channels, channels, 1, channels}, unit % height, width);
    });
    for_each_output(plan, channels, channels, [&](const auto& planned, int64_t, int64_t) {
      thread_local std::vector<T> pooled;
      pooled.resize(std::max<size_t>(pooled.size(), bins * channels));
      const Image<T> pixels{pooled.data(), options.pooled_width * channels, channels, 1, channels};
      const Band<acc> rows = planned.rows.view();
      const Band<acc> columns = planned.columns.view();
      kernels.pool({copy_of(planned.roi.image), width * channels, channels, 1, channels}, rows, columns,
                   pixels, scratch_for(rows, columns, options.pooled_width));
      planes_from_pixels(pixels, image_of(out, output, planned.roi.index, channel, channels), bins);
    });
  }
}

template <typename T>
void pool_average(const std::vector<at::Tensor>& features, const at::Tensor& rois,
                  const PoolingOptions& options, bool nhwc, const at::Tensor& output) {
  using acc = acc_t<T>;
  const auto plan = make_plan<OwnedBand<acc>, acc>(features, rois, options);
  for (size_t begin = 0, end = 0; begin < plan.size(); begin = end) {
    const int64_t level = plan[begin].roi.level;
    int64_t cells = 0;
    for (; end < plan.size() && plan[end].roi.level == level; ++end) {
      const Band<acc> columns = plan[end].columns.view();
      cells += int64_t(plan[end].bottom - plan[end].top) * (columns.end - columns.begin);
    }
    const at::Tensor& feature = features[level];
    const auto here = c10::ArrayRef<PlannedRoI<OwnedBand<acc>>>(plan).slice(begin, end - begin);
    // Pooling from pixels is so much faster that a copy pays once the RoIs read more cells than it has.
    if (nhwc || cells <= feature.size(0) * feature.size(2) * feature.size(3)) {
      pool_level<T>(feature, here, options, nhwc, output);
    } else {
      pool_level_from_pixels<T>(feature, here, options, output);
    }
  }
}

template <typename T>
void pool_maximum(const std::vector<at::Tensor>& features, const at::Tensor& rois,
                  const PoolingOptions& options, bool nhwc, const at::Tensor& output) {
  using acc = acc_t<T>;
  const Kernels<T>& kernels = select_kernels<T>(nhwc);
  const auto plan = make_plan<OwnedSamples<acc>, acc>(features, rois, options);
  T* out = output.mutable_data_ptr<T>();
  for_each_output(c10::ArrayRef<PlannedRoI<OwnedSamples<acc>>>(plan), output.size(1), nhwc ? 256 : 16,
                  [&](const auto& planned, int64_t channel, int64_t channels) {
                    const at::Tensor& feature = features[planned.roi.level];
                    kernels.pool_max(
                        image_of(feature.const_data_ptr<T>(), feature, planned.roi.image, channel, channels),
                        planned.rows.view(), planned.columns.view(),
                        image_of(out, output, planned.roi.index, channel, channels));
                  });
}

// Zeroes the rows of a block of channels just before the first RoI that reaches them, while they enter the
// cache.
template <typename T>
class RowZeroer {
 public:
  RowZeroer(const Image<T>& image, int64_t width, bool nhwc) : image_(image), width_(width), nhwc_(nhwc) {}

  void reach(int64_t end) {
    for (; done_ < end; ++done_) {
      const int64_t runs = nhwc_ ? width_ : image_.channels;
      const int64_t run_stride = nhwc_ ? image_.column_stride : image_.channel_stride;
      const int64_t run_length = nhwc_ ? image_.channels : width_;
      for (int64_t run = 0; run < runs; ++run) {
        std::fill_n(image_.data + done_ * image_.row_stride + run * run_stride, run_length, T(0));
      }
    }
  }

 private:
  Image<T> image_;
  int64_t width_;
  bool nhwc_;
  int64_t done_ = 0;
};

// Gradients of half types are summed in an fp32 copy of the block of channels at hand, then rounded once.
template <typename T>
Image<acc_t<T>> summation_image(const Image<T>& target, int64_t height, int64_t width, bool nhwc,
                                std::vector<acc_t<T>>& memory) {
  if constexpr (std::is_same_v<T, acc_t<T>>) {
    return target;
  } else {
    memory.resize(std::max<size_t>(memory.size(), height * width * target.channels));
    if (nhwc) return {memory.data(), width * target.channels, target.channels, 1, target.channels};
    return {memory.data(), width, 1, height * width, target.channels};
  }
}

template <typename T>
void round_into(const Image<acc_t<T>>& sums, const Image<T>& target, int64_t height, int64_t width,
                bool nhwc) {
  if constexpr (!std::is_same_v<T, acc_t<T>>) {
    const Kernels<T>& kernels = select_kernels<T>(nhwc);
    const int64_t outer = nhwc ? width : target.channels;
    const int64_t inner = nhwc ? target.channels : width;
    for (int64_t y = 0; y < height; ++y) {
      for (int64_t i = 0; i < outer; ++i) {
        kernels.round(
            sums.data + y * sums.row_stride + i * (nhwc ? sums.column_stride : sums.channel_stride), inner,
            target.data + y * target.row_stride + i * (nhwc ? target.column_stride : target.channel_stride));
      }
    }
  }
}

// Calls scatter(planned, channel, channels, sums) for the RoIs of every image and block of channels, in
// order.
template <typename T, typename Table, typename Scatter>
void for_each_gradient(const std::vector<PlannedRoI<Table>>& plan,
                       const std::vector<at::Tensor>& grad_features, bool nhwc, const Scatter& scatter) {
  const int64_t block = nhwc ? 64 : 16;
  const int64_t channels = grad_features[0].size(1);
  const int64_t levels = grad_features.size();
  const int64_t images = grad_features[0].size(0);
  const int64_t blocks = (channels + block - 1) / block;
  share_out(blocks * levels * images, [&](int64_t unit) {
    thread_local std::vector<acc_t<T>> memory;
    // The finest level first: its units are the largest, and the small ones then even out the threads.
    const int64_t channel = unit % blocks * block;
    const int64_t width = std::min(block, channels - channel);
    const auto place = std::make_pair(unit / blocks / images, unit / blocks % images);
    const at::Tensor& grad_feature = grad_features[place.first];
    const int64_t rows = grad_feature.size(2);
    const int64_t columns = grad_feature.size(3);
    const auto target =
        image_of(grad_feature.mutable_data_ptr<T>(), grad_feature, place.second, channel, width);
    const Image<acc_t<T>> sums = summation_image(target, rows, columns, nhwc, memory);
    RowZeroer<acc_t<T>> zeroer(sums, columns, nhwc);
    const auto place_of = [](const RoI& roi) { return std::make_pair(roi.level, roi.image); };
    auto planned = std::partition_point(plan.begin(), plan.end(),
                                        [&](const auto& other) { return place_of(other.roi) < place; });
    for (; planned != plan.end() && place_of(planned->roi) == place; ++planned) {
      zeroer.reach(planned->bottom);
      scatter(*planned, channel, width, sums);
    }
    zeroer.reach(rows);
    round_into<T>(sums, target, rows, columns, nhwc);
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
  for_each_gradient<T>(plan, grad_features, nhwc,
                       [&](const auto& planned, int64_t channel, int64_t channels, const Image<acc>& sums) {
                         const Band<acc> rows = planned.rows.view();
                         const Band<acc> columns = planned.columns.view();
                         kernels.scatter(image_of(grad_data, grad, planned.roi.index, channel, channels),
                                         rows, columns, sums,
                                         scratch_for(rows, columns, options.pooled_width));
                       });
}

template <typename T>
void scatter_maximum(const std::vector<at::Tensor>& features, const at::Tensor& grad, const at::Tensor& rois,
                     const PoolingOptions& options, bool nhwc, const std::vector<at::Tensor>& grad_features) {
  using acc = acc_t<T>;
  const Kernels<T>& kernels = select_kernels<T>(nhwc);
  const auto plan = make_plan<OwnedSamples<acc>, acc>(features, rois, options);
  const T* grad_data = grad.const_data_ptr<T>();
  for_each_gradient<T>(plan, grad_features, nhwc,
                       [&](const auto& planned, int64_t channel, int64_t channels, const Image<acc>& sums) {
                         const at::Tensor& feature = features[planned.roi.level];
                         kernels.scatter_max(image_of(feature.const_data_ptr<T>(), feature, planned.roi.image,
                                                      channel, channels),
                                             image_of(grad_data, grad, planned.roi.index, channel, channels),
                                             planned.rows.view(), planned.columns.view(), sums);
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
    const auto pool = is_max_mode(options.mode) ? pool_maximum<scalar_t> : pool_average<scalar_t>;
    pool(levels, coordinates, options, nhwc, output);
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
  std::vector<at::Tensor> grad_features;
  for (const at::Tensor& feature : features) {
    grad_features.push_back(empty_result(feature.sizes(), feature.options().memory_format(format)));
  }
  at::Tensor grad_rois = at::zeros({rois_need_grad ? rois.size(0) : 0, 5}, coordinates.options());
  const std::vector<at::Tensor> levels = readable(features, format);
  const bool nhwc = format == at::MemoryFormat::ChannelsLast;
  MRCNN_DISPATCH_FLOATING(features[0].scalar_type(), [&] {
    if (is_max_mode(options.mode)) {
      scatter_maximum<scalar_t>(levels, dense_grad, coordinates, options, nhwc, grad_features);
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

}  // namespace

TORCH_LIBRARY_IMPL(mrcnn_ext, CPU, m) {
  m.impl("roi_align", roi_align);
  m.impl("roi_align_backward", roi_align_backward);
}

}  // namespace mrcnn_ext
