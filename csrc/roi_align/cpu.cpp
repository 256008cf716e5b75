// RoI pooling on the CPU: average modes as two banded products per RoI.
//
// Results do not depend on the number of threads: threads share out output elements, never the terms of a
// sum. A RoI's output, or the gradient of one image's block of channels, is computed by one thread, RoIs in
// one fixed order.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <algorithm>
#include <atomic>
#include <numeric>
#include <tuple>
#include <vector>

#include "arguments.h"
#include "cpu_kernels.h"
#include "cpu_plan.h"

namespace mrcnn_ext {
namespace {

const KernelSet& best_kernels() {
#if defined(__x86_64__)
  static const KernelSet& best =
      __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
              __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")
          ? avx512_kernels()
      : __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") ? avx2_kernels()
                                                                        : plain_kernels();
  return best;
#else
  return plain_kernels();
#endif
}

template <typename T>
const Kernels<T>& select(const KernelSet& set);
template <>
const Kernels<float>& select(const KernelSet& set) {
  return set.f32;
}
template <>
const Kernels<double>& select(const KernelSet& set) {
  return set.f64;
}
template <>
const Kernels<c10::BFloat16>& select(const KernelSet& set) {
  return set.bf16;
}
template <>
const Kernels<c10::Half>& select(const KernelSet& set) {
  return set.f16;
}

// Calls body(unit) for every unit, on whichever thread is free: units differ in cost.
template <typename Body>
void share_out(int64_t units, const Body& body) {
  std::atomic<int64_t> next{0};
  const int64_t threads = std::min<int64_t>(at::get_num_threads(), units);
  at::parallel_for(0, threads, 1, [&](int64_t, int64_t) {
    for (int64_t unit = next++; unit < units; unit = next++) body(unit);
  });
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

template <typename acc>
struct Plan {
  std::vector<RoI> rois;             // by level, image and top row, so that neighbours share cached features
  std::vector<RoIBands<acc>> bands;  // of rois[i]
};

template <typename acc>
Plan<acc> make_plan(at::TensorList features, const at::Tensor& rois, const PoolingOptions& options) {
  Plan<acc> plan;
  const int64_t count = rois.size(0);
  std::vector<RoI> located = locate_rois<acc>(rois, features[0].size(0), options);
  std::vector<RoIBands<acc>> bands(count);
  const acc* rows = rois.const_data_ptr<acc>();
  at::parallel_for(0, count, 64, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const at::IntArrayRef size = features[std::max<int64_t>(located[i].level, 0)].sizes();
      const RoIAxes<acc> axes = make_axes(located[i], rows + i * 5, size, options);
      const bool empty = axes.rows.samples == 0 || axes.columns.samples == 0;
      bands[i].rows.set_bins(options.mode, empty ? Axis<acc>{} : axes.rows, options.pooled_height);
      bands[i].columns.set_bins(options.mode, empty ? Axis<acc>{} : axes.columns, options.pooled_width);
    }
  });
  std::vector<int64_t> order(count);
  std::iota(order.begin(), order.end(), 0);
  const auto key = [&](int64_t i) {
    return std::make_tuple(located[i].level, located[i].image, bands[i].rows.view().begin, i);
  };
  std::sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return key(a) < key(b); });
  for (int64_t i : order) {
    plan.rois.push_back(located[i]);
    plan.rois.back().level = std::max<int64_t>(located[i].level, 0);
    plan.bands.push_back(std::move(bands[i]));
  }
  return plan;
}

template <typename T>
void pool_forward(const std::vector<at::Tensor>& features, const at::Tensor& rois,
                  const PoolingOptions& options, at::MemoryFormat format, const at::Tensor& output) {
  using acc = acc_t<T>;
  const bool nhwc = format == at::MemoryFormat::ChannelsLast;
  const Kernels<T>& kernels = select<T>(best_kernels());
  const PoolFunction<T> pool = nhwc ? kernels.pool_nhwc : kernels.pool_nchw;
  const Plan<acc> plan = make_plan<acc>(features, rois, options);

  constexpr int64_t kRoIsPerUnit = 8;
  const int64_t block = nhwc ? 256 : 4;
  const int64_t channels = output.size(1);
  const int64_t chunks = (rois.size(0) + kRoIsPerUnit - 1) / kRoIsPerUnit;
  const int64_t blocks = (channels + block - 1) / block;
  T* out = output.mutable_data_ptr<T>();
  share_out(blocks * chunks, [&](int64_t unit) {
    thread_local std::vector<acc> scratch;
    const int64_t channel = unit / chunks * block;
    const int64_t width = std::min(block, channels - channel);
    const int64_t begin = unit % chunks * kRoIsPerUnit;
    const int64_t end = std::min<int64_t>(begin + kRoIsPerUnit, plan.rois.size());
    for (int64_t i = begin; i < end; ++i) {
      const RoI& roi = plan.rois[i];
      const at::Tensor& feature = features[roi.level];
      const Band<acc> rows = plan.bands[i].rows.view();
      const Band<acc> columns = plan.bands[i].columns.view();
      scratch.resize(std::max<size_t>(scratch.size(), scratch_size(rows, columns)));
      pool(image_of(feature.const_data_ptr<T>(), feature, roi.image, channel, width), rows, columns,
           image_of(out, output, roi.index, channel, width), scratch.data());
    }
  });
}

