// The kernels, written against the register type F32 of the including file; see simd/*_begin.h.

constexpr float kA = 0.625f, kB = 1.5f;  // the points besides 0 and infinity are +-kA and +-kB
constexpr float kA2 = kA * kA, kB2 = kB * kB;

using Register = F32::Register;

// B^T d of six values.
inline void transform_inputs_1d(const Register* d, int64_t stride, Register* v) {
  const Register a = F32::broadcast(kA), minus_a = F32::broadcast(-kA);
  const Register b = F32::broadcast(kB), minus_b = F32::broadcast(-kB);
  const Register minus_a2 = F32::broadcast(-kA2), minus_b2 = F32::broadcast(-kB2);
  const Register a2_b2 = F32::broadcast(kA2 * kB2), minus_sum = F32::broadcast(-(kA2 + kB2));
  const Register d1 = d[stride], d2 = d[2 * stride], d3 = d[3 * stride], d4 = d[4 * stride];
  const Register even_a = F32::fma(minus_b2, d2, d4), odd_a = F32::fma(minus_b2, d1, d3);
  const Register even_b = F32::fma(minus_a2, d2, d4), odd_b = F32::fma(minus_a2, d1, d3);
  v[0] = F32::fma(a2_b2, d[0], F32::fma(minus_sum, d2, d4));
  v[1] = F32::fma(a, odd_a, even_a);
  v[2] = F32::fma(minus_a, odd_a, even_a);
  v[3] = F32::fma(b, odd_b, even_b);
  v[4] = F32::fma(minus_b, odd_b, even_b);
  v[5] = F32::fma(a2_b2, d1, F32::fma(minus_sum, d3, d[5 * stride]));
}

// G g of three taps.
inline void transform_weights_1d(const Register* g, int64_t stride, Register* u) {
  constexpr float kAtA = 1 / (2 * kA2 * (kA2 - kB2)), kAtB = 1 / (2 * kB2 * (kB2 - kA2));
  const Register g1 = g[stride], g2 = g[2 * stride];
  const auto at = [&](float point, float factor, Register* pair) {
    const Register even =
        F32::multiply(F32::broadcast(factor), F32::fma(F32::broadcast(point * point), g2, g[0]));
    pair[0] = F32::fma(F32::broadcast(factor * point), g1, even);
    pair[1] = F32::fma(F32::broadcast(-factor * point), g1, even);
  };
  u[0] = F32::multiply(F32::broadcast(1 / (kA2 * kB2)), g[0]);
  at(kA, kAtA, u + 1);
  at(kB, kAtB, u + 3);
  u[5] = g2;
}

// A^T m of six values.
inline void transform_outputs_1d(const Register* m, int64_t stride, Register* y) {
  const Register minus = F32::broadcast(-1);
  const Register sum_a = F32::add(m[stride], m[2 * stride]);
  const Register sum_b = F32::add(m[3 * stride], m[4 * stride]);
  const Register difference_a = F32::fma(minus, m[2 * stride], m[stride]);
  const Register difference_b = F32::fma(minus, m[4 * stride], m[3 * stride]);
  y[0] = F32::add(m[0], F32::add(sum_a, sum_b));
  y[1] = F32::fma(F32::broadcast(kA), difference_a, F32::multiply(F32::broadcast(kB), difference_b));
  y[2] = F32::fma(F32::broadcast(kA2), sum_a, F32::multiply(F32::broadcast(kB2), sum_b));
  y[3] = F32::fma(F32::broadcast(kA2 * kA), difference_a,
                  F32::fma(F32::broadcast(kB2 * kB), difference_b, m[5 * stride]));
}

