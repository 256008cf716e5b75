// Rows of V as 8 bits without sign.

// The largest (by `larger`) of each of 16 registers' lanes.
template <typename Larger>
inline __m512i largest_of_rows(const __m512i (&rows)[16], const Larger& larger) {
  __m512i pairs[8], quads[4], halves[2];
  for (int i = 0; i < 8; ++i)
    pairs[i] = larger(_mm512_shuffle_i64x2(rows[2 * i], rows[2 * i + 1], 0x44),
                      _mm512_shuffle_i64x2(rows[2 * i], rows[2 * i + 1], 0xee));
  for (int i = 0; i < 4; ++i)
    quads[i] = larger(_mm512_shuffle_i64x2(pairs[2 * i], pairs[2 * i + 1], 0x88),
                      _mm512_shuffle_i64x2(pairs[2 * i], pairs[2 * i + 1], 0xdd));
  for (int i = 0; i < 2; ++i)
    halves[i] = larger(_mm512_unpacklo_epi64(quads[2 * i], quads[2 * i + 1]),
                       _mm512_unpackhi_epi64(quads[2 * i], quads[2 * i + 1]));
  const __m512 first = _mm512_castsi512_ps(halves[0]), second = _mm512_castsi512_ps(halves[1]);
  const __m512i all = larger(_mm512_castps_si512(_mm512_shuffle_ps(first, second, 0x88)),
                             _mm512_castps_si512(_mm512_shuffle_ps(first, second, 0xdd)));
  const __m512i places = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  return _mm512_permutexvar_epi32(places, all);
}

// As quantize of kernels_impl.h, zeros zero_stride behind the scales. By their bits the largest of floats is
// a NaN, if there is one, or else the positive of largest magnitude; without sign, the negative.
inline void quantize(const float* values, int64_t stride, int64_t count, uint8_t* quantized,
                     int64_t quantized_stride, float* scales, int64_t scale_stride, int64_t zero_stride) {
  __m512i positive[16], negative[16];
  for (int row = 0; row < 16; ++row) {
    positive[row] = _mm512_setzero_si512();
    negative[row] = _mm512_set1_epi32(std::numeric_limits<int32_t>::min());
  }
  for (int64_t i = 0; i < count; i += F32::kLanes)
#pragma GCC unroll 12
    for (int row = 0; row < kTogether; ++row) {
      const __m512i bits = _mm512_loadu_si512(values + row * stride + i);
      positive[row] = _mm512_max_epi32(positive[row], bits);
      negative[row] = _mm512_max_epu32(negative[row], bits);
    }
  const auto larger = [&](__m512i a, __m512i b) { return _mm512_max_epi32(a, b); };
  const auto larger_unsigned = [&](__m512i a, __m512i b) { return _mm512_max_epu32(a, b); };
  const __m512 high = _mm512_castsi512_ps(largest_of_rows(positive, larger));
  const __m512 low = _mm512_castsi512_ps(largest_of_rows(negative, larger_unsigned));
  const __m512 range = _mm512_sub_ps(high, low);
  const __mmask16 some = _mm512_cmp_ps_mask(range, F32::broadcast(kLeastRange), _CMP_GE_OQ);
  const __mmask16 finite =
      _mm512_cmp_ps_mask(range, F32::broadcast(std::numeric_limits<float>::max()), _CMP_LE_OQ);
  const __m512 inverse = _mm512_maskz_div_ps(some & finite, F32::broadcast(255), range);
  const __m512 zero = _mm512_roundscale_ps(_mm512_mul_ps(_mm512_sub_ps(F32::zero(), low), inverse), 0);
  const __m512 scale = _mm512_mask_mov_ps(F32::broadcast(std::numeric_limits<float>::quiet_NaN()), finite,
                                          _mm512_maskz_mul_ps(some, range, F32::broadcast(1.f / 255)));
  alignas(64) float all[3][F32::kLanes];
  F32::store(all[0], inverse);
  F32::store(all[1], _mm512_maskz_mov_ps(finite, zero));
  F32::store(all[2], scale);
  for (int row = 0; row < kTogether; ++row) {
    scales[row * scale_stride] = all[2][row];
    scales[zero_stride + row * scale_stride] = all[1][row];
    const __m512 factor = F32::broadcast(all[0][row]), offset = F32::broadcast(all[1][row]);
    const float* from = values + row * stride;
    uint8_t* to = quantized + row * quantized_stride;
    // The packing saturates: what is rounded up beyond the end of the range counts as it.
    const auto round = [&](int64_t i) {
      return _mm512_cvtps_epi32(F32::fma(F32::load(from + i), factor, offset));
    };
    int64_t i = 0;
    for (; i + 64 <= count; i += 64) {
      const __m512i first = _mm512_packs_epi32(round(i), round(i + 16));
      const __m512i second = _mm512_packs_epi32(round(i + 32), round(i + 48));
      const __m512i places = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
      _mm512_storeu_si512(to + i, _mm512_permutexvar_epi32(places, _mm512_packus_epi16(first, second)));
    }
    for (; i < count; i += 16)
      _mm_storeu_si128(reinterpret_cast<__m128i*>(to + i),
                       _mm512_cvtusepi32_epi8(_mm512_max_epi32(round(i), _mm512_setzero_si512())));
  }
}

template <typename T>
void quantize_inputs(const T* const* inputs, int64_t tiles, int64_t channels, uint8_t* transformed,
                     float* scales, int64_t rows, float* scratch) {
  const int64_t stride = scratch_stride(channels), to_stride = input_stride<uint8_t>(rows, channels);
  for (int64_t tile = 0; tile < tiles; ++tile) {
    transform_tile(inputs + tile * kPoints, 0, channels, scratch, stride);
    for (int64_t point = 0; point < kPoints; point += kTogether)
      quantize(scratch + point * stride, stride, channels, transformed + point * to_stride + tile * channels,
               to_stride, scales + point * rows + tile, rows, kPoints * rows);
  }
}
