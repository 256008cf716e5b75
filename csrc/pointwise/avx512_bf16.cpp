// The kernels for AVX-512 with BF16.
#include "kernels.h"

#if defined(__x86_64__)
#include <algorithm>
#include <type_traits>

#include "simd/avx512_bf16_begin.h"
namespace pointwise_kernels {
using namespace pointwise;
using c10::BFloat16;

// The rows and outputs that there are.
template <int kVectors, typename T>
inline void store_some(const Rows<BFloat16, T>& rows, int64_t row, int64_t output, int64_t outputs,
                       const __m512 (&totals)[kRows][kVectors]) {
  for (int i = 0; i < kRows && row + i < rows.count; ++i) {
    for (int j = 0; j < kVectors; ++j) {
      const int64_t place = output + j * kLanes;
      const int lanes = std::min(kLanes, outputs - place);
      __m512 value = totals[i][j];
      if (rows.added != nullptr) value += F32::load_partial(rows.added[row + i] + place, lanes);
      if (rows.relu) value = F32::max(F32::zero(), value);
      F32::store_partial(rows.results + (row + i) * rows.stride + place, value, lanes);
    }
  }
}

// kRows rows and kVectors registers of outputs; of the rows only `count` are written. sums: kRows rows
// sum_stride apart, where the sum continues from (unless it is the first part) and goes to (unless the last).
template <int kVectors, typename T>
inline void multiply_rows(const Rows<BFloat16, T>& rows, int64_t row, int64_t output, int64_t outputs,
                          int64_t channel, int64_t channels, const BFloat16* weights, const float* bias,
                          float* sums, int64_t sum_stride, bool first, bool last) {
  __m512 totals[kRows][kVectors];
  for (int i = 0; i < kRows; ++i)
    for (int j = 0; j < kVectors; ++j)
      totals[i][j] =
          first ? _mm512_loadu_ps(bias + j * kLanes) : _mm512_loadu_ps(sums + i * sum_stride + j * kLanes);
  // Where the results go and, before the first outputs, the rows to come: they arrive while these are
  // multiplied.
  if (last)
    for (int i = 0; i < kRows; ++i) {
      if (row + i >= rows.count) break;
      for (int j = 0; j < kVectors; j += 2)
        __builtin_prefetch(rows.results + (row + i) * rows.stride + output + j * kLanes, 1);
    }
  if (output == 0 && channels * int64_t(sizeof(BFloat16)) <= kPrefetched && row + 2 * kRows <= rows.count)
    for (int i = 0; i < kRows; ++i)
      for (int64_t k = 0; k < channels; k += 2 * kLanes) __builtin_prefetch(rows.inputs[row + kRows + i] + k);
  const BFloat16* inputs[kRows];
  for (int i = 0; i < kRows; ++i) inputs[i] = rows.inputs[row + i] + channel;
  for (int64_t k = 0; k < channels; k += 2, weights += 2 * kVectors * kLanes) {
    BF16::Register weight[kVectors];
    for (int j = 0; j < kVectors; ++j) weight[j] = BF16::load(weights + 2 * j * kLanes);
    for (int i = 0; i < kRows; ++i) {
      const BF16::Register value = BF16::broadcast_pair(inputs[i] + k);
      for (int j = 0; j < kVectors; ++j) totals[i][j] = BF16::add_products(totals[i][j], value, weight[j]);
    }
  }
  if (!last) {
    for (int i = 0; i < kRows; ++i)
      for (int j = 0; j < kVectors; ++j) _mm512_storeu_ps(sums + i * sum_stride + j * kLanes, totals[i][j]);
  } else if (row + kRows <= rows.count && output + kVectors * kLanes <= outputs) {
    const __m512 least = F32::broadcast(rows.relu ? 0 : -std::numeric_limits<float>::infinity());
    const auto finish = [&](auto with_added) {
#pragma GCC unroll 6
      for (int i = 0; i < kRows; ++i) {
        T* result = rows.results + (row + i) * rows.stride + output;
        __m512 values[kVectors];
#pragma GCC unroll 4
        for (int j = 0; j < kVectors; ++j) {
          __m512 value = totals[i][j];
          if constexpr (with_added) value += F32::load(rows.added[row + i] + output + j * kLanes);
          values[j] = F32::max(least, value);
        }
#pragma GCC unroll 2
        for (int j = 0; j + 1 < kVectors; j += 2)
          BF16::store_pair(result + j * kLanes, values[j], values[j + 1]);
        if constexpr (kVectors % 2 == 1) BF16::store(result + (kVectors - 1) * kLanes, values[kVectors - 1]);
      }
    };
    rows.added == nullptr ? finish(std::false_type()) : finish(std::true_type());
  } else {
    store_some(rows, row, output, outputs, totals);
  }
}

template <typename T>
void multiply(const Rows<BFloat16, T>& rows, int64_t channels, int64_t outputs, const BFloat16* weights,
              const float* bias, float* sums) {
  const int64_t padded = (outputs + kLanes - 1) / kLanes * kLanes;
  const int64_t parts = (channels + kMostChannels - 1) / kMostChannels;
  const int64_t part = (channels + 2 * parts - 1) / (2 * parts) * 2;
  for (int64_t channel = 0; channel < channels; channel += part) {
    const int64_t count = std::min(part, channels - channel);
    const bool first = channel == 0, last = channel + count == channels;
    const auto run = [&](int64_t row, int64_t output) {
      const int64_t width = std::min(kChunk, padded - output);
      const BFloat16* from = weights + output * channels + channel * width;
      const auto run_as = [&](auto vectors) {
        multiply_rows<decltype(vectors)::value>(rows, row, output, outputs, channel, count, from,
                                                bias + output, sums + row * padded + output, padded, first,
                                                last);
      };
      if (width == 4 * kLanes)
        run_as(std::integral_constant<int, 4>());
      else if (width == 3 * kLanes)
        run_as(std::integral_constant<int, 3>());
      else if (width == 2 * kLanes)
        run_as(std::integral_constant<int, 2>());
      else
        run_as(std::integral_constant<int, 1>());
    };
    // Weights that fit in the cache stay there, and rows are read and written once; otherwise rows do.
    if (padded * channels * int64_t(sizeof(BFloat16)) <= kFewWeights) {
      for (int64_t row = 0; row < rows.count; row += kRows)
        for (int64_t output = 0; output < outputs; output += kChunk) run(row, output);
    } else {
      for (int64_t output = 0; output < outputs; output += kChunk)
        for (int64_t row = 0; row < rows.count; row += kRows) run(row, output);
    }
  }
}

}  // namespace pointwise_kernels
#include "simd/avx512_bf16_end.h"

namespace mrcnn_ext {
namespace pointwise {
const Bf16Kernels& avx512_bf16_kernels() {
  static const Bf16Kernels kernels = {avx512::pointwise_kernels::multiply<c10::BFloat16>,
                                      avx512::pointwise_kernels::multiply<float>};
  return kernels;
}
}  // namespace pointwise
}  // namespace mrcnn_ext
#endif
