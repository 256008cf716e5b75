// The kernels for AVX-512 (F, BW, DQ, VL).
#include "kernels.h"

#if defined(__x86_64__)
#include <algorithm>
#include <cmath>
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

struct I32Vnni : I32 {
  static Register add_products(Register sum, Register a, Register b) {
    return Register(_mm512_dpwssd_epi32(__m512i(sum), __m512i(a), __m512i(b)));
  }
};

#include "int16_impl.h"

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
    namespace products = vnni::int16_products;
    all.multiply_int16 = products::multiply<vnni::I32Vnni>;
    all.add_products_int16 = products::add_products<products::Products<vnni::I32Vnni>>;
    return all;
  }();
  return kernels;
}
}  // namespace winograd
}  // namespace mrcnn_ext
#endif
