// Gradients of the features. A block owns a tile of one gradient map and a group of channels; it goes through
// the RoIs of the map that touch the tile, in order, and sums up what they contribute. Nothing is written
// twice, so there are no atomics and the result is the same in every run.
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

// Tile `index` of the maps of a level.
__device__ inline Tile tile_of_level(const Geometry& geometry, int32_t level, int64_t index) {
  const TilePlace place = tile_place(uint32_t(index), geometry.heights[level], geometry.widths[level]);
  return {level, place.image, place.y, place.x, geometry.heights[level], geometry.widths[level]};
}

// What a block of scatter_average has to do. Blocks are numbered from the finest level on, and started from
// the last one on: the few tiles of coarse maps are touched by the most RoIs.
struct BlockTask {
  Tile tile;
  int32_t shares;
  int64_t first_channel;  // of the block
};

template <int32_t kWarps>
__device__ BlockTask task_of_block(const Geometry& geometry, const TileBlocks& blocks, int64_t channels) {
  const int64_t number = blocks.first[geometry.level_count] - 1 - int64_t(blockIdx.x);
  int32_t level = 0;
  while (number >= blocks.first[level + 1]) ++level;
  const uint32_t index = uint32_t(number - blocks.first[level]);
  const int32_t channels_of_block = kWarps / blocks.shares[level] * kWarp;
  const uint32_t groups = uint32_t(divide_up(channels, channels_of_block));
  return {tile_of_level(geometry, level, index / groups), blocks.shares[level],
          int64_t(index % groups) * channels_of_block};
}

template <int32_t kThreads>
struct TouchingRoIs {  // shared
  int32_t rois[kWindowsAtOnce * kThreads];
  int32_t of_warps[kWindowsAtOnce][kThreads / kWarp];
};

