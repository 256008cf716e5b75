// The kernels in four-lane vectors that every compiler maps to what the baseline of the platform has.
#include <algorithm>
#include <cstring>
#include <limits>

#include "kernels.h"

namespace mrcnn_ext {
namespace plain {

template <typename acc, int kCount>
struct PlainVector {
  static constexpr int kLanes = kCount;
  typedef acc Register __attribute__((vector_size(sizeof(acc) * kCount)));

  static Register zero() { return Register{}; }
  static Register broadcast(acc value) { return value - Register{}; }
  static Register add(Register a, Register b) { return a + b; }
  static Register fma(Register a, Register b, Register c) { return a * b + c; }

  // Values to be looked up by their position, in memory.
  static constexpr int32_t kWindow = 64;
  static constexpr bool kRegisterWindow = false;
  struct Window {
    explicit Window(const acc* from) : values(from) {}
    Register look_up(const int32_t* positions) const {
      Register value;
      for (int i = 0; i < kLanes; ++i) value[i] = values[positions[i]];
      return value;
    }
    const acc* values;
  };
  static Register keep_where(const int32_t* mask, Register value) {
    for (int i = 0; i < kLanes; ++i) value[i] = mask[i] ? value[i] : acc(0);
    return value;
  }

  template <typename T>
  static Register load_partial(const T* from, int lanes) {
    Register value{};
    for (int i = 0; i < lanes; ++i) value[i] = acc(from[i]);
    return value;
  }
  template <typename T>
  static Register load(const T* from) {
    return load_partial(from, kLanes);
  }
  static Register load(const acc* from) {
    Register value;
    std::memcpy(&value, from, sizeof(value));
    return value;
  }

  template <typename T>
  static void load_pair(const T* from, Register& first, Register& second) {
    first = load(from);
    second = load(from + kLanes);
  }
  template <typename T>
  static void store_pair(T* to, Register first, Register second) {
    store(to, first);
    store(to + kLanes, second);
  }

  template <typename T>
  static void store_partial(T* to, Register value, int lanes) {
    for (int i = 0; i < lanes; ++i) to[i] = T(value[i]);
  }
  template <typename T>
  static void store(T* to, Register value) {
    store_partial(to, value, kLanes);
  }
  static void store(acc* to, Register value) { std::memcpy(to, &value, sizeof(value)); }
};

using F32 = PlainVector<float, 4>;
using F64 = PlainVector<double, 2>;

// Bytes as integers of the width of a register's lanes.
template <typename acc, int kCount>
inline auto widen_bytes(PlainVector<acc, kCount>, const uint8_t* from) {
  using Register = typename PlainVector<acc, kCount>::Register;
  decltype(Register{} > Register{}) wide{};
  for (int i = 0; i < kCount; ++i) wide[i] = from[i];
  return wide;
}

#include "kernels_impl.h"

}  // namespace plain

const KernelSet& plain_kernels() {
  static const KernelSet kernels = plain::all_kernels();
  return kernels;
}

}  // namespace mrcnn_ext