template <typename acc>
void transpose(Plan<acc>& plan) {
  at::parallel_for(0, plan.rois.size(), 64, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      RoIBands<acc> transposed;
      transposed.rows.set_transpose(plan.bands[i].rows.view());
      transposed.columns.set_transpose(plan.bands[i].columns.view());
      plan.bands[i] = std::move(transposed);
    }
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
void round_into(const Image<acc_t<T>>& sums, const Image<T>& target, int64_t height, int64_t width) {
  if constexpr (!std::is_same_v<T, acc_t<T>>) {
    for (int64_t channel = 0; channel < target.channels; ++channel) {
      for (int64_t y = 0; y < height; ++y) {
        for (int64_t x = 0; x < width; ++x) {
          target.data[channel * target.channel_stride + y * target.row_stride + x * target.column_stride] =
              T(sums.data[channel * sums.channel_stride + y * sums.row_stride + x * sums.column_stride]);
        }
      }
    }
  }
}

template <typename T>
void pool_backward(const at::Tensor& grad, const at::Tensor& rois, const PoolingOptions& options,
                   at::MemoryFormat format, const std::vector<at::Tensor>& grad_features) {
  using acc = acc_t<T>;
  const bool nhwc = format == at::MemoryFormat::ChannelsLast;
  const Kernels<T>& kernels = select<T>(best_kernels());
  const ScatterFunction<T> scatter = nhwc ? kernels.scatter_nhwc : kernels.scatter_nchw;
  Plan<acc> plan = make_plan<acc>(grad_features, rois, options);
  transpose(plan);

  const int64_t block = nhwc ? 64 : 4;
  const int64_t channels = grad.size(1);
  const int64_t levels = grad_features.size();
  const int64_t images = grad_features[0].size(0);
  const int64_t blocks = (channels + block - 1) / block;
  const T* grad_data = grad.const_data_ptr<T>();
  share_out(blocks * levels * images, [&](int64_t unit) {
    thread_local std::vector<acc> scratch;
    thread_local std::vector<acc> memory;
    const int64_t channel = unit / (levels * images) * block;
    const int64_t width = std::min(block, channels - channel);
    const int64_t level = unit / images % levels;
    const int64_t image = unit % images;
    const at::Tensor& feature = grad_features[level];
    const Image<T> target = image_of(feature.mutable_data_ptr<T>(), feature, image, channel, width);
    const Image<acc> sums = summation_image(target, feature.size(2), feature.size(3), nhwc, memory);
    RowZeroer<acc> zeroer(sums, feature.size(3), nhwc);
    const auto first = std::partition_point(plan.rois.begin(), plan.rois.end(), [&](const RoI& roi) {
      return std::make_pair(roi.level, roi.image) < std::make_pair(level, image);
    });
    for (size_t i = first - plan.rois.begin(); i < plan.rois.size(); ++i) {
      const RoI& roi = plan.rois[i];
      if (roi.level != level || roi.image != image) break;
      const Band<acc> rows = plan.bands[i].rows.view();
      const Band<acc> columns = plan.bands[i].columns.view();
      zeroer.reach(rows.output_begin + rows.outputs);
      scratch.resize(std::max<size_t>(scratch.size(), scratch_size(rows, columns)));
      scatter(image_of(grad_data, grad, roi.index, channel, width), rows, columns, sums, scratch.data());
    }
    zeroer.reach(feature.size(2));
    round_into<T>(sums, target, feature.size(2), feature.size(3));
  });
}

// Gradient of "exact" by the coordinates of the boxes: the RoI is pooled once more per coordinate, with the
// derivative of that coordinate's weights, and multiplied with the incoming gradient.
template <typename T>
void box_gradient(const std::vector<at::Tensor>& features, const at::Tensor& grad, const at::Tensor& rois,
                  const PoolingOptions& options, at::MemoryFormat format, const at::Tensor& grad_rois) {
  using acc = acc_t<T>;
  const bool nhwc = format == at::MemoryFormat::ChannelsLast;
  const Kernels<T>& kernels = select<T>(best_kernels());
  const PoolFunction<T> pool = nhwc ? kernels.pool_nhwc : kernels.pool_nchw;
  const std::vector<RoI> located = locate_rois<acc>(rois, features[0].size(0), options);
  const acc* boxes = rois.const_data_ptr<acc>();
  acc* result = grad_rois.mutable_data_ptr<acc>();
  const T* grad_data = grad.const_data_ptr<T>();
  const int64_t channels = grad.size(1);
  const int64_t values = channels * options.pooled_height * options.pooled_width;
  share_out(located.size(), [&](int64_t i) {
    thread_local std::vector<acc> scratch;
    thread_local std::vector<T> pooled;
    const RoI& roi = located[i];
    std::fill_n(result + i * 5, 5, acc(0));
    if (roi.level < 0) return;
    const at::Tensor& feature = features[roi.level];
    const RoIAxes<acc> axes = make_axes(roi, boxes + i * 5, feature.sizes(), options);
    if (axes.rows.samples == 0 || axes.columns.samples == 0) return;
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
      scratch.resize(std::max<size_t>(scratch.size(), scratch_size(rows.view(), columns.view())));
      pool(image_of(feature.const_data_ptr<T>(), feature, roi.image, 0, channels), rows.view(),
           columns.view(), target, scratch.data());
      acc sum = 0;
      for (int64_t k = 0; k < values; ++k) sum += acc(pooled[k]) * acc(grad_data[i * values + k]);
      result[i * 5 + 1 + coordinate] = sum;
    }
  });
}

