// Turning planes (NCHW) into pixels (NHWC) and back, in blocks that stay in the L1 cache.
#pragma once

#include <algorithm>
#include <cstdint>

#include "kernels.h"

namespace mrcnn_ext {

// target(y, x, c) = source(y, x, c) for the columns of one row; source keeps columns together, target
// channels.
template <typename T>
void pixels_from_planes(const Image<const T>& source, const Image<T>& target, int64_t row, int64_t columns) {
  constexpr int64_t kColumns = 16;
  constexpr int64_t kChannels = 64;
  const T* from = source.data + row * source.row_stride;
  T* to = target.data + row * target.row_stride;
  for (int64_t x = 0; x < columns; x += kColumns) {
    const int64_t x_end = std::min(x + kColumns, columns);
    for (int64_t c = 0; c < source.channels; c += kChannels) {
      const int64_t c_end = std::min(c + kChannels, source.channels);
      for (int64_t column = x; column < x_end; ++column) {
        T* pixel = to + column * target.column_stride;
        const T* plane = from + column;
        for (int64_t channel = c; channel < c_end; ++channel) {
          pixel[channel] = plane[channel * source.channel_stride];
        }
      }
    }
  }
}

// The same the other way round, for all rows: target keeps rows and columns together in each channel.
template <typename T>
void planes_from_pixels(const Image<T>& source, const Image<T>& target, int64_t cells) {
  constexpr int64_t kChannels = 16;
  for (int64_t c = 0; c < source.channels; c += kChannels) {
    const int64_t c_end = std::min(c + kChannels, source.channels);
    for (int64_t cell = 0; cell < cells; ++cell) {
      const T* pixel = source.data + cell * source.column_stride;
      T* plane = target.data + cell;
      for (int64_t channel = c; channel < c_end; ++channel) {
        plane[channel * target.channel_stride] = pixel[channel];
      }
    }
  }
}

}  // namespace mrcnn_ext
