// The kernels for AVX-512 (F, BW, DQ, VL).
#include "kernels.h"

#if defined(__x86_64__)
#include "simd/avx512_begin.h"

// Bytes as integers of the width of a register's lanes.
inline __m512i widen_bytes(F32, const uint8_t* from) {
  return _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
}
inline __m512i widen_bytes(F64, const uint8_t* from) {
  return _mm512_cvtepu8_epi64(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from)));
}

#include "kernels_impl.h"

#include "simd/avx512_end.h"

namespace mrcnn_ext {
const KernelSet& avx512_kernels() {
  static const KernelSet kernels = avx512::all_kernels();
  return kernels;
}
}  // namespace mrcnn_ext
#endif
