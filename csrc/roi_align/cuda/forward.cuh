// Pools RoIs that are planned.
#pragma once

#include <cstdint>

#include "maximum.cuh"
#include "plan.cuh"

namespace mrcnn_ext {
namespace cuda {

// The bins of one RoI and their weights.
template <typename acc>
struct Bands {
  const Tap* row_taps;
  const Tap* column_taps;
  const acc* row_weights;
  const acc* column_weights;
};

template <typename acc>
struct BandMemory {  // shared
  Tap taps[kBandTaps];
  acc weights[kBandWeights];
};

// Brings the bands of a RoI to shared memory, for all but huge ones, which are left where they are. All
// threads of the block take part.
template <typename acc>
__device__ Bands<acc> stage_bands(const Plan<acc>& plan, int64_t roi, BandMemory<acc>& memory) {
  Bands<acc> bands{plan.row_taps(roi), plan.column_taps(roi), plan.row_weights(roi),
                   plan.column_weights(roi)};
  if (plan.row_bins + plan.column_bins > kBandTaps) return bands;
  for (int32_t i = threadIdx.x; i < plan.row_bins + plan.column_bins; i += kPoolThreads) {
    memory.taps[i] = read_global(bands.row_taps + i);
  }
  __syncthreads();
  bands.row_taps = memory.taps;
  bands.column_taps = memory.taps + plan.row_bins;
  const Tap& last_row = bands.row_taps[plan.row_bins - 1];
  const Tap& last_column = bands.column_taps[plan.column_bins - 1];
  const int32_t rows = last_row.offset + last_row.count;
  const int32_t columns = last_column.offset + last_column.count;
  if (rows + columns > kBandWeights) return bands;
  for (int32_t i = threadIdx.x; i < rows + columns; i += kPoolThreads) {
    memory.weights[i] = read_global(i < rows ? bands.row_weights + i : bands.column_weights + i - rows);
  }
  __syncthreads();
  bands.row_weights = memory.weights;
  bands.column_weights = memory.weights + rows;
  return bands;
}

// NHWC. A lane has kCount neighbouring channels, moved by one instruction; the warps of a block share out the
// bins of a RoI. Any strides but for kCount > 1, which needs dense and aligned channels.
template <typename T, int32_t kCount>
__global__ void __launch_bounds__(kPoolThreads, kPoolBlocks<acc_t<T>>)
    pool_average_nhwc(Pyramid<const T> pyramid, Plan<acc_t<T>> plan, Map<T> output) {
  using acc = acc_t<T>;
  const int64_t roi = blockIdx.x;
  const int64_t channel = (int64_t(blockIdx.y) * kWarp + lane_of_thread()) * kCount;
  const Bands<acc> bands = stage_bands(plan, roi, *shared_memory<BandMemory<acc>>());
  if (channel >= pyramid.channels) return;
  const Map<const T> map = pyramid.levels[plan.rois[roi].level];
  const T* const image = map.at(plan.rois[roi].image, channel, 0, 0);
  for (int32_t bin = warp_of_thread(); bin < plan.row_bins * plan.column_bins; bin += kPoolWarps) {
    const int32_t ph = bin / plan.column_bins;
    const int32_t pw = bin % plan.column_bins;
    const Tap row_tap = bands.row_taps[ph];
    const Tap column_tap = bands.column_taps[pw];
    acc sums[kCount] = {};
    for (int32_t i = 0; i < row_tap.count; ++i) {
      const acc row_weight = bands.row_weights[row_tap.offset + i];
      const T* cell = image + (row_tap.first + i) * map.row_stride + column_tap.first * map.column_stride;
      acc row_sums[kCount] = {};
      for (int32_t j = 0; j < column_tap.count; j += kCellsAtOnce) {
        Elements<T, kCount> cells[kCellsAtOnce];
#pragma unroll
        for (int32_t n = 0; n < kCellsAtOnce; ++n, cell += map.column_stride) {
          if (j + n >= column_tap.count) continue;
          cells[n] = read_global(reinterpret_cast<const Elements<T, kCount>*>(cell));
        }
#pragma unroll
        for (int32_t n = 0; n < kCellsAtOnce; ++n) {
          if (j + n >= column_tap.count) continue;
          const acc weight = bands.column_weights[column_tap.offset + j + n];
#pragma unroll
          for (int32_t k = 0; k < kCount; ++k) row_sums[k] += weight * acc(cells[n].values[k]);
          MRCNN_EXT_COUNT(multiply_adds, kCount);
        }
      }
#pragma unroll
      for (int32_t k = 0; k < kCount; ++k) sums[k] += row_weight * row_sums[k];
      MRCNN_EXT_COUNT(multiply_adds, kCount);
    }
    Elements<T, kCount> result;
#pragma unroll
    for (int32_t k = 0; k < kCount; ++k) result.values[k] = T(sums[k]);
    write_global(reinterpret_cast<Elements<T, kCount>*>(output.at(roi, channel, ph, pw)), result);
  }
}

// NCHW. A warp pools a few channels at a time, some rows of bins together: rows of cells are first weighted
// into shared memory, one per row of bins, with the lanes along the cells; then each lane sums up one bin.
template <typename acc>
struct PlaneMemory {  // shared
  BandMemory<acc> bands;
  Elements<acc, kPlanesAtOnce<acc>> buffers[kPoolWarps][kBufferedCells];
};

// Adds `count` cells of each plane, `stride` elements apart from `offset` on, times their weights.
template <typename T, int32_t kPlanes>
__device__ void weight_rows(const T* const (&planes)[kPlanes], int64_t offset, int64_t stride, int32_t count,
                            const acc_t<T>* weights, Elements<acc_t<T>, kPlanes>& weighted) {
  for (int32_t i = 0; i < count; i += kRowsAtOnce) {
    T cells[kRowsAtOnce][kPlanes];
#pragma unroll
    for (int32_t n = 0; n < kRowsAtOnce; ++n, offset += stride) {
      if (i + n >= count) continue;
#pragma unroll
      for (int32_t k = 0; k < kPlanes; ++k) cells[n][k] = read_global(planes[k] + offset);
    }
#pragma unroll
    for (int32_t n = 0; n < kRowsAtOnce; ++n) {
      if (i + n >= count) continue;
#pragma unroll
      for (int32_t k = 0; k < kPlanes; ++k) weighted.values[k] += weights[i + n] * acc_t<T>(cells[n][k]);
      MRCNN_EXT_COUNT(multiply_adds, kPlanes);
    }
  }
}

template <typename T>
__global__ void __launch_bounds__(kPoolThreads, kPlaneBlocks<acc_t<T>>)
    pool_average_nchw(Pyramid<const T> pyramid, Plan<acc_t<T>> plan, Map<T> output) {
  using acc = acc_t<T>;
  constexpr int32_t kPlanes = kPlanesAtOnce<acc>;
  const int64_t roi = blockIdx.x;
  const int32_t lane = lane_of_thread();
  PlaneMemory<acc>& memory = *shared_memory<PlaneMemory<acc>>();
  Elements<acc, kPlanes>* const buffer = memory.buffers[warp_of_thread()];
  const Bands<acc> bands = stage_bands(plan, roi, memory.bands);
  const Map<const T> map = pyramid.levels[plan.rois[roi].level];
  const int64_t image = plan.rois[roi].image;
  // Lanes are bins: `down` rows of `across`.
  const int32_t across = plan.column_bins < kWarp ? plan.column_bins : kWarp;
  const int32_t down = plan.row_bins < kWarp / across ? plan.row_bins : kWarp / across;
  const int32_t lane_row = lane / across;
  const int32_t lane_column = lane % across;
  const int32_t cells_at_once = kBufferedCells / down;
  const int64_t first_channel = int64_t(blockIdx.y) * kPlaneChannels;

  for (int32_t pw = 0; pw < plan.column_bins; pw += across) {
    Tap column_tap{};
    if (pw + lane_column < plan.column_bins) column_tap = bands.column_taps[pw + lane_column];
    const auto lesser = [](int32_t a, int32_t b) { return a < b ? a : b; };
    const auto greater = [](int32_t a, int32_t b) { return a > b ? a : b; };
    const int32_t left = combine_warp(column_tap.count > 0 ? column_tap.first : INT32_MAX, lesser);
    const int32_t right =
        combine_warp(column_tap.count > 0 ? column_tap.first + column_tap.count : 0, greater);
    for (int32_t ph = 0; ph < plan.row_bins; ph += down) {
      const bool has_bin =
          lane_row < down && ph + lane_row < plan.row_bins && pw + lane_column < plan.column_bins;
      for (int32_t c = kPlanes * warp_of_thread(); c < kPlaneChannels; c += kPlanes * kPoolWarps) {
        const int64_t channel = first_channel + c;
        if (channel >= pyramid.channels) break;
        // Behind the last channel it is read again, and not written.
        const int32_t last =
            int32_t(pyramid.channels - channel < kPlanes ? pyramid.channels - channel : kPlanes) - 1;
        const T* planes[kPlanes];
#pragma unroll
        for (int32_t k = 0; k < kPlanes; ++k)
          planes[k] = map.at(image, channel + (k < last ? k : last), 0, 0);
        acc sums[kPlanes] = {};
        for (int32_t x = left; x < right; x += cells_at_once) {
          const int32_t cells = right - x < cells_at_once ? right - x : cells_at_once;
          // Element `lane`, lane + 32, ... of (down, cells), without a division for each.
          const int32_t rows_a_step = kWarp / cells;
          const int32_t cells_a_step = kWarp % cells;
          int32_t row = lane / cells;
          int32_t cell = lane % cells;
          while (row < down) {
            Elements<acc, kPlanes> weighted{};
            if (ph + row < plan.row_bins) {
              const Tap row_tap = bands.row_taps[ph + row];
              const int64_t offset = row_tap.first * map.row_stride + (x + cell) * map.column_stride;
              weight_rows(planes, offset, map.row_stride, row_tap.count, bands.row_weights + row_tap.offset,
                          weighted);
            }
            buffer[row * cells_at_once + cell] = weighted;
            row += rows_a_step;
            cell += cells_a_step;
            if (cell >= cells) {
              cell -= cells;
              ++row;
            }
          }
          __syncwarp();
          if (has_bin) {
            const int32_t first = column_tap.first > x ? column_tap.first : x;
            const int32_t tap_end = column_tap.first + column_tap.count;
            const int32_t end = tap_end < x + cells ? tap_end : x + cells;
            for (int32_t i = first; i < end; ++i) {
              const acc weight = bands.column_weights[column_tap.offset + i - column_tap.first];
              const Elements<acc, kPlanes> weighted = buffer[lane_row * cells_at_once + i - x];
#pragma unroll
              for (int32_t k = 0; k < kPlanes; ++k) sums[k] += weight * weighted.values[k];
              MRCNN_EXT_COUNT(multiply_adds, kPlanes);
            }
          }
          __syncwarp();  // the buffer is read no longer
        }
        if (!has_bin) continue;
#pragma unroll
        for (int32_t k = 0; k < kPlanes; ++k) {
          if (k <= last) write_global(output.at(roi, channel + k, ph + lane_row, pw + lane_column), sums[k]);
        }
      }
    }
  }
}

// Max modes: the values or, for the backward, the numbers of the winning samples. NHWC: lanes are channels,
// warps share out bins. NCHW: lanes are bins, warps share out channels.
template <typename T, bool kNhwc, bool kCells, typename Result>
__global__ void __launch_bounds__(kPoolThreads, kPoolMaximumBlocks<acc_t<T>>)
    pool_maximum(Pyramid<const T> pyramid, Plan<acc_t<T>> plan, Map<Result> output) {
  using acc = acc_t<T>;
  const int64_t roi = blockIdx.x;
  const PlannedRoI<acc>& planned = plan.rois[roi];
  const Map<const T> map = pyramid.levels[planned.level];
  const int32_t bins = plan.row_bins * plan.column_bins;
  const auto pool = [&](int64_t channel, int32_t bin) {
    const int32_t ph = bin / plan.column_bins;
    const int32_t pw = bin % plan.column_bins;
    const T* const plane = map.at(planned.image, channel, 0, 0);
    const Maximum<acc> best = find_maximum<kCells>(
        planned, ph, plan.row_taps(roi)[ph], pw, plan.column_taps(roi)[pw], [&](int64_t y, int64_t x) {
          return acc(read_global(plane + y * map.row_stride + x * map.column_stride));
        });
    if constexpr (std::is_same_v<Result, T>) {
      write_global(output.at(roi, channel, ph, pw), best.value);
    } else {
      write_global(output.at(roi, channel, ph, pw), best.winner);
    }
  };
  if (kNhwc) {
    const int64_t channel = int64_t(blockIdx.y) * kWarp + lane_of_thread();
    if (channel >= pyramid.channels) return;
    for (int32_t bin = warp_of_thread(); bin < bins; bin += kPoolWarps) pool(channel, bin);
  } else {
    const int64_t first_channel = int64_t(blockIdx.y) * kPlaneChannels;
    for (int32_t c = warp_of_thread(); c < kPlaneChannels && first_channel + c < pyramid.channels;
         c += kPoolWarps) {
      for (int32_t bin = lane_of_thread(); bin < bins; bin += kWarp) pool(first_channel + c, bin);
    }
  }
}

}  // namespace cuda
}  // namespace mrcnn_ext
