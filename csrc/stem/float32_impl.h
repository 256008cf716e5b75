// The kernels of float32, written against the register type F32 of the including file, see simd/*_begin.h,
// and its larger_bits. kWidth outputs are convolved at a time.

constexpr int kVectors = kWidth / F32::kLanes;
constexpr int64_t kPerPanel = kPanel / F32::kLanes;  // registers
constexpr int64_t kPanelSize = kKernel * kTaps * kPanel;

using Register = F32::Register;

void interleave(const float* from, int64_t plane, int64_t width, float* to) {
  for (int64_t x = 0; x < width; ++x)
    for (int64_t channel = 0; channel < kChannels; ++channel)
      to[kChannels * x + channel] = from[channel * plane + x];
}

void convolve(const float* const* lines, int64_t groups, const float* weights, const float* bias, float* to) {
  constexpr int64_t kStep = kStride * kChannels;
  for (int64_t group = 0; group < groups; ++group, to += kCells * kOutputs)
    for (int64_t output = 0; output < kOutputs; output += kWidth) {
      Register totals[kCells][kVectors];
      for (int i = 0; i < kCells; ++i)
        for (int j = 0; j < kVectors; ++j) totals[i][j] = F32::load(bias + output + j * F32::kLanes);
      const float* weight = weights + output / kPanel * kPanelSize;
      for (int64_t row = 0; row < kKernel; ++row) {
        const float* line = lines[row] + group * kCells * kStep;
        for (int64_t k = 0; k < kTaps; ++k, weight += kPanel) {
          Register of_outputs[kVectors];
          for (int j = 0; j < kVectors; ++j)
            of_outputs[j] = F32::load(weight + j / kPerPanel * kPanelSize + j % kPerPanel * F32::kLanes);
          for (int i = 0; i < kCells; ++i) {
            const Register value = F32::broadcast(line[i * kStep + k]);
            for (int j = 0; j < kVectors; ++j) totals[i][j] = F32::fma(value, of_outputs[j], totals[i][j]);
          }
        }
      }
      // A NaN stays; and no zero is negative, which `pool` would take for the largest of all.
      for (int i = 0; i < kCells; ++i)
        for (int j = 0; j < kVectors; ++j)
          F32::store(to + i * kOutputs + output + j * F32::kLanes,
                     F32::add(F32::max(F32::zero(), totals[i][j]), F32::zero()));
    }
}

void pool(const float* const* rows, int64_t width, int64_t stride, float* to) {
  for (int64_t x = 0; x < width; ++x)
    for (int64_t output = 0; output < kOutputs; output += F32::kLanes) {
      // What is not negative is in the order of its bits, NaN last.
      Register largest = F32::zero();
      for (int row = 0; row < 3; ++row)
        for (int64_t cell = 0; cell < 3; ++cell)
          largest = larger_bits(largest, F32::load(rows[row] + (kStride * x + cell) * kOutputs + output));
      F32::store(to + x * stride + output, largest);
    }
}
