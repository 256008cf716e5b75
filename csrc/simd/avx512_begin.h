// Opens namespace mrcnn_ext::avx512, whose functions may use AVX-512 (F, BW, DQ, VL), and defines its
// registers. No include guard: what a kernel file includes between this and avx512_end.h is compiled for
// these instructions. Every other include comes before.
#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>
#include <immintrin.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <limits>

// After every include: only what follows may use these instructions.
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,fma,f16c"))), \
                             apply_to = function)
#else
#pragma GCC push_options
// gcc 12 takes the deliberately undefined operands inside its own AVX-512 intrinsics for a mistake.
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,fma,f16c")
#endif

namespace mrcnn_ext {
namespace avx512 {

struct F32 {
  static constexpr int kLanes = 16;
  using Register = __m512;

  static Register zero() { return _mm512_setzero_ps(); }
  static Register broadcast(float value) { return _mm512_set1_ps(value); }
  static Register add(Register a, Register b) { return _mm512_add_ps(a, b); }
  static Register fma(Register a, Register b, Register c) { return _mm512_fmadd_ps(a, b, c); }
  static Register multiply(Register a, Register b) { return _mm512_mul_ps(a, b); }
  static Register divide(Register a, Register b) { return _mm512_div_ps(a, b); }
  static Register sqrt(Register value) { return _mm512_sqrt_ps(value); }
  // A NaN in b stays.
  static Register max(Register a, Register b) { return _mm512_max_ps(a, b); }
  static float sum(Register value) { return _mm512_reduce_add_ps(value); }

  // Values to be looked up by their position.
  static constexpr int32_t kWindow = 2 * kLanes;
  static constexpr bool kRegisterWindow = true;
  struct Window {
    Window(Register low, Register high) : low(low), high(high) {}
    explicit Window(const float* from) : low(_mm512_loadu_ps(from)), high(_mm512_loadu_ps(from + 16)) {}
    Register look_up(const int32_t* positions) const {
      return _mm512_permutex2var_ps(low, _mm512_loadu_si512(positions), high);
    }
    Register low, high;
  };
  static Register keep_where(const int32_t* mask, Register value) {
    return _mm512_castsi512_ps(_mm512_and_si512(_mm512_loadu_si512(mask), _mm512_castps_si512(value)));
  }

  static __mmask16 mask(int lanes) { return __mmask16((1u << lanes) - 1); }
  static Register from_bf16(__m256i bits) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
  }
  // Rounds to nearest even, in the upper halves; a NaN stays a (quiet) NaN.
  static __m512i round_to_bf16(Register value) {
    const __m512i bits = _mm512_castps_si512(value);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    const __mmask16 is_nan = _mm512_cmp_ps_mask(value, value, _CMP_UNORD_Q);
    return _mm512_mask_mov_epi32(rounded, is_nan, _mm512_set1_epi32(0x7fc00000));
  }
  static __m256i to_bf16(Register value) {
    return _mm512_cvtepi32_epi16(_mm512_srli_epi32(round_to_bf16(value), 16));
  }

  static Register load(const float* from) { return _mm512_loadu_ps(from); }
  static Register load(const c10::BFloat16* from) {
    return from_bf16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
  }
  static Register load(const c10::Half* from) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
  }
  // bf16 in pairs: the even values first, which one shift makes floats of, then the odd ones, already in
  // place.
  static void load_pair(const c10::BFloat16* from, Register& even, Register& odd) {
    const __m512i bits = _mm512_loadu_si512(from);
    even = _mm512_castsi512_ps(_mm512_slli_epi32(bits, 16));
    odd = _mm512_castsi512_ps(_mm512_and_si512(bits, _mm512_set1_epi32(int(0xffff0000))));
  }
  static void store_pair(c10::BFloat16* to, Register even, Register odd) {
    const __m512i low = _mm512_srli_epi32(round_to_bf16(even), 16);
    _mm512_storeu_si512(to, _mm512_mask_blend_epi16(0xaaaaaaaau, low, round_to_bf16(odd)));
  }
  template <typename T>
  static void load_pair(const T* from, Register& first, Register& second) {
    first = load(from);
    second = load(from + kLanes);
  }
  template <typename T>
  static void store_neighbours(T* to, Register first, Register second) {
    store(to, first);
    store(to + kLanes, second);
  }
  template <typename T>
  static void store_pair(T* to, Register first, Register second) {
    store_neighbours(to, first, second);
  }

