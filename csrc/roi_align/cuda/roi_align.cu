// RoI pooling on CUDA: what the operators check, allocate and launch. The kernels are in kernels.cuh.
#include <ATen/ATen.h>
#include <ATen/Dispatch.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include <algorithm>
#include <tuple>
#include <vector>

#include "kernels.cuh"
#include "roi_align/arguments.h"

namespace mrcnn_ext {
namespace cuda {
namespace {

template <typename T>
Map<T> map_of(T* data, const at::Tensor& tensor) {
  return {data,
          tensor.stride(0),
          tensor.stride(1),
          tensor.stride(2),
          tensor.stride(3),
          int32_t(tensor.size(2)),
          int32_t(tensor.size(3))};
}

// Any strides will do; the layout only decides which index runs fastest over the threads.
template <typename T, typename Data>
Pyramid<T> pyramid_of(at::TensorList levels, const PoolingOptions& options, bool nhwc, const Data& data) {
  Pyramid<T> pyramid{};
  pyramid.level_count = int32_t(levels.size());
  pyramid.images = levels[0].size(0);
  pyramid.channels = levels[0].size(1);
  pyramid.nhwc = nhwc;
  for (size_t i = 0; i < levels.size(); ++i) {
    pyramid.levels[i] = map_of<T>(data(levels[i]), levels[i]);
    pyramid.scales[i] = options.scales[i];
    pyramid.first_tile[i + 1] = pyramid.first_tile[i] + pyramid.images *
                                                            tiles_along(levels[i].size(2), tile_height()) *
                                                            tiles_along(levels[i].size(3), tile_width(nhwc));
  }
  return pyramid;
}

template <typename T>
Pyramid<const T> readable_pyramid(at::TensorList levels, const PoolingOptions& options, bool nhwc) {
  return pyramid_of<const T>(levels, options, nhwc,
                             [](const at::Tensor& level) { return level.const_data_ptr<T>(); });
}

Parameters parameters_of(const PoolingOptions& options) {
  return {options.mode,
          int32_t(options.pooled_height),
          int32_t(options.pooled_width),
          options.sampling_ratio,
          options.aligned,
          float(options.canonical_box_size),
          float(options.canonical_level),
          float(options.min_level),
          float(options.max_level)};
}

// Bytes of the weights of one RoI, `copies` times, and of their places.
template <typename T>
int64_t band_bytes(const Pyramid<const T>& pyramid, const PoolingOptions& options, int64_t copies) {
  int64_t weights = 0;
  for (int32_t i = 0; i < pyramid.level_count; ++i) {
    weights = std::max(weights, band_capacity(pyramid.levels[i].height, options.pooled_height) +
                                    band_capacity(pyramid.levels[i].width, options.pooled_width));
  }
  return copies * weights * int64_t(sizeof(acc_t<T>)) +
         (options.pooled_height + options.pooled_width) * int64_t(sizeof(DeviceTap));
}

template <typename Kernel, typename... Arguments>
void launch(Kernel kernel, int64_t blocks, int64_t channel_blocks, int64_t shared_bytes,
            Arguments... arguments) {
  constexpr int64_t kAlwaysAvailable = 48 << 10;
  int available = 0;
  C10_CUDA_CHECK(cudaDeviceGetAttribute(&available, cudaDevAttrMaxSharedMemoryPerBlockOptin,
                                        c10::cuda::current_device()));
  // box_gradient also has a static 8 KB.
  TORCH_CHECK_VALUE(
      shared_bytes <= available - (9 << 10),
      "features or pooled_height and pooled_width are too large for this GPU: the weights of one RoI "
      "need ",
      shared_bytes, " bytes of shared memory, it has ", available - (9 << 10));
  TORCH_CHECK_VALUE(channel_blocks <= 65535, "features have too many channels for the CUDA kernels");
  if (shared_bytes > kAlwaysAvailable - (9 << 10)) {
    C10_CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                        static_cast<int>(shared_bytes)));
  }
  const dim3 grid(static_cast<unsigned>(blocks), static_cast<unsigned>(channel_blocks));
  kernel<<<grid, kThreads, shared_bytes, c10::cuda::getCurrentCUDAStream()>>>(arguments...);
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

template <typename T>
void forward(at::TensorList features, const at::Tensor& rois, const PoolingOptions& options, bool nhwc,
             const at::Tensor& output) {
  const auto pyramid = readable_pyramid<T>(features, options, nhwc);
  const Map<T> out = map_of(output.mutable_data_ptr<T>(), output);
  const acc_t<T>* boxes = rois.const_data_ptr<acc_t<T>>();
  const int64_t channel_blocks = tiles_along(pyramid.channels, kChannelsPerBlock);
  if (is_max_mode(options.mode)) {
    launch(pool_maximum<T>, rois.size(0), channel_blocks, 0, pyramid, boxes, parameters_of(options), out);
  } else {
    launch(pool_average<T>, rois.size(0), channel_blocks, band_bytes<T>(pyramid, options, 1), pyramid, boxes,
           parameters_of(options), out);
  }
}

template <typename T>
void backward(const at::Tensor& grad, at::TensorList features, const at::Tensor& rois,
              const PoolingOptions& options, bool nhwc, at::TensorList grad_features) {
  using acc = acc_t<T>;
  const auto pyramid = pyramid_of<T>(grad_features, options, nhwc,
                                     [](const at::Tensor& level) { return level.mutable_data_ptr<T>(); });
  const Map<const T> incoming = map_of(grad.const_data_ptr<T>(), grad);
  const acc* boxes = rois.const_data_ptr<acc>();
  const int64_t tiles = pyramid.first_tile[pyramid.level_count];
  const int64_t channel_blocks = tiles_along(pyramid.channels, tile_channels(nhwc));
  if (tiles == 0 || channel_blocks == 0) return;
  if (is_max_mode(options.mode)) {
    launch(scatter_maximum<T>, tiles, channel_blocks, kThreads * sizeof(Winner<acc>), pyramid,
           readable_pyramid<T>(features, options, nhwc), incoming, boxes, rois.size(0),
           parameters_of(options));
  } else {
    const int64_t shared_bytes = tile_weights_size(tile_height(), options.pooled_height, sizeof(acc)) +
                                 tile_weights_size(tile_width(nhwc), options.pooled_width, sizeof(acc));
    launch(scatter_average<T>, tiles, channel_blocks, shared_bytes, pyramid, incoming, boxes, rois.size(0),
           parameters_of(options));
  }
}

template <typename T>
void backward_of_boxes(const at::Tensor& grad, at::TensorList features, const at::Tensor& rois,
                       const PoolingOptions& options, bool nhwc, const at::Tensor& grad_rois) {
  const auto pyramid = readable_pyramid<T>(features, options, nhwc);
  launch(box_gradient<T>, rois.size(0), 1, band_bytes<T>(pyramid, options, 3), pyramid,
         map_of(grad.const_data_ptr<T>(), grad), rois.const_data_ptr<acc_t<T>>(), parameters_of(options),
         grad_rois.mutable_data_ptr<acc_t<T>>());
}

void check_limits(at::TensorList features, const PoolingOptions& options) {
  TORCH_CHECK_VALUE(features.size() <= kMostLevels, "features must have at most ", kMostLevels,
                    " levels on CUDA, got ", features.size());
  TORCH_CHECK_VALUE(options.pooled_height * options.pooled_width <= (int64_t(1) << 24),
                    "pooled_height * pooled_width must be at most 2^24 on CUDA, got ",
                    options.pooled_height * options.pooled_width);
}

at::Tensor roi_align(at::TensorList features, const at::Tensor& rois, at::ArrayRef<double> spatial_scales,
                     int64_t pooled_height, int64_t pooled_width, int64_t sampling_ratio, bool aligned,
                     std::string_view mode, double canonical_box_size, int64_t canonical_level) {
  at::AutoDispatchBelowADInplaceOrView guard;
  const PoolingOptions options =
      check_arguments(features, rois, spatial_scales, pooled_height, pooled_width, sampling_ratio, aligned,
                      mode, canonical_box_size, canonical_level);
  check_limits(features, options);
  const c10::cuda::CUDAGuard device_guard(features[0].device());
  const at::MemoryFormat format = features[0].suggest_memory_format();
  const at::Tensor output = at::empty({rois.size(0), features[0].size(1), pooled_height, pooled_width},
                                      features[0].options().memory_format(format));
  if (output.numel() == 0) return output;
  const at::Tensor coordinates = coordinates_of(rois, features[0]);
  AT_DISPATCH_FLOATING_TYPES_AND2(
      at::kHalf, at::kBFloat16, features[0].scalar_type(), "mrcnn_ext::roi_align", [&] {
        forward<scalar_t>(features, coordinates, options, format == at::MemoryFormat::ChannelsLast, output);
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
  check_limits(features, options);
  check_grad(grad, features[0], rois, options);
  const c10::cuda::CUDAGuard device_guard(features[0].device());
  const at::MemoryFormat format = features[0].suggest_memory_format();
  const bool nhwc = format == at::MemoryFormat::ChannelsLast;
  const at::Tensor coordinates = coordinates_of(rois, features[0]);
  std::vector<at::Tensor> grad_features;
  for (const at::Tensor& feature : features) {
    grad_features.push_back(at::empty(feature.sizes(), feature.options().memory_format(format)));
  }
  const at::Tensor grad_rois = at::zeros({rois_need_grad ? rois.size(0) : 0, 5}, coordinates.options());
  AT_DISPATCH_FLOATING_TYPES_AND2(
      at::kHalf, at::kBFloat16, features[0].scalar_type(), "mrcnn_ext::roi_align", [&] {
        backward<scalar_t>(grad, features, coordinates, options, nhwc, grad_features);
        if (grad_rois.numel() > 0 && options.mode == RoIMode::kExact) {
          backward_of_boxes<scalar_t>(grad, features, coordinates, options, nhwc, grad_rois);
        }
      });
  return {grad_features, grad_rois.to(rois.scalar_type())};
}

}  // namespace
}  // namespace cuda

TORCH_LIBRARY_IMPL(mrcnn_ext, CUDA, m) {
  m.impl("roi_align", cuda::roi_align);
  m.impl("roi_align_backward", cuda::roi_align_backward);
}

}  // namespace mrcnn_ext
