// How the work of RoI pooling is planned and shared out to threads, whatever the mode.
#pragma once

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <ATen/Version.h>

#include <algorithm>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include "kernels.h"
#include "layout.h"
#include "memory.h"
#include "parallel.h"
#include "plan.h"
#include "roi_align/arguments.h"

namespace mrcnn_ext {

// As ATen chose for its own kernels, so that ATEN_CPU_CAPABILITY governs these too.
inline const KernelSet& best_kernels() {
#if defined(__x86_64__)
  static const std::string capability = at::get_cpu_capability();
  if (capability == "AVX512") return avx512_kernels();
  if (capability == "AVX2") return avx2_kernels();
#endif
  return plain_kernels();
}

template <typename T>
const LayoutKernels<T>& select_layouts() {
  const KernelSet& set = best_kernels();
  if constexpr (std::is_same_v<T, float>) return set.f32;
  if constexpr (std::is_same_v<T, double>) return set.f64;
  if constexpr (std::is_same_v<T, c10::BFloat16>) return set.bf16;
  if constexpr (std::is_same_v<T, c10::Half>) return set.f16;
}

template <typename T>
const Kernels<T>& select_kernels(bool nhwc) {
  return nhwc ? select_layouts<T>().nhwc : select_layouts<T>().nchw;
}

inline at::MemoryFormat common_format(at::TensorList features) { return features[0].suggest_memory_format(); }

// Levels as the kernels can read them: any strides, but for the innermost dimension.
inline std::vector<at::Tensor> readable(at::TensorList features, at::MemoryFormat format) {
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

// Calls pool(feature, the RoIs of this level, the cells that they read) for every level that has some.
template <typename Table, typename Pool>
void for_each_level(const std::vector<at::Tensor>& features, c10::ArrayRef<PlannedRoI<Table>> plan,
                    const Pool& pool) {
  for (size_t begin = 0, end = 0; begin < plan.size(); begin = end) {
    const int64_t level = plan[begin].roi.level;
    int64_t cells = 0;
    for (; end < plan.size() && plan[end].roi.level == level; ++end) {
      const auto columns = plan[end].columns.view();
      cells += int64_t(plan[end].bottom - plan[end].top) * (columns.end - columns.begin);
    }
    pool(features[level], plan.slice(begin, end - begin), cells);
  }
}

// Calls pool(planned, its image as pixels, channel) for RoIs of one NCHW level and blocks of as many channels
// as stay in the cache, from a copy of the level in NHWC.
template <typename T, typename Table, typename Pool>
void for_each_output_from_pixels(const at::Tensor& feature, c10::ArrayRef<PlannedRoI<Table>> plan,
                                 const Pool& pool) {
  const int64_t images = feature.size(0);
  const int64_t height = feature.size(2);
  const int64_t width = feature.size(3);
  const int64_t block = std::min<int64_t>(feature.size(1), 64);
  const T* data = feature.const_data_ptr<T>();
  const at::Tensor memory = empty_result({images * height * width * block}, feature.options());
  T* copies = memory.mutable_data_ptr<T>();
  for (int64_t channel = 0; channel < feature.size(1); channel += block) {
    const int64_t channels = std::min(block, feature.size(1) - channel);
    const auto copy_of = [&](int64_t image) -> Image<T> {
      return {copies + image * height * width * channels, width * channels, channels, 1, channels};
    };
    share_out(images * height, [&](int64_t unit) {
      const int64_t image = unit / height;
      pixels_from_planes<T>(image_of(data, feature, image, channel, channels), copy_of(image), unit % height,
                            width);
    });
    for_each_output(plan, channels, channels, [&](const auto& planned, int64_t, int64_t) {
      const Image<T> copy = copy_of(planned.roi.image);
      pool(planned, Image<const T>{copy.data, copy.row_stride, copy.column_stride, 1, channels}, channel);
    });
  }
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

// Where the gradients of a block of channels are summed, and how they get from there to their target: in the
// target itself, unless it is of a half type or has another layout.
template <typename T>
class Sums {
 public:
  using acc = acc_t<T>;

  Sums(const Image<T>& target, int64_t height, int64_t width, bool nhwc, bool as_pixels,
       std::vector<acc>& memory)
      : target_(target), height_(height), width_(width), nhwc_(nhwc), as_pixels_(as_pixels) {
    if constexpr (std::is_same_v<T, acc>) {
      if (nhwc == as_pixels) {
        in_target_ = true;
        image_ = target;
        return;
      }
    }
    const int64_t channels = target.channels;
    memory.resize(std::max<size_t>(memory.size(), height * width * channels));
    image_ = as_pixels ? Image<acc>{memory.data(), width * channels, channels, 1, channels}
                       : Image<acc>{memory.data(), width, 1, height * width, channels};
  }

  const Image<acc>& image() const { return image_; }

  // Nothing is added to the rows before `end` any more: they are brought to the target, rounded once.
  void finish(int64_t end) {
    constexpr int64_t kRows = 4;  // at least so many at a time
    if (in_target_ || (end < height_ && end < done_ + kRows)) return;
    const int64_t begin = std::exchange(done_, end);
    if (as_pixels_ && !nhwc_) {
      select_layouts<T>().round_into_planes(image_.data + begin * image_.row_stride, (end - begin) * width_,
                                            target_.channels, target_.data + begin * target_.row_stride,
                                            target_.channel_stride);
      return;
    }
    const int64_t outer = nhwc_ ? width_ : target_.channels, inner = nhwc_ ? target_.channels : width_;
    for (int64_t y = begin; y < end; ++y) {
      for (int64_t i = 0; i < outer; ++i) {
        const int64_t from = nhwc_ ? image_.column_stride : image_.channel_stride;
        const int64_t to = nhwc_ ? target_.column_stride : target_.channel_stride;
        select_kernels<T>(nhwc_).round(image_.data + y * image_.row_stride + i * from, inner,
                                       target_.data + y * target_.row_stride + i * to);
      }
    }
  }

 private:
  Image<T> target_;
  Image<acc> image_;
  int64_t height_;
  int64_t width_;
  bool nhwc_;
  bool as_pixels_;
  bool in_target_ = false;
  int64_t done_ = 0;
};

// Calls scatter(planned, the next RoI's place in the output or -1, channel, channels, sums) for the RoIs of
// every image and block of channels, in order. as_pixels(level): the layout of sums, whatever that of the
// gradients.
template <typename T, typename Table, typename AsPixels, typename Scatter>
void for_each_gradient(const std::vector<PlannedRoI<Table>>& plan,
                       const std::vector<at::Tensor>& grad_features, bool nhwc, const AsPixels& as_pixels,
                       int64_t block, const Scatter& scatter) {
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
    const bool pixels = as_pixels(place.first);
    Sums<T> sums(target, rows, columns, nhwc, pixels, memory);
    RowZeroer<acc_t<T>> zeroer(sums.image(), columns, pixels);
    const auto place_of = [](const RoI& roi) { return std::make_pair(roi.level, roi.image); };
    auto planned = std::partition_point(plan.begin(), plan.end(),
                                        [&](const auto& other) { return place_of(other.roi) < place; });
    for (; planned != plan.end() && place_of(planned->roi) == place; ++planned) {
      zeroer.reach(planned->bottom);
      sums.finish(planned->top);  // RoIs come by their first row
      const auto next = planned + 1;
      const int64_t next_index =
          next != plan.end() && place_of(next->roi) == place ? next->roi.index : int64_t(-1);
      scatter(*planned, next_index, channel, width, sums.image());
    }
    zeroer.reach(rows);
    sums.finish(rows);
  });
}

}  // namespace mrcnn_ext
