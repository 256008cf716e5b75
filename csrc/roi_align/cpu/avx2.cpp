// The kernels for AVX2 with FMA and F16C.
#include "kernels.h"

#if defined(__x86_64__)
#include "simd/avx2_begin.h"

// Bytes as integers of the width of a register's lanes.
inline __m256i widen_bytes(F32, const uint8_t* from) {
  return _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from)));
}
inline __m256i widen_bytes(F64, const uint8_t* from) {
  int32_t bytes;
  std::memcpy(&bytes, from, sizeof(bytes));
  return _mm256_cvtepu8_epi64(_mm_cvtsi32_si128(bytes));
}

#include "kernels_impl.h"

#include "simd/avx2_end.h"

namespace mrcnn_ext {
const KernelSet& avx2_kernels() {
  static const KernelSet kernels = avx2::all_kernels();
  return kernels;
}
}  // namespace mrcnn_ext
#endif
