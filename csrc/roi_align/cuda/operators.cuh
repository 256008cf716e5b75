// RoI pooling on CUDA: what the operators check, allocate and launch.
#pragma once

#include <ATen/ATen.h>
#include <ATen/Dispatch.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include <algorithm>
#include <limits>
#include <tuple>
#include <vector>

#include "backward.cuh"
#include "boxes.cuh"
#include "forward.cuh"
#include "plan.cuh"
#include "roi_align/arguments.h"

namespace mrcnn_ext {
namespace cuda {

template <typename T>
Map<T> map_of(T* data, const at::Tensor& tensor) {
  return {data, tensor.stride(0), tensor.stride(1), tensor.stride(2), tensor.stride(3)};
}

template <typename T>
Pyramid<const T> readable_pyramid(at::TensorList levels) {
  Pyramid<const T> pyramid{};
  pyramid.channels = levels[0].size(1);
  for (size_t i = 0; i < levels.size(); ++i) {
    pyramid.levels[i] = map_of(levels[i].const_data_ptr<T>(), levels[i]);
  }
  return pyramid;
}

template <typename T>
Pyramid<T> writable_pyramid(at::TensorList levels) {
  Pyramid<T> pyramid{};
  pyramid.channels = levels[0].size(1);
  for (size_t i = 0; i < levels.size(); ++i) {
    pyramid.levels[i] = map_of(levels[i].mutable_data_ptr<T>(), levels[i]);
  }
  return pyramid;
}

inline Geometry geometry_of(at::TensorList levels, const PoolingOptions& options) {
  Geometry geometry{};
  geometry.level_count = int32_t(levels.size());
  geometry.images = levels[0].size(0);
  for (size_t i = 0; i < levels.size(); ++i) {
    geometry.heights[i] = int32_t(levels[i].size(2));
    geometry.widths[i] = int32_t(levels[i].size(3));
    geometry.scales[i] = options.scales[i];
    geometry.first_tile[i + 1] =
        geometry.first_tile[i] + geometry.images * tiles_of_map(levels[i].size(2), levels[i].size(3));
  }
  return geometry;
}

inline TileBlocks blocks_of_tiles(const Geometry& geometry, int64_t channels, int32_t warps) {
  TileBlocks blocks{};
  for (int32_t level = 0; level < geometry.level_count; ++level) {
    const int64_t tiles = geometry.first_tile[level + 1] - geometry.first_tile[level];
    const auto count = [&](int32_t shares) { return tiles * divide_up(channels, warps / shares * kWarp); };
    int32_t shares = 1;
    while (shares < warps && count(shares) < kEnoughBlocks) shares *= 2;
    blocks.shares[level] = shares;
    blocks.first[level + 1] = blocks.first[level] + count(shares);
  }
  return blocks;
}

inline Parameters parameters_of(const PoolingOptions& options) {
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

// Every kernel's shared memory is known when it is compiled, and below what a block has without asking.
template <int64_t kSharedBytes, typename... Expected, typename... Arguments>
void launch(void (*kernel)(Expected...), int64_t blocks, int64_t channel_blocks, int32_t threads,
            const Arguments&... arguments) {
  static_assert(kSharedBytes <= (48 << 10));
  constexpr int64_t kMostBlocks = std::numeric_limits<int32_t>::max();
  TORCH_CHECK_VALUE(blocks <= kMostBlocks, "features and rois are too many for one CUDA grid: ", blocks,
                    " blocks, at most ", kMostBlocks);
  if (blocks == 0 || channel_blocks == 0) return;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(blocks), static_cast<unsigned>(channel_blocks));
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.dynamicSmemBytes = kSharedBytes;
  config.stream = c10::cuda::getCurrentCUDAStream();
  C10_CUDA_CHECK(cudaLaunchKernelEx(&config, kernel, arguments...));
}

// Hands out one piece of memory after the other. Without a base it only counts the bytes.
class Pieces {
 public:
  explicit Pieces(uint8_t* base) : base_(base) {}
  template <typename Element>
  Element* next(int64_t count) {
    constexpr int64_t kAlignment = 256;
    Element* const piece = base_ == nullptr ? nullptr : reinterpret_cast<Element*>(base_ + bytes_);
    bytes_ += divide_up(count * int64_t(sizeof(Element)), kAlignment) * kAlignment;
    return piece;
  }
  int64_t bytes() const { return bytes_; }

