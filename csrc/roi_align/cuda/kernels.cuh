// Device code of RoI pooling. Nothing here depends on ATen, so that the kernels can be run by anything that
// provides the CUDA vocabulary.
//
// Forward: a block pools one RoI and a group of channels; its threads first build the 1-D weights in shared
// memory. Backward: a block owns a tile of one gradient map and a group of channels, goes through the RoIs in
// order and gathers what those that touch the tile contribute. Nothing is written twice, so there are no
// atomics, no buffers, and the result is the same in every run.
#pragma once

#include <cfloat>
#include <cstdint>
#include <type_traits>

#include "roi_align/axis_weights.h"

namespace mrcnn_ext {
namespace cuda {

constexpr int kMostLevels = 8;
constexpr int kThreads = 256;
constexpr int kChannelsPerBlock = 64;  // forward
constexpr int kElements = 8;           // gradients a thread sums up: cells (NHWC) or channels (NCHW)

template <typename T>
struct Accumulate {
  using type = float;
};
template <>
struct Accumulate<double> {
  using type = double;
};
template <typename T>
using acc_t = typename Accumulate<std::remove_const_t<T>>::type;

template <typename T>
struct Map {  // (N, C, H, W); strides in elements
  T* data;
  int64_t image_stride;
  int64_t channel_stride;
  int64_t row_stride;
  int64_t column_stride;
  int32_t height;
  int32_t width;
};

template <typename T>
struct Pyramid {
  Map<T> levels[kMostLevels];
  double scales[kMostLevels];
  int64_t first_tile[kMostLevels + 1];  // backward: tiles of level l are [first_tile[l], first_tile[l + 1])
  int32_t level_count;
  int64_t images;
  int64_t channels;
  bool nhwc;
};

struct Parameters {
  RoIMode mode;
  int32_t pooled_height;
  int32_t pooled_width;
  int64_t sampling_ratio;
  bool aligned;
  float canonical_box_size;
  float canonical_level;
  float min_level;
  float max_level;
};

// Where a RoI lies. Both axes are without samples if its output is 0.
template <typename acc>
struct Located {
  int32_t level;
  int64_t image;
  acc scale;
  Axis<acc> rows;
  Axis<acc> columns;
};

// detectron2's assignment with the roundings of its operators on CUDA, which divide by a number by
// multiplying with its inverse. -1 where the area has no square root.
__device__ inline int32_t assign_level(float x0, float y0, float x1, float y1, const Parameters& parameters) {
  const float size = sqrtf(mul_rounded(x1 - x0, y1 - y0));
  const float relative = mul_rounded(size, 1.0f / parameters.canonical_box_size) + 1e-8f;
  const float level = floorf(log2f(relative) + parameters.canonical_level);
  if (!(level == level)) return -1;
  return int32_t(clamp_to(level, parameters.min_level, parameters.max_level) - parameters.min_level);
}

template <typename T>
__device__ Located<acc_t<T>> locate(const Pyramid<T>& pyramid, const acc_t<T>* roi,
                                    const Parameters& parameters) {
  using acc = acc_t<T>;
  Located<acc> located{};
  if (!(roi[0] > acc(-1) && roi[0] < acc(pyramid.images))) return located;
  if (pyramid.level_count > 1) {
    located.level = assign_level(float(roi[1]), float(roi[2]), float(roi[3]), float(roi[4]), parameters);
  }
  if (located.level < 0) {
    located.level = 0;
    return located;
  }
  located.image = int64_t(roi[0]);
  located.scale = acc(pyramid.scales[located.level]);
  const Map<T>& map = pyramid.levels[located.level];
  located.rows = make_axis(parameters.mode, roi[2], roi[4], located.scale, parameters.pooled_height,
                           map.height, parameters.sampling_ratio, parameters.aligned);
  located.columns = make_axis(parameters.mode, roi[1], roi[3], located.scale, parameters.pooled_width,
                              map.width, parameters.sampling_ratio, parameters.aligned);
  if (located.rows.samples == 0 || located.columns.samples == 0) {
    located.rows.samples = 0;
    located.columns.samples = 0;
  }
  return located;
}

// The weights of one axis in shared memory.
struct DeviceTap {
  int32_t first;
  int32_t count;
  int32_t offset;
};

template <typename acc>
struct DeviceBand {
  DeviceTap* taps;
  acc* weights;
};

// Consecutive bins share at most two cells at either end, so this is enough for any RoI.
inline __host__ __device__ int64_t band_capacity(int64_t size, int64_t bins) { return size + 4 * bins + 4; }

// Cells that each bin reads and the places of their weights. All threads of the block take part.
template <typename acc>
__device__ void build_taps(RoIMode mode, const Axis<acc>& axis, int32_t bins, DeviceTap* taps) {
  for (int32_t bin = threadIdx.x; bin < bins; bin += kThreads) {
    const Support support = bin_support(mode, axis, bin);
    taps[bin] = {int32_t(support.first), int32_t(support.count), 0};
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    int32_t offset = 0;
    for (int32_t bin = 0; bin < bins; ++bin) {
      taps[bin].offset = offset;
      offset += taps[bin].count;
    }
  }
  __syncthreads();
}

template <typename acc>
__device__ void build_band(RoIMode mode, const Axis<acc>& axis, int32_t bins, const DeviceBand<acc>& band) {
  build_taps(mode, axis, bins, band.taps);
  for (int32_t bin = threadIdx.x; bin < bins; bin += kThreads) {
    const DeviceTap tap = band.taps[bin];
    bin_weights(mode, axis, bin, Support{tap.first, tap.count}, band.weights + tap.offset);
  }
}

// Element `index` of a block's (channels, pooled_height, pooled_width), numbered as memory is laid out.
struct OutputPlace {
  int32_t channel;
  int32_t y;
  int32_t x;
};

__device__ inline OutputPlace output_place(int32_t index, int32_t channels, const Parameters& parameters,
                                           bool nhwc) {
  const int32_t bins = parameters.pooled_height * parameters.pooled_width;
  const int32_t channel = nhwc ? index % channels : index / bins;
  const int32_t bin = nhwc ? index / channels : index % bins;
  return {channel, bin / parameters.pooled_width, bin % parameters.pooled_width};
}

template <typename T>
__device__ const T* channel_of(const Pyramid<T>& pyramid, int32_t level, int64_t image, int64_t channel) {
  const Map<T>& map = pyramid.levels[level];
  return map.data + image * map.image_stride + channel * map.channel_stride;
}

// `output` is a Map of one level, with RoIs in the place of images.
template <typename T>
__device__ T* output_at(const Map<T>& output, int64_t roi, int64_t channel, int32_t y, int32_t x) {
  return output.data + roi * output.image_stride + channel * output.channel_stride + y * output.row_stride +
         x * output.column_stride;
}

template <typename T>
__global__ void __launch_bounds__(kThreads)
    pool_average(Pyramid<const T> pyramid, const acc_t<T>* rois, Parameters parameters, Map<T> output) {
  using acc = acc_t<T>;
  extern __shared__ double shared_memory[];
  const int64_t roi = blockIdx.x;
  const int64_t first_channel = int64_t(blockIdx.y) * kChannelsPerBlock;
  const int64_t channels_left = pyramid.channels - first_channel;
  const int32_t channels = int32_t(channels_left < kChannelsPerBlock ? channels_left : kChannelsPerBlock);
  const Located<acc> located = locate<const T>(pyramid, rois + roi * 5, parameters);
  const Map<const T>& map = pyramid.levels[located.level];

  acc* weights = reinterpret_cast<acc*>(shared_memory);
  const int64_t row_capacity = band_capacity(map.height, parameters.pooled_height);
  const int64_t column_capacity = band_capacity(map.width, parameters.pooled_width);
  DeviceTap* taps = reinterpret_cast<DeviceTap*>(weights + row_capacity + column_capacity);
  const DeviceBand<acc> rows{taps, weights};
  const DeviceBand<acc> columns{taps + parameters.pooled_height, weights + row_capacity};
  build_band(parameters.mode, located.rows, parameters.pooled_height, rows);
  build_band(parameters.mode, located.columns, parameters.pooled_width, columns);
  __syncthreads();

  const int32_t elements = channels * parameters.pooled_height * parameters.pooled_width;
  for (int32_t index = threadIdx.x; index < elements; index += kThreads) {
    const OutputPlace place = output_place(index, channels, parameters, pyramid.nhwc);
    const T* plane = channel_of(pyramid, located.level, located.image, first_channel + place.channel);
    const DeviceTap row_tap = rows.taps[place.y];
    const DeviceTap column_tap = columns.taps[place.x];
    acc sum = 0;
    for (int32_t i = 0; i < row_tap.count; ++i) {
      const T* row = plane + (row_tap.first + i) * map.row_stride + column_tap.first * map.column_stride;
      acc row_sum = 0;
      for (int32_t j = 0; j < column_tap.count; ++j) {
        row_sum += columns.weights[column_tap.offset + j] * acc(row[j * map.column_stride]);
      }
      sum += rows.weights[row_tap.offset + i] * row_sum;
    }
    *output_at(output, roi, first_channel + place.channel, place.y, place.x) = T(sum);
  }
}

// Max modes. A sample on one axis; a cell of "pool" is a sample on one cell.
template <typename acc>
struct MaxAxis {
  Axis<acc> axis;
  RoIMode mode;
  int64_t bin;
  int64_t begin;  // samples inside the map
  int64_t end;
  bool outside;  // there are others

