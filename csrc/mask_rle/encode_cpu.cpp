// Instance masks to COCO run-length encoding at image size, column by column, without the image.
//
// The pixels are, one by one, those of a bilinear paste with PyTorch's grid_sample and a threshold. A pixel
// close to the threshold depends on how the arithmetic is rounded, so that is grid_sample's too, operation by
// operation.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <ATen/Version.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <tuple>
#include <vector>

namespace mrcnn_ext {
namespace {

// The pixels [begin, end) of one axis which are sampled, and where: cell + fraction, in cells of the mask.
struct Axis {
  int64_t begin;
  int64_t end;
  std::vector<int32_t> cell;  // -2 and `cells` are outside, with both neighbours
  std::vector<float> fraction;
};

// Rows of the image between the same two rows of the mask.
struct Band {
  int32_t cell;
  int32_t begin;
  int32_t end;
};

class RunLengths {
 public:
  void add(bool value, int64_t pixels) {
    if (pixels == 0) return;
    if (value != value_) {
      counts_.push_back(length_);
      length_ = 0;
      value_ = value;
    }
    length_ += pixels;
  }

  // COCO's string: from the fourth on counts are differences to the one before the last; five bits to a
  // character, low bits first, the sixth bit for "more follow".
  std::string finish() {
    counts_.push_back(length_);
    std::string text;
    for (size_t i = 0; i < counts_.size(); ++i) {
      int64_t rest = i > 2 ? counts_[i] - counts_[i - 2] : counts_[i];
      bool more = true;
      while (more) {
        const int64_t bits = rest & 0x1f;
        rest >>= 5;
        more = rest != (bits & 0x10 ? -1 : 0);
        text.push_back(static_cast<char>(48 + (more ? bits | 0x20 : bits)));
      }
    }
    return text;
  }

