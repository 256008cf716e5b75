// The max modes on the CPU: what is pooled, and with which codes, from which layout.
#pragma once

#include <ATen/ATen.h>

#include <algorithm>
#include <limits>
#include <vector>

#include "kernels.h"
#include "layout.h"
#include "work.h"

namespace mrcnn_ext {

template <typename T>
using PlannedMaximum = PlannedRoI<OwnedSamples<acc_t<T>>>;

// What a RoI's maxima and their codes are written to.
template <typename T>
struct MaximaImages {
  Image<T> values;
  Image<uint8_t> codes;
};

// Room for the bins of one RoI as pixels, kept from call to call.
template <typename T>
MaximaImages<T> maxima_as_pixels(const PoolingOptions& options, int64_t channels) {
  thread_local std::vector<T> values;
  thread_local std::vector<uint8_t> codes;
  const size_t size = options.pooled_height * options.pooled_width * channels;
  values.resize(std::max(values.size(), size));
  codes.resize(std::max(codes.size(), size));
  const int64_t row = options.pooled_width * channels;
  return {{values.data(), row, channels, 1, channels}, {codes.data(), row, channels, 1, channels}};
}

// Whether the gradients of an NCHW level are summed as pixels: turning the map takes time, which few bins do
// not win back.
inline bool has_many_bins(const at::Tensor& feature, int64_t rois, const PoolingOptions& options) {
  const int64_t cells = feature.size(0) * feature.size(2) * feature.size(3);
  return 8 * rois * options.pooled_height * options.pooled_width >= cells;
}

// The codes of some channels of a RoI, which are in one block: of all channels in NHWC, else of kPlaneBlock.
// Nobody but these kernels reads them.
template <typename Code>
Image<Code> codes_of(Code* codes, const at::Tensor& output, int64_t block, bool as_pixels, int64_t index,
                     int64_t channel, int64_t channels) {
  const int64_t all = output.size(1), bins = output.size(2) * output.size(3);
  const int64_t first = channel / block * block;
  Code* const start = codes + (index * all + first) * bins;
  if (!as_pixels) return {start + (channel - first) * bins, output.size(3), 1, bins, channels};
  const int64_t pitch = std::min(block, all - first);
  return {start + channel - first, output.size(3) * pitch, pitch, 1, channels};
}

// The cells of an NCHW map that a RoI reads, as pixels. The memory is this thread's, until its next call.
template <typename T>
Image<const T> window_as_pixels(const Image<const T>& planes, const PlannedMaximum<T>& planned) {
  thread_local std::vector<T> memory;
  const auto rows = planned.rows.view();
  const auto columns = planned.columns.view();
  const int64_t height = rows.end - rows.begin, width = columns.end - columns.begin;
  memory.resize(std::max<size_t>(memory.size(), height * width * planes.channels));
  const Image<T> pixels{memory.data(), width * planes.channels, planes.channels, 1, planes.channels};
  const Image<const T> window{planes.data + rows.begin * planes.row_stride + columns.begin, planes.row_stride,
                              1, planes.channel_stride, planes.channels};
  for (int64_t row = 0; row < height; ++row) pixels_from_planes(window, pixels, row, width);
  return {pixels.data, pixels.row_stride, pixels.column_stride, 1, pixels.channels};
}

template <typename T>
std::vector<PlannedMaximum<T>> plan_maxima(const std::vector<at::Tensor>& features, const at::Tensor& rois,
                                           const PoolingOptions& options) {
  auto plan = make_plan<OwnedSamples<acc_t<T>>, acc_t<T>>(features, rois, options);
  for (const PlannedMaximum<T>& planned : plan) {
    TORCH_CHECK_VALUE(OwnedSamples<acc_t<T>>::most_samples(planned.rows, planned.columns) <=
                          std::numeric_limits<int32_t>::max(),
                      "boxes: row ", planned.roi.index,
                      " has a bin of 2^31 samples or more, which the max modes cannot number");
  }
  return plan;
}

// The maxima of one RoI, and where `images` has room for them its codes, from pixels.
template <typename T>
void pool_pixels(const Image<const T>& pixels, const PlannedMaximum<T>& planned, bool window,
                 const MaximaImages<T>& images) {
  const LayoutKernels<T>& kernels = select_layouts<T>();
  const auto rows = window ? planned.rows.view_of_window() : planned.rows.view();
  const auto columns = window ? planned.columns.view_of_window() : planned.columns.view();
  const auto pool = images.codes.data != nullptr ? kernels.pool_max_coded : kernels.pool_max;
  pool(pixels, rows, columns, images.values, images.codes);
}

// codes: as many bytes as output has elements, or undefined.
template <typename T>
void pool_maximum(const std::vector<at::Tensor>& features, const at::Tensor& rois,
                  const PoolingOptions& options, bool nhwc, const at::Tensor& output,
                  const at::Tensor& codes) {
  using Plan = c10::ArrayRef<PlannedMaximum<T>>;
  const auto owned = plan_maxima<T>(features, rois, options);
  T* out = output.mutable_data_ptr<T>();
  uint8_t* const code = codes.defined() ? codes.mutable_data_ptr<uint8_t>() : nullptr;
  const int64_t bins = options.pooled_height * options.pooled_width;
  for_each_level(features, Plan(owned), [&](const at::Tensor& feature, const Plan& plan, int64_t cells) {
    const T* data = feature.const_data_ptr<T>();
    const bool codes_as_pixels = nhwc || has_many_bins(feature, plan.size(), options);
    const auto images_of = [&](int64_t index, int64_t channel, int64_t channels) -> MaximaImages<T> {
      const int64_t block = nhwc ? output.size(1) : kPlaneBlock;
      return {
          image_of(out, output, index, channel, channels),
          code ? codes_of(code, output, block, codes_as_pixels, index, channel, channels) : Image<uint8_t>{}};
    };
    // From pixels into the planes of the outputs.
    const auto pool_into_planes = [&](const Image<const T>& pixels, const PlannedMaximum<T>& planned,
                                      bool window, int64_t channel) {
      const auto target = images_of(planned.roi.index, channel, pixels.channels);
      auto images = maxima_as_pixels<T>(options, pixels.channels);
      if (code == nullptr || codes_as_pixels) images.codes = target.codes;
      pool_pixels(pixels, planned, window, images);
      planes_from_pixels(images.values, target.values, bins);
      if (code && !codes_as_pixels) planes_from_pixels(images.codes, target.codes, bins);
    };
    if (nhwc) {
      for_each_output(plan, output.size(1), 256, [&](const auto& planned, int64_t channel, int64_t channels) {
        pool_pixels(image_of(data, feature, planned.roi.image, channel, channels), planned, false,
                    images_of(planned.roi.index, channel, channels));
      });
    } else if (cells <= feature.size(0) * feature.size(2) * feature.size(3)) {
      for_each_output(plan, output.size(1), kPlaneBlock,
                      [&](const auto& planned, int64_t channel, int64_t channels) {
                        const auto planes = image_of(data, feature, planned.roi.image, channel, channels);
                        pool_into_planes(window_as_pixels<T>(planes, planned), planned, true, channel);
                      });
    } else {
      for_each_output_from_pixels<T>(feature, plan,
                                     [&](const auto& planned, const Image<const T>& pixels, int64_t channel) {
                                       pool_into_planes(pixels, planned, false, channel);
                                     });
    }
  });
}

// Channels that one thread takes at a time in the backward pass. In NHWC the gradients and codes of a RoI are
// read much faster as one run than as parts of each pixel: two or three threads are no faster than one unless
// their parts are long. The sums of half types lie in memory of their own, which should stay moderate, and
// those of NCHW in the cache.
template <typename T>
int64_t channel_block(const std::vector<at::Tensor>& features, bool nhwc) {
  constexpr int64_t kLongRun = 2048 / sizeof(T), kMostSums = (int64_t(64) << 20) / sizeof(acc_t<T>);
  const int64_t channels = features[0].size(1), threads = at::get_num_threads();
  const int64_t share = (channels + threads - 1) / threads;
  if (!nhwc) {
    return share >= kPlaneBlock ? kPlaneBlock : share > kPlaneBlock / 4 ? kPlaneBlock / 2 : kPlaneBlock / 4;
  }
  int64_t block = std::max<int64_t>(64, (share + 15) / 16 * 16);
  if (threads <= 3 && share < kLongRun) block = std::max(block, channels);
  if (std::is_same_v<T, acc_t<T>>) return block;
  int64_t cells = 0;
  for (const at::Tensor& feature : features) cells = std::max(cells, feature.size(2) * feature.size(3));
  return cells * block <= kMostSums ? block : 64;
}

// codes: as pool_maximum wrote them, or undefined: then they are found again from the features.
template <typename T>
void scatter_maximum(const std::vector<at::Tensor>& features, const at::Tensor& grad, const at::Tensor& codes,
                     const at::Tensor& rois, const PoolingOptions& options, bool nhwc,
                     const std::vector<at::Tensor>& grad_features) {
  using acc = acc_t<T>;
  const auto plan = plan_maxima<T>(features, rois, options);
  const T* grad_data = grad.const_data_ptr<T>();
  const uint8_t* const code = codes.defined() ? codes.const_data_ptr<uint8_t>() : nullptr;
  std::vector<int64_t> rois_of_level(features.size(), 0);
  for (const auto& planned : plan) ++rois_of_level[planned.roi.level];
  // Codes that are found again are pixels.
  const auto as_pixels = [&](int64_t level) {
    return nhwc || code == nullptr || has_many_bins(features[level], rois_of_level[level], options);
  };
  const int64_t bins = options.pooled_height * options.pooled_width;
  for_each_gradient<T>(
      plan, grad_features, nhwc, as_pixels, channel_block<T>(features, nhwc),
      [&](const auto& planned, int64_t next, int64_t channel, int64_t channels, const Image<acc>& sums) {
        const auto rows = planned.rows.view();
        const auto columns = planned.columns.view();
        if (rows.end <= rows.begin || columns.end <= columns.begin) return;
        const int64_t index = planned.roi.index;
        const at::Tensor& feature = features[planned.roi.level];
        const auto map = image_of(feature.const_data_ptr<T>(), feature, planned.roi.image, channel, channels);
        const bool pixels = as_pixels(planned.roi.level);
        Image<const uint8_t> winners;
        if (code) {
          const int64_t block = nhwc ? grad.size(1) : kPlaneBlock;
          winners = codes_of(code, grad, block, pixels, index, channel, channels);
        } else {
          const auto images = maxima_as_pixels<T>(options, channels);
          pool_pixels(nhwc ? map : window_as_pixels<T>(map, planned), planned, !nhwc, images);
          winners = {images.codes.data, images.codes.row_stride, images.codes.column_stride, 1, channels};
        }
        const int64_t ahead = code && next >= 0 ? (next - index) * grad.size(1) * bins : 0;
        const LayoutKernels<T>& layouts = select_layouts<T>();
        const auto scatter = !pixels ? layouts.scatter_max_planes
                             : nhwc  ? layouts.nhwc.scatter_max
                                     : layouts.nchw.scatter_max;
        scatter(image_of(grad_data, grad, index, channel, channels), winners, map, rows, columns, sums,
                ahead);
      });
}

}  // namespace mrcnn_ext
