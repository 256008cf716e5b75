// Convolutions of 1x1 and linear layers in int8 on the CPU; see int8_kernels.h. A thread takes a block of
// rows and quantises it, a part of the channels at a time, while it is in its cache; the result does not
// depend on the number of threads.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <ATen/Version.h>
#include <ATen/ceil_div.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <optional>
#include <string>
#include <vector>

#include "geometry.h"
#include "int8_kernels.h"
#include "memory.h"
#include "parallel.h"
#include "simd/processor.h"

namespace mrcnn_ext {
namespace pointwise {
namespace {

using at::ceil_div;

// nullptr where this processor is not served. As ATen chose for its own kernels.
const Int8Kernels* best_int8_kernels() {
#if defined(__x86_64__)
  static const std::string capability = at::get_cpu_capability();
  static const bool vnni = __builtin_cpu_supports("avx512vnni"), avx_vnni = __builtin_cpu_supports("avxvnni");
  if (capability == "AVX512" && vnni)
    return runs_avx512_bf16() ? &avx512_vnni_bf16_kernels() : &avx512_vnni_kernels();
  if (capability == "AVX512" || capability == "AVX2")
    return avx_vnni ? &avx2_vnni_kernels() : &avx2_int8_kernels();
#endif
  return nullptr;
}

// Rows that a thread takes at a time. Weights of more than a few second-level caches are better read seldom.
int64_t largest_int8_block(size_t weight_bytes) {
  constexpr int64_t kBlock = 96, kLargeBlock = 504;
  constexpr size_t kHeavy = 4 * 1024 * 1024;
  return weight_bytes > kHeavy ? kLargeBlock : kBlock;
}

template <typename T>
void convolve(const at::Tensor& input, float inverse_scale, float zero_point, const at::Tensor& weight,
              const at::Tensor& scales, const at::Tensor& bias, const at::Tensor& added, int64_t stride,
              bool relu, QuantizeRows<T> quantize, MultiplyInt8<T> multiply, const at::Tensor& output) {
  const Geometry geometry(input, added, stride, output);
  const Blocks blocks(geometry, largest_int8_block(weight.nbytes()));
  const int64_t channels = geometry.channels, outputs = geometry.outputs;
  const int64_t quads = ceil_div(channels, kQuad);
  const int64_t parts = ceil_div(channels, kMostInt8Channels);
  const int64_t part = ceil_div(channels, parts * 64) * 64;

  const T* from = input.const_data_ptr<T>();
  const int8_t* weights = weight.const_data_ptr<int8_t>();
  const float* factors = scales.const_data_ptr<float>();
  const float* biases = bias.const_data_ptr<float>();
  const T* add = added.defined() ? added.const_data_ptr<T>() : nullptr;
  T* to = output.mutable_data_ptr<T>();
  const int64_t threads = at::get_num_threads();
  const at::Tensor all_quantized =
      at::empty({threads, blocks.rows * quantized_stride(part)}, bias.options().dtype(at::kByte));
  const at::Tensor all_sums =
      at::empty({threads, parts > 1 ? blocks.rows * blocks.outputs : 0}, bias.options().dtype(at::kInt));

  blocks.share_out([&](const Block& block) {
    const int64_t thread = at::get_thread_num();
    uint8_t* quantized = all_quantized.mutable_data_ptr<uint8_t>() + thread * all_quantized.size(1);
    int32_t* sums = all_sums.mutable_data_ptr<int32_t>() + thread * all_sums.size(1);
    std::vector<const T*> inputs, addends;
    geometry.find(block, from, add, inputs, addends);
    for (int64_t channel = 0; channel < channels; channel += part) {
      const int64_t count = std::min(part, channels - channel);
      quantize(inputs.data(), block.padded(), count, inverse_scale, zero_point, quantized);
      for (const T*& row : inputs) row += count;
      const QuantizedRows<T> task = {quantized,
                                     quantized_stride(count),
                                     to + block.first * outputs + block.first_output,
                                     add == nullptr ? nullptr : addends.data(),
                                     block.count,
                                     outputs,
                                     relu};
      multiply(task, channel / kQuad, ceil_div(count, kQuad), quads, block.outputs,
               weights + block.first_output * quads * kQuad, factors + block.first_output,
               biases + block.first_output, sums);
    }
  });
}

// Values of all outputs, rounded up to kLanes.
at::Tensor rounded_up(const at::Tensor& values, int64_t padded) {
  at::Tensor result = at::zeros({padded}, values.options());
  result.narrow(0, 0, values.size(0)).copy_(values);
  return result;
}

// Checks what both operators take; returns the size of the output.
std::vector<int64_t> check(const char* name, const at::Tensor& input, double scale, int64_t zero_point,
                           const at::Tensor& weight, const at::Tensor& scales, const at::Tensor& bias,
                           int64_t stride) {
  TORCH_CHECK_NOT_IMPLEMENTED(best_int8_kernels() != nullptr, name, ": this processor has no AVX2");
  TORCH_CHECK_VALUE(input.dim() == 4, name, ": input must be (N, C, H, W), got ", input.sizes());
  TORCH_CHECK_TYPE(input.scalar_type() == at::kFloat || input.scalar_type() == at::kBFloat16, name,
                   ": input must be float32 or bfloat16, got ", input.scalar_type());
  TORCH_CHECK_VALUE(scale > 0 && std::isfinite(1 / static_cast<float>(scale)), name,
                    ": scale must be positive, got ", scale);
  TORCH_CHECK_VALUE(zero_point >= 0 && zero_point <= 255, name, ": zero_point must be in [0, 255], got ",
                    zero_point);
  TORCH_CHECK_VALUE(stride >= 1, name, ": stride must be at least 1, got ", stride);
  const int64_t channels = input.size(1);
  TORCH_CHECK_VALUE(channels > 0 && channels <= kMostSummed, name, ": input must have from 1 to ",
                    kMostSummed, " channels, got ", channels);
  TORCH_CHECK_VALUE(scales.dim() == 1 && scales.size(0) > 0 && scales.scalar_type() == at::kFloat, name,
                    ": weight_scale must be (O,) float32, got ", scales.sizes());
  const int64_t outputs = scales.size(0);
  TORCH_CHECK_TYPE(weight.scalar_type() == at::kChar, name, ": weight must be int8, got ",
                   weight.scalar_type());
  const int64_t padded = ceil_div(outputs, kLanes) * kLanes;
  TORCH_CHECK_VALUE(
      weight.sizes() == at::IntArrayRef{padded * ceil_div(channels, kQuad) * kQuad} && weight.is_contiguous(),
      name, ": weight must be contiguous and what int8_weight makes for ", channels, " input and ", outputs,
      " output channels, got ", weight.sizes());
  TORCH_CHECK_VALUE(bias.sizes() == scales.sizes() && bias.scalar_type() == at::kFloat, name,
                    ": bias must be (", outputs, ",) float32");
  return {input.size(0), outputs, ceil_div(input.size(2), stride), ceil_div(input.size(3), stride)};
}

void convolve_as(const at::Tensor& input, double scale, int64_t zero_point, const at::Tensor& weight,
                 const at::Tensor& scales, const at::Tensor& bias, const at::Tensor& added, int64_t stride,
                 bool relu, const at::Tensor& output) {
  if (output.numel() == 0) return;
  const Int8Kernels& kernels = *best_int8_kernels();
  const int64_t padded = ceil_div(scales.size(0), kLanes) * kLanes;
  const at::Tensor factors = rounded_up(scales, padded), offsets = rounded_up(bias, padded);
  const at::Tensor x = input.contiguous(at::MemoryFormat::ChannelsLast);
  const auto run = [&](auto quantize, auto multiply) {
    convolve(x, 1 / static_cast<float>(scale), static_cast<float>(zero_point), weight, factors, offsets,
             added, stride, relu, quantize, multiply, output);
  };
  if (input.scalar_type() == at::kFloat)
    run(kernels.quantize_float, kernels.to_float);
  else
    run(kernels.quantize_bf16, kernels.to_bf16);
}

at::Tensor conv(const at::Tensor& input, double scale, int64_t zero_point, const at::Tensor& weight,
                const at::Tensor& scales, const at::Tensor& bias, const std::optional<at::Tensor>& add,
                int64_t stride, bool relu) {
  const std::vector<int64_t> size =
      check("int8_pointwise_conv", input, scale, zero_point, weight, scales, bias, stride);
  const bool same = add && add->sizes() == size;
  const bool half = add && size[2] % 2 == 0 && size[3] % 2 == 0 &&
                    add->sizes() == at::IntArrayRef({size[0], size[1], size[2] / 2, size[3] / 2});
  TORCH_CHECK_VALUE(!add || ((same || half) && add->scalar_type() == input.scalar_type()),
                    "int8_pointwise_conv: add must be ", input.scalar_type(), " and have the output's shape ",
                    at::IntArrayRef(size), " or half its height and width, got ",
                    add ? add->scalar_type() : input.scalar_type(), " ",
                    add ? add->sizes() : at::IntArrayRef{});
  const auto layout = at::MemoryFormat::ChannelsLast;
  const at::Tensor output = empty_result(size, input.options().memory_format(layout));
  convolve_as(input, scale, zero_point, weight, scales, bias, add ? add->contiguous(layout) : at::Tensor(),
              stride, relu, output);
  return output;
}

void add_conv(const at::Tensor& sum, const at::Tensor& input, double scale, int64_t zero_point,
              const at::Tensor& weight, const at::Tensor& scales, const at::Tensor& bias, int64_t stride,
              bool relu) {
  const std::vector<int64_t> size =
      check("add_int8_pointwise_conv_", input, scale, zero_point, weight, scales, bias, stride);
  TORCH_CHECK_VALUE(sum.sizes() == size && sum.scalar_type() == input.scalar_type() &&
                        sum.is_contiguous(at::MemoryFormat::ChannelsLast),
                    "add_int8_pointwise_conv_: sum must be ", input.scalar_type(),
                    ", channels-last and of the output's shape ", at::IntArrayRef(size), ", got ",
                    sum.scalar_type(), " ", sum.sizes());
  convolve_as(input, scale, zero_point, weight, scales, bias, sum, stride, relu, sum);
}

}  // namespace

TORCH_LIBRARY_IMPL(mrcnn_ext, CPU, m) {
  m.impl("int8_pointwise_conv", conv);
  m.impl("add_int8_pointwise_conv_", add_conv);
}

}  // namespace pointwise
}  // namespace mrcnn_ext
