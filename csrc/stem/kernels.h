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
constexpr int64_t kStride = 2;                   // of the convolution, and of the pooling
constexpr int64_t kTaps = kKernel * kChannels;   // values of a row of the kernel
constexpr int64_t kReach = (kTaps + 1) / 2 * 2;  // the same in pairs
constexpr int64_t kOutputs = 64;                 // computed at a time
constexpr int64_t kPanel = 16;                   // of those, together in float32 weights
constexpr int64_t kCells = 6;                    // convolved at a time

// T: what is multiplied and the result, bf16 or float.
template <typename T>
struct Kernels {
  // A row (3, width) of three planes in float32, `plane` apart, as (width, 3).
  void (*interleave)(const float* from, int64_t plane, int64_t width, T* to);
  // A row of the convolution, (groups * kCells, kOutputs), with its ReLU. lines: the rows of the image below
  // each of the kernel's, padded. weights: (kKernel, kReach / 2, kOutputs, 2) in bf16, and in float32
  // (kOutputs / kPanel, kKernel, kTaps, kPanel).
  void (*convolve)(const T* const* lines, int64_t groups, const T* weights, const float* bias, T* to);
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