  __device__ MaxAxis(RoIMode mode, const Axis<acc>& axis, int64_t bin) : axis(axis), mode(mode), bin(bin) {
    if (mode == RoIMode::kPool) {
      const Support support = pool_support(axis, bin);
      begin = support.first;
      end = support.first + support.count;
      outside = false;
    } else {
      const SampleRange range = samples_inside(axis, bin);
      begin = range.begin;
      end = range.end;
      outside = end - begin < axis.samples;
    }
  }
  __device__ Sample<acc> sample(int64_t index) const {
    if (mode == RoIMode::kPool) return {index, index, acc(1), acc(0)};
    return make_sample(axis, sample_position(axis, bin, index));
  }
  __device__ bool empty() const { return begin == end && !outside; }
};

template <typename acc>
struct Maximum {
  acc value;
  bool has_gradient;
  Sample<acc> row;
  Sample<acc> column;
};

template <typename T>
__device__ Maximum<acc_t<T>> find_maximum(const T* plane, const Map<const T>& map,
                                          const MaxAxis<acc_t<T>>& rows, const MaxAxis<acc_t<T>>& columns) {
  using acc = acc_t<T>;
  Maximum<acc> best{acc(0), false, {}, {}};
  if (rows.empty() || columns.empty()) return best;
  best.value = acc(-FLT_MAX);
  for (int64_t i = rows.begin; i < rows.end; ++i) {
    const Sample<acc> row = rows.sample(i);
    const T* low = plane + row.low * map.row_stride;
    const T* high = plane + row.high * map.row_stride;
    for (int64_t j = columns.begin; j < columns.end; ++j) {
      const Sample<acc> column = columns.sample(j);
      const int64_t left = column.low * map.column_stride;
      const int64_t right = column.high * map.column_stride;
      acc value = acc(low[left]);
      if (rows.mode != RoIMode::kPool) {
        // Rounded as on the CPU, where nothing is fused: ties have to fall alike.
        value = mul_rounded(row.low_weight, mul_rounded(column.low_weight, acc(low[left])) +
                                                mul_rounded(column.high_weight, acc(low[right]))) +
                mul_rounded(row.high_weight, mul_rounded(column.low_weight, acc(high[left])) +
                                                 mul_rounded(column.high_weight, acc(high[right])));
      }
      if (value > best.value) best = {value, true, row, column};
    }
  }
  if ((rows.outside || columns.outside) && best.value < acc(0)) {
    best.value = acc(0);
    best.has_gradient = false;
  }
  return best;
}

template <typename T>
__global__ void __launch_bounds__(kThreads)
    pool_maximum(Pyramid<const T> pyramid, const acc_t<T>* rois, Parameters parameters, Map<T> output) {
  using acc = acc_t<T>;
  const int64_t roi = blockIdx.x;
  const int64_t first_channel = int64_t(blockIdx.y) * kChannelsPerBlock;
  const int64_t channels_left = pyramid.channels - first_channel;
  const int32_t channels = int32_t(channels_left < kChannelsPerBlock ? channels_left : kChannelsPerBlock);
  const Located<acc> located = locate<const T>(pyramid, rois + roi * 5, parameters);
  const Map<const T>& map = pyramid.levels[located.level];
  const int32_t elements = channels * parameters.pooled_height * parameters.pooled_width;
  for (int32_t index = threadIdx.x; index < elements; index += kThreads) {
    const OutputPlace place = output_place(index, channels, parameters, pyramid.nhwc);
    const T* plane = channel_of(pyramid, located.level, located.image, first_channel + place.channel);
    const MaxAxis<acc> rows(parameters.mode, located.rows, place.y);
    const MaxAxis<acc> columns(parameters.mode, located.columns, place.x);
    *output_at(output, roi, first_channel + place.channel, place.y, place.x) =
        T(find_maximum(plane, map, rows, columns).value);
  }
}

// Backward. Thread (lane, line) of a block of 32 x 8 sums kElements gradients. NHWC: the tile is 8 x 8 cells
// and 32 channels, a thread has one channel and one row of cells. NCHW: 8 x 32 cells and 8 channels, a thread
// has one cell.
struct Tile {
  int32_t level;
  int64_t image;
  int32_t y;
  int32_t x;
  int64_t channel;
};

inline __host__ __device__ int32_t tile_width(bool nhwc) { return nhwc ? kElements : 32; }
inline __host__ __device__ int32_t tile_height() { return kThreads / 32; }
inline __host__ __device__ int32_t tile_channels(bool nhwc) { return nhwc ? 32 : kElements; }
inline __host__ __device__ int64_t tiles_along(int64_t size, int64_t tile) {
  return (size + tile - 1) / tile;
}

template <typename T>
__device__ Tile tile_of_block(const Pyramid<T>& pyramid) {
  Tile tile{};
  const int64_t block = blockIdx.x;
  while (block >= pyramid.first_tile[tile.level + 1]) ++tile.level;
  const Map<T>& map = pyramid.levels[tile.level];
  const int64_t across = tiles_along(map.width, tile_width(pyramid.nhwc));
  const int64_t down = tiles_along(map.height, tile_height());
  const int64_t index = block - pyramid.first_tile[tile.level];
  tile.image = index / (across * down);
  tile.y = int32_t(index / across % down) * tile_height();
  tile.x = int32_t(index % across) * tile_width(pyramid.nhwc);
  tile.channel = int64_t(blockIdx.y) * tile_channels(pyramid.nhwc);
  return tile;
}

// Bounds of the cells that an axis may read, a cell too wide rather than too narrow.
template <typename acc>
__device__ bool may_touch(const Axis<acc>& axis, int64_t bins, int32_t begin, int32_t end) {
  if (axis.samples == 0) return false;
  const acc far = axis.start + acc(bins) * axis.bin_size;
  const acc low = axis.start < far ? axis.start : far;
  const acc high = axis.start < far ? far : axis.start;
  // A sample between -1 and 0, or beyond the last cell, is clamped to the border.
  const acc first = begin == 0 ? acc(-1) : acc(begin);
  const acc last = end >= axis.size ? acc(axis.size) : acc(end);
  return low - acc(2) <= last && high + acc(2) >= first;
}

// Calls visit(roi, located) for every RoI that may touch the tile, in order; all threads of the block
// together.
template <typename T, typename Visit>
__device__ void for_each_touching(const Pyramid<T>& pyramid, const Tile& tile, const acc_t<T>* rois,
                                  int64_t count, const Parameters& parameters, const Visit& visit) {
  __shared__ uint32_t touching[kThreads / 32];
  const int32_t thread = threadIdx.x;
  for (int64_t base = 0; base < count; base += kThreads) {
    bool touches = false;
    if (base + thread < count) {
      const Located<acc_t<T>> located = locate(pyramid, rois + (base + thread) * 5, parameters);
      touches =
          located.level == tile.level && located.image == tile.image &&
          may_touch(located.rows, parameters.pooled_height, tile.y, tile.y + tile_height()) &&
          may_touch(located.columns, parameters.pooled_width, tile.x, tile.x + tile_width(pyramid.nhwc));
    }
    const uint32_t votes = __ballot_sync(0xffffffffu, touches);
    if (thread % 32 == 0) touching[thread / 32] = votes;
    __syncthreads();
    for (int32_t warp = 0; warp < kThreads / 32; ++warp) {
      for (uint32_t left = touching[warp]; left != 0; left &= left - 1) {
        const int64_t roi = base + warp * 32 + __ffs(int(left)) - 1;
        visit(roi, locate(pyramid, rois + roi * 5, parameters));
      }
    }
    __syncthreads();
  }
}

// The weights of the cells of a tile, for every bin: weights[cell * bins + bin], zero outside [first, end) of
// a cell.
template <typename acc>
struct TileWeights {
  acc* weights;
  int32_t* first;
  int32_t* end;
  int32_t bins;
};

template <typename acc>
__device__ void build_tile_weights(RoIMode mode, const Axis<acc>& axis, int32_t begin, int32_t cells,
                                   const TileWeights<acc>& tile) {
  for (int32_t cell = threadIdx.x; cell < cells; cell += kThreads) {
    tile.first[cell] = tile.bins;
    tile.end[cell] = 0;
  }
  for (int32_t index = threadIdx.x; index < cells * tile.bins; index += kThreads) {
    tile.weights[index] = bin_weight(mode, axis, index % tile.bins, begin + index / tile.bins);
  }
  __syncthreads();
  for (int32_t cell = threadIdx.x; cell < cells; cell += kThreads) {
    for (int32_t bin = 0; bin < tile.bins; ++bin) {
      if (tile.weights[cell * tile.bins + bin] == acc(0)) continue;
      if (tile.first[cell] > bin) tile.first[cell] = bin;
      tile.end[cell] = bin + 1;
    }
  }
}

inline __host__ __device__ int64_t tile_weights_size(int64_t cells, int64_t bins, int64_t acc_size) {
  return cells * (bins * acc_size + 2 * int64_t(sizeof(int32_t)));
}

// The kElements gradients of a thread, written in the end.
template <typename T>
struct ThreadGradients {
  acc_t<T> sums[kElements] = {};
  int32_t y;
  int32_t x;
  int64_t channel;

