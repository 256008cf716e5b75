// What all kernels use: how tensors are handed to them, shared memory, and loads and sums of a warp.
#pragma once

#include <cstdint>
#include <type_traits>

#include "grid.h"

// Work that an emulation of the device may count; nothing on a device. Kinds: locate (RoIs placed on their
// map), read and written (bytes of device memory), multiply_adds, visits (of a RoI by a tile's warp).
#ifndef MRCNN_EXT_COUNT
#define MRCNN_EXT_COUNT(kind, amount)
#endif

namespace mrcnn_ext {
namespace cuda {

constexpr uint32_t kWholeWarp = 0xffffffffu;

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
struct Map {  // (N, C, H, W), strides in elements; outputs and their gradients have RoIs in the place of
              // images
  T* data;
  int64_t image_stride;
  int64_t channel_stride;
  int64_t row_stride;
  int64_t column_stride;

  __device__ T* at(int64_t image, int64_t channel, int64_t y, int64_t x) const {
    return data + image * image_stride + channel * channel_stride + y * row_stride + x * column_stride;
  }
};

template <typename T>
struct Pyramid {
  Map<T> levels[kMostLevels];
  int64_t channels;
};

// The pyramid without its data.
struct Geometry {
  int32_t heights[kMostLevels];
  int32_t widths[kMostLevels];
  double scales[kMostLevels];
  int64_t first_tile[kMostLevels + 1];  // tiles of level l are [first_tile[l], first_tile[l + 1])
  int32_t level_count;
  int64_t images;
};

// The blocks that scatter_average has for the tiles of each level.
struct TileBlocks {
  int64_t first[kMostLevels + 1];  // those of level l are [first[l], first[l + 1])
  int32_t shares[kMostLevels];     // warps that share out the RoIs of a tile
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

// The dynamic shared memory of the block: all the shared memory there is, so that the host knows its size.
template <typename T>
__device__ T* shared_memory() {
#ifdef MRCNN_EXT_SHARED_MEMORY  // an emulation's
  return reinterpret_cast<T*>(MRCNN_EXT_SHARED_MEMORY);
#else
  extern __shared__ double memory[];
  return reinterpret_cast<T*>(memory);
#endif
}

__device__ inline int32_t lane_of_thread() { return int32_t(threadIdx.x) % kWarp; }
__device__ inline int32_t warp_of_thread() { return int32_t(threadIdx.x) / kWarp; }

template <typename T>
__device__ T read_global(const T* from) {
  MRCNN_EXT_COUNT(read, sizeof(T));
  return *from;
}

// What all lanes of a warp read alike, in one transaction.
template <typename T>
__device__ T read_global_by_warp(const T* from) {
  if (lane_of_thread() == 0) MRCNN_EXT_COUNT(read, sizeof(T));
  return *from;
}

template <typename T, typename Value>
__device__ void write_global(T* to, Value value) {
  MRCNN_EXT_COUNT(written, sizeof(T));
  *to = T(value);
}

// Neighbouring elements, moved by one instruction.
template <typename T, int32_t kCount>
struct alignas(sizeof(T) * kCount) Elements {
  T values[kCount];
};

// The sum over this lane and those before it.
__device__ inline int32_t sum_up_to_lane(int32_t value) {
  for (int32_t step = 1; step < kWarp; step *= 2) {
    const int32_t before = __shfl_up_sync(kWholeWarp, value, step);
    if (lane_of_thread() >= step) value += before;
  }
  return value;
}

template <typename Combine>
__device__ int32_t combine_warp(int32_t value, const Combine& combine) {
  for (int32_t step = kWarp / 2; step > 0; step /= 2) {
    value = combine(value, __shfl_xor_sync(kWholeWarp, value, step));
  }
  return value;
}

}  // namespace cuda
}  // namespace mrcnn_ext
