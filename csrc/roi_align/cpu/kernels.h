// What the vector kernels work on and the table of entry points each instruction set fills in.
#pragma once

#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>
#include <utility>
#include <vector>

namespace mrcnn_ext {

// Accumulation never below fp32.
template <typename T>
struct AccumulateType {
  using type = float;
};
template <>
struct AccumulateType<double> {
  using type = double;
};
template <typename T>
using acc_t = typename AccumulateType<T>::type;

// One output position of a banded matrix: inputs [first, first + count), weights from `offset`.
struct Tap {
  int32_t first;
  int32_t count;
  int32_t offset;
};

// A banded matrix of one axis: `outputs` rows over the inputs [begin, end). Forward: bins over cells.
// Backward, its transpose: the cells [output_begin, output_begin + outputs) over bins.
template <typename acc>
struct Band {
  const Tap* taps;
  const acc* weights;
  int32_t outputs;
  int32_t output_begin;
  int32_t begin;
  int32_t end;
  int32_t widest;  // largest tap count
};

// A 2-D view of `channels` channels; strides in elements.
template <typename T>
struct Image {
  T* data;
  int64_t row_stride;
  int64_t column_stride;
  int64_t channel_stride;
  int64_t channels;
};

// A run of bins that NCHW kernels reduce together; see ColumnLookup.
struct ColumnGroup {
  int32_t first;  // bins [first, first + count)
  int32_t count;
  int32_t begin;  // cells [begin, end)
  int32_t end;
  int32_t terms;
  int32_t table;
  bool has_empty;
};

// Working memory of one kernel call.
template <typename acc>
struct Scratch {
  acc* values;
  acc* weights;
  int32_t* indices;
  ColumnGroup* groups;
};

template <typename T>
using PoolFunction = void (*)(const Image<const T>& feature, const Band<acc_t<T>>& rows,
                              const Band<acc_t<T>>& columns, const Image<T>& output,
                              const Scratch<acc_t<T>>& scratch);
template <typename T>
using ScatterFunction = void (*)(const Image<const T>& grad, const Band<acc_t<T>>& rows,
                                 const Band<acc_t<T>>& columns, const Image<acc_t<T>>& grad_feature,
                                 const Scratch<acc_t<T>>& scratch);

// A bilinear sample on one axis: two neighbouring cells and their weights.
template <typename acc>
struct SamplePoint {
  int32_t low;
  int32_t high;
  acc low_weight;
  acc high_weight;
};

// The samples of one bin that are inside the map: points [offset, offset + count).
struct SampleBin {
  int32_t offset;
  int32_t count;
  bool outside;        // there are others, of value 0
  int32_t reciprocal;  // n * reciprocal >> 16 is n / count for n and count below 256
};

// What the max modes know of one axis of a RoI.
template <typename acc>
struct SampleAxis {
  const SampleBin* bins;
  const SamplePoint<acc>* points;
  int32_t outputs;
  int32_t begin;  // cells read, as for Band
  int32_t end;
  bool cells;     // every point is one cell, and the points of a bin are neighbours
  int32_t first;  // the cell at which the image begins that the kernel reads
};

// A byte says which sample of a bin won: this one that none has a gradient, the others the number of the
// sample, row by row, divided by samples_of_code. Where that leaves several the backward pass looks again.
constexpr uint8_t kNoWinner = 255;
inline int64_t samples_of_code(int64_t samples) { return (samples + kNoWinner - 1) / kNoWinner; }

// Where features are planes, codes are kept in blocks of so many channels: as pixels where gradients are
// summed in pixels, else as planes.
constexpr int64_t kPlaneBlock = 64;

template <typename T>
using PoolMaxFunction = void (*)(const Image<const T>& feature, const SampleAxis<acc_t<T>>& rows,
                                 const SampleAxis<acc_t<T>>& columns, const Image<T>& output,
                                 const Image<uint8_t>& codes);
// Codes and sums are pixels in either layout, and of NCHW at most kPlaneBlock channels. ahead: in NCHW, how
// far behind the gradients and codes of this RoI those of the next one lie; 0 for none.
template <typename T>
using ScatterMaxFunction = void (*)(const Image<const T>& grad, const Image<const uint8_t>& codes,
                                    const Image<const T>& feature, const SampleAxis<acc_t<T>>& rows,
                                    const SampleAxis<acc_t<T>>& columns, const Image<acc_t<T>>& sums,
                                    int64_t ahead);

// The kernels of one dtype in one memory layout. nhwc wants a channel stride of 1, nchw a column stride of 1,
// on both sides. pool: output = rows * feature * columns^T. scatter: grad_feature += rows * grad * columns^T,
// with the transposed bands.
template <typename T>
struct Kernels {
  PoolFunction<T> pool;
  ScatterFunction<T> scatter;
  ScatterMaxFunction<T> scatter_max;
  void (*round)(const acc_t<T>* sums, int64_t length, T* rounded);
};

template <typename T>
struct LayoutKernels {
  Kernels<T> nhwc;
  Kernels<T> nchw;
  // Of NHWC alone.
  PoolMaxFunction<T> pool_max;
  PoolMaxFunction<T> pool_max_coded;
  // All in planes, for few bins.
  ScatterMaxFunction<T> scatter_max_planes;
  // planes[c * stride + i] = pixels[i * channels + c], rounded.
  void (*round_into_planes)(const acc_t<T>* pixels, int64_t cells, int64_t channels, T* planes,
                            int64_t stride);
};

struct KernelSet {
  LayoutKernels<float> f32;
  LayoutKernels<double> f64;
  LayoutKernels<c10::BFloat16> bf16;
  LayoutKernels<c10::Half> f16;
};

// Channels that the NHWC kernels take at a time.
constexpr int64_t kChannelTile = 128;
// Vectors are at most this long, and so are windows of lookups.
constexpr int64_t kScratchPadding = 64;

// Row length of the spread gradients of the NCHW backward: whole vectors, and room for one beyond the end.
template <typename acc>
int64_t spread_pitch(const Band<acc>& columns) {
  return (columns.outputs + 31) / 16 * 16;
}

template <typename acc>
int64_t scratch_values(const Band<acc>& rows, const Band<acc>& columns, int64_t pooled_width) {
  const int64_t ring = int64_t(rows.widest) * columns.outputs * kChannelTile;
  const int64_t forward = 2 * (columns.end - columns.begin) * int64_t(kScratchPadding);
  const int64_t backward = int64_t(rows.end) * (spread_pitch(columns) + pooled_width);
  return std::max({ring, forward, backward}) + 4 * kScratchPadding;
}

// A lane has a cell and a weight for at most 10 terms, and a mask.
template <typename acc>
int64_t lookup_table_size(const Band<acc>& columns) {
  return 11 * 16 * int64_t(columns.outputs);
}

const KernelSet& plain_kernels();
#if defined(__x86_64__)
const KernelSet& avx2_kernels();
const KernelSet& avx512_kernels();
#endif

}  // namespace mrcnn_ext
