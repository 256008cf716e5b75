// The kernels of int8 for AVX2 with AVX-VNNI.
#include "int8_kernels.h"

#if defined(__x86_64__)
#include <algorithm>
#include <cstring>
#include <limits>
#include <type_traits>
#include <utility>

#include "simd/avx2_begin.h"

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avxvnni"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avxvnni")
#endif
namespace pointwise_kernels {
namespace int8_vnni {
using namespace pointwise;

struct Sums {
  static constexpr int kSumRows = 6;

  I32::Register totals[kSumRows][2] = {};

  void add(const uint8_t* inputs, int64_t stride, const int8_t* weights) {
    I32::Register weight[2];
    for (int j = 0; j < 2; ++j)
      weight[j] = I32::Register(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(weights + 32 * j)));
    for (int i = 0; i < kSumRows; ++i) {
      int32_t quad;
      std::memcpy(&quad, inputs + i * stride, sizeof(quad));
      const __m256i value = _mm256_set1_epi32(quad);
      for (int j = 0; j < 2; ++j)
        totals[i][j] =
            I32::Register(_mm256_dpbusd_avx_epi32(__m256i(totals[i][j]), value, __m256i(weight[j])));
    }
  }

  __m256i outputs(int row, int half) const { return __m256i(totals[row][half]); }
};

#include "int8_avx2_impl.h"

}  // namespace int8_vnni
}  // namespace pointwise_kernels
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#include "simd/avx2_end.h"

namespace mrcnn_ext {
namespace pointwise {
const Int8Kernels& avx2_vnni_kernels() {
  static const Int8Kernels all = MRCNN_EXT_INT8_KERNELS(avx2::pointwise_kernels::int8_vnni);
  return all;
}
}  // namespace pointwise
}  // namespace mrcnn_ext
#endif
