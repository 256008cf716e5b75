// 3x3 convolutions of stride 1 on the CPU, by Winograd's minimal filtering; see kernels.h.
//
// Images are laid out on one canvas, a row or column of zeros between neighbours, and the canvas is cut into
// tiles: many small maps (RoIs of 14 x 14) then waste no cells at their borders. A thread takes a block of
// tiles whose transforms stay in its cache, and the result does not depend on the number of threads.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <ATen/Version.h>
#include <ATen/ceil_div.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>
#include <string>
#include <tuple>
#include <type_traits>
#include <vector>

#include "canvas.h"
#include "kernels.h"
#include "memory.h"
#include "parallel.h"
#include "simd/processor.h"

namespace mrcnn_ext {
namespace winograd {
namespace {

// Tiles that a thread takes at a time.
int64_t block_size(int64_t tiles, int64_t tile_bytes, int64_t weight_bytes) {
  // What is transformed stays in the second-level cache. Weights that the third-level cache may not hold are
  // read from memory once a block: then it is better large.
  constexpr int64_t kCache = 900 * 1024, kHeavy = 16 * 1024 * 1024, kLargeBlock = 96;
  const int64_t fitting = std::max<int64_t>(kCache / tile_bytes / kRows, 1) * kRows;
  const int64_t largest = weight_bytes > kHeavy ? kLargeBlock : fitting;
  return balanced_block(tiles, kRows, largest);
}

// Value: what is multiplied, float, int16_t or, by int8_t, uint8_t.
template <typename T, typename Value>
void convolve(const at::Tensor& input, const at::Tensor& weight, const at::Tensor& weight_scale,
              const at::Tensor& bias, const at::Tensor& added, bool relu, const Kernels& kernels,
              const Transforms<T>& transforms, const at::Tensor& output) {
  constexpr bool kQuantized = !std::is_same_v<Value, float>, kInt8 = std::is_same_v<Value, uint8_t>;
  using Weight = std::conditional_t<kInt8, int8_t, Value>;
  const int64_t channels = input.size(1), out_channels = output.size(1);
  const Canvas canvas(input.size(0), input.size(2), input.size(3));
  const int64_t block = block_size(
      canvas.tiles(), kPoints * (channels * sizeof(Value) + kChunk * sizeof(float)), weight.nbytes());
  const int64_t point_stride = out_channels * channels;

  const T* from = input.const_data_ptr<T>();
  const Weight* weights = weight.const_data_ptr<Weight>();
  const float* weight_scales = kQuantized ? weight_scale.const_data_ptr<float>() : nullptr;
  const float* biases = bias.defined() ? bias.const_data_ptr<float>() : nullptr;
  const T* add = added.defined() ? added.const_data_ptr<T>() : nullptr;
  T* to = output.mutable_data_ptr<T>();
  const std::vector<T> zeros(channels, T(0));
  const auto workspace = [&](at::ScalarType dtype, int64_t size) {
    return at::empty({at::get_num_threads(), size}, input.options().dtype(dtype));
  };
  const at::Tensor all_values =
      workspace(c10::CppTypeToScalarType<Value>::value, kPoints * input_stride<Value>(block, channels));
  const at::Tensor all_products = workspace(at::kFloat, kPoints * product_stride(block));
  // And, of 8 bits, zeros; then a tile before it is quantised.
  constexpr int64_t kScales = kInt8 ? 2 : 1;
  const at::Tensor all_scales =
      workspace(at::kFloat, kQuantized ? kPoints * (kScales * block + scratch_stride(channels)) : 0);

  share_out(ceil_div(canvas.tiles(), block), [&](int64_t unit) {
    const int64_t thread = at::get_thread_num();
    Value* values = all_values.mutable_data_ptr<Value>() + thread * all_values.size(1);
    float* products = all_products.mutable_data_ptr<float>() + thread * all_products.size(1);
    float* scales = all_scales.mutable_data_ptr<float>() + thread * all_scales.size(1);
    const int64_t first = unit * block;
    const int64_t tiles = std::min(block, canvas.tiles() - first);
    const int64_t rows = ceil_div(tiles, kRows) * kRows;

    std::vector<int64_t> places(tiles * kPoints);
    for (int64_t tile = 0; tile < tiles; ++tile)
      canvas.cells(first + tile, -1, kInput, places.data() + tile * kPoints);
    std::vector<const T*> inputs(places.size() + kPoints, zeros.data());
    for (size_t i = 0; i < places.size(); ++i)
      inputs[i] = places[i] < 0 ? zeros.data() : from + places[i] * channels;
    float* scratch = scales + kScales * kPoints * block;
    if constexpr (kInt8)
      transforms.inputs_of_8_bits(inputs.data(), tiles, channels, values, scales, rows, scratch);
    else if constexpr (kQuantized)
      transforms.quantized_inputs(inputs.data(), tiles, channels, values, scales, rows, scratch);
    else
      transforms.inputs(inputs.data(), tiles, channels, values, rows);
    // The rows up to the next multiple of kRows are multiplied too, and not read.
    for (int64_t point = 0; point < kPoints; ++point) {
      std::fill_n(values + point * input_stride<Value>(rows, channels) + tiles * channels,
                  (rows - tiles) * channels, Value(0));
      if constexpr (kQuantized)
        for (int64_t i = 0; i < kScales; ++i)
          std::fill_n(scales + (i * kPoints + point) * rows + tiles, rows - tiles, 0.f);
    }

    for (int64_t tile = 0; tile < tiles; ++tile)
      canvas.cells(first + tile, 0, kOutput, places.data() + tile * kOutputs);
    for (int64_t i = 0; i < tiles * kOutputs; ++i)
      if (places[i] > 0) places[i] *= out_channels;
    for (int64_t channel = 0; channel < out_channels; channel += kChunk) {
      const int64_t count = std::min(kChunk, out_channels - channel);
      const Weight* chunk = weights + channel * channels;
      if constexpr (kInt8)
        kernels.multiply_int8(values, scales, rows, channels, chunk, point_stride, weight_scales + channel,
                              out_channels, count / kPanel, products);
      else if constexpr (kQuantized)
        kernels.multiply_int16(values, scales, rows, channels, chunk, point_stride, weight_scales + channel,
                               out_channels, count / kPanel, products);
      else
        kernels.multiply(values, rows, channels, chunk, point_stride, count / kPanel, products);
      transforms.outputs(products, rows, tiles, count, biases == nullptr ? nullptr : biases + channel,
                         add == nullptr ? nullptr : add + channel, relu, places.data(), to + channel);
    }
  });
}

at::Tensor conv3x3(const at::Tensor& input, const at::Tensor& weight, const at::Tensor& scale,
                   const std::optional<at::Tensor>& bias, const std::optional<at::Tensor>& add, bool relu) {
  const Kernels* kernels = best_kernels();
  TORCH_CHECK_NOT_IMPLEMENTED(kernels != nullptr, "winograd_conv3x3: this processor has no AVX2");
  TORCH_CHECK_VALUE(input.dim() == 4, "winograd_conv3x3: input must be (N, C, H, W), got ", input.sizes());
  TORCH_CHECK_TYPE(input.scalar_type() == at::kFloat || input.scalar_type() == at::kBFloat16,
                   "winograd_conv3x3: input must be float32 or bfloat16, got ", input.scalar_type());
  const int64_t channels = input.size(1);
  TORCH_CHECK_VALUE(channels > 0 && channels % kPanel == 0 && channels <= kMostChannels,
                    "winograd_conv3x3: input must have a multiple of ", kPanel, " channels, at most ",
                    kMostChannels, ", got ", channels);
  const bool int16 = weight.scalar_type() == at::kShort, int8 = weight.scalar_type() == at::kChar;
  TORCH_CHECK_TYPE(int16 || int8 || weight.scalar_type() == at::kFloat,
                   "winograd_conv3x3: weight must be int8, int16 or float32, got ", weight.scalar_type());
  TORCH_CHECK_NOT_IMPLEMENTED(!int8 || kernels->multiply_int8 != nullptr,
                              "winograd_conv3x3: this processor has no AVX512-VNNI, which int8 needs");
  const int64_t together = int8 ? 4 : int16 ? 2 : 1;
  TORCH_CHECK_VALUE(weight.dim() == 4 && weight.size(0) == kPoints &&
                        weight.size(2) * weight.size(3) == channels * kPanel &&
                        weight.size(3) == together * kPanel && weight.is_contiguous(),
                    "winograd_conv3x3: weight must be contiguous and what winograd_weight makes for ",
                    channels, " input channels, got ", weight.sizes());
  const int64_t out_channels = weight.size(1) * kPanel;
  const int64_t scales = int8 ? 2 * kPoints : kPoints;
  TORCH_CHECK_VALUE(!(int16 || int8) || (scale.sizes() == at::IntArrayRef({scales, out_channels}) &&
                                         scale.scalar_type() == at::kFloat && scale.is_contiguous()),
                    "winograd_conv3x3: scale must be (", scales, ", ", out_channels, ") float32 contiguous");
  TORCH_CHECK_VALUE(!bias || (bias->sizes() == at::IntArrayRef{out_channels} &&
                              bias->scalar_type() == at::kFloat && bias->is_contiguous()),
                    "winograd_conv3x3: bias must be (", out_channels, ",) float32 contiguous");
  const std::vector<int64_t> size = {input.size(0), out_channels, input.size(2), input.size(3)};
  TORCH_CHECK_VALUE(!add || (add->sizes() == size && add->scalar_type() == input.scalar_type()),
                    "winograd_conv3x3: add must have the output's shape ", at::IntArrayRef(size),
                    " and the input's dtype, ", input.scalar_type(), ", got ",
                    add ? add->sizes() : at::IntArrayRef{}, " ",
                    add ? add->scalar_type() : input.scalar_type());

  const auto layout = at::MemoryFormat::ChannelsLast;
  const at::Tensor output = empty_result(size, input.options().memory_format(layout));
  if (output.numel() == 0) return output;
  const at::Tensor dense = input.contiguous(layout);
  const at::Tensor added = add ? add->contiguous(layout) : at::Tensor();
  const auto run = [&](auto value, auto element, const auto& transforms) {
    convolve<decltype(element), decltype(value)>(dense, weight, scale, bias.value_or(at::Tensor()), added,
                                                 relu, *kernels, transforms, output);
  };
  const auto run_in = [&](auto value) {
    if (input.scalar_type() == at::kFloat)
      run(value, float(), kernels->f32);
    else
      run(value, c10::BFloat16(), kernels->bf16);
  };
  int8 ? run_in(uint8_t()) : int16 ? run_in(int16_t()) : run_in(float());
  return output;
}

// The kPanel outputs of one panel and all points, (channels, kPanel) each, as int8, (channels / 4, kPanel,
// 4); the scales of each point and, kPoints of these later, the sums.
void quantize_to_int8(const float* transformed, int64_t channels, int8_t* quantized, int64_t point_stride,
                      float* scales, int64_t scale_stride) {
  for (int64_t point = 0; point < kPoints; ++point, transformed += channels * kPanel) {
    for (int64_t i = 0; i < kPanel; ++i) {
      float largest = 0;
      bool finite = true;
      for (int64_t channel = 0; channel < channels; ++channel) {
        const float value = transformed[channel * kPanel + i];
        largest = std::max(largest, std::abs(value));
        finite = finite && std::isfinite(value);
      }
      const float scale = largest < kLeastRange ? 0 : largest / 127;
      const float inverse = scale > 0 && finite ? 1 / scale : 0;
      float sum = 0;  // of fewer than 2^24
      for (int64_t channel = 0; channel < channels; ++channel) {
        const float value = inverse == 0 ? 0 : std::nearbyint(transformed[channel * kPanel + i] * inverse);
        quantized[point * point_stride + channel / 4 * 4 * kPanel + 4 * i + channel % 4] =
            static_cast<int8_t>(value);
        sum += value;
      }
      scales[point * scale_stride + i] = finite ? scale : std::numeric_limits<float>::quiet_NaN();
      scales[(kPoints + point) * scale_stride + i] = sum;
    }
  }
}

// bits: 32 for float32, 16 or 8. transposed: for the convolution of the gradient, input and output channels
// exchanged and the taps turned.
std::tuple<at::Tensor, at::Tensor> transform_to(const at::Tensor& weight, int64_t bits, bool transposed) {
  const Kernels* kernels = best_kernels();
  TORCH_CHECK_NOT_IMPLEMENTED(kernels != nullptr, "winograd_weight: this processor has no AVX2");
  TORCH_CHECK_VALUE(weight.dim() == 4 && weight.size(2) == 3 && weight.size(3) == 3 && weight.numel() > 0 &&
                        weight.size(0) % kPanel == 0 && weight.size(1) % kPanel == 0,
                    "winograd_weight: weight must have shape (O, C, 3, 3) with O and C multiples of ", kPanel,
                    ", got ", weight.sizes());
  at::Tensor taps = weight.to(at::kFloat);
  if (transposed) taps = taps.transpose(0, 1);
  const int64_t outputs = taps.size(0), channels = taps.size(1);
  TORCH_CHECK_VALUE(channels <= kMostChannels, "winograd_weight: at most ", kMostChannels,
                    " input channels, got ", channels);
  const int64_t together = 32 / bits;
  const std::vector<int64_t> size = {kPoints, outputs / kPanel, channels / together, together * kPanel};
  const at::ScalarType dtype = bits == 8 ? at::kChar : bits == 16 ? at::kShort : at::kFloat;
  const at::Tensor values = at::empty(size, taps.options().dtype(dtype));
  const at::Tensor scale = at::empty({bits == 8    ? 2 * kPoints
                                      : bits == 16 ? kPoints
                                                   : 0,
                                      outputs},
                                     taps.options());
  const float* from = taps.const_data_ptr<float>();
  const int64_t point_stride = outputs * channels;
  const at::Tensor workspace =
      at::empty({at::get_num_threads(), (kPoints + 9) * channels * kPanel}, taps.options());

  share_out(outputs / kPanel, [&](int64_t panel) {
    float* gathered = workspace.mutable_data_ptr<float>() + at::get_thread_num() * workspace.size(1);
    float* transformed = gathered + 9 * channels * kPanel;
    // To (channels, 9, kPanel); a few channels at a time, which stay in the cache from tap to tap.
    const int64_t next = taps.stride(0), step = taps.stride(1);
    for (int64_t channel = 0; channel < channels; channel += kPanel) {
      for (int64_t tap = 0; tap < 9; ++tap) {
        const int64_t turned = transposed ? 8 - tap : tap;
        const float* tap_from = from + panel * kPanel * next + channel * step + turned / 3 * taps.stride(2) +
                                turned % 3 * taps.stride(3);
        float* to = gathered + (channel * 9 + tap) * kPanel;
        if (next == 1)
          for (int64_t c = 0; c < kPanel; ++c) std::copy_n(tap_from + c * step, kPanel, to + c * 9 * kPanel);
        else
          for (int64_t i = 0; i < kPanel; ++i)
            for (int64_t c = 0; c < kPanel; ++c) to[c * 9 * kPanel + i] = tap_from[i * next + c * step];
      }
    }
    kernels->transform_weights(gathered, channels, transformed);
    const int64_t place = panel * channels * kPanel;
    if (bits == 8) {
      quantize_to_int8(transformed, channels, values.mutable_data_ptr<int8_t>() + place, point_stride,
                       scale.mutable_data_ptr<float>() + panel * kPanel, outputs);
    } else if (bits == 16) {
      kernels->quantize_weights(transformed, channels, values.mutable_data_ptr<int16_t>() + place,
                                point_stride, scale.mutable_data_ptr<float>() + panel * kPanel, outputs);
    } else {
      for (int64_t point = 0; point < kPoints; ++point)
        std::copy_n(transformed + point * channels * kPanel, channels * kPanel,
                    values.mutable_data_ptr<float>() + point * point_stride + place);
    }
  });
  return {values, scale};
}

std::tuple<at::Tensor, at::Tensor> transform(const at::Tensor& weight, bool int16, bool transposed) {
  return transform_to(weight, int16 ? 16 : 32, transposed);
}

std::tuple<at::Tensor, at::Tensor> transform_to_int8(const at::Tensor& weight) {
  return transform_to(weight, 8, false);
}

}  // namespace

TORCH_LIBRARY_IMPL(mrcnn_ext, CPU, m) {
  m.impl("winograd_conv3x3", conv3x3);
  m.impl("winograd_weight", transform);
  m.impl("winograd_int8_weight", transform_to_int8);
}

}  // namespace winograd
}  // namespace mrcnn_ext