 private:
  uint8_t* base_;
  int64_t bytes_ = 0;
};

// A plan and the memory that it lies in.
template <typename acc>
struct OwnedPlan {
  at::Tensor memory;
  Plan<acc> plan;
};

template <typename acc>
OwnedPlan<acc> allocate_plan(at::TensorList features, const at::Tensor& rois, const PoolingOptions& options,
                             bool with_gradients) {
  Plan<acc> plan{};
  plan.count = int32_t(rois.size(0));
  plan.row_bins = int32_t(options.pooled_height);
  plan.column_bins = int32_t(options.pooled_width);
  plan.with_gradients = with_gradients;
  if (!is_max_mode(options.mode)) {
    int64_t column_capacity = 0;
    for (const at::Tensor& level : features) {
      plan.row_capacity = std::max(plan.row_capacity, band_capacity(level.size(2), options.pooled_height));
      column_capacity = std::max(column_capacity, band_capacity(level.size(3), options.pooled_width));
    }
    plan.capacity = plan.row_capacity + column_capacity;
  }
  const int64_t groups = int64_t(features.size()) * features[0].size(0);
  const auto share_out = [&](Pieces pieces) {
    plan.rois = pieces.next<PlannedRoI<acc>>(plan.count);
    plan.taps = pieces.next<Tap>(int64_t(plan.count) * (plan.row_bins + plan.column_bins));
    plan.weights = pieces.next<acc>(plan.count * plan.capacity * (with_gradients ? 3 : 1));
    plan.groups_of_rois = pieces.next<int32_t>(plan.count);
    plan.groups = pieces.next<Group>(groups);
    plan.order = pieces.next<int32_t>(plan.count);
    plan.windows = pieces.next<Window>(plan.count);
    return pieces.bytes();
  };
  const int64_t bytes = share_out(Pieces(nullptr));
  const at::Tensor memory = at::empty({bytes}, rois.options().dtype(at::kByte));
  share_out(Pieces(memory.mutable_data_ptr<uint8_t>()));
  return {memory, plan};
}

template <typename acc>
OwnedPlan<acc> make_plan(at::TensorList features, const at::Tensor& rois, const PoolingOptions& options,
                         bool with_gradients) {
  const OwnedPlan<acc> owned = allocate_plan<acc>(features, rois, options, with_gradients);
  launch<sizeof(PlanMemory<acc>)>(plan_rois<acc>, rois.size(0), 1, kPlanThreads,
                                  geometry_of(features, options), parameters_of(options),
                                  rois.const_data_ptr<acc>(), owned.plan);
  return owned;
}

template <typename acc>
void group_by_map(const OwnedPlan<acc>& owned, at::TensorList features) {
  launch<kGroupThreads / kWarp * sizeof(int32_t)>(
      group_rois<acc>, int64_t(features.size()) * features[0].size(0), 1, kGroupThreads, owned.plan);
}

// True if channels are neighbours in memory and every group of `count` of them begins at a multiple of its
// size.
inline bool has_aligned_channels(const at::Tensor& tensor, int64_t count) {
  if (tensor.size(1) % count != 0 || tensor.stride(1) != 1) return false;
  if (reinterpret_cast<uintptr_t>(tensor.const_data_ptr()) % (count * tensor.element_size()) != 0)
    return false;
  for (const int64_t dimension : {0, 2, 3}) {
    if (tensor.size(dimension) > 1 && tensor.stride(dimension) % count != 0) return false;
  }
  return true;
}

template <typename T>
void pool_average(at::TensorList features, const Plan<acc_t<T>>& plan, bool nhwc, const at::Tensor& output) {
  constexpr int32_t kVector = sizeof(T) == 8 ? 2 : 4;
  const auto pyramid = readable_pyramid<T>(features);
  const Map<T> out = map_of(output.mutable_data_ptr<T>(), output);
  if (!nhwc) {
    launch<sizeof(PlaneMemory<acc_t<T>>)>(pool_average_nchw<T>, plan.count,
                                          divide_up(pyramid.channels, kPlaneChannels), kPoolThreads, pyramid,
                                          plan, out);
    return;
  }
  const bool vectors = has_aligned_channels(output, kVector) &&
                       std::all_of(features.begin(), features.end(), [](const at::Tensor& level) {
                         return has_aligned_channels(level, kVector);
                       });
  launch<sizeof(BandMemory<acc_t<T>>)>(
      vectors ? pool_average_nhwc<T, kVector> : pool_average_nhwc<T, 1>, plan.count,
      divide_up(pyramid.channels, kWarp * (vectors ? kVector : 1)), kPoolThreads, pyramid, plan, out);
}

// Result: T for the maxima, int32_t for the numbers of the winning samples.
template <typename T, typename Result>
void pool_maxima(at::TensorList features, const Plan<acc_t<T>>& plan, bool nhwc, bool cells,
                 const at::Tensor& output) {
  const auto pyramid = readable_pyramid<T>(features);
  const auto kernel =
      nhwc ? (cells ? pool_maximum<T, true, true, Result> : pool_maximum<T, true, false, Result>)
           : (cells ? pool_maximum<T, false, true, Result> : pool_maximum<T, false, false, Result>);
  launch<0>(kernel, plan.count, divide_up(pyramid.channels, nhwc ? kWarp : kPlaneChannels), kPoolThreads,
            pyramid, plan, map_of(output.mutable_data_ptr<Result>(), output));
}

template <typename T>
void forward(at::TensorList features, const at::Tensor& rois, const PoolingOptions& options, bool nhwc,
             const at::Tensor& output) {
  const auto owned = make_plan<acc_t<T>>(features, rois, options, false);
  if (is_max_mode(options.mode)) {
    pool_maxima<T, T>(features, owned.plan, nhwc, options.mode == RoIMode::kPool, output);
  } else {
    pool_average<T>(features, owned.plan, nhwc, output);
  }
}

template <typename T, bool kNhwc>
void scatter(const at::Tensor& grad, at::TensorList features, const OwnedPlan<acc_t<T>>& owned,
             const PoolingOptions& options, at::TensorList grad_features) {
  using acc = acc_t<T>;
  const Geometry geometry = geometry_of(features, options);
  const auto pyramid = writable_pyramid<T>(grad_features);
  const int64_t tiles = geometry.first_tile[geometry.level_count];
  const auto bin_values = [&](const auto* data) {
    return BinValues<std::remove_const_t<std::remove_pointer_t<decltype(data)>>, kNhwc>{
        data, pyramid.channels, owned.plan.row_bins, owned.plan.column_bins};
  };
  const auto incoming = bin_values(grad.const_data_ptr<T>());
  if (!is_max_mode(options.mode)) {
    constexpr int32_t kThreads = kAverageThreads<acc>;
    const TileBlocks blocks = blocks_of_tiles(geometry, pyramid.channels, kThreads / kWarp);
    launch<sizeof(AverageMemory<T, kNhwc>)>(scatter_average<T, kNhwc>, blocks.first[geometry.level_count], 1,
                                            kThreads, geometry, blocks, pyramid, incoming, owned.plan);
    return;
  }
  const bool cells = options.mode == RoIMode::kPool;
  const at::MemoryFormat format = kNhwc ? at::MemoryFormat::ChannelsLast : at::MemoryFormat::Contiguous;
  const at::Tensor winners =
      dense(at::empty(grad.sizes(), grad.options().dtype(at::kInt).memory_format(format)), format);
  pool_maxima<T, int32_t>(features, owned.plan, kNhwc, cells, winners);
  launch<sizeof(MaximumMemory<acc, kNhwc>)>(
      cells ? scatter_maximum<T, kNhwc, true> : scatter_maximum<T, kNhwc, false>, tiles,
      divide_up(pyramid.channels, kMaximumThreads), kMaximumThreads, geometry, pyramid, incoming,
      bin_values(winners.const_data_ptr<int32_t>()), owned.plan);
}

template <typename T>
void backward(const at::Tensor& grad, at::TensorList features, const at::Tensor& rois,
              const PoolingOptions& options, bool nhwc, at::TensorList grad_features,
              const at::Tensor& grad_rois) {
  using acc = acc_t<T>;
  const bool of_boxes = grad_rois.numel() > 0 && options.mode == RoIMode::kExact;
  const auto owned = make_plan<acc>(features, rois, options, of_boxes);
  group_by_map(owned, features);
  if (nhwc) {
    scatter<T, true>(grad, features, owned, options, grad_features);
  } else {
    scatter<T, false>(grad, features, owned, options, grad_features);
  }
  if (!of_boxes) return;
  launch<sizeof(BoxMemory<acc>)>(box_gradient<T>, rois.size(0), 1, kBoxThreads, readable_pyramid<T>(features),
                                 map_of(grad.const_data_ptr<T>(), grad), owned.plan, nhwc,
                                 grad_rois.mutable_data_ptr<acc>());
}

// What only the CUDA operators cannot do; each message names the limit.
inline void check_limits(at::TensorList features, const at::Tensor& rois, const PoolingOptions& options) {
  constexpr int64_t kMostSamples = 1 << 15;
  constexpr int64_t kMostChannels =
      65535 * kWarp;  // blocks of a grid in y, each of a warp's channels or more
  constexpr int64_t kMost = std::numeric_limits<int32_t>::max();
  TORCH_CHECK_VALUE(features.size() <= kMostLevels, "features must have at most ", kMostLevels,
                    " levels on CUDA, got ", features.size());
  TORCH_CHECK_VALUE(features[0].size(1) <= kMostChannels, "features must have at most ", kMostChannels,
                    " channels on CUDA, got ", features[0].size(1));
  TORCH_CHECK_VALUE(rois.size(0) <= kMost, "rois must be fewer than 2^31 on CUDA, got ", rois.size(0));
  TORCH_CHECK_VALUE(int64_t(features.size()) * features[0].size(0) <= kMost,
                    "the levels of all images must be fewer than 2^31 on CUDA, got ", features.size(),
                    " times ", features[0].size(0));
  TORCH_CHECK_VALUE(options.pooled_height * options.pooled_width <= (int64_t(1) << 24),
                    "pooled_height * pooled_width must be at most 2^24 on CUDA, got ",
                    options.pooled_height * options.pooled_width);
  if (!is_max_mode(options.mode)) return;
  // The samples of a bin are numbered in 32 bits.
  TORCH_CHECK_VALUE(options.mode == RoIMode::kPool || options.sampling_ratio <= kMostSamples,
                    "sampling_ratio must be at most 2^15 in the max modes on CUDA, got ",
                    options.sampling_ratio);
  for (size_t level = 0; level < features.size(); ++level) {
    // Adaptive samples are more than half a cell apart.
    TORCH_CHECK_VALUE((2 * features[level].size(2) + 3) * (2 * features[level].size(3) + 3) <= kMost,
                      "features[", level,
                      "] is too large for the max modes on CUDA, where (2 H + 3) (2 W + 3) must be under ",
                      "2^31, got ", features[level].sizes());
  }
}

inline at::Tensor roi_align(at::TensorList features, const at::Tensor& rois,
                            at::ArrayRef<double> spatial_scales, int64_t pooled_height, int64_t pooled_width,
                            int64_t sampling_ratio, bool aligned, std::string_view mode,
                            double canonical_box_size, int64_t canonical_level) {
  at::AutoDispatchBelowADInplaceOrView guard;
  const PoolingOptions options =
      check_arguments(features, rois, spatial_scales, pooled_height, pooled_width, sampling_ratio, aligned,
                      mode, canonical_box_size, canonical_level);
  check_limits(features, rois, options);
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

inline std::tuple<std::vector<at::Tensor>, at::Tensor> roi_align_backward(
    const at::Tensor& grad, at::TensorList features, const at::Tensor& rois,
    at::ArrayRef<double> spatial_scales, int64_t pooled_height, int64_t pooled_width, int64_t sampling_ratio,
    bool aligned, std::string_view mode, double canonical_box_size, int64_t canonical_level,
    bool rois_need_grad) {
  at::AutoDispatchBelowADInplaceOrView guard;
  const PoolingOptions options =
      check_arguments(features, rois, spatial_scales, pooled_height, pooled_width, sampling_ratio, aligned,
                      mode, canonical_box_size, canonical_level);
  check_limits(features, rois, options);
  check_grad(grad, features[0], rois, options);
  const c10::cuda::CUDAGuard device_guard(features[0].device());
  const at::MemoryFormat format = features[0].suggest_memory_format();
  const bool nhwc = format == at::MemoryFormat::ChannelsLast;
  const at::Tensor coordinates = coordinates_of(rois, features[0]);
  const at::Tensor dense_grad = dense(grad, format);
  std::vector<at::Tensor> grad_features;
  for (const at::Tensor& feature : features) {
    grad_features.push_back(at::empty(feature.sizes(), feature.options().memory_format(format)));
  }
  const at::Tensor grad_rois = at::zeros({rois_need_grad ? rois.size(0) : 0, 5}, coordinates.options());
  AT_DISPATCH_FLOATING_TYPES_AND2(
      at::kHalf, at::kBFloat16, features[0].scalar_type(), "mrcnn_ext::roi_align", [&] {
        backward<scalar_t>(dense_grad, features, coordinates, options, nhwc, grad_features, grad_rois);
      });
  return {grad_features, grad_rois.to(rois.scalar_type())};
}

}  // namespace cuda
}  // namespace mrcnn_ext
