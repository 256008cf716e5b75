// The stem of a ResNet: a convolution of 7x7 and stride 2 of three channels, ReLU and max pooling of 3x3 and
// stride 2, row by row of the convolution, of which only three are kept.
#pragma once

#include <c10/util/BFloat16.h>

#include <cstdint>

namespace mrcnn_ext {
namespace stem {

constexpr int64_t kChannels = 3;
constexpr int64_t kKernel = 7;
constexpr int64_t kPadding = 3;
constexpr int64_t kStride = 2;                                 // of the convolution, and of the pooling
constexpr int64_t kReach = (kKernel * kChannels + 1) / 2 * 2;  // values of a row of the kernel, in pairs
constexpr int64_t kOutputs = 64;                               // computed at a time
constexpr int64_t kCells = 6;                                  // convolved at a time

// T: of the image's lines, the weights and the results.
template <typename T>
struct Kernels {
  // A row (3, width) of three planes in float32, `plane` apart, as a line: (width, 3) in bf16; in float32
  // still three rows, `pitch` apart. What pads the row stays as it is.
  void (*make_line)(const float* from, int64_t plane, int64_t width, int64_t pitch, T* to);
  // A row of the convolution, (groups * kCells, kOutputs), with its ReLU. lines: the rows of the image below
  // each of the kernel's, padded. weights: (kKernel, kReach / 2, kOutputs, 2) in bf16, (kKernel, 3, kKernel,
  // kOutputs) in float32.
  void (*convolve)(const T* const* lines, int64_t pitch, int64_t groups, const T* weights, const float* bias,
                   T* to);
  // A row of the pooling, each cell `stride` after the one before, of three of the convolution, the first of
  // their cells one to the left of the first pooled one's.
  void (*pool)(const T* const* rows, int64_t width, int64_t stride, T* to);
};

#if defined(__x86_64__)
const Kernels<c10::BFloat16>& avx512_bf16_kernels();
const Kernels<float>& avx512_kernels();
const Kernels<float>& avx2_kernels();
#endif

}  // namespace stem
}  // namespace mrcnn_ext
