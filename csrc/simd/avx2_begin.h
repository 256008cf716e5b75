// Opens namespace mrcnn_ext::avx2, whose functions may use AVX2 with FMA and F16C, and defines its registers.
// No include guard: what a kernel file includes between this and avx2_end.h is compiled for these
// instructions. Every other include comes before.
#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>
#include <immintrin.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <limits>

// After every include: only what follows may use these instructions.
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC push_options
// gcc 12 takes the deliberately undefined operands inside its own intrinsics for a mistake.
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC target("avx2,fma,f16c")
#endif

namespace mrcnn_ext {
namespace avx2 {

struct F32 {
  static constexpr int kLanes = 8;
  using Register = __m256;

  static Register zero() { return _mm256_setzero_ps(); }
  static Register broadcast(float value) { return _mm256_set1_ps(value); }
  static Register add(Register a, Register b) { return _mm256_add_ps(a, b); }
  static Register fma(Register a, Register b, Register c) { return _mm256_fmadd_ps(a, b, c); }
  static Register multiply(Register a, Register b) { return _mm256_mul_ps(a, b); }
  static Register divide(Register a, Register b) { return _mm256_div_ps(a, b); }
  static Register sqrt(Register value) { return _mm256_sqrt_ps(value); }
  // A NaN in b stays.
  static Register max(Register a, Register b) { return _mm256_max_ps(a, b); }
  static float sum(Register value) {
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(value), _mm256_extractf128_ps(value, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
  }

  // Values to be looked up by their position, in memory.
  static constexpr int32_t kWindow = 64;
  static constexpr bool kRegisterWindow = false;
  struct Window {
    explicit Window(const float* from) : values(from) {}
    Register look_up(const int32_t* positions) const {
      return _mm256_i32gather_ps(values, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(positions)), 4);
    }
    const float* values;
  };
  static Register keep_where(const int32_t* mask, Register value) {
    return _mm256_and_ps(_mm256_loadu_ps(reinterpret_cast<const float*>(mask)), value);
  }

  static __m256i mask(int lanes) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(lanes), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
  }
  static Register from_bf16(__m128i bits) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
  }
  // Rounds to nearest even, in the upper halves; a NaN stays a (quiet) NaN.
  static __m256i round_to_bf16(Register value) {
    const __m256i bits = _mm256_castps_si256(value);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    const __m256i is_nan = _mm256_castps_si256(_mm256_cmp_ps(value, value, _CMP_UNORD_Q));
    return _mm256_blendv_epi8(rounded, _mm256_set1_epi32(0x7fc00000), is_nan);
  }
  static __m128i to_bf16(Register value) {
    const __m256i bits = _mm256_srli_epi32(round_to_bf16(value), 16);
    return _mm_packus_epi32(_mm256_castsi256_si128(bits), _mm256_extracti128_si256(bits, 1));
  }
  static Register widen(const c10::BFloat16*, __m128i bits) { return from_bf16(bits); }
  static Register widen(const c10::Half*, __m128i bits) { return _mm256_cvtph_ps(bits); }
  static __m128i narrow(const c10::BFloat16*, Register value) { return to_bf16(value); }
  static __m128i narrow(const c10::Half*, Register value) {
    return _mm256_cvtps_ph(value, _MM_FROUND_TO_NEAREST_INT);
  }

  static Register load(const float* from) { return _mm256_loadu_ps(from); }
  static Register load_partial(const float* from, int lanes) { return _mm256_maskload_ps(from, mask(lanes)); }
  static void store(float* to, Register value) { _mm256_storeu_ps(to, value); }
  static void store_partial(float* to, Register value, int lanes) {
    _mm256_maskstore_ps(to, mask(lanes), value);
  }

  // bf16 in pairs: the even values first, which one shift makes floats of, then the odd ones, already in
  // place.
  static void load_pair(const c10::BFloat16* from, Register& even, Register& odd) {
    const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
    even = _mm256_castsi256_ps(_mm256_slli_epi32(bits, 16));
    odd = _mm256_castsi256_ps(_mm256_and_si256(bits, _mm256_set1_epi32(int(0xffff0000))));
  }
  static void store_pair(c10::BFloat16* to, Register even, Register odd) {
    const __m256i low = _mm256_srli_epi32(round_to_bf16(even), 16);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm256_blend_epi16(low, round_to_bf16(odd), 0xaa));
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

