// As avx512_begin.h, for kernels that also multiply vectors of bf16 (AVX512-BF16). Closed by
// avx512_bf16_end.h.
#include "avx512_begin.h"

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512bf16"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512bf16")
#endif

// Products of bf16, in pairs of neighbours, summed in float32.
struct BF16 : Pairs {
  using Value = c10::BFloat16;

  static __m512 add_products(__m512 sum, Register a, Register b) {
    return _mm512_dpbf16_ps(sum, (__m512bh)(a), (__m512bh)(b));
  }
  // Rounds to nearest even.
  static __m512i round_pair(__m512 first, __m512 second) {
    return (__m512i)(_mm512_cvtne2ps_pbh(second, first));
  }
  static void store_pair(Value* to, __m512 first, __m512 second) {
    _mm512_storeu_si512(to, round_pair(first, second));
  }
  static void store_pair(float* to, __m512 first, __m512 second) {
    _mm512_storeu_ps(to, first);
    _mm512_storeu_ps(to + 16, second);
  }
  static void store(Value* to, __m512 value) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), (__m256i)(_mm512_cvtneps_pbh(value)));
  }
  static void store(float* to, __m512 value) { _mm512_storeu_ps(to, value); }
};

// As F32, but results are rounded to bf16 by the instruction for it.
struct F32WithBf16 : F32 {
  using F32::store;
  static void store(c10::BFloat16* to, Register value) { BF16::store(to, value); }
  template <typename T>
  static void store_neighbours(T* to, Register first, Register second) {
    BF16::store_pair(to, first, second);
  }
};
