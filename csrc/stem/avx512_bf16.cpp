// The kernels for AVX-512 with BF16.
#include "kernels.h"

#if defined(__x86_64__)
#include <algorithm>
#include <array>

#include "simd/avx512_bf16_begin.h"
namespace stem_kernels {
using namespace stem;
using c10::BFloat16;

constexpr int kVectors = kOutputs / 16;

// Which of two rows of sixteen bf16, red and green, and of one row of sixteen, blue, each of the 48 values
// (the last sixteen apart) of sixteen cells is.
constexpr std::array<uint16_t, 64> interleaved_places() {
  std::array<uint16_t, 64> places = {};
  for (int i = 0; i < 48; ++i) places[i] = i / 3 + (i % 3 == 0 ? 0 : i % 3 == 1 ? 16 : 32);
  return places;
}

void interleave(const float* from, int64_t plane, int64_t width, int64_t, BFloat16* to) {
  to += kPadding * kChannels;
  static constexpr std::array<uint16_t, 64> places = interleaved_places();
  const __m512i first_places = _mm512_loadu_si512(places.data());
  const __m512i last_places = _mm512_loadu_si512(places.data() + 32);
  for (int64_t x = 0; x < width; x += 16) {
    const int lanes = std::min<int64_t>(16, width - x);
    const __m512 blue = F32::load_partial(from + 2 * plane + x, lanes);
    const __m512i red_green =
        BF16::round_pair(F32::load_partial(from + x, lanes), F32::load_partial(from + plane + x, lanes));
    const __m512i only_blue = BF16::round_pair(blue, blue);
    const __m512i first = _mm512_permutex2var_epi16(red_green, first_places, only_blue);
    const __m512i last = _mm512_permutex2var_epi16(red_green, last_places, only_blue);
    const uint64_t there = (uint64_t(1) << (3 * lanes)) - 1;
    _mm512_mask_storeu_epi16(to + 3 * x, __mmask32(there), first);
    _mm512_mask_storeu_epi16(to + 3 * x + 32, __mmask32(there >> 32), last);
  }
}

void convolve(const BFloat16* const* lines, int64_t, int64_t groups, const BFloat16* weights,
              const float* bias, BFloat16* to) {
  constexpr int64_t kStep = kStride * kChannels;
  for (int64_t group = 0; group < groups; ++group, to += kCells * kOutputs) {
    __m512 totals[kCells][kVectors];
    for (int i = 0; i < kCells; ++i)
      for (int j = 0; j < kVectors; ++j) totals[i][j] = F32::load(bias + 16 * j);
    const BFloat16* weight = weights;
    for (int64_t row = 0; row < kKernel; ++row) {
      const BFloat16* line = lines[row] + group * kCells * kStep;
      for (int64_t k = 0; k < kReach; k += 2, weight += 2 * kOutputs) {
        BF16::Register of_outputs[kVectors];
        for (int j = 0; j < kVectors; ++j) of_outputs[j] = BF16::load(weight + 32 * j);
        for (int i = 0; i < kCells; ++i) {
          const BF16::Register pair = BF16::broadcast_pair(line + i * kStep + k);
          for (int j = 0; j < kVectors; ++j)
            totals[i][j] = BF16::add_products(totals[i][j], pair, of_outputs[j]);
        }
      }
    }
    for (int i = 0; i < kCells; ++i) {
      // A NaN stays; and no zero is negative, which `pool` would take for the largest of all.
      for (int j = 0; j < kVectors; ++j) totals[i][j] = F32::max(F32::zero(), totals[i][j]) + F32::zero();
      for (int j = 0; j < kVectors; j += 2)
        BF16::store_pair(to + i * kOutputs + 16 * j, totals[i][j], totals[i][j + 1]);
    }
  }
}

void pool(const BFloat16* const* rows, int64_t width, int64_t stride, BFloat16* to) {
  for (int64_t x = 0; x < width; ++x) {
    // What is not negative is in the order of its bits, NaN last.
    __m512i largest[kVectors / 2] = {};
    for (int row = 0; row < 3; ++row)
      for (int64_t cell = 0; cell < 3; ++cell)
        for (int j = 0; j < kVectors / 2; ++j) {
          const BFloat16* from = rows[row] + (kStride * x + cell) * kOutputs + 32 * j;
          largest[j] = _mm512_max_epu16(largest[j], _mm512_loadu_si512(from));
        }
    for (int j = 0; j < kVectors / 2; ++j) _mm512_storeu_si512(to + x * stride + 32 * j, largest[j]);
  }
}

}  // namespace stem_kernels
#include "simd/avx512_bf16_end.h"

namespace mrcnn_ext {
namespace stem {
const Kernels<c10::BFloat16>& avx512_bf16_kernels() {
  namespace kernels = avx512::stem_kernels;
  static const Kernels<c10::BFloat16> all = {kernels::interleave, kernels::convolve, kernels::pool};
  return all;
}
}  // namespace stem
}  // namespace mrcnn_ext
#endif
