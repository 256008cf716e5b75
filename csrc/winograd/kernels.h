// Winograd's minimal filtering F(4x4, 3x3) (Lavin and Gray, *Fast Algorithms for Convolutional Neural
// Networks*, CVPR 2016): a 3x3 convolution of stride 1 in 36 multiplications for each 4x4 outputs and pair of
// channels, not 144. `kernels.h` is the table of entry points that each instruction set fills in.
//
// On one axis Y = A^T [(G g) * (B^T d)]: d are 6 inputs, g the 3 taps, Y 4 outputs. The polynomials are
// interpolated at 0, +-5/8, +-3/2 and infinity rather than at Lavin's 0, +-1, +-2: the result is then as good
// as twice the rounding error of a direct sum, three times better than with his.
//
// The transforms are float32, whatever the dtype of the maps. The products between them are too, or else of
// int16, two of which a processor multiplies in the time of one float32. Each row of V and of U, the channels
// of one tile or output channel at one point, has a scale of its own, by which its Euclidean norm is at most
// kInputNorm or kWeightNorm: by Cauchy and Schwarz no sum of products then leaves int32, whatever the number
// of channels. With 256 channels a standard deviation of V is some 2000 steps, several times finer than bf16,
// and the sums are exact.
//
// Or of 8 bits, four of which a processor with VNNI multiplies in the time of one float32: rows of V without
// sign, between their least and their largest value, rows of U with sign. What these round away comes out
// about four times larger: 3 % of a standard deviation of the results, twice or three times what a direct
// convolution in int8 loses.
#pragma once

#include <c10/util/BFloat16.h>

#include <cstdint>

