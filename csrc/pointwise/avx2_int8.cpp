// The kernels of int8 for AVX2. Its instruction for products of 8 bits saturates: values are widened to 16
// bits, products of which are summed exactly.
#include "int8_kernels.h"

#if defined(__x86_64__)
#include <algorithm>
#include <cstring>
#include <limits>
#include <type_traits>
#include <utility>

#include "simd/avx2_begin.h"

namespace pointwise_kernels {
namespace int8 {
using namespace pointwise;

struct Sums {
  static constexpr int kSumRows = 3;  // twelve sums, and what they are made of, are as many as there are

  // Of four outputs each, for every output that of two channels and that of the next two.
  I32::Register totals[kSumRows][4] = {};

  void add(const uint8_t* inputs, int64_t stride, const int8_t* weights) {
    I32::Register weight[4];
    for (int j = 0; j < 4; ++j)
      weight[j] = I32::Register(
          _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(weights + 16 * j))));
    for (int i = 0; i < kSumRows; ++i) {
      int32_t quad;
      std::memcpy(&quad, inputs + i * stride, sizeof(quad));
      const I32::Register value = I32::Register(_mm256_cvtepu8_epi16(_mm_set1_epi32(quad)));
      for (int j = 0; j < 4; ++j) totals[i][j] = I32::add_products(totals[i][j], value, weight[j]);
    }
  }

  __m256i outputs(int row, int half) const {
    const I32::Register* pair = totals[row] + 2 * half;
    return _mm256_permute4x64_epi64(_mm256_hadd_epi32(__m256i(pair[0]), __m256i(pair[1])), 0xd8);
  }
};

#include "int8_avx2_impl.h"

}  // namespace int8
}  // namespace pointwise_kernels

#include "simd/avx2_end.h"

namespace mrcnn_ext {
namespace pointwise {
const Int8Kernels& avx2_int8_kernels() {
  static const Int8Kernels all = MRCNN_EXT_INT8_KERNELS(avx2::pointwise_kernels::int8);
  return all;
}
}  // namespace pointwise
}  // namespace mrcnn_ext
#endif
