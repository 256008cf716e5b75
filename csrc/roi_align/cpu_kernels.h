// What the vector kernels work on and the table of entry points each instruction set fills in.
#pragma once

#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <cstdint>

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

template <typename T>
using PoolFunction = void (*)(const Image<const T>& feature, const Band<acc_t<T>>& rows,
                              const Band<acc_t<T>>& columns, const Image<T>& output, acc_t<T>* scratch);
template <typename T>
using ScatterFunction = void (*)(const Image<const T>& grad, const Band<acc_t<T>>& rows,
                                 const Band<acc_t<T>>& columns, const Image<acc_t<T>>& grad_feature,
                                 acc_t<T>* scratch);

// pool: output = rows * feature * columns^T. scatter: grad_feature += rows * grad * columns^T, with the
// transposed bands. *_nhwc want a channel stride of 1, *_nchw a column stride of 1, on both sides.
template <typename T>
struct Kernels {
  PoolFunction<T> pool_nhwc;
  PoolFunction<T> pool_nchw;
  ScatterFunction<T> scatter_nhwc;
  ScatterFunction<T> scatter_nchw;
};

struct KernelSet {
  Kernels<float> f32;
  Kernels<double> f64;
  Kernels<c10::BFloat16> bf16;
  Kernels<c10::Half> f16;
};

// Elements of scratch any kernel may use for these bands.
constexpr int64_t kChannelTile = 128;
constexpr int64_t kScratchPadding = 64;

template <typename acc>
int64_t scratch_size(const Band<acc>& rows, const Band<acc>& columns) {
  const int64_t nhwc = int64_t(rows.widest) * columns.outputs * kChannelTile;
  const int64_t nchw_pool = int64_t(rows.outputs) * (columns.end - columns.begin + kScratchPadding);
  const int64_t nchw_scatter = int64_t(rows.end - rows.begin) * (columns.outputs + kScratchPadding);
  return (nhwc > nchw_pool + nchw_scatter ? nhwc : nchw_pool + nchw_scatter) + kScratchPadding;
}

const KernelSet& plain_kernels();
#if defined(__x86_64__)
const KernelSet& avx2_kernels();
const KernelSet& avx512_kernels();
#endif

}  // namespace mrcnn_ext