 private:
  std::vector<int64_t> counts_;
  int64_t length_ = 0;
  bool value_ = false;
};

struct Instance {
  const float* mask;
  int64_t mask_height, mask_width;
  const float* box;
  int64_t height, width;
  float threshold;
};

// a * b + c, rounded once or twice.
template <bool fused>
inline __attribute__((always_inline)) float multiply_add(float a, float b, float c) {
  if constexpr (fused) return __builtin_fmaf(a, b, c);
  return a * b + c;
}

template <bool fused>
inline __attribute__((always_inline)) Axis sample_axis(float low, float high, int64_t pixels, int64_t cells) {
  Axis axis;
  const float limit = static_cast<float>(pixels);
  axis.begin = static_cast<int64_t>(std::clamp(std::floor(low) - 1, 0.f, limit));
  axis.end = static_cast<int64_t>(std::clamp(std::ceil(high) + 1, 0.f, limit));
  const int64_t count = std::max<int64_t>(axis.end - axis.begin, 0);
  axis.cell.resize(count);
  axis.fraction.resize(count);
  const float half = static_cast<float>(cells) / 2;
  for (int64_t i = 0; i < count; ++i) {
    const float centre = static_cast<float>(axis.begin + i) + 0.5f;
    const float normalized = (centre - low) / (high - low) * 2 - 1;
    const float position = multiply_add<fused>(normalized + 1, half, -0.5f);
    const float cell = std::floor(position);
    axis.cell[i] =
        std::isfinite(cell) ? static_cast<int32_t>(std::clamp(cell, -2.f, static_cast<float>(cells))) : -2;
    axis.fraction[i] = position - cell;
  }
  return axis;
}

template <bool fused>
inline __attribute__((always_inline)) std::string encode(const Instance& in) {
  const Axis ys = sample_axis<fused>(in.box[1], in.box[3], in.height, in.mask_height);
  const Axis xs = sample_axis<fused>(in.box[0], in.box[2], in.width, in.mask_width);
  RunLengths runs;
  if (ys.cell.empty() || xs.cell.empty()) {
    runs.add(false, in.height * in.width);
    return runs.finish();
  }

  std::vector<Band> bands;
  for (int32_t y = 0; y < static_cast<int32_t>(ys.cell.size()); ++y) {
    if (y == 0 || ys.cell[y] != bands.back().cell) bands.push_back({ys.cell[y], y, y});
    bands.back().end = y + 1;
  }

  // The mask with two cells of zeros around it, transposed: a column of the image reads two of its rows.
  const int64_t stride = in.mask_height + 4;
  std::vector<float> padded((in.mask_width + 4) * stride, 0.f);
  float largest = 0;
  for (int64_t y = 0; y < in.mask_height; ++y) {
    for (int64_t x = 0; x < in.mask_width; ++x) {
      const float value = in.mask[y * in.mask_width + x];
      padded[(x + 2) * stride + y + 2] = value;
      largest = std::isfinite(value) ? std::max(largest, std::abs(value)) : std::nanf("");
    }
  }
  // Many times what rounding can move a pixel by; never zero, so that at a threshold of zero each pixel is
  // computed, and NaN, so that each is too, where the mask has values that are not finite.
  const float margin = largest * 4e-6f + std::numeric_limits<float>::min();

  std::vector<float> blended(stride);
  runs.add(false, xs.begin * in.height);
  for (size_t x = 0; x < xs.cell.size(); ++x) {
    const float* west = padded.data() + (xs.cell[x] + 2) * stride;
    const float* east = west + stride;
    const float w = xs.fraction[x], e = 1 - w;
    for (int64_t y = 0; y < stride; ++y) blended[y] = west[y] * e + east[y] * w;

    runs.add(false, ys.begin);
    for (const Band& band : bands) {
      // Within a band the mask changes linearly down the column.
      const int32_t cell = band.cell + 2;
      const auto [low, high] = std::minmax(blended[cell], blended[cell + 1]);
      if (high < in.threshold - margin) {
        runs.add(false, band.end - band.begin);
      } else if (low >= in.threshold + margin) {
        runs.add(true, band.end - band.begin);
      } else {
        const float north_west = west[cell], north_east = east[cell];
        const float south_west = west[cell + 1], south_east = east[cell + 1];
        for (int32_t y = band.begin; y < band.end; ++y) {
          const float n = ys.fraction[y], s = 1 - n;
          float value = north_west * (s * e);
          value = multiply_add<fused>(north_east, s * w, value);
          value = multiply_add<fused>(south_west, n * e, value);
          value = multiply_add<fused>(south_east, n * w, value);
          runs.add(value >= in.threshold, 1);
        }
      }
    }
    runs.add(false, in.height - ys.end);
  }
  runs.add(false, (in.width - xs.end) * in.height);
  return runs.finish();
}

std::string encode_separately_rounded(const Instance& instance) { return encode<false>(instance); }

#if defined(__x86_64__)
__attribute__((target("fma")))
#endif
std::string
encode_fused(const Instance& instance) {
  return encode<true>(instance);
}

// Whether ATen's own kernels, which compilers contract wherever there is such an instruction, fuse a * b + c.
bool grid_sample_fuses() {
#if defined(__x86_64__)
  return at::get_cpu_capability() != "DEFAULT";
#else
  return true;
#endif
}

std::tuple<at::Tensor, at::Tensor> masks_to_rle(const at::Tensor& masks, const at::Tensor& boxes,
                                                int64_t height, int64_t width, double threshold) {
  TORCH_CHECK(masks.dim() == 3 && masks.scalar_type() == at::kFloat, "masks must be (R, h, w) and float32");
  TORCH_CHECK(boxes.dim() == 2 && boxes.size(0) == masks.size(0) && boxes.size(1) == 4 &&
                  boxes.scalar_type() == at::kFloat,
              "boxes must be (R, 4) with masks' R and float32");
  const at::Tensor dense_masks = masks.contiguous();
  const at::Tensor dense_boxes = boxes.contiguous();
  const float* mask = dense_masks.const_data_ptr<float>();
  const float* box = dense_boxes.const_data_ptr<float>();
  const int64_t count = masks.size(0), mask_height = masks.size(1), mask_width = masks.size(2);

  static const auto encode_one = grid_sample_fuses() ? encode_fused : encode_separately_rounded;
  std::vector<std::string> texts(count);
  at::parallel_for(0, count, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      texts[i] = encode_one({mask + i * mask_height * mask_width, mask_height, mask_width, box + i * 4,
                             height, width, static_cast<float>(threshold)});
    }
  });

  at::Tensor offsets = at::zeros({count + 1}, at::kLong);
  int64_t* offset = offsets.mutable_data_ptr<int64_t>();
  for (int64_t i = 0; i < count; ++i) offset[i + 1] = offset[i] + static_cast<int64_t>(texts[i].size());
  at::Tensor characters = at::empty({offset[count]}, at::kByte);
  uint8_t* character = characters.mutable_data_ptr<uint8_t>();
  for (int64_t i = 0; i < count; ++i) std::copy(texts[i].begin(), texts[i].end(), character + offset[i]);
  return {characters, offsets};
}

}  // namespace

TORCH_LIBRARY_IMPL(mrcnn_ext, CPU, m) { m.impl("masks_to_rle", masks_to_rle); }

}  // namespace mrcnn_ext
