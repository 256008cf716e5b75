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

struct Kernels {
  // A row (3, width) of three planes in float32, `plane` apart, as (width, 3) in bf16.
  void (*interleave)(const float* from, int64_t plane, int64_t width, c10::BFloat16* to);
  // A row of the convolution, (groups * kCells, kOutputs), with its ReLU. lines: the rows of the image below
  // each of the kernel's, padded. weights: (kKernel, kReach / 2, kOutputs, 2).
  void (*convolve)(const c10::BFloat16* const* lines, int64_t groups, const c10::BFloat16* weights,
                   const float* bias, c10::BFloat16* to);
  // A row of the pooling, each cell `stride` after the one before, of three of the convolution, the first of
  // their cells one to the left of the first pooled one's.
  void (*pool)(const c10::BFloat16* const* rows, int64_t width, int64_t stride, c10::BFloat16* to);
};

#if defined(__x86_64__)
const Kernels& avx512_bf16_kernels();
#endif

}  // namespace stem
}  // namespace mrcnn_ext
