// Where the tiles of a 3x3 convolution lie in its maps, and which kernels serve this processor.
#pragma once

#include <ATen/ATen.h>
#include <ATen/Version.h>
#include <ATen/ceil_div.h>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "kernels.h"
#include "simd/processor.h"

namespace mrcnn_ext {
namespace winograd {

using at::ceil_div;

// nullptr where this processor is not served. As ATen chose for its own kernels.
inline const Kernels* best_kernels() {
#if defined(__x86_64__)
  static const std::string capability = at::get_cpu_capability();
  static const bool vnni = __builtin_cpu_supports("avx512vnni");
  if (capability == "AVX512") {
    static const Kernels best = [] {
      Kernels all = vnni ? avx512_vnni_kernels() : avx512_kernels();
      if (runs_avx512_bf16()) all.bf16.outputs = avx512_bf16_outputs();
      return all;
    }();
    return &best;
  }
  if (capability == "AVX2") return &avx2_kernels();
#endif
  return nullptr;
}

// Images side by side, `across` of them in a row.
class Canvas {
 public:
  Canvas(int64_t images, int64_t height, int64_t width) {
    int64_t fewest = std::numeric_limits<int64_t>::max();
    int64_t across = 1;
    for (int64_t i = 1; i <= std::min<int64_t>(images, 32); ++i) {
      const int64_t tiles =
          ceil_div(ceil_div(images, i) * (height + 1) - 1, kOutput) * ceil_div(i * (width + 1) - 1, kOutput);
      if (tiles < fewest) fewest = tiles, across = i;
    }
    const int64_t down = ceil_div(images, across);
    for (int64_t y = 0; y < down * (height + 1) - 1; ++y) {
      const int64_t first = y / (height + 1) * across;
      const bool between = y % (height + 1) == height;
      row_begin_.push_back((first * height + y % (height + 1)) * width);
      row_end_.push_back(between ? 0 : std::min(across, images - first) * (width + 1));
    }
    for (int64_t x = 0; x < across * (width + 1) - 1; ++x) {
      const bool between = x % (width + 1) == width;
      column_.push_back(between ? -1 : x / (width + 1) * height * width + x % (width + 1));
    }
    tiles_down_ = ceil_div<int64_t>(row_begin_.size(), kOutput);
    tiles_across_ = ceil_div<int64_t>(column_.size(), kOutput);
  }

  int64_t tiles() const { return tiles_down_ * tiles_across_; }

  // The cells [offset, offset + side) of a tile on both axes, as places in (images, height, width); -1 for
  // none.
  void cells(int64_t tile, int64_t offset, int64_t side, int64_t* places) const {
    const int64_t top = tile / tiles_across_ * kOutput + offset,
                  left = tile % tiles_across_ * kOutput + offset;
    for (int64_t y = top; y < top + side; ++y) {
      const bool inside = y >= 0 && y < static_cast<int64_t>(row_begin_.size());
      const int64_t end = inside ? std::min<int64_t>(row_end_[y], column_.size()) : 0;
      for (int64_t x = left; x < left + side; ++x)
        *places++ = x >= 0 && x < end && column_[x] >= 0 ? row_begin_[y] + column_[x] : -1;
    }
  }

 private:
  int64_t tiles_down_, tiles_across_;
  std::vector<int64_t> row_begin_, row_end_;  // place of the first cell; columns from which on there is none
  std::vector<int64_t> column_;               // place within a row; -1 between images
};

}  // namespace winograd
}  // namespace mrcnn_ext
