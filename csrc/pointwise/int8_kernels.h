// The same in int8: rows are quantised to 8 bits without sign as a block of them is read, q = clamp(round(x /
// scale + zero_point), 0, 255), the products with weights of 8 bits are summed exactly in int32, and a result
// is the sum times a scale of its output channel, plus the bias, in which the zero point is accounted for.
#pragma once

#include <c10/util/BFloat16.h>

#include <cstdint>

#include "kernels.h"

namespace mrcnn_ext {
namespace pointwise {

constexpr int64_t kQuad = 4;  // channels that are multiplied together
// Channels quantised and multiplied at a time, a multiple of 64: their weights for a chunk fill an eighth of
// a second-level cache.
constexpr int64_t kMostInt8Channels = 2048;
// With more channels a sum of products, each up to 255 * 127 = 32385, may leave int32.
constexpr int64_t kMostSummed = 66304;

// From one quantised row to the next: not a power of two, which would bring all to the same few lines of the
// first-level cache.
inline int64_t quantized_stride(int64_t channels) { return (channels + 63) / 64 * 64 + 64; }

// Some rows of `channels` channels as 8 bits, quantized_stride apart; zeros up to the next multiple of 64.
// What is not a number counts as the smallest.
template <typename In>
using QuantizeRows = void (*)(const In* const* rows, int64_t count, int64_t channels, float inverse_scale,
                              float zero_point, uint8_t* quantized);

// Rows of results as `Rows` has them, of rows quantized_stride apart, up to the next multiple of kRows.
template <typename Out>
struct QuantizedRows {
  const uint8_t* inputs;
  int64_t input_stride;
  Out* results;
  const Out* const* added;
  int64_t count, stride;
  bool relu;
};

// weights: for each chunk of outputs (the last may be narrower) (quads of all channels, outputs of the chunk
// rounded up to kLanes, kQuad); `quads` of `all_quads`, from first_quad on, are multiplied. scales, bias: of
// all outputs, rounded up. sums: as many for each row, where they continue from unless it is the first part,
// and go to unless the last.
template <typename Out>
using MultiplyInt8 = void (*)(const QuantizedRows<Out>& rows, int64_t first_quad, int64_t quads,
                              int64_t all_quads, int64_t outputs, const int8_t* weights, const float* scales,
                              const float* bias, int32_t* sums);

struct Int8Kernels {
  QuantizeRows<float> quantize_float;
  QuantizeRows<c10::BFloat16> quantize_bf16;
  MultiplyInt8<float> to_float;
  MultiplyInt8<c10::BFloat16> to_bf16;
};

// Those that a namespace defines.
#define MRCNN_EXT_INT8_KERNELS(name) \
  {name::quantize<float>, name::quantize<c10::BFloat16>, name::multiply<float>, name::multiply<c10::BFloat16>}

#if defined(__x86_64__)
const Int8Kernels& avx512_vnni_bf16_kernels();
const Int8Kernels& avx512_vnni_kernels();
const Int8Kernels& avx2_vnni_kernels();
const Int8Kernels& avx2_int8_kernels();
#endif

}  // namespace pointwise
}  // namespace mrcnn_ext