namespace mrcnn_ext {
namespace winograd {

constexpr int64_t kOutput = 4;  // side of a tile
constexpr int64_t kInput = 6;   // side of what it is computed from
constexpr int64_t kOutputs = kOutput * kOutput;
constexpr int64_t kPoints = kInput * kInput;
constexpr int64_t kPanel = 16;          // output channels of a panel of weights
constexpr int64_t kChunk = 4 * kPanel;  // output channels computed at a time
constexpr int64_t kRows = 6;            // tiles multiplied at a time

// The product of the norms, and of what rounding adds to them for up to kMostChannels, is below 2^31. No
// element of a row is larger than its norm, so that those of V are int16; those of U are made to be.
constexpr float kInputNorm = 32700, kWeightNorm = 65000, kLargestWeight = 32767;
// A row of a smaller sum of squares counts as zeros: float32 has no more digits for it.
constexpr float kLeastSquares = 2e-31f;
// In 8 bits, one between a least and a largest value that are nearer.
constexpr float kLeastRange = 1e-30f;
constexpr int64_t kMostChannels = 1 << 16;

// What belongs to one point is this far from the next in memory: a power of two would bring all 36 to the
// same few lines of the first-level cache.
template <typename Value>
int64_t input_stride(int64_t rows, int64_t channels) {
  return rows * channels + (sizeof(Value) == 1 ? 4 : 2) * kPanel;
}
inline int64_t product_stride(int64_t rows) { return rows * kChunk + kPanel; }
inline int64_t scratch_stride(int64_t channels) { return channels + kPanel; }

// V[p] = B^T d B for each point p: (kPoints, rows, channels), input_stride apart. `inputs` points to the
// channels of the 36 cells of each tile, and of one tile more, which is prefetched. channels is a multiple of
// kPanel.
template <typename T>
using TransformInputs = void (*)(const T* const* inputs, int64_t tiles, int64_t channels, float* transformed,
                                 int64_t rows);
// The same as int16, to be multiplied by scales, (kPoints, rows). scratch: (kPoints, channels),
// scratch_stride apart. As uint8, after the zeros are taken off that follow the scales, as many.
template <typename T, typename Value>
using QuantizeInputs = void (*)(const T* const* inputs, int64_t tiles, int64_t channels, Value* transformed,
                                float* scales, int64_t rows, float* scratch);

// M[p] = V[p] U[p]^T for each point p: (kPoints, rows, kChunk), product_stride apart, of which the first
// `panels` panels are written. weights: (panels, channels, kPanel) for each point, point_stride apart.
using Multiply = void (*)(const float* transformed, int64_t rows, int64_t channels, const float* weights,
                          int64_t point_stride, int64_t panels, float* products);
// The same of integers. weights: (panels, channels / 2, kPanel, 2) for each point, or (panels, channels / 4,
// kPanel, 4) int8; weight_scales: (panels, kPanel) for each point, scale_stride apart, of int8 followed by
// the sums of the weights, as many.
template <typename Value, typename Weight>
using MultiplyIntegers = void (*)(const Value* transformed, const float* scales, int64_t rows,
                                  int64_t channels, const Weight* weights, int64_t point_stride,
                                  const float* weight_scales, int64_t scale_stride, int64_t panels,
                                  float* products);

// U = G g G^T of the kPanel outputs of one panel: to (kPoints, channels, kPanel). taps: (channels, 9,
// kPanel).
using TransformWeights = void (*)(const float* taps, int64_t channels, float* transformed);
// Writes that as int16, (channels / 2, kPanel, 2) for each point, points point_stride apart, and the scales,
// kPanel for each point, scale_stride apart.
using QuantizeWeights = void (*)(const float* transformed, int64_t channels, int16_t* quantized,
                                 int64_t point_stride, float* scales, int64_t scale_stride);

// Y = A^T M A + bias, + added, then ReLU if asked for. places: where the 16 cells of each tile go, in
// elements from `output` and `added`; negative where there is no such cell. bias, added: or nullptr.
template <typename T>
using TransformOutputs = void (*)(const float* products, int64_t rows, int64_t tiles, int64_t channels,
                                  const float* bias, const T* added, bool relu, const int64_t* places,
                                  T* output);

// The gradient of the weight is the transpose of all this: G^T (sum over tiles of V[p] (A dY A^T)[p]) G. The
// sums are products of two matrices for each point, whose rows are tiles. Of int16, each channel of V and of
// A dY A^T has a scale of its own for each kDepth tiles, by which its norm over them is at most kInputNorm.
constexpr int64_t kDepth = 128;
// 64 bytes of a panel: kPanel channels of one tile in float32, of two in int16.
template <typename Value>
constexpr int64_t kTilesPerStep = 4 / sizeof(Value);
template <typename Value>
constexpr int64_t kStep = kPanel * kTilesPerStep<Value>;
constexpr int64_t kDepthFloats = kDepth * kPanel + kPanel;  // of a point, in scratch

// kPanel channels of up to kDepth tiles of V or of A dY A^T, from `first` on: `steps` steps for each point,
// point_stride apart. What of the last step is beyond the tiles is zero. cells: as `inputs` of
// TransformInputs, for gradients the 16 cells of each tile. scales: of int16, kPanel for each point,
// scale_stride apart. sums: nullptr, or of the gradients, kPanel sums of all cells. scratch: (kPoints,
// kDepthFloats).
template <typename T, typename Value>
using Pack = void (*)(const T* const* cells, int64_t tiles, int64_t first, Value* packed,
                      int64_t point_stride, float* scales, int64_t scale_stride, float* sums, float* scratch);

// Some rows of one point of a sum over tiles: sums[row][i] of `count` rows, up to kRows, and kPanel channels
// of each panel are added to, or, the first time, set. rows: of each of kRows rows the values of its first
// step, kStep apart; panels: `panels` of them, up to kChunk / kPanel, panel_stride apart. row_scales,
// panel_scales: of int16.
template <typename Value>
struct RowsOfSums {
  const Value* rows[kRows];
  float row_scales[kRows];
  const Value* panels;
  const float* panel_scales;
  int64_t steps, panel_stride, sum_stride;
  float* sums;
  int count;
  bool first;
};
template <typename Value>
using AddProducts = void (*)(const RowsOfSums<Value>& task, int64_t panels);

// G^T M G of the kPanel channels of one row: sums point_stride apart, to 9 taps, tap_stride apart.
using TransformSums = void (*)(const float* sums, int64_t point_stride, float* taps, int64_t tap_stride);

template <typename T>
struct Transforms {
  TransformInputs<T> inputs;
  QuantizeInputs<T, int16_t> quantized_inputs;
  QuantizeInputs<T, uint8_t> inputs_of_8_bits;  // or nullptr, as multiply_int8
  TransformOutputs<T> outputs;
  Pack<T, float> pack_inputs, pack_gradients;
  Pack<T, int16_t> pack_inputs_int16, pack_gradients_int16;
};

struct Kernels {
  Transforms<float> f32;
  Transforms<c10::BFloat16> bf16;
  Multiply multiply;
  MultiplyIntegers<int16_t, int16_t> multiply_int16;
  MultiplyIntegers<uint8_t, int8_t> multiply_int8;
  TransformWeights transform_weights;
  QuantizeWeights quantize_weights;
  AddProducts<float> add_products;
  AddProducts<int16_t> add_products_int16;
  TransformSums transform_sums;
};

#if defined(__x86_64__)
const Kernels& avx2_kernels();
const Kernels& avx512_kernels();
const Kernels& avx512_vnni_kernels();
TransformOutputs<c10::BFloat16> avx512_bf16_outputs();
#endif

}  // namespace winograd
}  // namespace mrcnn_ext
