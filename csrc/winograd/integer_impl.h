// The products of integers, written against a type Sums like I32 of simd/*_begin.h, with what it multiplies:
// its values and weights, and how many of a row it multiplies together.
namespace integer_products {

// scales, weight_scales: those of zeros of values and of sums of weights follow a stride behind, where Sums
// has them. next: the weights to come, a line of which is prefetched with every few channels, next_step
// apart.
template <typename Sums, int kVectors>
inline void multiply_rows(const typename Sums::Value* transformed, const float* scales, int64_t zero_stride,
                          int64_t channels, const typename Sums::Weight* weights, const float* weight_scales,
                          int64_t sum_stride, float* products, const typename Sums::Weight* next,
                          int64_t next_step) {
  typename Sums::Register sums[kRows][kVectors];
  for (int row = 0; row < kRows; ++row)
    for (int i = 0; i < kVectors; ++i) sums[row][i] = Sums::zero();
  for (int64_t channel = 0; channel < channels; channel += Sums::kTogether) {
    typename Sums::Register weight[kVectors];
    for (int i = 0; i < kVectors; ++i) {
      const int64_t first = i * Sums::kLanes;
      weight[i] = Sums::load(weights + (first / kPanel * channels + channel) * kPanel +
                             first % kPanel * Sums::kTogether);
    }
    __builtin_prefetch(next, 0, 2);
    next += next_step;
    for (int row = 0; row < kRows; ++row) {
      const auto value = Sums::broadcast(transformed + row * channels + channel);
      for (int i = 0; i < kVectors; ++i) sums[row][i] = Sums::add_products(sums[row][i], value, weight[i]);
    }
  }
  for (int row = 0; row < kRows; ++row) {
    const auto scale = F32::broadcast(scales[row]);
    for (int i = 0; i < kVectors; ++i) {
      const auto both = F32::multiply(scale, F32::load(weight_scales + i * F32::kLanes));
      auto sum = Sums::to_float(sums[row][i]);
      if constexpr (Sums::kHasZeros)
        sum = F32::fma(F32::broadcast(-scales[zero_stride + row]),
                       F32::load(weight_scales + sum_stride + i * F32::kLanes), sum);
      F32::store(products + row * kChunk + i * F32::kLanes, F32::multiply(both, sum));
    }
  }
}

template <typename Sums>
void multiply(const typename Sums::Value* transformed, const float* scales, int64_t rows, int64_t channels,
              const typename Sums::Weight* weights, int64_t point_stride, const float* weight_scales,
              int64_t scale_stride, int64_t panels, float* products) {
  for_each_product<Sums::kLanes>(rows, panels, [&](auto vectors, int64_t point, int64_t row, int64_t panel) {
    constexpr int64_t kAtOnce = decltype(vectors)::value * Sums::kLanes / kPanel;
    const int64_t group = row / kRows;
    // Those of the next point, or of the next chunk: the first rows of a point bring them from a cache that
    // is too slow to multiply from.
    const typename Sums::Weight* next =
        weights + (point + 1 < kPoints ? (point + 1) * point_stride : kChunk * channels) +
        panel * channels * kPanel + group * channels * kPanel;
    multiply_rows<Sums, decltype(vectors)::value>(
        transformed + point * input_stride<typename Sums::Value>(rows, channels) + row * channels,
        scales + point * rows + row, kPoints * rows, channels,
        weights + point * point_stride + panel * channels * kPanel,
        weight_scales + point * scale_stride + panel * kPanel, kPoints * scale_stride,
        products + point * product_stride(rows) + row * kChunk + panel * kPanel, next,
        group < kAtOnce ? int64_t(64 / sizeof(typename Sums::Weight)) : 0);
  });
}

}  // namespace integer_products
