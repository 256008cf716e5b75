// Convolutions of 1x1 and linear layers in float32 and bf16: products of a matrix whose rows, the channels of
// one cell, are read where they lie, with everything that follows done as a result is written.
#pragma once

#include <c10/util/BFloat16.h>

#include <cstdint>

namespace mrcnn_ext {
namespace pointwise {

constexpr int64_t kLanes = 16;          // output channels of a panel of weights
constexpr int64_t kChunk = 4 * kLanes;  // output channels computed at a time
constexpr int64_t kRows = 6;            // rows multiplied at a time
// Input channels multiplied at a time, in bf16: their weights for a chunk fill a quarter of a second-level
// cache.
constexpr int64_t kMostChannels = 2048;
// Bytes of the same in float32, for the outputs computed at a time.
constexpr int64_t kMostPanelBytes = 128 * 1024;
// Bytes of longer rows are enough for the processor to foresee.
constexpr int64_t kPrefetched = 1024;
// Bytes of weights that fill half a second-level cache.
constexpr int64_t kFewWeights = 512 * 1024;

// Some rows of the result: inputs weights^T + bias, + added, then ReLU if asked for. `inputs` points to each
// of the rows, up to the next multiple of kRows, `added` (or nullptr) to what is added to each; `results` are
// `stride` apart.
template <typename In, typename Out>
struct Rows {
  const In* const* inputs;
  Out* results;
  const Out* const* added;
  int64_t count, stride;
  bool relu;
};

// weights: in bf16 for each chunk of outputs (the last may be narrower) (channels / 2, outputs of the chunk
// rounded up to kLanes, 2); in float32 (outputs rounded up / kLanes, channels, kLanes). bias: of all outputs,
// rounded up. sums: as many floats for each row, rounded up; only used where the channels are multiplied in
// parts.
template <typename In, typename Out>
using Multiply = void (*)(const Rows<In, Out>& rows, int64_t channels, int64_t outputs, const In* weights,
                          const float* bias, float* sums);

struct Bf16Kernels {
  Multiply<c10::BFloat16, c10::BFloat16> to_bf16;
  Multiply<c10::BFloat16, float> to_float;
};

struct Float32Kernels {
  Multiply<float, float> multiply;
  int64_t most_channels;  // multiplied at a time
};

#if defined(__x86_64__)
const Bf16Kernels& avx512_bf16_kernels();
const Float32Kernels& avx512_kernels();
const Float32Kernels& avx2_kernels();
#endif

}  // namespace pointwise
}  // namespace mrcnn_ext