// B^T d B of channels [first, first + channels) of one tile, points `point_stride` apart.
template <typename T>
inline void transform_tile(const T* const* inputs, int64_t first, int64_t channels, float* transformed,
                           int64_t point_stride) {
  for (int64_t i = 0; i < channels; i += F32::kLanes) {
    const int64_t channel = first + i;
    Register columns[kPoints];  // (6 columns, 6): B^T d
    for (int64_t x = 0; x < kInput; ++x) {
      Register cells[kInput];
      for (int64_t y = 0; y < kInput; ++y) {
        cells[y] = F32::load(inputs[y * kInput + x] + channel);
        // The next tile's; its first two columns are this one's last.
        if (x >= 2) __builtin_prefetch(inputs[kPoints + y * kInput + x] + channel);
      }
      transform_inputs_1d(cells, 1, columns + x * kInput);
    }
    for (int64_t y = 0; y < kInput; ++y) {
      Register values[kInput];
      transform_inputs_1d(columns + y, kInput, values);
      for (int64_t x = 0; x < kInput; ++x)
        F32::store(transformed + (y * kInput + x) * point_stride + i, values[x]);
    }
  }
}

template <typename T>
void transform_inputs(const T* const* inputs, int64_t tiles, int64_t channels, float* transformed,
                      int64_t rows) {
  for (int64_t tile = 0; tile < tiles; ++tile)
    transform_tile(inputs + tile * kPoints, 0, channels, transformed + tile * channels,
                   input_stride<float>(rows, channels));
}

// By what a row of int16 is to be multiplied that has this sum of squares and gets this norm; NaN where its
// values are not finite.
inline float scale_of(float squares, float norm) {
  if (!(squares <= std::numeric_limits<float>::max())) return std::numeric_limits<float>::quiet_NaN();
  return squares < kLeastSquares ? 0 : std::sqrt(squares) / norm;
}

inline float inverse_of(float scale) { return scale > 0 ? 1 / scale : 0; }

// Writes rows of values, `stride` apart, as int16, and their scales: kTogether rows at a time, which do not
// wait for each other.
constexpr int kTogether = 12;
static_assert(kPoints % kTogether == 0);
inline void quantize(const float* values, int64_t stride, int64_t count, int16_t* quantized,
                     int64_t quantized_stride, float* scales, int64_t scale_stride) {
  Register squares[kTogether];
  for (int row = 0; row < kTogether; ++row) squares[row] = F32::zero();
  for (int64_t i = 0; i < count; i += F32::kLanes)
    for (int row = 0; row < kTogether; ++row) {
      const Register value = F32::load(values + row * stride + i);
      squares[row] = F32::fma(value, value, squares[row]);
    }
  Register inverses[kTogether];
  for (int row = 0; row < kTogether; ++row) {
    const float scale = scale_of(F32::sum(squares[row]), kInputNorm);
    scales[row * scale_stride] = scale;
    inverses[row] = F32::broadcast(inverse_of(scale));
  }
  for (int row = 0; row < kTogether; ++row) {
    const float* from = values + row * stride;
    int16_t* to = quantized + row * quantized_stride;
    int64_t i = 0;
    for (; i + 2 * F32::kLanes <= count; i += 2 * F32::kLanes)
      I32::store_rounded(to + i, F32::multiply(F32::load(from + i), inverses[row]),
                         F32::multiply(F32::load(from + i + F32::kLanes), inverses[row]));
    for (; i < count; i += F32::kLanes)
      I32::store_rounded(to + i, F32::multiply(F32::load(from + i), inverses[row]));
  }
}

template <typename T>
void quantize_inputs(const T* const* inputs, int64_t tiles, int64_t channels, int16_t* transformed,
                     float* scales, int64_t rows, float* scratch) {
  const int64_t stride = scratch_stride(channels), to_stride = input_stride<int16_t>(rows, channels);
  for (int64_t tile = 0; tile < tiles; ++tile) {
    transform_tile(inputs + tile * kPoints, 0, channels, scratch, stride);
    for (int64_t point = 0; point < kPoints; point += kTogether)
      quantize(scratch + point * stride, stride, channels, transformed + point * to_stride + tile * channels,
               to_stride, scales + point * rows + tile, rows);
  }
}

