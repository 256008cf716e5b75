// All kernels, written against the register types F32 and F64 of the including file. Every instruction set
// includes this inside its own namespace, so that no symbol is shared between differently compiled copies. No
// include guards: each of those files includes it once.
#include "average_impl.h"
#include "max_impl.h"

template <typename T>
void round_sums(const acc_t<T>* sums, int64_t length, T* rounded) {
  const acc_t<T> one = 1;
  combine<typename VectorOf<acc_t<T>>::type, false>(rounded, length, Terms<acc_t<T>>{sums, 0, &one, 1});
}

template <typename T>
void round_into_planes(const acc_t<T>* pixels, int64_t cells, int64_t channels, T* planes, int64_t stride) {
  transpose_all(pixels, channels, cells, channels, planes, stride);
}

template <typename T>
LayoutKernels<T> kernels_of() {
  return {{banded_product_nhwc<false, T, T>, banded_product_nhwc<true, T, acc_t<T>>, scatter_max<true, T>,
           round_sums<T>},
          {pool_nchw<T>, scatter_nchw<T>, scatter_max<false, T>, round_sums<T>},
          pool_max<false, T>,
          pool_max<true, T>,
          scatter_max_planes<T>,
          round_into_planes<T>};
}

inline KernelSet all_kernels() {
  return {kernels_of<float>(), kernels_of<double>(), kernels_of<c10::BFloat16>(), kernels_of<c10::Half>()};
}
