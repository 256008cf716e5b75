// The kernel of float32, written against the register type F32 of the including file; see simd/*_begin.h.
// kWidth outputs are computed at a time, kWidth / F32::kLanes registers of them for kRows rows.

#include "tiles_impl.h"

constexpr int64_t kPanels = kWidth / kLanes;
constexpr int64_t kPerPanel = kLanes / F32::kLanes;  // registers
constexpr int64_t kPartChannels = kMostPanelBytes / int64_t(sizeof(float)) / kChunk / (kPanels == 1 ? 2 : 1);

using Register = F32::Register;

// Channels [channel, channel + channels) of kRows rows and of kVectors registers of outputs, from `output`
// on. weights: of the first of these channels and outputs, panels panel_stride apart. sums: where the sums of
// the rows, sum_stride apart, continue from (unless it is the first part) and go to (unless the last).
template <int kVectors>
inline void multiply_rows(const Rows<float, float>& rows, int64_t row, int64_t output, int64_t outputs,
                          int64_t channel, int64_t channels, const float* weights, int64_t panel_stride,
                          const float* bias, float* sums, int64_t sum_stride, bool first, bool last) {
  if (last) prefetch_results(rows, row, kRows, output, kVectors * F32::kLanes);
  const float* const start = first ? bias : sums;
  const int64_t start_stride = first ? 0 : sum_stride;
  Register totals[kRows][kVectors];
  unrolled<kRows, kVectors>(
      [&](auto i, auto j) { totals[i][j] = F32::load(start + i * start_stride + j * F32::kLanes); });
  const float* inputs[kRows];
  unrolled<kRows>([&](auto i) { inputs[i] = rows.inputs[row + i] + channel; });
  multiply_and_prefetch<1>(rows, row, output, channel, channels, [&](int64_t k) {
    Register weight[kVectors];
    unrolled<kVectors>([&](auto j) {
      weight[j] = F32::load(weights + j / kPerPanel * panel_stride + j % kPerPanel * F32::kLanes);
    });
    unrolled<kRows>([&](auto i) {
      const Register value = F32::broadcast(inputs[i][k]);
      unrolled<kVectors>([&](auto j) { totals[i][j] = F32::fma(value, weight[j], totals[i][j]); });
    });
    weights += kLanes;
  });
  const auto total = [&](auto i, auto j) { return totals[i][j]; };
  if (last)
    write_results<kRows, kVectors>(rows, row, output, outputs, total);
  else
    unrolled<kRows, kVectors>(
        [&](auto i, auto j) { F32::store(sums + i * sum_stride + j * F32::kLanes, total(i, j)); });
}

void multiply(const Rows<float, float>& rows, int64_t channels, int64_t outputs, const float* weights,
              const float* bias, float* sums) {
  const int64_t padded = (outputs + kLanes - 1) / kLanes * kLanes;
  const int64_t parts = (channels + kPartChannels - 1) / kPartChannels;
  const int64_t part = (channels + parts - 1) / parts;
  // One panel at a time is few: it stays.
  const int64_t weight_bytes = kPanels > 1 ? padded * channels * int64_t(sizeof(float)) : kFewWeights + 1;
  for (int64_t channel = 0; channel < channels; channel += part) {
    const int64_t count = std::min(part, channels - channel);
    const bool first = channel == 0, last = channel + count == channels;
    for_each_tile(rows.count, outputs, kWidth, weight_bytes, [&](int64_t row, int64_t output) {
      with_panels<kPanels>(std::min(kPanels, (padded - output) / kLanes), [&](auto panels) {
        multiply_rows<decltype(panels)::value * kPerPanel>(
            rows, row, output, outputs, channel, count, weights + output * channels + channel * kLanes,
            channels * kLanes, bias + output, sums + row * padded + output, padded, first, last);
      });
    });
  }
}
