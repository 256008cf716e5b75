// The loops for AVX-512, with VNNI and without.
#include "kernels.h"

#if defined(__x86_64__)
#include <cstring>

#include "simd/avx512_begin.h"
namespace rate_loops {
using namespace rates;

#include "loops_impl.h"
#include "plain_loops_impl.h"

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512vnni"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512vnni")
#endif
namespace vnni {

#include "loops_impl.h"

float int16(int64_t repeats) {
  using Factor = __m512i;
  return repeat(repeats, I32::zero(), _mm512_set1_epi16(3), [&](I32::Register sum, Factor factor) {
    return I32::Register(_mm512_dpwssd_epi32(__m512i(sum), factor, factor));
  });
}

float int8(int64_t repeats) {
  using Factor = __m512i;
  return repeat(repeats, I32::zero(), _mm512_set1_epi8(3), [&](I32::Register sum, Factor factor) {
    return I32::Register(_mm512_dpbusd_epi32(__m512i(sum), factor, factor));
  });
}

}  // namespace vnni
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
}  // namespace rate_loops
#include "simd/avx512_end.h"

namespace mrcnn_ext {
namespace rates {

Loops avx512_loops() {
  namespace loops = avx512::rate_loops;
  const Loop int16 = {loops::int16, kSums * 32};
  // Values of 8 bits are multiplied as 16.
  return {{loops::float32, kSums * 16}, {}, int16, int16};
}

Loops avx512_vnni_loops() {
  Loops all = avx512_loops();
  all.int16.run = avx512::rate_loops::vnni::int16;
  all.int8 = {avx512::rate_loops::vnni::int8, kSums * 64};
  return all;
}

}  // namespace rates
}  // namespace mrcnn_ext
#endif
