// Convolutions of 1x1 and linear layers in bf16 on the CPU; see kernels.h. A thread takes a block of rows
// that stays in its cache while all outputs are computed from it; the result does not depend on the number of
// threads.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <algorithm>
#include <optional>
#include <string>
#include <type_traits>
#include <vector>

#include "kernels.h"
#include "memory.h"
#include "parallel.h"
#include "simd/processor.h"

namespace mrcnn_ext {
namespace pointwise {
namespace {

// nullptr where this processor is not served.
const Kernels* best_kernels() {
#if defined(__x86_64__)
  if (runs_avx512_bf16()) return &avx512_bf16_kernels();
#endif
  return nullptr;
}

// Rows that a thread takes at a time, at most: with kMostChannels they fill a quarter of its second-level
// cache.
constexpr int64_t kLargestBlock = 96;

// input, added, output: channels-last. added: as large as output, or half as large on both sides.
template <typename T>
void convolve(const at::Tensor& input, const at::Tensor& weight, const at::Tensor& bias,
              const at::Tensor& added, int64_t stride, bool relu, Multiply<T> multiply,
              const at::Tensor& output) {
  const int64_t channels = input.size(1), in_height = input.size(2), in_width = input.size(3);
  const int64_t outputs = output.size(1), height = output.size(2), width = output.size(3);
  const int64_t padded = bias.size(0);
  const int64_t total = output.size(0) * height * width;
  const int halved = added.defined() && added.size(2) != height ? 1 : 0;

  const c10::BFloat16* from = input.const_data_ptr<c10::BFloat16>();
  const c10::BFloat16* weights = weight.const_data_ptr<c10::BFloat16>();
  const float* biases = bias.const_data_ptr<float>();
  const T* add = added.defined() ? added.const_data_ptr<T>() : nullptr;
  T* to = output.mutable_data_ptr<T>();
  const int64_t block = balanced_block(total, kRows, kLargestBlock);
  const at::Tensor all_sums =
      at::empty({at::get_num_threads(), channels > kMostChannels ? block * padded : 0}, bias.options());

  share_out((total + block - 1) / block, [&](int64_t unit) {
    const int64_t first = unit * block;
    const int64_t count = std::min(block, total - first);
    const int64_t rows = (count + kRows - 1) / kRows * kRows;
    std::vector<const c10::BFloat16*> inputs(rows);
    std::vector<const T*> addends(add == nullptr ? 0 : count);
    int64_t x = first % width, y = first / width % height, image = first / width / height;
    for (int64_t row = 0; row < count;) {
      const c10::BFloat16* line = from + (image * in_height + y * stride) * in_width * channels;
      const int64_t add_line = (image * (height >> halved) + (y >> halved)) * (width >> halved);
      for (; x < width && row < count; ++x, ++row) {
        inputs[row] = line + x * stride * channels;
        if (add != nullptr) addends[row] = add + (add_line + (x >> halved)) * outputs;
      }
      x = 0;
      if (++y == height) y = 0, ++image;
    }
    std::fill(inputs.begin() + count, inputs.end(), inputs[0]);
    const Rows<T> task = {inputs.data(), to + first * outputs, add == nullptr ? nullptr : addends.data(),
                          count, relu};
    multiply(task, channels, outputs, weights, biases,
             all_sums.mutable_data_ptr<float>() + at::get_thread_num() * all_sums.size(1));
  });
}

// What both operators take, checked; bias: of all outputs, rounded up to kLanes.
struct Arguments {
  const Kernels* kernels;
  at::Tensor input, bias;
  std::vector<int64_t> size;
};

Arguments check(const char* name, const at::Tensor& input, const at::Tensor& weight, int64_t outputs,
                const std::optional<at::Tensor>& bias, int64_t stride) {
  const Kernels* kernels = best_kernels();
  TORCH_CHECK_NOT_IMPLEMENTED(kernels != nullptr, name, ": this processor has no AVX512-BF16");
  TORCH_CHECK_VALUE(input.dim() == 4, name, ": input must be (N, C, H, W), got ", input.sizes());
  TORCH_CHECK_TYPE(input.scalar_type() == at::kBFloat16, name, ": input must be bfloat16, got ",
                   input.scalar_type());
  TORCH_CHECK_VALUE(stride >= 1, name, ": stride must be at least 1, got ", stride);
  const int64_t channels = input.size(1);
  TORCH_CHECK_VALUE(channels > 0 && channels % 2 == 0, name,
                    ": input must have an even number of channels, got ", channels);
  const int64_t padded = (outputs + kLanes - 1) / kLanes * kLanes;
  TORCH_CHECK_TYPE(weight.scalar_type() == at::kBFloat16, name, ": weight must be bfloat16, got ",
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
      kernels,
      input.contiguous(at::MemoryFormat::ChannelsLast),
      biases,
      {input.size(0), outputs, (input.size(2) + stride - 1) / stride, (input.size(3) + stride - 1) / stride}};
}

at::Tensor conv(const at::Tensor& input, const at::Tensor& weight, int64_t outputs,
                const std::optional<at::Tensor>& bias, const std::optional<at::Tensor>& add, int64_t stride,
                bool relu, bool float32) {
  const Arguments arguments = check("pointwise_conv", input, weight, outputs, bias, stride);
  const std::vector<int64_t>& size = arguments.size;
  const at::ScalarType dtype = float32 ? at::kFloat : at::kBFloat16;
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
  if (float32)
    convolve<float>(arguments.input, weight, arguments.bias, added, stride, relu, arguments.kernels->to_float,
                    output);
  else
    convolve<c10::BFloat16>(arguments.input, weight, arguments.bias, added, stride, relu,
                            arguments.kernels->to_bf16, output);
  return output;
}

void add_conv(const at::Tensor& sum, const at::Tensor& input, const at::Tensor& weight,
              const std::optional<at::Tensor>& bias, int64_t stride, bool relu) {
  TORCH_CHECK_VALUE(sum.dim() == 4, "add_pointwise_conv_: sum must be (N, O, H, W), got ", sum.sizes());
  const Arguments arguments = check("add_pointwise_conv_", input, weight, sum.size(1), bias, stride);
  TORCH_CHECK_VALUE(sum.sizes() == arguments.size && sum.scalar_type() == at::kBFloat16 &&
                        sum.is_contiguous(at::MemoryFormat::ChannelsLast),
                    "add_pointwise_conv_: sum must be bfloat16, channels-last and of the output's shape ",
                    at::IntArrayRef(arguments.size), ", got ", sum.scalar_type(), " ", sum.sizes());
  if (sum.numel() == 0) return;
  convolve<c10::BFloat16>(arguments.input, weight, arguments.bias, sum, stride, relu,
                          arguments.kernels->to_bf16, sum);
}

}  // namespace

TORCH_LIBRARY_IMPL(mrcnn_ext, CPU, m) {
  m.impl("pointwise_conv", conv);
  m.impl("add_pointwise_conv_", add_conv);
}

}  // namespace pointwise
}  // namespace mrcnn_ext