// Calls body(vectors, point, row, panel) for kRows rows and so many vectors of output channels at a time as
// there are registers for their sums: 4 panels in 24 of 32 registers, one in 12 of 16. Weights stay in cache
// from rows to rows.
template <int kLanes, typename Body>
inline void for_each_product(int64_t rows, int64_t panels, const Body& body) {
  constexpr int kAtOnce = kLanes == 16 ? 4 : 1;
  constexpr int kVectors = kPanel / kLanes;
  for (int64_t point = 0; point < kPoints; ++point) {
    int64_t panel = 0;
    for (; panel + kAtOnce <= panels; panel += kAtOnce)
      for (int64_t row = 0; row < rows; row += kRows)
        body(std::integral_constant<int, kVectors * kAtOnce>(), point, row, panel);
    for (; panel < panels; ++panel)
      for (int64_t row = 0; row < rows; row += kRows)
        body(std::integral_constant<int, kVectors>(), point, row, panel);
  }
}

template <int kVectors>
inline void multiply_rows(const float* transformed, int64_t channels, const float* weights, float* products) {
  Register sums[kRows][kVectors];
  for (int row = 0; row < kRows; ++row)
    for (int i = 0; i < kVectors; ++i) sums[row][i] = F32::zero();
  for (int64_t channel = 0; channel < channels; ++channel) {
    Register weight[kVectors];
    for (int i = 0; i < kVectors; ++i) {
      const int64_t first = i * F32::kLanes;
      weight[i] = F32::load(weights + (first / kPanel * channels + channel) * kPanel + first % kPanel);
    }
    for (int row = 0; row < kRows; ++row) {
      const Register value = F32::broadcast(transformed[row * channels + channel]);
      for (int i = 0; i < kVectors; ++i) sums[row][i] = F32::fma(value, weight[i], sums[row][i]);
    }
  }
  for (int row = 0; row < kRows; ++row)
    for (int i = 0; i < kVectors; ++i) F32::store(products + row * kChunk + i * F32::kLanes, sums[row][i]);
}

inline void multiply(const float* transformed, int64_t rows, int64_t channels, const float* weights,
                     int64_t point_stride, int64_t panels, float* products) {
  for_each_product<F32::kLanes>(rows, panels, [&](auto vectors, int64_t point, int64_t row, int64_t panel) {
    multiply_rows<decltype(vectors)::value>(
        transformed + point * input_stride<float>(rows, channels) + row * channels, channels,
        weights + point * point_stride + panel * channels * kPanel,
        products + point * product_stride(rows) + row * kChunk + panel * kPanel);
  });
}

template <typename T>
void transform_outputs(const float* products, int64_t rows, int64_t tiles, int64_t channels,
                       const float* bias, const T* added, bool relu, const int64_t* places, T* output) {
  const int64_t stride = product_stride(rows);
  for (int64_t tile = 0; tile < tiles; ++tile, places += kOutputs) {
    for (int64_t channel = 0; channel < channels; channel += F32::kLanes) {
      const float* from = products + tile * kChunk + channel;
      Register columns[kInput * kOutput];  // (6 columns, 4): A^T m
      for (int64_t x = 0; x < kInput; ++x) {
        Register values[kInput];
        for (int64_t y = 0; y < kInput; ++y) values[y] = F32::load(from + (y * kInput + x) * stride);
        transform_outputs_1d(values, 1, columns + x * kOutput);
      }
      const Register shift = bias == nullptr ? F32::zero() : F32::load(bias + channel);
      for (int64_t y = 0; y < kOutput; ++y) {
        Register values[kOutput];
        transform_outputs_1d(columns + y, kOutput, values);
        for (int64_t x = 0; x < kOutput; ++x) {
          const int64_t place = places[y * kOutput + x];
          if (place < 0) continue;
          Register value = F32::add(values[x], shift);
          if (added != nullptr) value = F32::add(value, F32::load(added + place + channel));
          if (relu) value = F32::max(F32::zero(), value);
          F32::store(output + place + channel, value);
        }
      }
    }
  }
}

