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
      for (int32_t j = 0; j < column_tap.count; ++j, cell += map.column_stride) {
        const acc weight = bands.column_weights[column_tap.offset + j];
        const Elements<T, kCount> values = read_global(reinterpret_cast<const Elements<T, kCount>*>(cell));
#pragma unroll
        for (int32_t k = 0; k < kCount; ++k) row_sums[k] += weight * acc(values.values[k]);
        MRCNN_EXT_COUNT(multiply_adds, kCount);
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

// NCHW. A warp pools one channel at a time, some rows of bins together: rows of cells are first weighted into
// shared memory, one per row of bins, with the lanes along the cells; then each lane sums up one bin.
template <typename acc>
struct PlaneMemory {  // shared
  BandMemory<acc> bands;
  acc buffers[kPoolWarps][kBufferedCells];
};

template <typename T>
__global__ void __launch_bounds__(kPoolThreads, kPoolBlocks<acc_t<T>>)
    pool_average_nchw(Pyramid<const T> pyramid, Plan<acc_t<T>> plan, Map<T> output) {
  using acc = acc_t<T>;
  const int64_t roi = blockIdx.x;
  const int32_t lane = lane_of_thread();
  PlaneMemory<acc>& memory = *shared_memory<PlaneMemory<acc>>();
  acc* const buffer = memory.buffers[warp_of_thread()];
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
      for (int32_t c = warp_of_thread(); c < kPlaneChannels; c += kPoolWarps) {
        const int64_t channel = first_channel + c;
        if (channel >= pyramid.channels) break;
        acc sum = 0;
        for (int32_t x = left; x < right; x += cells_at_once) {
          const int32_t cells = right - x < cells_at_once ? right - x : cells_at_once;
          // Element `lane`, lane + 32, ... of (down, cells), without a division for each.
          const int32_t rows_a_step = kWarp / cells;
          const int32_t cells_a_step = kWarp % cells;
          int32_t row = lane / cells;
          int32_t cell = lane % cells;
          while (row < down) {
            acc weighted = 0;
            if (ph + row < plan.row_bins) {
              const Tap row_tap = bands.row_taps[ph + row];
              const T* from = map.at(image, channel, row_tap.first, x + cell);
              for (int32_t i = 0; i < row_tap.count; ++i, from += map.row_stride) {
                weighted += bands.row_weights[row_tap.offset + i] * acc(read_global(from));
                MRCNN_EXT_COUNT(multiply_adds, 1);
              }
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
              sum += bands.column_weights[column_tap.offset + i - column_tap.first] *
                     buffer[lane_row * cells_at_once + i - x];
              MRCNN_EXT_COUNT(multiply_adds, 1);
            }
          }
          __syncwarp();  // the buffer is read no longer
        }
        if (has_bin) write_global(output.at(roi, channel, ph + lane_row, pw + lane_column), sum);
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
