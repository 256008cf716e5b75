// The kernels of int8 in registers of 512 bits, written against F32 of the including file.

#include "tiles_impl.h"

using c10::BFloat16;
using Register = I32::Register;

inline Register load_quads(const int8_t* from) { return Register(_mm512_loadu_si512(from)); }

inline Register broadcast_quad(const uint8_t* from) {
  int32_t quad;
  std::memcpy(&quad, from, sizeof(quad));
  return Register(_mm512_set1_epi32(quad));
}

inline Register add_products(Register sum, Register values, Register weights) {
  return Register(_mm512_dpbusd_epi32(__m512i(sum), __m512i(values), __m512i(weights)));
}

// 64 values as 8 bits; the packing saturates, and a NaN and what is too small become the smallest int32.
inline __m512i quantize_64(__m512 a, __m512 b, __m512 c, __m512 d, __m512 inverse, __m512 zero) {
  const __m512 most = F32::broadcast(255);
  const auto round = [&](__m512 value) {
    return _mm512_cvtps_epi32(_mm512_min_ps(most, F32::fma(value, inverse, zero)));
  };
  const __m512i ab = _mm512_packs_epi32(round(a), round(b)), cd = _mm512_packs_epi32(round(c), round(d));
  const __m512i places = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  return _mm512_permutexvar_epi32(places, _mm512_packus_epi16(ab, cd));
}

template <typename In>
void quantize(const In* const* rows, int64_t count, int64_t channels, float inverse_scale, float zero_point,
              uint8_t* quantized) {
  const __m512 inverse = F32::broadcast(inverse_scale), zero = F32::broadcast(zero_point);
  const int64_t stride = quantized_stride(channels);
  for (int64_t row = 0; row < count; ++row, quantized += stride) {
    const In* from = rows[row];
    int64_t k = 0;
    for (; k + 64 <= channels; k += 64)
      _mm512_storeu_si512(quantized + k,
                          quantize_64(F32::load(from + k), F32::load(from + k + 16), F32::load(from + k + 32),
                                      F32::load(from + k + 48), inverse, zero));
    if (k == channels) continue;
    __m512 last[4];
    for (int i = 0; i < 4; ++i) {
      const int64_t place = k + 16 * i;
      const int64_t lanes = std::clamp<int64_t>(channels - place, 0, 16);
      last[i] = lanes == 0 ? F32::zero() : F32::load_partial(from + place, static_cast<int>(lanes));
    }
    const __mmask64 there = (uint64_t(1) << (channels - k)) - 1;
    _mm512_storeu_si512(quantized + k, _mm512_maskz_mov_epi8(there, quantize_64(last[0], last[1], last[2],
                                                                                last[3], inverse, zero)));
  }
}

template <int kVectors, typename Out>
inline void multiply_rows(const QuantizedRows<Out>& rows, int64_t row, int64_t output, int64_t outputs,
                          int64_t quads, const int8_t* weights, const float* scales, const float* bias,
                          int32_t* sums, int64_t sum_stride, bool first, bool last) {
  if (last) prefetch_results(rows, row, kRows, output, kVectors * kLanes);
  Register totals[kRows][kVectors];
  unrolled<kRows, kVectors>([&](auto i, auto j) { totals[i][j] = I32::zero(); });
  const uint8_t* inputs = rows.inputs + row * rows.input_stride;
  for (int64_t k = 0; k < quads; ++k, inputs += kQuad, weights += kQuad * kVectors * kLanes) {
    Register weight[kVectors];
    unrolled<kVectors>([&](auto j) { weight[j] = load_quads(weights + kQuad * j * kLanes); });
    unrolled<kRows>([&](auto i) {
      const Register value = broadcast_quad(inputs + i * rows.input_stride);
      unrolled<kVectors>([&](auto j) { totals[i][j] = add_products(totals[i][j], value, weight[j]); });
    });
  }
  if (!first)
    unrolled<kRows, kVectors>([&](auto i, auto j) {
      totals[i][j] += Register(_mm512_loadu_si512(sums + i * sum_stride + j * kLanes));
    });
  if (!last) {
    unrolled<kRows, kVectors>([&](auto i, auto j) {
      _mm512_storeu_si512(sums + i * sum_stride + j * kLanes, __m512i(totals[i][j]));
    });
    return;
  }
  __m512 scale[kVectors], offset[kVectors];
  unrolled<kVectors>([&](auto j) {
    scale[j] = F32::load(scales + j * kLanes);
    offset[j] = F32::load(bias + j * kLanes);
  });
  write_results<kRows, kVectors>(rows, row, output, outputs, [&](auto i, auto j) {
    return F32::fma(I32::to_float(totals[i][j]), scale[j], offset[j]);
  });
}

template <typename Out>
void multiply(const QuantizedRows<Out>& rows, int64_t first_quad, int64_t quads, int64_t all_quads,
              int64_t outputs, const int8_t* weights, const float* scales, const float* bias, int32_t* sums) {
  const int64_t padded = (outputs + kLanes - 1) / kLanes * kLanes;
  const bool first = first_quad == 0, last = first_quad + quads == all_quads;
  for_each_tile(rows.count, outputs, kChunk, padded * all_quads * kQuad, [&](int64_t row, int64_t output) {
    const int64_t width = std::min(kChunk, padded - output);
    const int8_t* from = weights + (output * all_quads + first_quad * width) * kQuad;
    with_panels<kChunk / kLanes>(width / kLanes, [&](auto panels) {
      multiply_rows<decltype(panels)::value>(rows, row, output, outputs, quads, from, scales + output,
                                             bias + output, sums + row * padded + output, padded, first,
                                             last);
    });
  });
}
