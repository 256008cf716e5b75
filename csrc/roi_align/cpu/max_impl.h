// The kernels of the max modes, part of kernels_impl.h. A maximum does not separate into two 1-D passes,
// so every bin looks at all its samples; plain loops over a tile of channels, which the compiler vectorises
// where channels are contiguous.

constexpr int64_t kMaxTile = 64;

template <bool kNhwc>
constexpr int64_t channel_step(int64_t channel_stride) {
  return kNhwc ? 1 : channel_stride;
}

// Runs over the samples of one bin in row-major order; best[c] and, where wanted, which[c], the number of the
// winning sample (-1 where no sample has a gradient).
template <bool kNhwc, bool kWhich, typename T>
inline void find_maximum(const Image<const T>& feature, const SampleAxis<acc_t<T>>& rows,
                         const SampleAxis<acc_t<T>>& columns, int32_t y, int32_t x, int64_t channel,
                         int64_t tile, acc_t<T>* best, int32_t* which) {
  using acc = acc_t<T>;
  const int64_t step = channel_step<kNhwc>(feature.channel_stride);
  const SampleBin& row_bin = rows.bins[y];
  const SampleBin& column_bin = columns.bins[x];
  const acc lowest = -std::numeric_limits<float>::max();
  const bool none =
      (row_bin.count == 0 && !row_bin.outside) || (column_bin.count == 0 && !column_bin.outside);
  for (int64_t c = 0; c < tile; ++c) best[c] = none ? acc(0) : lowest;
  if (kWhich) std::fill_n(which, tile, -1);
  if (none) return;
  int32_t number = 0;
  for (int32_t i = 0; i < row_bin.count; ++i) {
    const SamplePoint<acc>& row = rows.points[row_bin.offset + i];
    const T* low_row = feature.data + row.low * feature.row_stride + channel * feature.channel_stride;
    const T* high_row = feature.data + row.high * feature.row_stride + channel * feature.channel_stride;
    for (int32_t j = 0; j < column_bin.count; ++j, ++number) {
      const SamplePoint<acc>& column = columns.points[column_bin.offset + j];
      const T* p00 = low_row + column.low * feature.column_stride;
      const T* p01 = low_row + column.high * feature.column_stride;
      const T* p10 = high_row + column.low * feature.column_stride;
      const T* p11 = high_row + column.high * feature.column_stride;
      const bool single = rows.cells && columns.cells;
      for (int64_t c = 0; c < tile; ++c) {
        const int64_t at = c * step;
        const acc value =
            single ? acc(p00[at])
                   : row.low_weight * (column.low_weight * acc(p00[at]) + column.high_weight * acc(p01[at])) +
                         row.high_weight *
                             (column.low_weight * acc(p10[at]) + column.high_weight * acc(p11[at]));
        if (kWhich) which[c] = value > best[c] ? number : which[c];
        best[c] = value > best[c] ? value : best[c];
      }
    }
  }
  if (!row_bin.outside && !column_bin.outside) return;
  for (int64_t c = 0; c < tile; ++c) {
    if (kWhich) which[c] = best[c] < acc(0) ? -1 : which[c];
    best[c] = best[c] < acc(0) ? acc(0) : best[c];
  }
}

template <bool kNhwc, typename T>
void pool_max(const Image<const T>& feature, const SampleAxis<acc_t<T>>& rows,
              const SampleAxis<acc_t<T>>& columns, const Image<T>& output) {
  using acc = acc_t<T>;
  const int64_t tile_size = kNhwc ? kMaxTile : 1;
  acc best[kMaxTile];
  for (int64_t channel = 0; channel < feature.channels; channel += tile_size) {
    const int64_t tile = std::min(tile_size, feature.channels - channel);
    for (int32_t y = 0; y < rows.outputs; ++y) {
      for (int32_t x = 0; x < columns.outputs; ++x) {
        find_maximum<kNhwc, false>(feature, rows, columns, y, x, channel, tile, best, nullptr);
        T* out =
            output.data + y * output.row_stride + x * output.column_stride + channel * output.channel_stride;
        for (int64_t c = 0; c < tile; ++c) out[c] = T(best[c]);
      }
    }
  }
}

// The winning samples are found again from the features, which costs less than to keep them from the forward
// pass.
template <bool kNhwc, typename T>
void scatter_max(const Image<const T>& feature, const Image<const T>& grad, const SampleAxis<acc_t<T>>& rows,
                 const SampleAxis<acc_t<T>>& columns, const Image<acc_t<T>>& grad_feature) {
  using acc = acc_t<T>;
  const int64_t tile_size = kNhwc ? kMaxTile : 1;
  acc best[kMaxTile];
  int32_t which[kMaxTile];
  for (int64_t channel = 0; channel < feature.channels; channel += tile_size) {
    const int64_t tile = std::min(tile_size, feature.channels - channel);
    for (int32_t y = 0; y < rows.outputs; ++y) {
      for (int32_t x = 0; x < columns.outputs; ++x) {
        find_maximum<kNhwc, true>(feature, rows, columns, y, x, channel, tile, best, which);
        for (int64_t c = 0; c < tile; ++c) {
          if (which[c] < 0) continue;
          const int32_t per_row = columns.bins[x].count;
          const SamplePoint<acc>& row = rows.points[rows.bins[y].offset + which[c] / per_row];
          const SamplePoint<acc>& column = columns.points[columns.bins[x].offset + which[c] % per_row];
          const acc value = acc(
              grad.data[y * grad.row_stride + x * grad.column_stride + (channel + c) * grad.channel_stride]);
          acc* plane = grad_feature.data + (channel + c) * grad_feature.channel_stride;
          acc* low_row = plane + row.low * grad_feature.row_stride;
          acc* high_row = plane + row.high * grad_feature.row_stride;
          low_row[column.low * grad_feature.column_stride] += value * row.low_weight * column.low_weight;
          low_row[column.high * grad_feature.column_stride] += value * row.low_weight * column.high_weight;
          high_row[column.low * grad_feature.column_stride] += value * row.high_weight * column.low_weight;
          high_row[column.high * grad_feature.column_stride] += value * row.high_weight * column.high_weight;
        }
      }
    }
  }
}
