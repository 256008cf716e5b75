// The kernels of int8 in registers of 256 bits, written against `Sums` of the including file: the sums of
// kSumRows rows and kLanes outputs.

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

// kSumRows rows and a panel of kLanes outputs; panel_stride: from the weights of one quad to the next.
template <typename Out>
inline void multiply_rows(const QuantizedRows<Out>& rows, int64_t row, int64_t output, int64_t outputs,
                          int64_t quads, const int8_t* weights, int64_t panel_stride, const float* scales,
                          const float* bias, int32_t* sums, int64_t sum_stride, bool first, bool last) {
  if (last)
    for (int i = 0; i < Sums::kSumRows && row + i < rows.count; ++i)
      __builtin_prefetch(rows.results + (row + i) * rows.stride + output, 1);
  Sums totals;
  const uint8_t* inputs = rows.inputs + row * rows.input_stride;
  for (int64_t k = 0; k < quads; ++k, weights += panel_stride)
    totals.add(inputs + kQuad * k, rows.input_stride, weights);
  const __m256 least = F32::broadcast(rows.relu ? 0 : -std::numeric_limits<float>::infinity());
  for (int i = 0; i < Sums::kSumRows; ++i) {
    for (int half = 0; half < 2; ++half) {
      const int64_t place = output + half * F32::kLanes;
      __m256i total = totals.outputs(i, half);
      __m256i* sum = reinterpret_cast<__m256i*>(sums + i * sum_stride + half * F32::kLanes);
      if (!first) total = _mm256_add_epi32(total, _mm256_loadu_si256(sum));
      if (!last) {
        _mm256_storeu_si256(sum, total);
        continue;
      }
      const int lanes = static_cast<int>(std::min<int64_t>(F32::kLanes, outputs - place));
      if (row + i >= rows.count || lanes <= 0) continue;
      __m256 value = F32::fma(_mm256_cvtepi32_ps(total), F32::load(scales + half * F32::kLanes),
                              F32::load(bias + half * F32::kLanes));
      Out* result = rows.results + (row + i) * rows.stride + place;
      if (lanes == F32::kLanes) {
        if (rows.added != nullptr) value = F32::add(value, F32::load(rows.added[row + i] + place));
        F32::store(result, F32::max(least, value));
      } else {
        if (rows.added != nullptr)
          value = F32::add(value, F32::load_partial(rows.added[row + i] + place, lanes));
        F32::store_partial(result, F32::max(least, value), lanes);
      }
    }
  }
}

template <typename Out>
void multiply(const QuantizedRows<Out>& rows, int64_t first_quad, int64_t quads, int64_t all_quads,
              int64_t outputs, const int8_t* weights, const float* scales, const float* bias, int32_t* sums) {
  const int64_t padded = (outputs + kLanes - 1) / kLanes * kLanes;
  const bool first = first_quad == 0, last = first_quad + quads == all_quads;
  const auto run = [&](int64_t row, int64_t chunk) {
    const int64_t width = std::min(kChunk, padded - chunk);
    const int8_t* from = weights + (chunk * all_quads + first_quad * width) * kQuad;
    for (int64_t panel = 0; panel < width; panel += kLanes)
      for (int64_t some = row; some < row + kRows; some += Sums::kSumRows)
        multiply_rows(rows, some, chunk + panel, outputs, quads, from + panel * kQuad, width * kQuad,
                      scales + chunk + panel, bias + chunk + panel, sums + some * padded + chunk + panel,
                      padded, first, last);
  };
  // Weights that fit in the cache stay there, and results are written in their order; otherwise rows do.
  if (padded * all_quads * kQuad <= kFewWeights) {
    for (int64_t row = 0; row < rows.count; row += kRows)
      for (int64_t output = 0; output < outputs; output += kChunk) run(row, output);
  } else {
    for (int64_t output = 0; output < outputs; output += kChunk)
      for (int64_t row = 0; row < rows.count; row += kRows) run(row, output);
  }
}
