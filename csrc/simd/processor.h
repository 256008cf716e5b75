// What the processor is to be served with.
#pragma once

#include <ATen/Version.h>

namespace mrcnn_ext {

// Whether kernels of simd/avx512_bf16_begin.h may run. As ATen chose for its own kernels.
inline bool runs_avx512_bf16() {
#if defined(__x86_64__)
  static const bool served = at::get_cpu_capability() == "AVX512" && __builtin_cpu_supports("avx512bf16");
  return served;
#else
  return false;
#endif
}

}  // namespace mrcnn_ext
