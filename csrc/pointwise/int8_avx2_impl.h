// The kernels of int8 in registers of 256 bits, written against `Sums` of the including file: the sums of
// kSumRows rows and kLanes outputs.

#include "tiles_impl.h"

using c10::BFloat16;

// 32 values as 8 bits; the packing saturates, and a NaN and what is too small become the smallest int32.
inline __m256i quantize_32(const __m256 (&values)[4], __m256 inverse, __m256 zero) {
  const __m256 most = F32::broadcast(255);
  const auto round = [&](__m256 value) {
    return _mm256_cvtps_epi32(_mm256_min_ps(most, F32::fma(value, inverse, zero)));
  };
  const __m256i low = _mm256_packs_epi32(round(values[0]), round(values[1]));
  const __m256i high = _mm256_packs_epi32(round(values[2]), round(values[3]));
  const __m256i places = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
  return _mm256_permutevar8x32_epi32(_mm256_packus_epi16(low, high), places);
}

template <typename In>
void quantize(const In* const* rows, int64_t count, int64_t channels, float inverse_scale, float zero_point,
              uint8_t* quantized) {
  const __m256 inverse = F32::broadcast(inverse_scale), zero = F32::broadcast(zero_point);
  const int64_t stride = quantized_stride(channels);
  for (int64_t row = 0; row < count; ++row, quantized += stride) {
    const In* from = rows[row];
    __m256 values[4];
    int64_t k = 0;
    for (; k + 32 <= channels; k += 32) {
      for (int i = 0; i < 4; ++i) values[i] = F32::load(from + k + F32::kLanes * i);
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(quantized + k), quantize_32(values, inverse, zero));
    }
    if (k == channels) continue;
    for (int i = 0; i < 4; ++i) {
      const int64_t place = k + F32::kLanes * i;
      const int lanes = static_cast<int>(std::clamp<int64_t>(channels - place, 0, F32::kLanes));
      values[i] = lanes == 0 ? F32::zero() : F32::load_partial(from + place, lanes);
    }
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(quantized + k), quantize_32(values, inverse, zero));
    std::fill(quantized + channels, quantized + k + 32, uint8_t(0));
  }
}

// Sums::kSumRows rows and a panel of kLanes outputs; panel_stride: from the weights of one quad to the next.
template <typename Out>
inline void multiply_rows(const QuantizedRows<Out>& rows, int64_t row, int64_t output, int64_t outputs,
                          int64_t quads, const int8_t* weights, int64_t panel_stride, const float* scales,
                          const float* bias, int32_t* sums, int64_t sum_stride, bool first, bool last) {
  constexpr int kVectors = kLanes / F32::kLanes;
  if (last) prefetch_results(rows, row, Sums::kSumRows, output, kLanes);
  Sums products;
  const uint8_t* inputs = rows.inputs + row * rows.input_stride;
  for (int64_t k = 0; k < quads; ++k, weights += panel_stride)
    products.add(inputs + kQuad * k, rows.input_stride, weights);
  const auto total = [&](auto i, auto j) {
    const __m256i* sum = reinterpret_cast<const __m256i*>(sums + i * sum_stride + j * F32::kLanes);
    const __m256i of_this = products.outputs(i, j);
    return first ? of_this : _mm256_add_epi32(of_this, _mm256_loadu_si256(sum));
  };
  if (!last) {
    unrolled<Sums::kSumRows, kVectors>([&](auto i, auto j) {
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(sums + i * sum_stride + j * F32::kLanes), total(i, j));
    });
    return;
  }
  write_results<Sums::kSumRows, kVectors>(rows, row, output, outputs, [&](auto i, auto j) {
    return F32::fma(_mm256_cvtepi32_ps(total(i, j)), F32::load(scales + j * F32::kLanes),
                    F32::load(bias + j * F32::kLanes));
  });
}

template <typename Out>
void multiply(const QuantizedRows<Out>& rows, int64_t first_quad, int64_t quads, int64_t all_quads,
              int64_t outputs, const int8_t* weights, const float* scales, const float* bias, int32_t* sums) {
  const int64_t padded = (outputs + kLanes - 1) / kLanes * kLanes;
  const bool first = first_quad == 0, last = first_quad + quads == all_quads;
  for_each_tile(rows.count, outputs, kChunk, padded * all_quads * kQuad, [&](int64_t row, int64_t chunk) {
    const int64_t width = std::min(kChunk, padded - chunk);
    const int8_t* from = weights + (chunk * all_quads + first_quad * width) * kQuad;
    for (int64_t panel = 0; panel < width; panel += kLanes)
      for (int64_t some = row; some < row + kRows; some += Sums::kSumRows)
        multiply_rows(rows, some, chunk + panel, outputs, quads, from + panel * kQuad, width * kQuad,
                      scales + chunk + panel, bias + chunk + panel, sums + some * padded + chunk + panel,
                      padded, first, last);
  });
}