  template <typename T>
  static Register load(const T* from) {
    return widen(from, _mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
  }
  template <typename T>
  static Register load_partial(const T* from, int lanes) {
    alignas(16) T lane[kLanes] = {};
    for (int i = 0; i < lanes; ++i) lane[i] = from[i];
    return load(lane);
  }
  template <typename T>
  static void store(T* to, Register value) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), narrow(to, value));
  }
  template <typename T>
  static void store_partial(T* to, Register value, int lanes) {
    alignas(16) T lane[kLanes];
    store(lane, value);
    for (int i = 0; i < lanes; ++i) to[i] = lane[i];
  }
};

struct F64 {
  static constexpr int kLanes = 4;
  using Register = __m256d;

  static Register zero() { return _mm256_setzero_pd(); }
  static Register broadcast(double value) { return _mm256_set1_pd(value); }
  static Register add(Register a, Register b) { return _mm256_add_pd(a, b); }
  static Register fma(Register a, Register b, Register c) { return _mm256_fmadd_pd(a, b, c); }
  static constexpr int32_t kWindow = 64;
  static constexpr bool kRegisterWindow = false;
  struct Window {
    explicit Window(const double* from) : values(from) {}
    Register look_up(const int32_t* positions) const {
      return _mm256_i32gather_pd(values, _mm_loadu_si128(reinterpret_cast<const __m128i*>(positions)), 8);
    }
    const double* values;
  };
  static Register keep_where(const int32_t* mask, Register value) {
    const __m256i wide = _mm256_cvtepi32_epi64(_mm_loadu_si128(reinterpret_cast<const __m128i*>(mask)));
    return _mm256_and_pd(_mm256_castsi256_pd(wide), value);
  }

  static __m256i mask(int lanes) {
    return _mm256_cmpgt_epi64(_mm256_set1_epi64x(lanes), _mm256_setr_epi64x(0, 1, 2, 3));
  }
  static Register load(const double* from) { return _mm256_loadu_pd(from); }
  static Register load_partial(const double* from, int lanes) {
    return _mm256_maskload_pd(from, mask(lanes));
  }
  static void load_pair(const double* from, Register& first, Register& second) {
    first = load(from);
    second = load(from + kLanes);
  }
  static void store_pair(double* to, Register first, Register second) {
    store(to, first);
    store(to + kLanes, second);
  }
  static void store(double* to, Register value) { _mm256_storeu_pd(to, value); }
  static void store_partial(double* to, Register value, int lanes) {
    _mm256_maskstore_pd(to, mask(lanes), value);
  }
};

// Sums of products of int16, in pairs of neighbours.
struct I32 {
  static constexpr int kLanes = 8;
  // Not __m256i: gcc keeps arrays of that in memory, as its intrinsics read other types from it.
  typedef int32_t Register __attribute__((vector_size(32)));

  static Register zero() { return Register{}; }
  static Register load(const int16_t* from) {
    return Register(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
  }
  static Register broadcast_pair(const int16_t* from) {
    int32_t pair;
    std::memcpy(&pair, from, sizeof(pair));
    return Register(_mm256_set1_epi32(pair));
  }
  static Register add_products(Register sum, Register a, Register b) {
    return sum + Register(_mm256_madd_epi16(__m256i(a), __m256i(b)));
  }
  static __m256 to_float(Register value) { return _mm256_cvtepi32_ps(__m256i(value)); }
  // Rounds to nearest even, as does store_rounded.
  static Register round(__m256 value) { return Register(_mm256_cvtps_epi32(value)); }
  // Neighbours of 16 bits each, to be multiplied in pairs.
  static void store_pairs(int16_t* to, Register even, Register odd) {
    const Register pairs = (even & 0xffff) | (odd << 16);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), __m256i(pairs));
  }
  static void store_rounded(int16_t* to, __m256 value) {
    const __m256i rounded = _mm256_cvtps_epi32(value);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to),
                     _mm_packs_epi32(_mm256_castsi256_si128(rounded), _mm256_extracti128_si256(rounded, 1)));
  }
  static void store_rounded(int16_t* to, __m256 first, __m256 second) {
    const __m256i packed = _mm256_packs_epi32(_mm256_cvtps_epi32(first), _mm256_cvtps_epi32(second));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm256_permute4x64_epi64(packed, 0xd8));
  }
};