  static Register load_partial(const float* from, int lanes) {
    return _mm512_maskz_loadu_ps(mask(lanes), from);
  }
  static Register load_partial(const c10::BFloat16* from, int lanes) {
    return from_bf16(_mm256_maskz_loadu_epi16(mask(lanes), from));
  }
  static Register load_partial(const c10::Half* from, int lanes) {
    return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(mask(lanes), from));
  }

  static void store(float* to, Register value) { _mm512_storeu_ps(to, value); }
  static void store(c10::BFloat16* to, Register value) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), to_bf16(value));
  }
  static void store(c10::Half* to, Register value) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_cvtps_ph(value, _MM_FROUND_TO_NEAREST_INT));
  }
  static void store_partial(float* to, Register value, int lanes) {
    _mm512_mask_storeu_ps(to, mask(lanes), value);
  }
  static void store_partial(c10::BFloat16* to, Register value, int lanes) {
    _mm256_mask_storeu_epi16(to, mask(lanes), to_bf16(value));
  }
  static void store_partial(c10::Half* to, Register value, int lanes) {
    _mm256_mask_storeu_epi16(to, mask(lanes), _mm512_cvtps_ph(value, _MM_FROUND_TO_NEAREST_INT));
  }
};

struct F64 {
  static constexpr int kLanes = 8;
  using Register = __m512d;

  static Register zero() { return _mm512_setzero_pd(); }
  static Register broadcast(double value) { return _mm512_set1_pd(value); }
  static Register add(Register a, Register b) { return _mm512_add_pd(a, b); }
  static Register fma(Register a, Register b, Register c) { return _mm512_fmadd_pd(a, b, c); }
  static constexpr int32_t kWindow = 2 * kLanes;
  static constexpr bool kRegisterWindow = true;
  struct Window {
    Window(Register low, Register high) : low(low), high(high) {}
    explicit Window(const double* from) : low(_mm512_loadu_pd(from)), high(_mm512_loadu_pd(from + 8)) {}
    Register look_up(const int32_t* positions) const {
      return _mm512_permutex2var_pd(low, widen(positions), high);
    }
    Register low, high;
  };
  static __m512i widen(const int32_t* from) {
    return _mm512_cvtepi32_epi64(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
  }
  static Register keep_where(const int32_t* mask, Register value) {
    return _mm512_castsi512_pd(_mm512_and_si512(widen(mask), _mm512_castpd_si512(value)));
  }

  static __mmask8 mask(int lanes) { return __mmask8((1u << lanes) - 1); }
  static Register load(const double* from) { return _mm512_loadu_pd(from); }
  static Register load_partial(const double* from, int lanes) {
    return _mm512_maskz_loadu_pd(mask(lanes), from);
  }
  static void load_pair(const double* from, Register& first, Register& second) {
    first = load(from);
    second = load(from + kLanes);
  }
  static void store_pair(double* to, Register first, Register second) {
    store(to, first);
    store(to + kLanes, second);
  }
  static void store(double* to, Register value) { _mm512_storeu_pd(to, value); }
  static void store_partial(double* to, Register value, int lanes) {
    _mm512_mask_storeu_pd(to, mask(lanes), value);
  }
};

// Neighbours of 16 bits each.
struct Pairs {
  // Not __m512i: gcc keeps arrays of that in memory, as its intrinsics read other types from it.
  typedef int32_t Register __attribute__((vector_size(64)));

  template <typename T>
  static Register load(const T* from) {
    static_assert(sizeof(T) == 2);
    return Register(_mm512_loadu_si512(from));
  }
  template <typename T>
  static Register broadcast_pair(const T* from) {
    static_assert(sizeof(T) == 2);
    int32_t pair;
    std::memcpy(&pair, from, sizeof(pair));
    return Register(_mm512_set1_epi32(pair));
  }
};

// Sums of products of int16, in pairs of neighbours.
struct I32 : Pairs {
  static constexpr int kLanes = 16;

  static Register zero() { return Register{}; }
  static Register add_products(Register sum, Register a, Register b) {
    return sum + Register(_mm512_madd_epi16(__m512i(a), __m512i(b)));
  }
  static __m512 to_float(Register value) { return _mm512_cvtepi32_ps(__m512i(value)); }
  // Rounds to nearest even, as does store_rounded.
  static Register round(__m512 value) { return Register(_mm512_cvtps_epi32(value)); }
  // Neighbours of 16 bits each, to be multiplied in pairs.
  static void store_pairs(int16_t* to, Register even, Register odd) {
    const Register pairs = (even & 0xffff) | (odd << 16);
    _mm512_storeu_si512(to, __m512i(pairs));
  }
  static void store_rounded(int16_t* to, __m512 value) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_cvtsepi32_epi16(_mm512_cvtps_epi32(value)));
  }
  static void store_rounded(int16_t* to, __m512 first, __m512 second) {
    const __m512i packed = _mm512_packs_epi32(_mm512_cvtps_epi32(first), _mm512_cvtps_epi32(second));
    const __m512i places = _mm512_setr_epi64(0, 2, 4, 6, 1, 3, 5, 7);
    _mm512_storeu_si512(to, _mm512_permutexvar_epi64(places, packed));
  }
};
