// Gradients of the boxes, in mode "exact".
#pragma once

#include <cstdint>

#include "plan.cuh"

namespace mrcnn_ext {
namespace cuda {

template <typename acc>
struct BoxMemory {  // shared
  acc partial[4][kBoxThreads];
};

// One block per RoI: four sums over its whole output, with the derivatives of the weights in the plan.
template <typename T>
__global__ void __launch_bounds__(kBoxThreads)
    box_gradient(Pyramid<const T> pyramid, Map<const T> grad, Plan<acc_t<T>> plan, bool nhwc,
                 acc_t<T>* grad_rois) {
  using acc = acc_t<T>;
  BoxMemory<acc>& memory = *shared_memory<BoxMemory<acc>>();
  const int32_t thread = threadIdx.x;
  const int64_t roi = blockIdx.x;
  const PlannedRoI<acc>& planned = plan.rois[roi];
  const Map<const T> map = pyramid.levels[planned.level];
  const int64_t bins = int64_t(plan.row_bins) * plan.column_bins;
  acc sums[4] = {};
  for (int64_t index = thread; index < pyramid.channels * bins; index += kBoxThreads) {
    const int64_t channel = nhwc ? index % pyramid.channels : index / bins;
    const int32_t bin = int32_t(nhwc ? index / pyramid.channels : index % bins);
    const int32_t ph = bin / plan.column_bins;
    const int32_t pw = bin % plan.column_bins;
    const Tap row_tap = read_global(plan.row_taps(roi) + ph);
    const Tap column_tap = read_global(plan.column_taps(roi) + pw);
    const T* const plane = map.at(planned.image, channel, 0, 0);
    const acc* const wy = plan.row_weights(roi) + row_tap.offset;
    const acc* const wx = plan.column_weights(roi) + column_tap.offset;
    acc pooled[4] = {};
    for (int32_t i = 0; i < row_tap.count; ++i) {
      const T* cell = plane + (row_tap.first + i) * map.row_stride + column_tap.first * map.column_stride;
      acc row_sums[3] = {};
      for (int32_t j = 0; j < column_tap.count; ++j, cell += map.column_stride) {
        const acc value = acc(read_global(cell));
        for (int32_t k = 0; k < 3; ++k) row_sums[k] += read_global(wx + k * plan.capacity + j) * value;
      }
      pooled[0] += read_global(wy + i) * row_sums[1];
      pooled[1] += read_global(wy + plan.capacity + i) * row_sums[0];
      pooled[2] += read_global(wy + i) * row_sums[2];
      pooled[3] += read_global(wy + 2 * plan.capacity + i) * row_sums[0];
    }
    const acc incoming = acc(read_global(grad.at(roi, channel, ph, pw)));
    for (int32_t k = 0; k < 4; ++k) sums[k] += incoming * pooled[k];
  }
  for (int32_t k = 0; k < 4; ++k) memory.partial[k][thread] = sums[k];
  for (int32_t half = kBoxThreads / 2; half > 0; half /= 2) {
    __syncthreads();
    if (thread >= half) continue;
    for (int32_t k = 0; k < 4; ++k) memory.partial[k][thread] += memory.partial[k][thread + half];
  }
  if (thread > 0) return;
  write_global(grad_rois + roi * 5, acc(0));
  for (int32_t k = 0; k < 4; ++k) write_global(grad_rois + roi * 5 + 1 + k, memory.partial[k][0]);
}

}  // namespace cuda
}  // namespace mrcnn_ext
