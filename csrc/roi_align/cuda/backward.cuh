// Gradients of the features. A block owns a tile of one gradient map and a group of channels, of which each
// thread has one; it goes through the RoIs of the map that touch the tile, in order, and sums up what they
// contribute. Nothing is written twice, so there are no atomics and the result is the same in every run.
#pragma once

#include <cstdint>

#include "maximum.cuh"
#include "plan.cuh"

namespace mrcnn_ext {
namespace cuda {

struct Tile {
  int32_t level;
  int64_t image;
  int32_t y;
  int32_t x;
  int32_t height;  // of the map
  int32_t width;
};

__device__ inline Tile tile_of_block(const Geometry& geometry) {
  Tile tile{};
  const int64_t block = blockIdx.x;
  while (block >= geometry.first_tile[tile.level + 1]) ++tile.level;
  tile.height = geometry.heights[tile.level];
  tile.width = geometry.widths[tile.level];
  const TilePlace place =
      tile_place(uint32_t(block - geometry.first_tile[tile.level]), tile.height, tile.width);
  tile.image = place.image;
  tile.y = place.y;
  tile.x = place.x;
  return tile;
}

template <int32_t kThreads>
struct TouchingRoIs {  // shared
  int32_t rois[kThreads];
  int32_t of_warps[kThreads / kWarp];
};

// Calls visit(roi) for every RoI whose window meets the tile, in order, in the warps that are `visiting`. The
// warps of the block come together only before and after the visits of up to kThreads RoIs.
template <int32_t kThreads, typename acc, typename Visit>
__device__ void for_each_touching(const Geometry& geometry, const Plan<acc>& plan, const Tile& tile,
                                  TouchingRoIs<kThreads>& touching, bool visiting, const Visit& visit) {
  constexpr int32_t kWarps = kThreads / kWarp;
  const int32_t lane = lane_of_thread();
  const int32_t warp = warp_of_thread();
  const Group group = read_global_by_warp(plan.groups + tile.level * geometry.images + tile.image);
  for (int32_t base = 0; base < group.count; base += kThreads) {
    const int32_t place = group.first + base + int32_t(threadIdx.x);
    bool touches = false;
    if (base + int32_t(threadIdx.x) < group.count) {
      const Window window = read_global(plan.windows + place);
      touches = window.top < tile.y + kTile && window.bottom > tile.y && window.left < tile.x + kTile &&
                window.right > tile.x;
    }
    const uint32_t votes = __ballot_sync(kWholeWarp, touches);
    if (lane == 0) touching.of_warps[warp] = __popc(votes);
    __syncthreads();
    int32_t at = __popc(votes & ((1u << lane) - 1));
    int32_t found = 0;
    for (int32_t i = 0; i < kWarps; ++i) {
      if (i < warp) at += touching.of_warps[i];
      found += touching.of_warps[i];
    }
    if (touches) touching.rois[at] = read_global(plan.order + place);
    __syncthreads();
    for (int32_t i = 0; visiting && i < found; ++i) {
      if (lane == 0) MRCNN_EXT_COUNT(visits, 1);
      visit(int64_t(touching.rois[i]));
    }
    __syncthreads();  // the list is read no longer
  }
}

// Bins base + [first, end) are the ones that read cells of [begin, begin + kTile); at most kWarp of them.
struct BinRange {
  int32_t first;
  int32_t end;
};

__device__ inline BinRange touching_bins(const Tap& tap_of_lane, int32_t begin) {
  const bool touches = tap_of_lane.count > 0 && tap_of_lane.first < begin + kTile &&
                       tap_of_lane.first + tap_of_lane.count > begin;
  const uint32_t votes = __ballot_sync(kWholeWarp, touches);
  if (votes == 0) return {0, 0};
  return {__ffs(int32_t(votes)) - 1, kWarp - __clz(int32_t(votes))};
}

__device__ inline Tap tap_of_lane(const Tap* taps, int32_t base, int32_t bins) {
  const Tap none{};
  return base + lane_of_thread() < bins ? read_global(taps + base + lane_of_thread()) : none;
}

// Calls visit(ph, pw, rows, columns, row_tap, column_tap) for every block of up to kWarp x kWarp bins from
// (ph, pw) on of which some touch the tile: all but large outputs are one such block.
template <typename acc, typename Visit>
__device__ void for_each_bin_block(const Plan<acc>& plan, int64_t roi, const Tile& tile, const Visit& visit) {
  for (int32_t ph = 0; ph < plan.row_bins; ph += kWarp) {
    const Tap row_tap = tap_of_lane(plan.row_taps(roi), ph, plan.row_bins);
    const BinRange rows = touching_bins(row_tap, tile.y);
    if (rows.end == 0) continue;
    for (int32_t pw = 0; pw < plan.column_bins; pw += kWarp) {
      const Tap column_tap = tap_of_lane(plan.column_taps(roi), pw, plan.column_bins);
      const BinRange columns = touching_bins(column_tap, tile.x);
      if (columns.end > 0) visit(ph, pw, rows, columns, row_tap, column_tap);
    }
  }
}

// Values (R, C, pooled_height, pooled_width) as a tile's warp reads them: each lane its channel. They are
// dense in the layout of the maps.
template <typename Value, bool kNhwc>
struct BinValues {
  const Value* values;
  int64_t channels;
  int32_t row_bins;
  int32_t column_bins;