  __device__ ThreadGradients(const Tile& tile, bool nhwc) {
    const int32_t lane = threadIdx.x % 32;
    y = tile.y + threadIdx.x / 32;
    x = nhwc ? tile.x : tile.x + lane;
    channel = nhwc ? tile.channel + lane : tile.channel;
  }
  __device__ int32_t cell(int32_t element, bool nhwc) const { return nhwc ? x + element : x; }
  __device__ int64_t channel_of(int32_t element, bool nhwc) const {
    return nhwc ? channel : channel + element;
  }

  __device__ void write(const Pyramid<T>& pyramid, const Tile& tile) const {
    const Map<T>& map = pyramid.levels[tile.level];
#pragma unroll
    for (int32_t i = 0; i < kElements; ++i) {
      const int64_t c = channel_of(i, pyramid.nhwc);
      const int32_t column = cell(i, pyramid.nhwc);
      if (y >= map.height || column >= map.width || c >= pyramid.channels) continue;
      map.data[tile.image * map.image_stride + c * map.channel_stride + y * map.row_stride +
               column * map.column_stride] = T(sums[i]);
    }
  }
};

template <typename T>
__global__ void __launch_bounds__(kThreads)
    scatter_average(Pyramid<T> pyramid, Map<const T> grad, const acc_t<T>* rois, int64_t count,
                    Parameters parameters) {
  using acc = acc_t<T>;
  extern __shared__ double shared_memory[];
  const bool nhwc = pyramid.nhwc;
  const int32_t height = tile_height();
  const int32_t width = tile_width(nhwc);
  acc* row_memory = reinterpret_cast<acc*>(shared_memory);
  acc* column_memory = row_memory + height * parameters.pooled_height;
  int32_t* bounds = reinterpret_cast<int32_t*>(column_memory + width * parameters.pooled_width);
  const TileWeights<acc> rows{row_memory, bounds, bounds + height, parameters.pooled_height};
  const TileWeights<acc> columns{column_memory, bounds + 2 * height, bounds + 2 * height + width,
                                 parameters.pooled_width};
  const Tile tile = tile_of_block(pyramid);
  ThreadGradients<T> gradients(tile, nhwc);
  const int32_t row = gradients.y - tile.y;

  for_each_touching(pyramid, tile, rois, count, parameters, [&](int64_t roi, const Located<acc>& located) {
    __syncthreads();  // the weights of the RoI before are no longer read
    build_tile_weights(parameters.mode, located.rows, tile.y, height, rows);
    build_tile_weights(parameters.mode, located.columns, tile.x, width, columns);
    __syncthreads();
#pragma unroll
    for (int32_t i = 0; i < kElements; ++i) {
      const int64_t channel = gradients.channel_of(i, nhwc);
      if (channel >= pyramid.channels) continue;
      const int32_t column = gradients.cell(i, nhwc) - tile.x;
      const T* from = output_at(grad, roi, channel, 0, 0);
      for (int32_t ph = rows.first[row]; ph < rows.end[row]; ++ph) {
        acc row_sum = 0;
        for (int32_t pw = columns.first[column]; pw < columns.end[column]; ++pw) {
          row_sum += columns.weights[column * columns.bins + pw] *
                     acc(from[ph * grad.row_stride + pw * grad.column_stride]);
        }
        gradients.sums[i] += rows.weights[row * rows.bins + ph] * row_sum;
      }
    }
  });
  gradients.write(pyramid, tile);
}

// Where the maximum of one bin in one channel was, for a block to share.
template <typename acc>
struct Winner {
  Sample<acc> row;
  Sample<acc> column;
  acc grad;  // 0 where nothing is passed on
};

template <typename acc>
__device__ acc share_of_cell(const Sample<acc>& sample, int64_t cell) {
  return (sample.low == cell ? sample.low_weight : acc(0)) +
         (sample.high == cell ? sample.high_weight : acc(0));
}

// The winners are found again for every tile that a RoI touches: that is paid for with no memory and no
// atomics.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    scatter_maximum(Pyramid<T> pyramid, Pyramid<const T> features, Map<const T> grad, const acc_t<T>* rois,
                    int64_t count, Parameters parameters) {
  using acc = acc_t<T>;
  extern __shared__ double shared_memory[];
  Winner<acc>* winners = reinterpret_cast<Winner<acc>*>(shared_memory);  // kThreads of them
  const bool nhwc = pyramid.nhwc;
  const int32_t channels = tile_channels(nhwc);
  const int32_t bins_at_once = kThreads / channels;
  const int32_t bins = parameters.pooled_height * parameters.pooled_width;
  const Tile tile = tile_of_block(pyramid);
  const Map<const T>& map = features.levels[tile.level];
  ThreadGradients<T> gradients(tile, nhwc);

  for_each_touching(pyramid, tile, rois, count, parameters, [&](int64_t roi, const Located<acc>& located) {
    for (int32_t base = 0; base < bins; base += bins_at_once) {
      __syncthreads();  // the winners before are no longer read
      Winner<acc>& winner = winners[threadIdx.x];
      winner.grad = acc(0);
      const int32_t bin = base + int32_t(threadIdx.x) / channels;
      const int64_t own_channel = tile.channel + int32_t(threadIdx.x) % channels;
      if (bin < bins && own_channel < pyramid.channels) {
        const int32_t ph = bin / parameters.pooled_width;
        const int32_t pw = bin % parameters.pooled_width;
        const MaxAxis<acc> rows(parameters.mode, located.rows, ph);
        const MaxAxis<acc> columns(parameters.mode, located.columns, pw);
        const T* plane = channel_of(features, tile.level, tile.image, own_channel);
        const Maximum<acc> maximum = find_maximum(plane, map, rows, columns);
        winner.row = maximum.row;
        winner.column = maximum.column;
        if (maximum.has_gradient) winner.grad = acc(*output_at(grad, roi, own_channel, ph, pw));
      }
      __syncthreads();
      for (int32_t b = 0; b < bins_at_once; ++b) {
#pragma unroll
        for (int32_t i = 0; i < kElements; ++i) {
          const int32_t channel = int32_t(gradients.channel_of(i, nhwc) - tile.channel);
          const Winner<acc>& candidate = winners[b * channels + channel];
          if (candidate.grad == acc(0)) continue;
          const acc share = share_of_cell(candidate.row, gradients.y) *
                            share_of_cell(candidate.column, gradients.cell(i, nhwc));
          if (share != acc(0)) gradients.sums[i] += candidate.grad * share;
        }
      }
    }
  });
  gradients.write(pyramid, tile);
}

// Gradient of "exact" by the coordinates of the box: one block per RoI, four sums over its whole output.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    box_gradient(Pyramid<const T> pyramid, Map<const T> grad, const acc_t<T>* rois, Parameters parameters,
                 acc_t<T>* grad_rois) {
  using acc = acc_t<T>;
  extern __shared__ double shared_memory[];
  __shared__ acc partial[4][kThreads];
  const int64_t roi = blockIdx.x;
  const Located<acc> located = locate<const T>(pyramid, rois + roi * 5, parameters);
  const Map<const T>& map = pyramid.levels[located.level];
  const int32_t height = parameters.pooled_height;
  const int32_t width = parameters.pooled_width;

  // Per axis the weights and their derivatives by its two coordinates.
  const int64_t row_capacity = band_capacity(map.height, height);
  const int64_t column_capacity = band_capacity(map.width, width);
  acc* row_weights = reinterpret_cast<acc*>(shared_memory);
  acc* column_weights = row_weights + 3 * row_capacity;
  DeviceTap* row_taps = reinterpret_cast<DeviceTap*>(column_weights + 3 * column_capacity);
  DeviceTap* column_taps = row_taps + height;
  const auto build = [&](const Axis<acc>& axis, int32_t bins, acc* weights, int64_t capacity,
                         DeviceTap* taps) {
    build_band(parameters.mode, axis, bins, DeviceBand<acc>{taps, weights});
    for (int32_t bin = threadIdx.x; bin < bins; bin += kThreads) {
      const Support support{taps[bin].first, taps[bin].count};
      acc* to = weights + capacity + taps[bin].offset;
      bin_weight_gradients(axis, bin, bins, located.scale, false, support, to);
      bin_weight_gradients(axis, bin, bins, located.scale, true, support, to + capacity);
    }
  };
  build(located.rows, height, row_weights, row_capacity, row_taps);
  build(located.columns, width, column_weights, column_capacity, column_taps);
  __syncthreads();

  acc sums[4] = {};
  const int64_t elements = pyramid.channels * height * width;
  for (int64_t index = threadIdx.x; index < elements; index += kThreads) {
    const int64_t bins = int64_t(height) * width;
    const int64_t channel = pyramid.nhwc ? index % pyramid.channels : index / bins;
    const int32_t bin = int32_t(pyramid.nhwc ? index / pyramid.channels : index % bins);
    const DeviceTap row_tap = row_taps[bin / width];
    const DeviceTap column_tap = column_taps[bin % width];
    const T* plane = channel_of(pyramid, located.level, located.image, channel);
    const acc* wy = row_weights + row_tap.offset;
    const acc* wx = column_weights + column_tap.offset;
    acc pooled[4] = {};
    for (int32_t i = 0; i < row_tap.count; ++i) {
      const T* row = plane + (row_tap.first + i) * map.row_stride + column_tap.first * map.column_stride;
      acc row_sums[3] = {};
      for (int32_t j = 0; j < column_tap.count; ++j) {
        const acc value = acc(row[j * map.column_stride]);
        for (int32_t k = 0; k < 3; ++k) row_sums[k] += wx[k * column_capacity + j] * value;
      }
      pooled[0] += wy[i] * row_sums[1];
      pooled[1] += wy[row_capacity + i] * row_sums[0];
      pooled[2] += wy[i] * row_sums[2];
      pooled[3] += wy[2 * row_capacity + i] * row_sums[0];
    }
    const acc incoming = acc(*output_at(grad, roi, channel, bin / width, bin % width));
    for (int32_t k = 0; k < 4; ++k) sums[k] += incoming * pooled[k];
  }
  for (int32_t k = 0; k < 4; ++k) partial[k][threadIdx.x] = sums[k];
  for (int32_t half = kThreads / 2; half > 0; half /= 2) {
    __syncthreads();
    if (int32_t(threadIdx.x) >= half) continue;
    for (int32_t k = 0; k < 4; ++k) partial[k][threadIdx.x] += partial[k][threadIdx.x + half];
  }
  if (threadIdx.x > 0) return;
  grad_rois[roi * 5] = acc(0);
  for (int32_t k = 0; k < 4; ++k) grad_rois[roi * 5 + 1 + k] = partial[k][0];
}

}  // namespace cuda
}  // namespace mrcnn_ext
