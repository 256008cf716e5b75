// The max modes on the CPU: what is pooled, and with which codes, from which layout.
#pragma once

#include <ATen/ATen.h>

#include <limits>
#include <vector>

#include "kernels.h"
#include "layout.h"
#include "work.h"

namespace mrcnn_ext {

template <typename T>
using PlannedMaximum = PlannedRoI<OwnedSamples<acc_t<T>>>;

// What a RoI's maxima and their codes are written to.
template <typename T, typename Code>
struct MaximaImages {
  Image<T> values;
  Image<Code> codes;
};

// Room for the bins of one RoI as pixels, kept from call to call.
template <typename T, typename Code>
MaximaImages<T, Code> maxima_as_pixels(const PoolingOptions& options, int64_t channels) {
  thread_local std::vector<T> values;
  thread_local std::vector<Code> codes;
  const size_t size = options.pooled_height * options.pooled_width * channels;
  values.resize(std::max(values.size(), size));
  codes.resize(std::max(codes.size(), size));
  const int64_t row = options.pooled_width * channels;
  return {{values.data(), row, channels, 1, channels}, {codes.data(), row, channels, 1, channels}};
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

// Codes of 16 bits serve all but bins of very many cells or samples. Those are looked at again in the
// backward pass.
template <typename T>
bool has_short_codes(const PlannedMaximum<T>& planned) {
  return OwnedSamples<acc_t<T>>::largest_code(planned.rows, planned.columns) <=
         std::numeric_limits<int16_t>::max();
}

template <typename T>
std::vector<PlannedMaximum<T>> plan_maxima(const std::vector<at::Tensor>& features, const at::Tensor& rois,
                                           const PoolingOptions& options) {
  auto plan = make_plan<OwnedSamples<acc_t<T>>, acc_t<T>>(features, rois, options);
  for (const PlannedMaximum<T>& planned : plan) {
    TORCH_CHECK_VALUE(
        OwnedSamples<acc_t<T>>::largest_code(planned.rows, planned.columns) <=
            std::numeric_limits<int32_t>::max(),
        "boxes: row ", planned.roi.index,
        " has a bin of more than 2^30 samples, or one that spans more than 2^31 cells, which the "
        "max modes cannot number");
  }
  return plan;
}

// The maxima of one RoI, and where `images` has room for them its codes, from pixels. In each of them the
// codes of a RoI without short ones are -1.
template <typename T>
void pool_pixels(const Image<const T>& pixels, const PlannedMaximum<T>& planned, bool window,
                 const MaximaImages<T, int16_t>& images) {
  const LayoutKernels<T>& kernels = select_layouts<T>();
  const auto rows = window ? planned.rows.view_of_window() : planned.rows.view();
  const auto columns = window ? planned.columns.view_of_window() : planned.columns.view();
  if (images.codes.data != nullptr && has_short_codes<T>(planned)) {
    kernels.pool_max_coded(pixels, rows, columns, images.values, images.codes);
    return;
  }
  kernels.pool_max(pixels, rows, columns, images.values, {});
  if (images.codes.data == nullptr) return;
  for (int32_t y = 0; y < rows.outputs; ++y) {
    for (int32_t x = 0; x < columns.outputs; ++x) {
      std::fill_n(images.codes.data + y * images.codes.row_stride + x * images.codes.column_stride,
                  images.codes.channels, int16_t(-1));
    }
  }
}

// codes: int16 of the shape and layout of output, or undefined.
template <typename T>
void pool_maximum(const std::vector<at::Tensor>& features, const at::Tensor& rois,
                  const PoolingOptions& options, bool nhwc, const at::Tensor& output,
                  const at::Tensor& codes) {
  using Plan = c10::ArrayRef<PlannedMaximum<T>>;
  const auto owned = plan_maxima<T>(features, rois, options);
  T* out = output.mutable_data_ptr<T>();
  int16_t* const code = codes.defined() ? codes.mutable_data_ptr<int16_t>() : nullptr;
  const auto images_of = [&](int64_t index, int64_t channel, int64_t channels) -> MaximaImages<T, int16_t> {
    return {image_of(out, output, index, channel, channels),
            code ? image_of(code, codes, index, channel, channels) : Image<int16_t>{}};
  };
  const int64_t bins = options.pooled_height * options.pooled_width;
  // From pixels into the planes of the outputs.
  const auto pool_into_planes = [&](const Image<const T>& pixels, const PlannedMaximum<T>& planned,
                                    bool window, int64_t channel) {
    auto images = maxima_as_pixels<T, int16_t>(options, pixels.channels);
    if (!code) images.codes.data = nullptr;
    pool_pixels(pixels, planned, window, images);
    const auto planes = images_of(planned.roi.index, channel, pixels.channels);
    planes_from_pixels(images.values, planes.values, bins);
    if (code) planes_from_pixels(images.codes, planes.codes, bins);
  };
  for_each_level(features, Plan(owned), [&](const at::Tensor& feature, const Plan& plan, int64_t cells) {
    const T* data = feature.const_data_ptr<T>();
    if (nhwc) {
      for_each_output(plan, output.size(1), 256, [&](const auto& planned, int64_t channel, int64_t channels) {
        pool_pixels(image_of(data, feature, planned.roi.image, channel, channels), planned, false,
                    images_of(planned.roi.index, channel, channels));
      });
    } else if (cells <= feature.size(0) * feature.size(2) * feature.size(3)) {
      for_each_output(plan, output.size(1), 64, [&](const auto& planned, int64_t channel, int64_t channels) {
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

// Channels that one thread takes at a time in the backward pass. The gradients and codes of a RoI are read
// once, which is most of the time, and fastest in long runs: all channels in NHWC where one thread does the
// work. Half types, whose sums lie in memory of their own, take fewer.
template <typename T>
int64_t channel_block(int64_t channels, bool nhwc) {
  const int64_t share = (channels + at::get_num_threads() - 1) / at::get_num_threads();
  if (!nhwc) return std::clamp<int64_t>(share, 16, 64);
  if (!std::is_same_v<T, acc_t<T>>) return 64;
  return std::max<int64_t>(64, (share + 15) / 16 * 16);
}

// codes: as pool_maximum wrote them, or undefined: then they are found again from the features.
template <typename T>
void scatter_maximum(const std::vector<at::Tensor>& features, const at::Tensor& grad, const at::Tensor& codes,
                     const at::Tensor& rois, const PoolingOptions& options, bool nhwc,
                     const std::vector<at::Tensor>& grad_features) {
  using acc = acc_t<T>;
  const LayoutKernels<T>& layouts = select_layouts<T>();
  const Kernels<T>& kernels = nhwc ? layouts.nhwc : layouts.nchw;
  const auto plan = plan_maxima<T>(features, rois, options);
  const T* grad_data = grad.const_data_ptr<T>();
  const int16_t* const code = codes.defined() ? codes.const_data_ptr<int16_t>() : nullptr;
  for_each_gradient<T>(
      plan, grad_features, nhwc, channel_block<T>(grad.size(1), nhwc),
      [&](const auto& planned, int64_t next, int64_t channel, int64_t channels, const Image<acc>& sums) {
        const auto rows = planned.rows.view();
        const auto columns = planned.columns.view();
        if (rows.end <= rows.begin || columns.end <= columns.begin) return;
        const auto incoming = image_of(grad_data, grad, planned.roi.index, channel, channels);
        if (code && has_short_codes<T>(planned)) {
          const int64_t ahead = next < 0 ? 0 : (next - planned.roi.index) * grad.stride(0);
          kernels.scatter_max(incoming, image_of(code, codes, planned.roi.index, channel, channels), rows,
                              columns, sums, ahead);
          return;
        }
        const at::Tensor& feature = features[planned.roi.level];
        const auto map = image_of(feature.const_data_ptr<T>(), feature, planned.roi.image, channel, channels);
        const auto images = maxima_as_pixels<T, int32_t>(options, channels);
        if (nhwc) {
          layouts.pool_max_coded_wide(map, rows, columns, images.values, images.codes);
        } else {
          layouts.pool_max_coded_wide(window_as_pixels<T>(map, planned), planned.rows.view_of_window(),
                                      planned.columns.view_of_window(), images.values, images.codes);
        }
        kernels.scatter_max_wide(incoming,
                                 {images.codes.data, images.codes.row_stride, images.codes.column_stride,
                                  images.codes.channel_stride, channels},
                                 rows, columns, sums, 0);
      });
}

}  // namespace mrcnn_ext