#define MRCNN_DISPATCH_FLOATING(TYPE, ...) \
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, TYPE, "mrcnn_ext::roi_align", __VA_ARGS__)

at::Tensor coordinates_of(const at::Tensor& rois, const at::Tensor& feature) {
  return rois.to(feature.scalar_type() == at::kDouble ? at::kDouble : at::kFloat).contiguous();
}

at::Tensor roi_align(at::TensorList features, const at::Tensor& rois, at::ArrayRef<double> spatial_scales,
                     int64_t pooled_height, int64_t pooled_width, int64_t sampling_ratio, bool aligned,
                     std::string_view mode, double canonical_box_size, int64_t canonical_level) {
  at::AutoDispatchBelowADInplaceOrView guard;
  check_features(features);
  check_rois(rois, features[0]);
  const PoolingOptions options =
      check_options(features, spatial_scales, pooled_height, pooled_width, sampling_ratio, aligned, mode,
                    canonical_box_size, canonical_level);
  const at::MemoryFormat format = common_format(features);
  const at::Tensor output = at::empty({rois.size(0), features[0].size(1), pooled_height, pooled_width},
                                      features[0].options().memory_format(format));
  const at::Tensor coordinates = coordinates_of(rois, features[0]);
  MRCNN_DISPATCH_FLOATING(features[0].scalar_type(), [&] {
    pool_forward<scalar_t>(readable(features, format), coordinates, options, format, output);
  });
  return output;
}

std::tuple<std::vector<at::Tensor>, at::Tensor> roi_align_backward(
    const at::Tensor& grad, at::TensorList features, const at::Tensor& rois,
    at::ArrayRef<double> spatial_scales, int64_t pooled_height, int64_t pooled_width, int64_t sampling_ratio,
    bool aligned, std::string_view mode, double canonical_box_size, int64_t canonical_level,
    bool rois_need_grad) {
  at::AutoDispatchBelowADInplaceOrView guard;
  check_features(features);
  check_rois(rois, features[0]);
  const PoolingOptions options =
      check_options(features, spatial_scales, pooled_height, pooled_width, sampling_ratio, aligned, mode,
                    canonical_box_size, canonical_level);
  check_grad(grad, features[0], rois, options);
  const at::MemoryFormat format = common_format(features);
  const at::Tensor dense_grad = grad.contiguous(format);
  const at::Tensor coordinates = coordinates_of(rois, features[0]);
  std::vector<at::Tensor> grad_features;
  for (const at::Tensor& feature : features) {
    grad_features.push_back(at::empty(feature.sizes(), feature.options().memory_format(format)));
  }
  at::Tensor grad_rois = at::zeros({rois_need_grad ? rois.size(0) : 0, 5}, coordinates.options());
  MRCNN_DISPATCH_FLOATING(features[0].scalar_type(), [&] {
    pool_backward<scalar_t>(dense_grad, coordinates, options, format, grad_features);
    if (rois_need_grad && options.mode == RoIMode::kExact) {
      box_gradient<scalar_t>(readable(features, format), dense_grad, coordinates, options, format, grad_rois);
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
