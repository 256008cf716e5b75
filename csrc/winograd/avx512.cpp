// The kernels for AVX-512 (F, BW, DQ, VL).
#include "kernels.h"

#if defined(__x86_64__)
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <type_traits>

#include "simd/avx512_begin.h"

namespace winograd_kernels {
using namespace winograd;

#include "kernels_impl.h"

// The same loops again, of one instruction where there were two.
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512vnni"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512vnni")
#endif
namespace vnni {

struct PairsVnni : I32Pairs {
  static Register add_products(Register sum, Register a, Register b) {
    return Register(_mm512_dpwssd_epi32(__m512i(sum), __m512i(a), __m512i(b)));
  }
};

struct QuadsVnni : I32 {
  using Value = uint8_t;
  using Weight = int8_t;
  static constexpr int64_t kTogether = 4;
  static constexpr bool kHasZeros = true;
  static Register load(const int8_t* from) { return Register(_mm512_loadu_si512(from)); }
  static Register broadcast(const uint8_t* from) {
    int32_t quad;
    std::memcpy(&quad, from, sizeof(quad));
    return Register(_mm512_set1_epi32(quad));
  }
  static Register add_products(Register sum, Register a, Register b) {
    return Register(_mm512_dpbusd_epi32(__m512i(sum), __m512i(a), __m512i(b)));
  }
};

#include "gradient_int16_impl.h"
#include "int8_avx512_impl.h"
#include "integer_impl.h"

}  // namespace vnni
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

}  // namespace winograd_kernels

#include "simd/avx512_end.h"

namespace mrcnn_ext {
namespace winograd {
const Kernels& avx512_kernels() {
  static const Kernels kernels = avx512::winograd_kernels::all_kernels();
  return kernels;
}

const Kernels& avx512_vnni_kernels() {
  static const Kernels kernels = [] {
    Kernels all = avx512_kernels();
    namespace vnni = avx512::winograd_kernels::vnni;
    all.multiply_int16 = vnni::integer_products::multiply<vnni::PairsVnni>;
    all.multiply_int8 = vnni::integer_products::multiply<vnni::QuadsVnni>;
    all.f32.inputs_of_8_bits = vnni::quantize_inputs<float>;
    all.bf16.inputs_of_8_bits = vnni::quantize_inputs<c10::BFloat16>;
    namespace products = vnni::int16_products;
    all.add_products_int16 = products::add_products<products::Products<vnni::PairsVnni>>;
    return all;
  }();
  return kernels;
}
}  // namespace winograd
}  // namespace mrcnn_ext
#endif
