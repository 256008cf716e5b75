// Masks within boxes, brought to one size, on the CPU: the means of bilinear samples that torchvision's
// roi_align (aligned, one sample a pixel at least) takes, in its order of operations, of masks that stay
// bool.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "parallel.h"

namespace mrcnn_ext {
namespace training_targets {
namespace {

// Where a sample lies on one axis: between cells `low` and `high`, which weigh `of_low` and `of_high`.
struct Sample {
  int64_t low, high;
  float of_low, of_high;
  bool outside;
};

// Those of `bins` bins of a box on an axis of `cells` cells, `number` for each.
struct Axis {
  Axis(float from, float to, int64_t cells, int64_t bins) {
    const float start = from - 0.5f, length = to - 0.5f - start;
    const float bin = length / static_cast<float>(bins);
    number = static_cast<int64_t>(std::ceil(length / static_cast<float>(bins)));
    for (int64_t i = 0; i < bins; ++i)
      for (int64_t j = 0; j < number; ++j)
        samples.push_back(sample(start + static_cast<float>(i) * bin +
                                     (static_cast<float>(j) + .5f) * bin / static_cast<float>(number),
                                 cells));
  }

  static Sample sample(float place, int64_t cells) {
    if (place < -1.0f || place > static_cast<float>(cells)) return {0, 0, 0, 0, true};
    place = std::max(place, 0.0f);
    int64_t low = static_cast<int64_t>(place), high = low + 1;
    if (low >= cells - 1) {
      high = low = cells - 1;
      place = static_cast<float>(low);
    }
    const float of_high = place - static_cast<float>(low);
    return {low, high, 1.0f - of_high, of_high, false};
  }

  int64_t number;
  std::vector<Sample> samples;
};

void crop(const bool* mask, int64_t height, int64_t width, const float* box, int64_t size, bool* to) {
  const Axis across(box[0], box[2], width, size), down(box[1], box[3], height, size);
  const float count = static_cast<float>(std::max<int64_t>(across.number * down.number, 1));
  for (int64_t y = 0; y < size; ++y) {
    for (int64_t x = 0; x < size; ++x) {
      float sum = 0;
      for (int64_t i = 0; i < down.number; ++i) {
        const Sample& v = down.samples[y * down.number + i];
        if (v.outside) continue;
        const bool *above = mask + v.low * width, *below = mask + v.high * width;
        for (int64_t j = 0; j < across.number; ++j) {
          const Sample& h = across.samples[x * across.number + j];
          if (h.outside) continue;
          sum += v.of_low * h.of_low * above[h.low] + v.of_low * h.of_high * above[h.high] +
                 v.of_high * h.of_low * below[h.low] + v.of_high * h.of_high * below[h.high];
        }
      }
      *to++ = sum / count >= 0.5f;
    }
  }
}

at::Tensor crop_masks(const at::Tensor& masks, const at::Tensor& index, const at::Tensor& boxes,
                      int64_t size) {
  TORCH_CHECK_VALUE(masks.dim() == 3 && masks.scalar_type() == at::kBool,
                    "crop_masks: masks must be (G, H, W) bool, got ", masks.sizes(), " ",
                    masks.scalar_type());
  const int64_t number = index.size(0), height = masks.size(1), width = masks.size(2);
  TORCH_CHECK_VALUE(index.dim() == 1 && index.scalar_type() == at::kLong,
                    "crop_masks: index must be (R,) int64, got ", index.sizes(), " ", index.scalar_type());
  TORCH_CHECK_VALUE(boxes.sizes() == at::IntArrayRef({number, 4}) && boxes.scalar_type() == at::kFloat,
                    "crop_masks: boxes must be (", number, ", 4) float32, got ", boxes.sizes(), " ",
                    boxes.scalar_type());
  TORCH_CHECK_VALUE(size > 0, "crop_masks: size must be at least 1, got ", size);
  const at::Tensor result = at::empty({number, size, size}, masks.options());
  if (number == 0) return result;
  TORCH_CHECK_VALUE(masks.numel() > 0, "crop_masks: there is nothing to crop in masks of ", masks.sizes());
  const at::Tensor dense = masks.contiguous(), which = index.contiguous(), places = boxes.contiguous();
  const int64_t* mask_of = which.const_data_ptr<int64_t>();
  const float* box = places.const_data_ptr<float>();
  for (int64_t i = 0; i < number; ++i)
    TORCH_CHECK_INDEX(mask_of[i] >= 0 && mask_of[i] < masks.size(0), "crop_masks: index must be below ",
                      masks.size(0), ", got ", mask_of[i]);
  // As long as any box that can be asked for; a longer one would be sampled for ever.
  const float most = 1e6f;
  for (int64_t i = 0; i < 4 * number; ++i)
    TORCH_CHECK_VALUE(std::abs(box[i]) <= most, "crop_masks: boxes must be finite and within ", most,
                      " pixels, got ", box[i]);
  bool* to = result.mutable_data_ptr<bool>();
  share_out(number, [&](int64_t i) {
    crop(dense.const_data_ptr<bool>() + mask_of[i] * height * width, height, width, box + 4 * i, size,
         to + i * size * size);
  });
  return result;
}

}  // namespace

TORCH_LIBRARY_IMPL(mrcnn_ext, CPU, m) { m.impl("crop_masks", crop_masks); }

}  // namespace training_targets
}  // namespace mrcnn_ext
