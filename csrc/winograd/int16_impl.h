// The products of int16, written against a type Sums like I32 of simd/*_begin.h.
namespace int16_products {

// next: the weights to come, a line of which is prefetched with every two channels, next_step apart.
template <typename Sums, int kVectors>
inline void multiply_rows(const int16_t* transformed, const float* scales, int64_t channels,
                          const int16_t* weights, const float* weight_scales, float* products,
                          const int16_t* next, int64_t next_step) {
  typename Sums::Register sums[kRows][kVectors];
  for (int row = 0; row < kRows; ++row)
    for (int i = 0; i < kVectors; ++i) sums[row][i] = Sums::zero();
  for (int64_t channel = 0; channel < channels; channel += 2) {
    typename Sums::Register weight[kVectors];
    for (int i = 0; i < kVectors; ++i) {
      const int64_t first = i * Sums::kLanes;
      weight[i] = Sums::load(weights + (first / kPanel * channels + channel) * kPanel + first % kPanel * 2);
    }
    __builtin_prefetch(next, 0, 2);
    next += next_step;
    for (int row = 0; row < kRows; ++row) {
      const auto value = Sums::broadcast_pair(transformed + row * channels + channel);
      for (int i = 0; i < kVectors; ++i) sums[row][i] = Sums::add_products(sums[row][i], value, weight[i]);
    }
  }
  for (int row = 0; row < kRows; ++row) {
    const auto scale = F32::broadcast(scales[row]);
    for (int i = 0; i < kVectors; ++i) {
      const auto both = F32::multiply(scale, F32::load(weight_scales + i * F32::kLanes));
      F32::store(products + row * kChunk + i * F32::kLanes,
                 F32::multiply(both, Sums::to_float(sums[row][i])));
    }
  }
}

template <typename Sums>
void multiply(const int16_t* transformed, const float* scales, int64_t rows, int64_t channels,
              const int16_t* weights, int64_t point_stride, const float* weight_scales, int64_t scale_stride,
              int64_t panels, float* products) {
  for_each_product<Sums::kLanes>(rows, panels, [&](auto vectors, int64_t point, int64_t row, int64_t panel) {
    constexpr int64_t kAtOnce = decltype(vectors)::value * Sums::kLanes / kPanel;
    const int64_t group = row / kRows;
    // Those of the next point, or of the next chunk: the first rows of a point bring them from a cache that
    // is too slow to multiply from.
    const int16_t* next = weights + (point + 1 < kPoints ? (point + 1) * point_stride : kChunk * channels) +
                          panel * channels * kPanel + group * channels * kPanel;
    multiply_rows<Sums, decltype(vectors)::value>(
        transformed + point * input_stride(rows, channels) + row * channels, scales + point * rows + row,
        channels, weights + point * point_stride + panel * channels * kPanel,
        weight_scales + point * scale_stride + panel * kPanel,
        products + point * product_stride(rows) + row * kChunk + panel * kPanel, next,
        group < kAtOnce ? 32 : 0);
  });
}

// As of gradient_impl.h.
template <typename Sums>
struct Products {
  using Value = int16_t;
  using Register = typename Sums::Register;
  static constexpr int kLanes = Sums::kLanes;
  static Register zero() { return Sums::zero(); }
  static Register load(const Value* from) { return Sums::load(from); }
  static Register broadcast(const Value* from) { return Sums::broadcast_pair(from); }
  static Register add(Register sum, Register a, Register b) { return Sums::add_products(sum, a, b); }
  static F32::Register scaled(Register sum, float row_scale, const float* scales) {
    const auto scale = F32::multiply(F32::broadcast(row_scale), F32::load(scales));
    return F32::multiply(scale, Sums::to_float(sum));
  }
};

#include "gradient_products_impl.h"

}  // namespace int16_products
