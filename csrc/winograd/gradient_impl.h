// The kernels of the weight's gradient; see kernels.h.

// A y of four values: the transpose of transform_outputs_1d.
inline void transform_gradients_1d(const Register* y, int64_t stride, Register* m) {
  const Register y0 = y[0], y1 = y[stride], y2 = y[2 * stride], y3 = y[3 * stride];
  const auto at = [&](float point, Register* pair) {
    const Register even = F32::fma(F32::broadcast(point * point), y2, y0);
    const Register odd =
        F32::fma(F32::broadcast(point * point * point), y3, F32::multiply(F32::broadcast(point), y1));
    pair[0] = F32::add(even, odd);
    pair[1] = F32::fma(F32::broadcast(-1), odd, even);
  };
  m[0] = y0;
  at(kA, m + 1);
  at(kB, m + 3);
  m[5] = y3;
}

// G^T u of six values: the transpose of transform_weights_1d.
inline void transform_sums_1d(const Register* u, int64_t stride, Register* g) {
  constexpr float kAtA = 1 / (2 * kA2 * (kA2 - kB2)), kAtB = 1 / (2 * kB2 * (kB2 - kA2));
  const Register minus = F32::broadcast(-1);
  const Register sum_a = F32::add(u[stride], u[2 * stride]);
  const Register sum_b = F32::add(u[3 * stride], u[4 * stride]);
  const Register difference_a = F32::fma(minus, u[2 * stride], u[stride]);
  const Register difference_b = F32::fma(minus, u[4 * stride], u[3 * stride]);
  g[0] = F32::fma(F32::broadcast(1 / (kA2 * kB2)), u[0],
                  F32::fma(F32::broadcast(kAtA), sum_a, F32::multiply(F32::broadcast(kAtB), sum_b)));
  g[1] = F32::fma(F32::broadcast(kAtA * kA), difference_a,
                  F32::multiply(F32::broadcast(kAtB * kB), difference_b));
  g[2] =
      F32::fma(F32::broadcast(kAtA * kA2), sum_a, F32::fma(F32::broadcast(kAtB * kB2), sum_b, u[5 * stride]));
}

inline void transform_sums(const float* sums, int64_t point_stride, float* taps, int64_t tap_stride) {
  for (int64_t i = 0; i < kPanel; i += F32::kLanes) {
    Register columns[3 * kInput];  // (6 columns, 3): G^T u
    for (int64_t x = 0; x < kInput; ++x) {
      Register values[kInput];
      for (int64_t y = 0; y < kInput; ++y) values[y] = F32::load(sums + (y * kInput + x) * point_stride + i);
      transform_sums_1d(values, 1, columns + x * 3);
    }
    for (int64_t y = 0; y < 3; ++y) {
      Register values[3];
      transform_sums_1d(columns + y, 3, values);
      for (int64_t x = 0; x < 3; ++x) F32::store(taps + (3 * y + x) * tap_stride + i, values[x]);
    }
  }
}

// What is packed: V, of the inputs.
struct Inputs {
  static constexpr int64_t kCells = kPoints;

  template <typename T>
  static void transform(const T* const* cells, int64_t first, float* to, int64_t point_stride, float*) {
    transform_tile(cells, first, kPanel, to, point_stride);
  }
};

// A dY A^T, of the gradients; their sum goes to `sums`, unless that is nullptr.
struct Gradients {
  static constexpr int64_t kCells = kOutputs;

  template <typename T>
  static void transform(const T* const* cells, int64_t first, float* to, int64_t point_stride, float* sums) {
    for (int64_t i = 0; i < kPanel; i += F32::kLanes) {
      Register columns[kOutput * kInput];  // (4 columns, 6): A y
      Register sum = F32::zero();
      for (int64_t x = 0; x < kOutput; ++x) {
        Register values[kOutput];
        for (int64_t y = 0; y < kOutput; ++y) {
          values[y] = F32::load(cells[y * kOutput + x] + first + i);
          __builtin_prefetch(cells[kOutputs + y * kOutput + x] + first + i);
        }
        sum = F32::add(sum, F32::add(F32::add(values[0], values[1]), F32::add(values[2], values[3])));
        transform_gradients_1d(values, 1, columns + x * kInput);
      }
      if (sums != nullptr) F32::store(sums + i, F32::add(F32::load(sums + i), sum));
      for (int64_t y = 0; y < kInput; ++y) {
        Register values[kInput];
        transform_gradients_1d(columns + y, kInput, values);
        for (int64_t x = 0; x < kInput; ++x) F32::store(to + (y * kInput + x) * point_stride + i, values[x]);
      }
    }
  }
};

// Panels of one point, as they are.
inline void pack_point(const float* values, int64_t tiles, float* packed, float*) {
  std::copy_n(values, tiles * kPanel, packed);
}

// As int16, and their scales.
inline void pack_point(const float* values, int64_t tiles, int16_t* packed, float* scales) {
  for (int64_t i = 0; i < kPanel; i += F32::kLanes) {
    Register squares[4] = {F32::broadcast(kLeastSquares), F32::zero(), F32::zero(), F32::zero()};
    const auto add_square = [&](int64_t tile, Register& sum) {
      const Register value = F32::load(values + tile * kPanel + i);
      sum = F32::fma(value, value, sum);
    };
    int64_t begin = 0;
    for (; begin + 4 <= tiles; begin += 4) {
      add_square(begin, squares[0]);
      add_square(begin + 1, squares[1]);
      add_square(begin + 2, squares[2]);
      add_square(begin + 3, squares[3]);
    }
    for (; begin < tiles; ++begin) add_square(begin, squares[0]);
    // Zeros divided by the root of kLeastSquares, if that is all; what is not finite makes the scale so.
    const Register norm =
        F32::sqrt(F32::add(F32::add(squares[0], squares[1]), F32::add(squares[2], squares[3])));
    F32::store(scales + i, F32::multiply(norm, F32::broadcast(1 / kInputNorm)));
    const Register inverse = F32::divide(F32::broadcast(kInputNorm), norm);
    const auto rounded = [&](int64_t tile) {
      return I32::round(F32::multiply(F32::load(values + tile * kPanel + i), inverse));
    };
    int64_t tile = 0;
    for (; tile + 2 <= tiles; tile += 2)
      I32::store_pairs(packed + tile * kPanel + 2 * i, rounded(tile), rounded(tile + 1));
    if (tile < tiles)
      I32::store_pairs(packed + tile * kPanel + 2 * i, rounded(tile), I32::round(F32::zero()));
  }
}

template <typename What, typename T, typename Value>
void pack(const T* const* cells, int64_t tiles, int64_t first, Value* packed, int64_t point_stride,
          float* scales, int64_t scale_stride, float* sums, float* scratch) {
  for (int64_t tile = 0; tile < tiles; ++tile)
    What::transform(cells + tile * What::kCells, first, scratch + tile * kPanel, kDepthFloats, sums);
  for (int64_t point = 0; point < kPoints; ++point)
    pack_point(scratch + point * kDepthFloats, tiles, packed + point * point_stride,
               scales == nullptr ? nullptr : scales + point * scale_stride);
}

struct FloatProducts {
  using Value = float;
  using Register = F32::Register;
  static constexpr int kLanes = F32::kLanes;
  static Register zero() { return F32::zero(); }
  static Register load(const Value* from) { return F32::load(from); }
  static Register broadcast(const Value* from) { return F32::broadcast(*from); }
  static Register add(Register sum, Register a, Register b) { return F32::fma(a, b, sum); }
  static Register scaled(Register sum, float, const float*) { return sum; }
};

#include "gradient_products_impl.h"
