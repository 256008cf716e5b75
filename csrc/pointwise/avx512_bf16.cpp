// The kernels for AVX-512 with BF16.
#include "kernels.h"

#if defined(__x86_64__)
#include <algorithm>
#include <limits>
#include <type_traits>
#include <utility>

#include "simd/avx512_bf16_begin.h"
namespace pointwise_kernels {
namespace bf16 {
using namespace pointwise;
using c10::BFloat16;
using F32 = F32WithBf16;

#include "tiles_impl.h"

// kRows rows and kVectors registers of outputs. sums: kRows rows sum_stride apart, where the sum continues
// from (unless it is the first part) and goes to (unless the last).
template <int kVectors, typename T>
inline void multiply_rows(const Rows<BFloat16, T>& rows, int64_t row, int64_t output, int64_t outputs,
                          int64_t channel, int64_t channels, const BFloat16* weights, const float* bias,
                          float* sums, int64_t sum_stride, bool first, bool last) {
  if (last) prefetch_results(rows, row, kRows, output, kVectors * kLanes);
  const float* const start = first ? bias : sums;
  const int64_t start_stride = first ? 0 : sum_stride;
  __m512 totals[kRows][kVectors];
  unrolled<kRows, kVectors>(
      [&](auto i, auto j) { totals[i][j] = F32::load(start + i * start_stride + j * kLanes); });
  const BFloat16* inputs[kRows];
  unrolled<kRows>([&](auto i) { inputs[i] = rows.inputs[row + i] + channel; });
  multiply_and_prefetch<2>(rows, row, output, channel, channels, [&](int64_t k) {
    BF16::Register weight[kVectors];
    unrolled<kVectors>([&](auto j) { weight[j] = BF16::load(weights + 2 * j * kLanes); });
    unrolled<kRows>([&](auto i) {
      const BF16::Register value = BF16::broadcast_pair(inputs[i] + k);
      unrolled<kVectors>([&](auto j) { totals[i][j] = BF16::add_products(totals[i][j], value, weight[j]); });
    });
    weights += 2 * kVectors * kLanes;
  });
  const auto total = [&](auto i, auto j) { return totals[i][j]; };
  if (last)
    write_results<kRows, kVectors>(rows, row, output, outputs, total);
  else
    unrolled<kRows, kVectors>(
        [&](auto i, auto j) { F32::store(sums + i * sum_stride + j * kLanes, total(i, j)); });
}

template <typename T>
void multiply(const Rows<BFloat16, T>& rows, int64_t channels, int64_t outputs, const BFloat16* weights,
              const float* bias, float* sums) {
  const int64_t padded = (outputs + kLanes - 1) / kLanes * kLanes;
  const int64_t parts = (channels + kMostChannels - 1) / kMostChannels;
  const int64_t part = (channels + 2 * parts - 1) / (2 * parts) * 2;
  const int64_t weight_bytes = padded * channels * int64_t(sizeof(BFloat16));
  for (int64_t channel = 0; channel < channels; channel += part) {
    const int64_t count = std::min(part, channels - channel);
    const bool first = channel == 0, last = channel + count == channels;
    for_each_tile(rows.count, outputs, kChunk, weight_bytes, [&](int64_t row, int64_t output) {
      const int64_t width = std::min(kChunk, padded - output);
      const BFloat16* from = weights + output * channels + channel * width;
      with_panels<kChunk / kLanes>(width / kLanes, [&](auto panels) {
        multiply_rows<decltype(panels)::value>(rows, row, output, outputs, channel, count, from,
                                               bias + output, sums + row * padded + output, padded, first,
                                               last);
      });
    });
  }
}

}  // namespace bf16
}  // namespace pointwise_kernels
#include "simd/avx512_bf16_end.h"

namespace mrcnn_ext {
namespace pointwise {
const Bf16Kernels& avx512_bf16_kernels() {
  namespace kernels = avx512::pointwise_kernels::bf16;
  static const Bf16Kernels all = {kernels::multiply<c10::BFloat16>, kernels::multiply<float>};
  return all;
}
}  // namespace pointwise
}  // namespace mrcnn_ext
#endif
