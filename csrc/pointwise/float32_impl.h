// The kernel of float32, written against the register type F32 of the including file; see simd/*_begin.h.
// kWidth outputs are computed at a time, kWidth / F32::kLanes registers of them for kRows rows.

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
  Register totals[kRows][kVectors];
  for (int i = 0; i < kRows; ++i)
    for (int j = 0; j < kVectors; ++j)
      totals[i][j] = F32::load(first ? bias + j * F32::kLanes : sums + i * sum_stride + j * F32::kLanes);
  // Where the results go and, before the first outputs, the rows to come: they arrive while these are
  // multiplied.
  if (last)
    for (int i = 0; i < kRows && row + i < rows.count; ++i)
      for (int64_t j = 0; j < kVectors * F32::kLanes; j += 16)
        __builtin_prefetch(rows.results + (row + i) * rows.stride + output + j, 1);
  if (output == 0 && channels * int64_t(sizeof(float)) <= kPrefetched && row + 2 * kRows <= rows.count)
    for (int i = 0; i < kRows; ++i)
      for (int64_t k = 0; k < channels; k += 16)
        __builtin_prefetch(rows.inputs[row + kRows + i] + channel + k);
  const float* inputs[kRows];
  for (int i = 0; i < kRows; ++i) inputs[i] = rows.inputs[row + i] + channel;
  for (int64_t k = 0; k < channels; ++k, weights += kLanes) {
    Register weight[kVectors];
    for (int j = 0; j < kVectors; ++j)
      weight[j] = F32::load(weights + j / kPerPanel * panel_stride + j % kPerPanel * F32::kLanes);
    for (int i = 0; i < kRows; ++i) {
      const Register value = F32::broadcast(inputs[i][k]);
      for (int j = 0; j < kVectors; ++j) totals[i][j] = F32::fma(value, weight[j], totals[i][j]);
    }
  }
  if (!last) {
    for (int i = 0; i < kRows; ++i)
      for (int j = 0; j < kVectors; ++j) F32::store(sums + i * sum_stride + j * F32::kLanes, totals[i][j]);
    return;
  }
  const Register least = F32::broadcast(rows.relu ? 0 : -std::numeric_limits<float>::infinity());
  if (row + kRows <= rows.count && output + kVectors * F32::kLanes <= outputs) {
    for (int i = 0; i < kRows; ++i) {
      float* result = rows.results + (row + i) * rows.stride + output;
      for (int j = 0; j < kVectors; ++j) {
        Register value = totals[i][j];
        if (rows.added != nullptr)
          value = F32::add(value, F32::load(rows.added[row + i] + output + j * F32::kLanes));
        F32::store(result + j * F32::kLanes, F32::max(least, value));
      }
    }
  } else {
    for (int i = 0; i < kRows; ++i)
      for (int j = 0; j < kVectors; ++j) {
        const int64_t place = output + j * F32::kLanes;
        const int lanes = static_cast<int>(std::min<int64_t>(F32::kLanes, outputs - place));
        if (row + i >= rows.count || lanes <= 0) continue;
        Register value = totals[i][j];
        if (rows.added != nullptr)
          value = F32::add(value, F32::load_partial(rows.added[row + i] + place, lanes));
        F32::store_partial(rows.results + (row + i) * rows.stride + place, F32::max(least, value), lanes);
      }
  }
}

void multiply(const Rows<float, float>& rows, int64_t channels, int64_t outputs, const float* weights,
              const float* bias, float* sums) {
  const int64_t padded = (outputs + kLanes - 1) / kLanes * kLanes;
  const int64_t parts = (channels + kPartChannels - 1) / kPartChannels;
  const int64_t part = (channels + parts - 1) / parts;
  for (int64_t channel = 0; channel < channels; channel += part) {
    const int64_t count = std::min(part, channels - channel);
    const bool first = channel == 0, last = channel + count == channels;
    const auto run = [&](int64_t row, int64_t output) {
      const int64_t panels = std::min(kPanels, (padded - output) / kLanes);
      const auto run_as = [&](auto panels) {
        multiply_rows<decltype(panels)::value * kPerPanel>(
            rows, row, output, outputs, channel, count, weights + output * channels + channel * kLanes,
            channels * kLanes, bias + output, sums + row * padded + output, padded, first, last);
      };
      if (panels == kPanels)
        run_as(std::integral_constant<int, kPanels>());
      else if (panels == 3)
        run_as(std::integral_constant<int, std::min<int>(3, kPanels)>());
      else if (panels == 2)
        run_as(std::integral_constant<int, std::min<int>(2, kPanels)>());
      else
        run_as(std::integral_constant<int, 1>());
    };
    // Weights that fit in the cache stay there, and rows are read and written once; otherwise rows do.
    if (kPanels > 1 && padded * channels * int64_t(sizeof(float)) <= kFewWeights) {
      for (int64_t row = 0; row < rows.count; row += kRows)
        for (int64_t output = 0; output < outputs; output += kWidth) run(row, output);
    } else {
      for (int64_t output = 0; output < outputs; output += kWidth)
        for (int64_t row = 0; row < rows.count; row += kRows) run(row, output);
    }
  }
}
