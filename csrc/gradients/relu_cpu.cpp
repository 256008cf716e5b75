// The gradient through a ReLU on the CPU, in memory that is kept: a map of tens of megabytes at every call.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <ATen/ceil_div.h>
#include <torch/library.h>

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "memory.h"
#include "parallel.h"

namespace mrcnn_ext {
namespace gradients {
namespace {

// As integers: of floats whose sign bit is not set exactly zero is not above zero. A NaN counts by its sign.
template <typename Bits>
void keep_where_positive(const at::Tensor& grad, const at::Tensor& output, const at::Tensor& result) {
  constexpr int64_t kBlock = 64 * 1024;
  const Bits* __restrict__ from = static_cast<const Bits*>(grad.const_data_ptr());
  const Bits* __restrict__ of = static_cast<const Bits*>(output.const_data_ptr());
  Bits* __restrict__ to = static_cast<Bits*>(result.mutable_data_ptr());
  const int64_t count = grad.numel();
  share_out(at::ceil_div(count, kBlock), [&](int64_t block) {
    const int64_t end = std::min(count, (block + 1) * kBlock);
    // Without a choice of what to read, of which compilers make no vectors.
    for (int64_t i = block * kBlock; i < end; ++i) {
      const Bits all = of[i] > 0 ? Bits(-1) : Bits(0);
      to[i] = from[i] & all;
    }
  });
}

at::Tensor relu_gradient(const at::Tensor& grad, const at::Tensor& output) {
  const at::ScalarType dtype = output.scalar_type();
  TORCH_CHECK_TYPE(dtype == at::kFloat || dtype == at::kBFloat16,
                   "relu_gradient: output must be float32 or bfloat16, got ", dtype);
  TORCH_CHECK_TYPE(grad.scalar_type() == dtype, "relu_gradient: grad must be ", dtype, " as output is, got ",
                   grad.scalar_type());
  TORCH_CHECK_VALUE(output.dim() == 4 && grad.sizes() == output.sizes(),
                    "relu_gradient: grad and output must be of one shape (N, C, H, W), got ", grad.sizes(),
                    " and ", output.sizes());
  const auto layout = at::MemoryFormat::ChannelsLast;
  const at::Tensor result = empty_result(grad.sizes(), grad.options().memory_format(layout));
  const at::Tensor dense = grad.contiguous(layout), dense_output = output.contiguous(layout);
  if (dtype == at::kFloat)
    keep_where_positive<int32_t>(dense, dense_output, result);
  else
    keep_where_positive<int16_t>(dense, dense_output, result);
  return result;
}

}  // namespace

TORCH_LIBRARY_IMPL(mrcnn_ext, CPU, m) { m.impl("relu_gradient", relu_gradient); }

}  // namespace gradients
}  // namespace mrcnn_ext
