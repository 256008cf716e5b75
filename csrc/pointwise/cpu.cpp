// Convolutions of 1x1 and linear layers in float32 and bf16 on the CPU; see kernels.h. A thread takes a block
// of rows that stays in its cache while all outputs are computed from it; the result does not depend on the
// number of threads.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <ATen/Version.h>
#include <ATen/ceil_div.h>
#include <torch/library.h>

#include <optional>
#include <string>
#include <vector>

#include "geometry.h"
#include "kernels.h"
#include "memory.h"
#include "simd/processor.h"

namespace mrcnn_ext {
namespace pointwise {
namespace {

using c10::BFloat16;

// nullptr where this processor is not served.
const Bf16Kernels* best_bf16_kernels() {
#if defined(__x86_64__)
  if (runs_avx512_bf16()) return &avx512_bf16_kernels();
#endif
  return nullptr;
}

// The same. As ATen chose for its own kernels.
const Float32Kernels* best_float32_kernels() {
#if defined(__x86_64__)
  static const std::string capability = at::get_cpu_capability();
  if (capability == "AVX512") return &avx512_kernels();
  if (capability == "AVX2") return &avx2_kernels();
#endif
  return nullptr;
}

// Rows that a thread takes at a time. All channels of a bf16 row that are multiplied at a time, or half as
// many float32, fill a quarter of a second-level cache with the block. Weights that the third-level cache may
// not hold are read from memory once a block: then it is better large.
int64_t largest_block(size_t weight_bytes) {
  constexpr int64_t kBlock = 96, kLargeBlock = 504;
  constexpr size_t kHeavy = 16 * 1024 * 1024;
  return weight_bytes > kHeavy ? kLargeBlock : kBlock;
}

// most_channels: that are multiplied at a time.
template <typename In, typename Out>
void convolve(const at::Tensor& input, const at::Tensor& weight, const at::Tensor& bias,
              const at::Tensor& added, int64_t stride, bool relu, Multiply<In, Out> multiply,
              int64_t most_channels, const at::Tensor& output) {
  const Geometry geometry(input, added, stride, output);
  const Blocks blocks(geometry, largest_block(weight.nbytes()));
  const int64_t channels = geometry.channels, outputs = geometry.outputs;
  const In* from = input.const_data_ptr<In>();
  const In* weights = weight.const_data_ptr<In>();
  const float* biases = bias.const_data_ptr<float>();
  const Out* add = added.defined() ? added.const_data_ptr<Out>() : nullptr;
  Out* to = output.mutable_data_ptr<Out>();
  const at::Tensor all_sums = at::empty(
      {at::get_num_threads(), channels > most_channels ? blocks.rows * blocks.outputs : 0}, bias.options());

  blocks.share_out([&](const Block& block) {
    std::vector<const In*> inputs;
    std::vector<const Out*> addends;
    geometry.find(block, from, add, inputs, addends);
    const Rows<In, Out> task = {inputs.data(),
                                to + block.first * outputs + block.first_output,
                                add == nullptr ? nullptr : addends.data(),
                                block.count,
                                outputs,
                                relu};
    multiply(task, channels, block.outputs, weights + block.first_output * channels,
             biases + block.first_output,
             all_sums.mutable_data_ptr<float>() + at::get_thread_num() * all_sums.size(1));
  });
}

// What both operators take, checked; bias: of all outputs, rounded up to kLanes.
struct Arguments {
  at::Tensor input, bias;
  std::vector<int64_t> size;
};

Arguments check(const char* name, const at::Tensor& input, const at::Tensor& weight, int64_t outputs,
                const std::optional<at::Tensor>& bias, int64_t stride) {
  TORCH_CHECK_VALUE(input.dim() == 4, name, ": input must be (N, C, H, W), got ", input.sizes());
  const at::ScalarType dtype = input.scalar_type();
  const bool bf16 = dtype == at::kBFloat16;
  TORCH_CHECK_TYPE(bf16 || dtype == at::kFloat, name, ": input must be bfloat16 or float32, got ", dtype);
  TORCH_CHECK_NOT_IMPLEMENTED(!bf16 || best_bf16_kernels() != nullptr, name,
                              ": this processor has no AVX512-BF16");
  TORCH_CHECK_NOT_IMPLEMENTED(bf16 || best_float32_kernels() != nullptr, name,
                              ": this processor has no AVX2");
  TORCH_CHECK_VALUE(stride >= 1, name, ": stride must be at least 1, got ", stride);
  const int64_t channels = input.size(1);
  TORCH_CHECK_VALUE(channels > 0 && (!bf16 || channels % 2 == 0), name, ": input must have ",
                    bf16 ? "an even number of" : "", " channels, got ", channels);
  const int64_t padded = at::ceil_div(outputs, kLanes) * kLanes;
  TORCH_CHECK_TYPE(weight.scalar_type() == dtype, name, ": weight must be ", dtype, " as input is, got ",
                   weight.scalar_type());
  TORCH_CHECK_VALUE(
      outputs > 0 && weight.sizes() == at::IntArrayRef{padded * channels} && weight.is_contiguous(), name,
      ": weight must be contiguous and what pointwise_weight makes for ", channels, " input and ", outputs,
      " output channels, got ", weight.sizes());
  TORCH_CHECK_VALUE(!bias || (bias->sizes() == at::IntArrayRef{outputs} && bias->scalar_type() == at::kFloat),
                    name, ": bias must be (", outputs, ",) float32");
  at::Tensor biases = at::zeros({padded}, input.options().dtype(at::kFloat));
  if (bias) biases.narrow(0, 0, outputs).copy_(*bias);
  return {
      input.contiguous(at::MemoryFormat::ChannelsLast),
      biases,
      {input.size(0), outputs, (input.size(2) + stride - 1) / stride, (input.size(3) + stride - 1) / stride}};
}

// By the kernels of the dtypes of input and output.
void convolve_as(const Arguments& arguments, const at::Tensor& weight, const at::Tensor& added,
                 int64_t stride, bool relu, const at::Tensor& output) {
  const auto run = [&](auto multiply, int64_t most_channels) {
    convolve(arguments.input, weight, arguments.bias, added, stride, relu, multiply, most_channels, output);
  };
  if (arguments.input.scalar_type() == at::kFloat)
    run(best_float32_kernels()->multiply, best_float32_kernels()->most_channels);
  else if (output.scalar_type() == at::kFloat)
    run(best_bf16_kernels()->to_float, kMostChannels);
  else
    run(best_bf16_kernels()->to_bf16, kMostChannels);
}

at::Tensor conv(const at::Tensor& input, const at::Tensor& weight, int64_t outputs,
                const std::optional<at::Tensor>& bias, const std::optional<at::Tensor>& add, int64_t stride,
                bool relu, bool float32) {
  const Arguments arguments = check("pointwise_conv", input, weight, outputs, bias, stride);
  const std::vector<int64_t>& size = arguments.size;
  const at::ScalarType dtype = float32 ? at::kFloat : input.scalar_type();
  const bool same = add && add->sizes() == size;
  const bool half = add && size[2] % 2 == 0 && size[3] % 2 == 0 &&
                    add->sizes() == at::IntArrayRef({size[0], size[1], size[2] / 2, size[3] / 2});
  TORCH_CHECK_VALUE(!add || ((same || half) && add->scalar_type() == dtype), "pointwise_conv: add must be ",
                    dtype, " and have the output's shape ", at::IntArrayRef(size),
                    " or half its height and width, got ", add ? add->scalar_type() : dtype, " ",
                    add ? add->sizes() : at::IntArrayRef{});
  const auto layout = at::MemoryFormat::ChannelsLast;
  const at::Tensor output = empty_result(size, input.options().dtype(dtype).memory_format(layout));
  if (output.numel() == 0) return output;
  const at::Tensor added = add ? add->contiguous(layout) : at::Tensor();
  convolve_as(arguments, weight, added, stride, relu, output);
  return output;
}

void add_conv(const at::Tensor& sum, const at::Tensor& input, const at::Tensor& weight,
              const std::optional<at::Tensor>& bias, int64_t stride, bool relu) {
  TORCH_CHECK_VALUE(sum.dim() == 4, "add_pointwise_conv_: sum must be (N, O, H, W), got ", sum.sizes());
  const Arguments arguments = check("add_pointwise_conv_", input, weight, sum.size(1), bias, stride);
  TORCH_CHECK_VALUE(sum.sizes() == arguments.size && sum.scalar_type() == input.scalar_type() &&
                        sum.is_contiguous(at::MemoryFormat::ChannelsLast),
                    "add_pointwise_conv_: sum must be ", input.scalar_type(),
                    ", channels-last and of the output's shape ", at::IntArrayRef(arguments.size), ", got ",
                    sum.scalar_type(), " ", sum.sizes());
  if (sum.numel() == 0) return;
  convolve_as(arguments, weight, sum, stride, relu, sum);
}

}  // namespace

TORCH_LIBRARY_IMPL(mrcnn_ext, CPU, m) {
  m.impl("pointwise_conv", conv);
  m.impl("add_pointwise_conv_", add_conv);
}

}  // namespace pointwise
}  // namespace mrcnn_ext