// Calls visit(rois, count) with the RoIs whose window meets the tile, in order, as many at a time as the list
// has places for. The warps of the block come together before and after each call.
template <int32_t kThreads, typename acc, typename Visit>
__device__ void for_touching(const Geometry& geometry, const Plan<acc>& plan, const Tile& tile,
                             TouchingRoIs<kThreads>& touching, const Visit& visit) {
  constexpr int32_t kWarps = kThreads / kWarp;
  const int32_t lane = lane_of_thread();
  const int32_t warp = warp_of_thread();
  const Group group = read_global_by_warp(plan.groups + tile.level * geometry.images + tile.image);
  for (int32_t base = 0; base < group.count; base += kWindowsAtOnce * kThreads) {
    const int32_t place = base + int32_t(threadIdx.x);
    Window windows[kWindowsAtOnce];
#pragma unroll
    for (int32_t k = 0; k < kWindowsAtOnce; ++k) {
      const Window none{};
      const bool there = place + k * kThreads < group.count;
      windows[k] = there ? read_global(plan.windows + group.first + place + k * kThreads) : none;
    }
    uint32_t votes[kWindowsAtOnce];
#pragma unroll
    for (int32_t k = 0; k < kWindowsAtOnce; ++k) {
      votes[k] = __ballot_sync(kWholeWarp, windows[k].top < tile.y + kTile && windows[k].bottom > tile.y &&
                                               windows[k].left < tile.x + kTile && windows[k].right > tile.x);
      if (lane == 0) touching.of_warps[k][warp] = __popc(votes[k]);
    }
    __syncthreads();
    int32_t found = 0;
#pragma unroll
    for (int32_t k = 0; k < kWindowsAtOnce; ++k) {
      int32_t at = found + __popc(votes[k] & ((1u << lane) - 1));
      for (int32_t i = 0; i < kWarps; ++i) {
        if (i < warp) at += touching.of_warps[k][i];
        found += touching.of_warps[k][i];
      }
      if ((votes[k] >> lane & 1) != 0) {
        touching.rois[at] = read_global(plan.order + group.first + place + k * kThreads);
      }
    }
    __syncthreads();
    visit(touching.rois, found);
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

// The taps of a RoI's first kWarp bins of either axis, one lane's.
struct FirstTaps {
  Tap row;
  Tap column;
};

template <typename acc>
__device__ FirstTaps first_taps(const Plan<acc>& plan, int64_t roi) {
  return {tap_of_lane(plan.row_taps(roi), 0, plan.row_bins),
          tap_of_lane(plan.column_taps(roi), 0, plan.column_bins)};
}

// Calls visit(ph, pw, rows, columns, row_tap, column_tap) for every block of up to kWarp x kWarp bins from
// (ph, pw) on of which some touch the tile: all but large outputs are one such block.
template <typename acc, typename Visit>
__device__ void for_each_bin_block(const Plan<acc>& plan, int64_t roi, const Tile& tile,
                                   const FirstTaps& first, const Visit& visit) {
  for (int32_t ph = 0; ph < plan.row_bins; ph += kWarp) {
    const Tap row_tap = ph == 0 ? first.row : tap_of_lane(plan.row_taps(roi), ph, plan.row_bins);
    const BinRange rows = touching_bins(row_tap, tile.y);
    if (rows.end == 0) continue;
    for (int32_t pw = 0; pw < plan.column_bins; pw += kWarp) {
      const Tap column_tap =
          pw == 0 ? first.column : tap_of_lane(plan.column_taps(roi), pw, plan.column_bins);
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
  // memory: bin after bin in NCHW, where neighbouring lanes would read planes far apart. meanwhile() is
  // called while the first of them are under way.
  template <typename Meanwhile>
  __device__ void stage(int64_t roi, int64_t first_channel, int32_t ph, int32_t rows, int32_t pw,
                        int32_t columns, Value* staged, const Meanwhile& meanwhile) const {
    const int32_t lane = lane_of_thread();
    const int64_t left = channels - first_channel;
    const int32_t count = lane >= rows * columns ? 0 : left < kWarp ? int32_t(left) : kWarp;
    const int64_t stride = int64_t(row_bins) * column_bins;
    const Value* from = at(roi, first_channel, ph + lane / columns, pw + lane % columns);
#pragma unroll
    for (int32_t channel = 0; channel < kWarp; channel += kChannelsAtOnce) {
      Value values[kChannelsAtOnce];
#pragma unroll
      for (int32_t k = 0; k < kChannelsAtOnce; ++k) {
        if (channel + k < count) values[k] = read_global(from + (channel + k) * stride);
      }
      if (channel == 0) meanwhile();
#pragma unroll
      for (int32_t k = 0; k < kChannelsAtOnce; ++k) {
        if (channel + k < count) staged[(channel + k) * kStagedStride + lane] = values[k];
      }
    }
  }
};

// Calls visit(p, q, value) with this lane's value of every bin of the ranges, row by row, and after each row
// end_row(p); before all that prepare(), while the first values are under way, which all lanes call together.
// `staged` is a warp's own; all lanes take part, but only those with a channel are called. kAtOnce values are
// read at once in NHWC, and the next of them while visit is called.
template <int32_t kAtOnce, typename Value, bool kNhwc, typename Prepare, typename Visit, typename EndRow>
__device__ void for_each_bin(const BinValues<Value, kNhwc>& values, int64_t roi, int64_t channel, int32_t ph,
                             int32_t pw, const BinRange& rows, const BinRange& columns, Value* staged,
                             const Prepare& prepare, const Visit& visit, const EndRow& end_row) {
  const bool has_channel = channel < values.channels;
  const int32_t across = columns.end - columns.first;
  if constexpr (kNhwc) {
    Value next[kAtOnce];
    const auto read_next = [&](int32_t p, int32_t q) {
      const Value* from = values.at(roi, channel, ph + p, pw + columns.first + q);
#pragma unroll
      for (int32_t k = 0; k < kAtOnce; ++k) {
        if (q + k < across) next[k] = read_global(from + k * values.channels);
      }
    };
    if (has_channel) read_next(rows.first, 0);
    prepare();
    if (!has_channel) return;
    for (int32_t p = rows.first; p < rows.end; ++p) {
      for (int32_t q = 0; q < across; q += kAtOnce) {
        Value now[kAtOnce];
#pragma unroll
        for (int32_t k = 0; k < kAtOnce; ++k) now[k] = next[k];
        if (q + kAtOnce < across) {
          read_next(p, q + kAtOnce);
        } else if (p + 1 < rows.end) {
          read_next(p + 1, 0);
        }
#pragma unroll
        for (int32_t k = 0; k < kAtOnce; ++k) {
          if (q + k < across) visit(p, columns.first + q + k, now[k]);
        }
      }
      end_row(p);
    }
  } else {
    const int32_t rows_at_once = kStagedBins / across;
    const int64_t first_channel = channel - lane_of_thread();
    for (int32_t p = rows.first; p < rows.end; p += rows_at_once) {
      const int32_t count = rows.end - p < rows_at_once ? rows.end - p : rows_at_once;
      __syncwarp();  // what was staged before is read no longer
      values.stage(roi, first_channel, ph + p, count, pw + columns.first, across, staged, [&] {
        if (p == rows.first) prepare();
      });
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

// The weights of a tile's rows or columns in one bin; aligned, so that few instructions move them.
template <typename acc>
struct alignas(16) CellWeights {
  acc of_cells[kTile];
};

// What a warp needs for one RoI: the weights of the tile's rows and columns for each of up to kWarp bins, and
// values of bins where they are staged.
template <typename T, bool kNhwc>
struct VisitMemory {
  CellWeights<acc_t<T>> row_weights[kWarp];
  CellWeights<acc_t<T>> column_weights[kWarp];
  T staged[kNhwc ? 1 : kWarp * kStagedStride];
};

template <typename T, bool kNhwc>
struct AverageMemory {  // shared
  static constexpr int32_t kWarps = kAverageThreads<acc_t<T>> / kWarp;
  TouchingRoIs<kAverageThreads<acc_t<T>>> touching;
  union {
    VisitMemory<T, kNhwc> visits[kWarps];
    acc_t<T> sums[kWarps][kTile * kTile][kSumStride];  // of each warp, when all visits are over
  };
};

// The weights of the kTile cells from `begin` on in the bin of this lane.
template <typename acc>
__device__ CellWeights<acc> weights_of_tile(const Tap& tap, const acc* weights, int32_t begin) {
  CellWeights<acc> of_tile;
#pragma unroll
  for (int32_t i = 0; i < kTile; ++i) {
    const int32_t place = begin + i - tap.first;
    of_tile.of_cells[i] =
        place >= 0 && place < tap.count ? read_global(weights + tap.offset + place) : acc(0);
  }
  return of_tile;
}

// Gradients of an average mode, A_y^T G A_x in a tile: every gradient of a bin is read once per tile,
// weighted into a row of cells and, bin row by bin row, into the tile. Cells a bin does not read are passed
// over, so that a gradient that is not finite stays in the cells of its bin. A lane has one channel. On
// coarse maps two or four warps have the same channels and share out the RoIs, the k-th of them taking the
// k-th RoI and so on; their sums are added up in the order of the warps.
template <typename T, bool kNhwc>
__global__ void __launch_bounds__(kAverageThreads<acc_t<T>>, kAverageBlocks)
    scatter_average(Geometry geometry, TileBlocks blocks, Pyramid<T> pyramid, BinValues<T, kNhwc> grad,
                    Plan<acc_t<T>> plan) {
  using acc = acc_t<T>;
  constexpr int32_t kWarps = AverageMemory<T, kNhwc>::kWarps;
  AverageMemory<T, kNhwc>& memory = *shared_memory<AverageMemory<T, kNhwc>>();
  const int32_t warp = warp_of_thread();
  const int32_t lane = lane_of_thread();
  const BlockTask task = task_of_block<kWarps>(geometry, blocks, pyramid.channels);
  const Tile& tile = task.tile;
  const int32_t share = warp % task.shares;
  const int64_t first_channel = task.first_channel + warp / task.shares * kWarp;
  const int64_t channel = first_channel + lane;
  VisitMemory<T, kNhwc>& own = memory.visits[warp];
  acc sums[kTile][kTile] = {};

  const auto visit_bins = [&](int64_t roi, int32_t ph, int32_t pw, const BinRange& rows,
                              const BinRange& columns, const Tap& row_tap, const Tap& column_tap) {
    const auto row_weights = weights_of_tile(row_tap, plan.row_weights(roi), tile.y);
    const auto column_weights = weights_of_tile(column_tap, plan.column_weights(roi), tile.x);
    const auto keep_weights = [&] {
      __syncwarp();  // the weights before are read no longer
      own.row_weights[lane] = row_weights;
      own.column_weights[lane] = column_weights;
      __syncwarp();
    };
    acc row_sums[kTile] = {};
    const auto add_to_row = [&](int32_t, int32_t q, T value) {
      const CellWeights<acc> weights = own.column_weights[q];
      const acc incoming = acc(value);
      if (is_finite(incoming)) {  // then a weight of 0 adds nothing
#pragma unroll
        for (int32_t x = 0; x < kTile; ++x) row_sums[x] += weights.of_cells[x] * incoming;
      } else {
#pragma unroll
        for (int32_t x = 0; x < kTile; ++x) {
          if (weights.of_cells[x] != acc(0)) row_sums[x] += weights.of_cells[x] * incoming;
        }
      }
      MRCNN_EXT_COUNT(multiply_adds, kTile);
    };
    const auto add_row = [&](int32_t p) {
      const CellWeights<acc> weights = own.row_weights[p];
#pragma unroll
      for (int32_t y = 0; y < kTile; ++y) {
        if (weights.of_cells[y] == acc(0)) continue;
#pragma unroll
        for (int32_t x = 0; x < kTile; ++x) sums[y][x] += weights.of_cells[y] * row_sums[x];
        MRCNN_EXT_COUNT(multiply_adds, kTile);
      }
#pragma unroll
      for (int32_t x = 0; x < kTile; ++x) row_sums[x] = acc(0);
    };
    for_each_bin<kBinsAtOnce>(grad, roi, channel, ph, pw, rows, columns, own.staged, keep_weights, add_to_row,
                              add_row);
  };
  const auto visit = [&](int64_t roi, const FirstTaps& taps) {
    if (lane == 0) MRCNN_EXT_COUNT(visits, 1);
    for_each_bin_block(plan, roi, tile, taps,
                       [&](const auto&... arguments) { visit_bins(roi, arguments...); });
  };
  int32_t busy = 0;  // of the warps that have the same channels
  for_touching(geometry, plan, tile, memory.touching, [&](const int32_t* rois, int32_t count) {
    if (busy < count) busy = count < task.shares ? count : task.shares;
    if (share >= count || first_channel >= pyramid.channels) return;
    FirstTaps next = first_taps(plan, rois[share]);
    for (int32_t i = share; i < count; i += task.shares) {
      const FirstTaps taps = next;
      if (i + task.shares < count) next = first_taps(plan, rois[i + task.shares]);
      visit(rois[i], taps);
    }
  });

  if (share < busy) {
#pragma unroll
    for (int32_t i = 0; i < kTile * kTile; ++i) memory.sums[warp][i][lane] = sums[i / kTile][i % kTile];
  }
  __syncthreads();
  const auto sum_of_warps = [&](int32_t cell, int32_t of_lane) {
    acc sum = 0;
#pragma unroll
    for (int32_t i = 0; i < kWarps; ++i) {
      if (i < busy) sum += memory.sums[warp - share + i][cell][of_lane];
    }
    return sum;
  };
  const Map<T>& map = pyramid.levels[tile.level];
  for (int32_t y = share; y < kTile; y += task.shares) {
    if constexpr (kNhwc) {
      if (channel >= pyramid.channels) continue;
      write_row_nhwc(map, tile, y, channel, [&](int32_t x) { return sum_of_warps(y * kTile + x, lane); });
    } else {
      write_row_nchw(map, tile, y, first_channel, pyramid.channels,
                     [&](int32_t c, int32_t x) { return sum_of_warps(y * kTile + x, c); });
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
  int32_t level = 0;
  const int64_t number = geometry.first_tile[geometry.level_count] - 1 - int64_t(blockIdx.x);
  while (number >= geometry.first_tile[level + 1]) ++level;
  const Tile tile = tile_of_level(geometry, level, number - geometry.first_tile[level]);
  for (int32_t i = 0; i < kTile * kTile; ++i) memory.sums[i][thread] = acc(0);

  const auto add = [&](int64_t y, acc row_weight, int64_t x, acc column_weight, acc value) {
    const int64_t row = y - tile.y;
    const int64_t column = x - tile.x;
    if (row < 0 || row >= kTile || column < 0 || column >= kTile) return;
    const acc weight = row_weight * column_weight;
    if (weight != acc(0)) memory.sums[row * kTile + column][thread] += weight * value;
    MRCNN_EXT_COUNT(multiply_adds, 1);
  };
  const auto visit = [&](int64_t roi) {
    if (lane_of_thread() == 0) MRCNN_EXT_COUNT(visits, 1);
    const PlannedRoI<acc>& planned = plan.rois[roi];
    for_each_bin_block(
        plan, roi, tile, first_taps(plan, roi),
        [&](int32_t ph, int32_t pw, const BinRange& rows, const BinRange& columns, const Tap&, const Tap&) {
          for_each_bin<kWinnersAtOnce>(
              winners, roi, channel, ph, pw, rows, columns, memory.winners[kNhwc ? 0 : warp], [] {},
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
  };
  const bool warp_has_channels = channel - lane_of_thread() < pyramid.channels;
  for_touching(geometry, plan, tile, memory.touching, [&](const int32_t* rois, int32_t count) {
    for (int32_t i = 0; warp_has_channels && i < count; ++i) visit(rois[i]);
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
