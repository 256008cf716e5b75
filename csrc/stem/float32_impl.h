// The kernels for float32, written against the register type F32 of the including file; see simd/*_begin.h.
namespace stem_kernels {
using namespace stem;

constexpr int kVectors = 4;
constexpr int kWidth = kVectors * F32::kLanes;           // outputs at a time, in as many registers as
constexpr int kAtOnce = F32::kLanes >= 16 ? kCells : 3;  // so many cells leave room for

void make_line(const float* from, int64_t plane, int64_t width, int64_t pitch, float* to) {
  for (int64_t channel = 0; channel < kChannels; ++channel)
    std::copy_n(from + channel * plane, width, to + channel * pitch + kPadding);
}

// kAtOnce cells, kWidth outputs.
inline void convolve_cells(const float* const* lines, int64_t pitch, int64_t cell, const float* weights,
                           const float* bias, float* to) {
  F32::Register totals[kAtOnce][kVectors];
  for (int i = 0; i < kAtOnce; ++i)
    for (int j = 0; j < kVectors; ++j) totals[i][j] = F32::load(bias + j * F32::kLanes);
  for (int64_t row = 0; row < kKernel; ++row) {
    for (int64_t channel = 0; channel < kChannels; ++channel) {
      const float* line = lines[row] + channel * pitch + cell * kStride;
      for (int64_t k = 0; k < kKernel; ++k, weights += kOutputs) {
        F32::Register weight[kVectors];
        for (int j = 0; j < kVectors; ++j) weight[j] = F32::load(weights + j * F32::kLanes);
        for (int i = 0; i < kAtOnce; ++i) {
          const F32::Register value = F32::broadcast(line[i * kStride + k]);
          for (int j = 0; j < kVectors; ++j) totals[i][j] = F32::fma(value, weight[j], totals[i][j]);
        }
      }
    }
  }
  // A NaN stays; and no zero is negative, which `pool` would take for the largest of all.
  for (int i = 0; i < kAtOnce; ++i)
    for (int j = 0; j < kVectors; ++j)
      F32::store(to + i * kOutputs + j * F32::kLanes,
                 F32::add(F32::max(F32::zero(), totals[i][j]), F32::zero()));
}

void convolve(const float* const* lines, int64_t pitch, int64_t groups, const float* weights,
              const float* bias, float* to) {
  for (int64_t cell = 0; cell < groups * kCells; cell += kAtOnce)
    for (int64_t output = 0; output < kOutputs; output += kWidth)
      convolve_cells(lines, pitch, cell, weights + output, bias + output, to + cell * kOutputs + output);
}

void pool(const float* const* rows, int64_t width, int64_t stride, float* to) {
  // What is not negative is in the order of its bits, NaN last.
  for (int64_t x = 0; x < width; ++x) {
    uint32_t largest[kOutputs] = {};
    for (int row = 0; row < 3; ++row)
      for (int64_t cell = 0; cell < 3; ++cell) {
        uint32_t bits[kOutputs];
        std::memcpy(bits, rows[row] + (kStride * x + cell) * kOutputs, sizeof(bits));
        for (int64_t j = 0; j < kOutputs; ++j) largest[j] = largest[j] > bits[j] ? largest[j] : bits[j];
      }
    std::memcpy(to + x * stride, largest, sizeof(largest));
  }
}

}  // namespace stem_kernels
