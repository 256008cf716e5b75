// The kernels of int8 for AVX-512 with VNNI.
#include "int8_kernels.h"

#if defined(__x86_64__)
#include <algorithm>
#include <cstring>
#include <limits>
#include <type_traits>
#include <utility>

#include "simd/avx512_begin.h"

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512vnni"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512vnni")
#endif
namespace pointwise_kernels {
namespace int8 {
using namespace pointwise;

#include "int8_avx512_impl.h"

}  // namespace int8
}  // namespace pointwise_kernels
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#include "simd/avx512_end.h"

namespace mrcnn_ext {
namespace pointwise {
const Int8Kernels& avx512_vnni_kernels() {
  static const Int8Kernels all = MRCNN_EXT_INT8_KERNELS(avx512::pointwise_kernels::int8);
  return all;
}
}  // namespace pointwise
}  // namespace mrcnn_ext
#endif
