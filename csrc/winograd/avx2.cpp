// The kernels for AVX2 with FMA and F16C.
#include "kernels.h"

#if defined(__x86_64__)
#include <algorithm>
#include <cmath>
#include <limits>
#include <type_traits>

#include "simd/avx2_begin.h"

namespace winograd_kernels {
using namespace winograd;

#include "kernels_impl.h"

}  // namespace winograd_kernels

#include "simd/avx2_end.h"

namespace mrcnn_ext {
namespace winograd {
const Kernels& avx2_kernels() {
  static const Kernels kernels = avx2::winograd_kernels::all_kernels();
  return kernels;
}
}  // namespace winograd
}  // namespace mrcnn_ext
#endif