  __device__ const Value* at(int64_t roi, int64_t channel, int32_t ph, int32_t pw) const {
    if (kNhwc) return values + ((roi * row_bins + ph) * column_bins + pw) * channels + channel;
    return values + ((roi * channels + channel) * row_bins + ph) * column_bins + pw;
  }

  // Brings bins [ph, ph + rows) x [pw, pw + columns), kStagedBins at most, of the warp's channels to shared
  // memory: bin after bin in NCHW, where neighbouring lanes would read planes far apart.
  __device__ void stage(int64_t roi, int64_t first_channel, int32_t ph, int32_t rows, int32_t pw,
                        int32_t columns, Value* staged) const {
    const int32_t lane = lane_of_thread();
    if (lane >= rows * columns) return;
    const int64_t left = channels - first_channel;
    const int32_t count = left < kWarp ? int32_t(left) : kWarp;
    const Value* from = at(roi, first_channel, ph + lane / columns, pw + lane % columns);
#pragma unroll 4
    for (int32_t channel = 0; channel < count; ++channel) {
      staged[channel * kStagedStride + lane] = read_global(from + int64_t(channel) * row_bins * column_bins);
    }
  }
};

// Calls visit(p, q, value) with this lane's value of every bin of the ranges, row by row, and after each row
// end_row(p). `staged` is a warp's own; all lanes take part, but only those with a channel are called.
template <typename Value, bool kNhwc, typename Visit, typename EndRow>
__device__ void for_each_bin(const BinValues<Value, kNhwc>& values, int64_t roi, int64_t channel, int32_t ph,
                             int32_t pw, const BinRange& rows, const BinRange& columns, Value* staged,
                             const Visit& visit, const EndRow& end_row) {
  const bool has_channel = channel < values.channels;
  const int32_t across = columns.end - columns.first;
  if constexpr (kNhwc) {
    if (!has_channel) return;
    for (int32_t p = rows.first; p < rows.end; ++p) {
      const Value* from = values.at(roi, channel, ph + p, pw + columns.first);
#pragma unroll 4
      for (int32_t q = 0; q < across; ++q)
        visit(p, columns.first + q, read_global(from + q * values.channels));
      end_row(p);
    }
  } else {
    const int32_t rows_at_once = kStagedBins / across;
    const int64_t first_channel = channel - lane_of_thread();
    for (int32_t p = rows.first; p < rows.end; p += rows_at_once) {
      const int32_t count = rows.end - p < rows_at_once ? rows.end - p : rows_at_once;
      __syncwarp();  // what was staged before is read no longer
      values.stage(roi, first_channel, ph + p, count, pw + columns.first, across, staged);
      __syncwarp();
      if (!has_channel) continue;
      const Value* from = staged + lane_of_thread() * kStagedStride;
      for (int32_t i = 0; i < count; ++i) {
        for (int32_t q = 0; q < across; ++q) visit(p + i, columns.first + q, *from++);
        end_row(p + i);
      }
    }
  }
}

// Writes one row of a tile of a map in NHWC, of which `value(x)` is this thread's, in its channel.
template <typename T, typename ValueOfCell>
__device__ void write_row_nhwc(const Map<T>& map, const Tile& tile, int32_t y, int64_t channel,
                               const ValueOfCell& value) {
  if (tile.y + y >= tile.height) return;
#pragma unroll
  for (int32_t x = 0; x < kTile; ++x) {
    if (tile.x + x < tile.width) write_global(map.at(tile.image, channel, tile.y + y, tile.x + x), value(x));
  }
}

// The same in NCHW, where a warp writes whole sectors of rows: `value(c, x)` is that of channel
// first_channel + c, whichever thread's.
template <typename T, typename ValueOfCell>
__device__ void write_row_nchw(const Map<T>& map, const Tile& tile, int32_t y, int64_t first_channel,
                               int64_t channels, const ValueOfCell& value) {
  const int32_t x = lane_of_thread() % kTile;
  if (tile.y + y >= tile.height || tile.x + x >= tile.width) return;
  for (int32_t c = lane_of_thread() / kTile; c < kWarp && first_channel + c < channels; c += kWarp / kTile) {
    write_global(map.at(tile.image, first_channel + c, tile.y + y, tile.x + x), value(c, x));
  }
}

// What a warp brings to shared memory: values of bins, and in the end a row of its tile.
template <typename T>
union Staged {
  T bins[kWarp * kStagedStride];
  acc_t<T> cells[kWarp * kStagedStride];
};

template <typename T, bool kNhwc>
struct AverageMemory {  // shared
  static constexpr int32_t kWarps = kAverageThreads<acc_t<T>> / kWarp;
  // Per warp: the weights of the tile's rows and columns for each of up to kWarp bins.
  acc_t<T> row_weights[kWarps][kWarp][kTile];
  acc_t<T> column_weights[kWarps][kWarp][kTile];
  TouchingRoIs<kAverageThreads<acc_t<T>>> touching;
  Staged<T> staged[kNhwc ? 1 : kWarps];  // unused in NHWC
};

// The weights of the kTile cells from `begin` on in the bin of this lane.
template <typename acc>
__device__ void weights_of_tile(const Tap& tap, const acc* weights, int32_t begin, acc* of_cells) {
#pragma unroll
  for (int32_t i = 0; i < kTile; ++i) {
    const int32_t place = begin + i - tap.first;
    of_cells[i] = place >= 0 && place < tap.count ? read_global(weights + tap.offset + place) : acc(0);
  }
}

// Gradients of an average mode, A_y^T G A_x in a tile: every gradient of a bin is read once per tile,
// weighted into a row of cells and, bin row by bin row, into the tile. Cells a bin does not read are passed
// over, so that a gradient that is not finite stays in the cells of its bin.
template <typename T, bool kNhwc>
__global__ void __launch_bounds__(kAverageThreads<acc_t<T>>, kAverageBlocks)
    scatter_average(Geometry geometry, Pyramid<T> pyramid, BinValues<T, kNhwc> grad, Plan<acc_t<T>> plan) {
  using acc = acc_t<T>;
  AverageMemory<T, kNhwc>& memory = *shared_memory<AverageMemory<T, kNhwc>>();
  const int32_t warp = warp_of_thread();
  const int32_t lane = lane_of_thread();
  const int64_t channel = int64_t(blockIdx.y) * kAverageThreads<acc> + threadIdx.x;
  Staged<T>& staged = memory.staged[kNhwc ? 0 : warp];
  const Tile tile = tile_of_block(geometry);
  acc sums[kTile][kTile] = {};

  const bool warp_has_channels = channel - lane_of_thread() < pyramid.channels;
  for_each_touching(geometry, plan, tile, memory.touching, warp_has_channels, [&](int64_t roi) {
    for_each_bin_block(
        plan, roi, tile,
        [&](int32_t ph, int32_t pw, const BinRange& rows, const BinRange& columns, const Tap& row_tap,
            const Tap& column_tap) {
          __syncwarp();  // the weights before are read no longer
          weights_of_tile(row_tap, plan.row_weights(roi), tile.y, memory.row_weights[warp][lane]);
          weights_of_tile(column_tap, plan.column_weights(roi), tile.x, memory.column_weights[warp][lane]);
          __syncwarp();
          acc row_sums[kTile] = {};
          for_each_bin(
              grad, roi, channel, ph, pw, rows, columns, staged.bins,
              [&](int32_t, int32_t q, T value) {
                const acc* const weights = memory.column_weights[warp][q];
#pragma unroll
                for (int32_t x = 0; x < kTile; ++x) {
                  if (weights[x] == acc(0)) continue;
                  row_sums[x] += weights[x] * acc(value);
                  MRCNN_EXT_COUNT(multiply_adds, 1);
                }
              },
              [&](int32_t p) {
                const acc* const weights = memory.row_weights[warp][p];
#pragma unroll
                for (int32_t y = 0; y < kTile; ++y) {
                  if (weights[y] == acc(0)) continue;
#pragma unroll
                  for (int32_t x = 0; x < kTile; ++x) sums[y][x] += weights[y] * row_sums[x];
                  MRCNN_EXT_COUNT(multiply_adds, kTile);
                }
#pragma unroll
                for (int32_t x = 0; x < kTile; ++x) row_sums[x] = acc(0);
              });
        });
  });
  const Map<T>& map = pyramid.levels[tile.level];
#pragma unroll
  for (int32_t y = 0; y < kTile; ++y) {
    if constexpr (kNhwc) {
      if (channel < pyramid.channels)
        write_row_nhwc(map, tile, y, channel, [&](int32_t x) { return sums[y][x]; });
    } else {
      __syncwarp();  // what was staged before is read no longer
#pragma unroll
      for (int32_t x = 0; x < kTile; ++x) staged.cells[lane * kStagedStride + x] = sums[y][x];
      __syncwarp();
      write_row_nchw(map, tile, y, channel - lane, pyramid.channels,
                     [&](int32_t c, int32_t x) { return staged.cells[c * kStagedStride + x]; });
    }
  }
}

template <typename acc, bool kNhwc>
struct MaximumMemory {  // shared
  // Any cell may be the winner's: a lane's sums are a column here, where it can choose among them.
  acc sums[kTile * kTile][kMaximumThreads + 1];
  TouchingRoIs<kMaximumThreads> touching;
  int32_t winners[kNhwc ? 1 : kMaximumThreads / kWarp][kWarp * kStagedStride];  // unused in NHWC
};

// Gradients of a max mode, from the numbers of the winning samples that pool_maximum found.
template <typename T, bool kNhwc, bool kCells>
__global__ void __launch_bounds__(kMaximumThreads, kMaximumBlocks)
    scatter_maximum(Geometry geometry, Pyramid<T> pyramid, BinValues<T, kNhwc> grad,
                    BinValues<int32_t, kNhwc> winners, Plan<acc_t<T>> plan) {
  using acc = acc_t<T>;
  MaximumMemory<acc, kNhwc>& memory = *shared_memory<MaximumMemory<acc, kNhwc>>();
  const int32_t warp = warp_of_thread();
  const int32_t thread = threadIdx.x;
  const int64_t channel = int64_t(blockIdx.y) * kMaximumThreads + thread;
  const Tile tile = tile_of_block(geometry);
  for (int32_t i = 0; i < kTile * kTile; ++i) memory.sums[i][thread] = acc(0);

  const auto add = [&](int64_t y, acc row_weight, int64_t x, acc column_weight, acc value) {
    const int64_t row = y - tile.y;
    const int64_t column = x - tile.x;
    if (row < 0 || row >= kTile || column < 0 || column >= kTile) return;
    const acc weight = row_weight * column_weight;
    if (weight != acc(0)) memory.sums[row * kTile + column][thread] += weight * value;
    MRCNN_EXT_COUNT(multiply_adds, 1);
  };
  const bool warp_has_channels = channel - lane_of_thread() < pyramid.channels;
  for_each_touching(geometry, plan, tile, memory.touching, warp_has_channels, [&](int64_t roi) {
    const PlannedRoI<acc>& planned = plan.rois[roi];
    for_each_bin_block(
        plan, roi, tile,
        [&](int32_t ph, int32_t pw, const BinRange& rows, const BinRange& columns, const Tap&, const Tap&) {
          for_each_bin(
              winners, roi, channel, ph, pw, rows, columns, memory.winners[kNhwc ? 0 : warp],
              [&](int32_t p, int32_t q, int32_t winner) {
                if (winner < 0) return;
                const Tap row_tap = read_global_by_warp(plan.row_taps(roi) + ph + p);
                const Tap column_tap = read_global_by_warp(plan.column_taps(roi) + pw + q);
                const Sample<acc> row =
                    sample_of_tap<kCells>(planned.rows, ph + p, row_tap, winner / column_tap.samples);
                const Sample<acc> column =
                    sample_of_tap<kCells>(planned.columns, pw + q, column_tap, winner % column_tap.samples);
                const bool meets = row.low < tile.y + kTile && row.high >= tile.y &&
                                   column.low < tile.x + kTile && column.high >= tile.x;
                if (!meets) return;
                const acc incoming = acc(read_global(grad.at(roi, channel, ph + p, pw + q)));
                add(row.low, row.low_weight, column.low, column.low_weight, incoming);
                if (kCells) return;
                add(row.low, row.low_weight, column.high, column.high_weight, incoming);
                add(row.high, row.high_weight, column.low, column.low_weight, incoming);
                add(row.high, row.high_weight, column.high, column.high_weight, incoming);
              },
              [](int32_t) {});
        });
  });
  const Map<T>& map = pyramid.levels[tile.level];
  __syncwarp();  // the sums of the warp's channels are complete
  for (int32_t y = 0; y < kTile; ++y) {
    if constexpr (kNhwc) {
      if (channel < pyramid.channels)
        write_row_nhwc(map, tile, y, channel, [&](int32_t x) { return memory.sums[y * kTile + x][thread]; });
    } else {
      write_row_nchw(map, tile, y, channel - lane_of_thread(), pyramid.channels,
                     [&](int32_t c, int32_t x) { return memory.sums[y * kTile + x][warp * kWarp + c]; });
    }
  }
}

}  // namespace cuda
}  // namespace mrcnn_ext
