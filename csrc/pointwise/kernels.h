// Convolutions of 1x1 and linear layers in bf16: products of a matrix whose rows, the channels of one cell,
// are read where they lie, with everything that follows done as a result is written.
#pragma once

#include <c10/util/BFloat16.h>

#include <cstdint>

namespace mrcnn_ext {
namespace pointwise {

constexpr int64_t kLanes = 16;          // output channels of a register
constexpr int64_t kChunk = 4 * kLanes;  // output channels computed at a time
constexpr int64_t kRows = 6;            // rows multiplied at a time
// Input channels multiplied at a time: their weights for a chunk fill a quarter of a second-level cache.
constexpr int64_t kMostChannels = 2048;
// Rows of more channels are long enough for the processor to foresee.
constexpr int64_t kPrefetched = 512;
// Weights that fill half a second-level cache.
constexpr int64_t kFewWeights = 256 * 1024;

// Some rows of the result: inputs weights^T + bias, + added, then ReLU if asked for. `inputs` points to each
// of the rows, up to the next multiple of kRows, `added` (or nullptr) to what is added to each; `results` are
// one after another.
template <typename T>
struct Rows {
  const c10::BFloat16* const* inputs;
  T* results;
  const T* const* added;
  int64_t count;
  bool relu;
};

// weights: for each chunk of outputs (the last may be narrower) (channels / 2, outputs of the chunk rounded
// up to kLanes, 2). bias: of all outputs, rounded up. sums: as many floats for each row, rounded up; only
// used where there are more than kMostChannels.
template <typename T>
using Multiply = void (*)(const Rows<T>& rows, int64_t channels, int64_t outputs,
                          const c10::BFloat16* weights, const float* bias, float* sums);

struct Kernels {
  Multiply<c10::BFloat16> to_bf16;
  Multiply<float> to_float;
};

#if defined(__x86_64__)
const Kernels& avx512_bf16_kernels();
#endif

}  // namespace pointwise
}  // namespace mrcnn_ext
