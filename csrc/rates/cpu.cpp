// The processor's rate of multiply-adds; see kernels.h.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <ATen/Version.h>
#include <torch/library.h>

#include <atomic>
#include <string>

#include "kernels.h"
#include "simd/processor.h"

namespace mrcnn_ext {
namespace rates {
namespace {

// As ATen chose for its own kernels.
Loops loops() {
#if defined(__x86_64__)
  const std::string capability = at::get_cpu_capability();
  if (capability == "AVX512") {
    Loops all = __builtin_cpu_supports("avx512vnni") ? avx512_vnni_loops() : avx512_loops();
    if (runs_avx512_bf16()) all.bf16 = avx512_bf16_loop();
    return all;
  }
  if (capability == "AVX2") return avx2_loops();
#endif
  return {};
}

int64_t multiply_adds(const at::Tensor& like, int64_t repeats) {
  const Loops all = loops();
  const at::ScalarType dtype = like.scalar_type();
  Loop loop = {};
  if (dtype == at::kFloat) loop = all.float32;
  if (dtype == at::kBFloat16) loop = all.bf16;
  if (dtype == at::kShort) loop = all.int16;
  if (dtype == at::kChar) loop = all.int8;
  TORCH_CHECK_NOT_IMPLEMENTED(loop.run != nullptr, "multiply_adds: this processor has no instruction for ",
                              dtype);
  const int64_t threads = at::get_num_threads();
  std::atomic<float> kept{0};
  at::parallel_for(0, threads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) kept = loop.run(repeats);
  });
  return threads * repeats * loop.products;
}

}  // namespace

TORCH_LIBRARY_IMPL(mrcnn_ext, CPU, m) { m.impl("multiply_adds", multiply_adds); }

}  // namespace rates
}  // namespace mrcnn_ext