#include "gradient_int16_impl.h"
#include "integer_impl.h"

struct I32Pairs : I32 {
  using Value = int16_t;
  using Weight = int16_t;
  static constexpr int64_t kTogether = 2;
  static constexpr bool kHasZeros = false;
  static Register broadcast(const int16_t* from) { return broadcast_pair(from); }
};

inline void transform_weights(const float* taps, int64_t channels, float* transformed) {
  for (int64_t channel = 0; channel < channels; ++channel, taps += 9 * kPanel) {
    for (int64_t i = 0; i < kPanel; i += F32::kLanes) {
      Register columns[3 * kInput];  // (3 columns, 6): G g
      for (int64_t x = 0; x < 3; ++x) {
        Register g[3];
        for (int64_t y = 0; y < 3; ++y) g[y] = F32::load(taps + (3 * y + x) * kPanel + i);
        transform_weights_1d(g, 1, columns + x * kInput);
      }
      for (int64_t y = 0; y < kInput; ++y) {
        Register values[kInput];
        transform_weights_1d(columns + y, kInput, values);
        for (int64_t x = 0; x < kInput; ++x)
          F32::store(transformed + ((y * kInput + x) * channels + channel) * kPanel + i, values[x]);
      }
    }
  }
}

inline void quantize_weights(const float* transformed, int64_t channels, int16_t* quantized,
                             int64_t point_stride, float* scales, int64_t scale_stride) {
  for (int64_t point = 0; point < kPoints; ++point, transformed += channels * kPanel) {
    for (int64_t i = 0; i < kPanel; i += F32::kLanes) {
      const float* from = transformed + i;
      Register squares = F32::zero(), largest = F32::zero();
      for (int64_t channel = 0; channel < channels; ++channel) {
        const Register value = F32::load(from + channel * kPanel);
        squares = F32::fma(value, value, squares);
        largest = F32::max(F32::max(largest, value), F32::multiply(F32::broadcast(-1), value));
      }
      alignas(64) float lanes[3][F32::kLanes];
      F32::store(lanes[0], squares);
      F32::store(lanes[1], largest);
      for (int lane = 0; lane < F32::kLanes; ++lane) {
        const float scale = std::max(scale_of(lanes[0][lane], kWeightNorm), lanes[1][lane] / kLargestWeight);
        scales[point * scale_stride + i + lane] = scale;
        lanes[2][lane] = inverse_of(scale);
      }
      const Register inverse = F32::load(lanes[2]);
      for (int64_t channel = 0; channel < channels; channel += 2) {
        const auto even = I32::round(F32::multiply(inverse, F32::load(from + channel * kPanel)));
        const auto odd = I32::round(F32::multiply(inverse, F32::load(from + (channel + 1) * kPanel)));
        I32::store_pairs(quantized + point * point_stride + channel * kPanel + 2 * i, even, odd);
      }
    }
  }
}

#include "gradient_impl.h"

template <typename T>
Transforms<T> transforms_of() {
  return {transform_inputs<T>,      quantize_inputs<T>,         nullptr,
          transform_outputs<T>,     pack<Inputs, T, float>,     pack<Gradients, T, float>,
          pack<Inputs, T, int16_t>, pack<Gradients, T, int16_t>};
}

inline Kernels all_kernels() {
  return {transforms_of<float>(),
          transforms_of<c10::BFloat16>(),
          multiply,
          integer_products::multiply<I32Pairs>,
          nullptr,
          transform_weights,
          quantize_weights,
          add_products<FloatProducts>,
          int16_products::add_products<int16_products::Products<I32>>,
          transform_sums};
}
