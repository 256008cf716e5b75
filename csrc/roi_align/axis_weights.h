// The 1-D weights of RoI pooling, shared by the CPU and the CUDA kernels.
//
// Every average RoI layer over a product grid of bilinear samples factors, per channel, as
//   out = A_y F A_x^T          A_y: (pooled_height, H), A_x: (pooled_width, W), both banded,
// so a layer is defined by what one axis of one RoI contributes to one bin: a run of cells and their weights.
//
// Conventions (the eager path of layers/ follows the same):
// - Arithmetic is that of torchvision's roi_align, in float (double for double features), without
// contraction:
//   edge = coordinate * scale - (aligned ? 0.5 : 0); sample i of a bin lies at
//   (start + bin * bin_size) + (i + 0.5) * bin_size / samples.
// - A sample outside [-1, size] adds 0 but is counted in the average; inside, it is clamped to the border
// cells.
// - "avg", "max": aligned=False forces an extent of at least 1 cell. samples = sampling_ratio, or
//   ceil(extent / bins) where sampling_ratio <= 0 (none for an extent <= 0, then the output is 0).
// - "warp_*": edges are rounded half away from zero, as RoIPool's, and the last cell is included:
//   start = round(lo * scale), extent = max(round(hi * scale) + 1 - start, 1); then start -= 0.5 if aligned.
// - "pool": the cells of torchvision's roi_pool; an empty bin is 0. `aligned` and `sampling_ratio` are
// ignored.
// - "exact" (Precise RoI Pooling): mean over the bin of the bilinear interpolant, which falls linearly to 0
// one
//   cell outside the map. No minimum extent; an extent <= 0 gives 0 and no gradient. `sampling_ratio` is
//   ignored.
// - Max modes: the first maximum in row-major order wins (strict >, so NaN is passed over), starting from
//   -FLT_MAX. "max" and "warp_max": a bilinear sample inside the map takes precedence over the value 0 of a
//   sample outside it, which wins only if strictly greater than all samples inside, and has no gradient.
// - A RoI with a non-finite coordinate, edge or extent, or with more than 2^31 samples in a bin of one axis,
//   gives output 0 and no gradient. So does a RoI without a level: with several levels, one whose area is NaN
//   or negative (detectron2's level assignment leaves those out too).
// - A gradient that is not finite reaches the cells that its bin reads: on the CPU also those of weight 0
// among
//   them, on CUDA only those of another weight.
// - A batch index outside [0, N) raises on the CPU; on CUDA, where a check would stall the stream, it gives
//   output 0 and no gradient.
#pragma once

#include <cmath>
#include <cstdint>

#if defined(__CUDACC__)
#define MRCNN_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define MRCNN_HOST_DEVICE inline
#endif

#if defined(__clang__) && !defined(__CUDACC__)
#pragma STDC FP_CONTRACT OFF
#endif

namespace mrcnn_ext {

enum class RoIMode : int { kAvg, kMax, kWarpAvg, kWarpMax, kPool, kExact };

MRCNN_HOST_DEVICE bool is_max_mode(RoIMode mode) {
  return mode == RoIMode::kMax || mode == RoIMode::kWarpMax || mode == RoIMode::kPool;
}

// Products that nvcc must not fuse into an FMA: sample positions have to be the same on every device.
MRCNN_HOST_DEVICE float mul_rounded(float a, float b) {
#if defined(__CUDA_ARCH__)
  return __fmul_rn(a, b);
#else
  return a * b;
#endif
}

MRCNN_HOST_DEVICE double mul_rounded(double a, double b) {
#if defined(__CUDA_ARCH__)
  return __dmul_rn(a, b);
#else
  return a * b;
#endif
}

template <typename T>
MRCNN_HOST_DEVICE bool is_finite(T value) {
  return value - value == T(0);
}

template <typename T>
MRCNN_HOST_DEVICE T clamp_to(T value, T low, T high) {
  return value < low ? low : (value > high ? high : value);
}

// One axis of one RoI on its feature map, in cells.
template <typename T>
struct Axis {
  T start;          // first edge (sample coordinates: cell i has its centre at i)
  T bin_size;       // may be negative: an inverted box with aligned=True
  int64_t samples;  // per bin; 0 gives an empty axis
  int64_t size;     // cells of the map
};

// The run of cells [first, first + count) that a bin reads.
struct Support {
  int64_t first;
  int64_t count;
};

template <typename T>
MRCNN_HOST_DEVICE Axis<T> make_axis(RoIMode mode, T lo, T hi, T scale, int64_t bins, int64_t size,
                                    int64_t sampling_ratio, bool aligned) {
  const T max_samples = T(int64_t(1) << 31);
  const T offset = aligned ? T(0.5) : T(0);
  T start = mul_rounded(lo, scale);
  T extent;
  if (mode == RoIMode::kAvg || mode == RoIMode::kMax || mode == RoIMode::kExact) {
    start -= offset;
    extent = mul_rounded(hi, scale) - offset - start;
    if (!aligned && mode != RoIMode::kExact && extent < T(1)) extent = T(1);
  } else {
    start = std::round(start);
    extent = std::round(mul_rounded(hi, scale)) - start + T(1);
    if (extent < T(1)) extent = T(1);
    if (mode != RoIMode::kPool) start -= offset;
  }
  Axis<T> axis{start, extent / T(bins), 0, size};
  // Only a number is let through: every comparison with NaN is false.
  if (!is_finite(start) || !is_finite(extent) || size == 0) return axis;
  if (mode == RoIMode::kPool || mode == RoIMode::kExact) {
    axis.samples = axis.bin_size > T(0) ? 1 : 0;
  } else if (sampling_ratio > 0) {
    axis.samples = sampling_ratio;
  } else {
    const T samples = std::ceil(axis.bin_size);
    axis.samples = samples > T(0) && samples <= max_samples ? int64_t(samples) : 0;
  }
  return axis;
}

template <typename T>
MRCNN_HOST_DEVICE T sample_position(const Axis<T>& axis, int64_t bin, int64_t sample) {
  return axis.start + mul_rounded(T(bin), axis.bin_size) +
         mul_rounded(T(sample) + T(0.5), axis.bin_size) / T(axis.samples);
}

template <typename T>
MRCNN_HOST_DEVICE bool is_inside(const Axis<T>& axis, T position) {
  return position >= T(-1) && position <= T(axis.size);
}

// A sample inside [-1, size] as two neighbouring cells; high == low at the far border.
template <typename T>
struct Sample {
  int64_t low;
  int64_t high;
  T low_weight;
  T high_weight;
};

template <typename T>
MRCNN_HOST_DEVICE Sample<T> make_sample(const Axis<T>& axis, T position) {
  if (position < T(0)) position = T(0);
  const int64_t low = int64_t(position);
  if (low >= axis.size - 1) return {axis.size - 1, axis.size - 1, T(1), T(0)};
  const T fraction = position - T(low);
  return {low, low + 1, T(1) - fraction, fraction};
}

// Samples [begin, end) of a bin are the ones inside the map. Positions are monotonic in the sample index
// (rounding is), so the bounds are found by bisection and a huge box costs no more than the samples that
// count.
struct SampleRange {
  int64_t begin;
  int64_t end;
};

template <typename T>
MRCNN_HOST_DEVICE int64_t first_sample_past(const Axis<T>& axis, int64_t bin, T bound, bool inclusive) {
  int64_t low = 0;
  int64_t high = axis.samples;
  const bool rising = axis.bin_size >= T(0);
  while (low < high) {
    const int64_t middle = low + (high - low) / 2;
    const T position = sample_position(axis, bin, middle);
    const bool past = rising ? (inclusive ? position >= bound : position > bound)
                             : (inclusive ? position <= bound : position < bound);
    if (past) {
      high = middle;
    } else {
      low = middle + 1;
    }
  }
  return low;
}

template <typename T>
MRCNN_HOST_DEVICE SampleRange samples_inside(const Axis<T>& axis, int64_t bin) {
  if (axis.samples == 0) return {0, 0};
  const bool all_inside = is_inside(axis, sample_position(axis, bin, 0)) &&
                          is_inside(axis, sample_position(axis, bin, axis.samples - 1));
  if (all_inside) return {0, axis.samples};
  const bool rising = axis.bin_size >= T(0);
  const T near_bound = rising ? T(-1) : T(axis.size);
  const T far_bound = rising ? T(axis.size) : T(-1);
  const int64_t begin = first_sample_past(axis, bin, near_bound, true);
  const int64_t end = first_sample_past(axis, bin, far_bound, false);
  return {begin, end > begin ? end : begin};
}

// Integral over [from, to] of the hat function max(0, 1 - |t|), without cancellation for short intervals.
template <typename T>
MRCNN_HOST_DEVICE T hat_integral(T from, T to) {
  const T rise_from = clamp_to(from, T(-1), T(0));
  const T rise_to = clamp_to(to, T(-1), T(0));
  const T fall_from = clamp_to(from, T(0), T(1));
  const T fall_to = clamp_to(to, T(0), T(1));
  return (rise_to - rise_from) * (T(1) + (rise_from + rise_to) / T(2)) +
         (fall_to - fall_from) * (T(1) - (fall_from + fall_to) / T(2));
}

template <typename T>
MRCNN_HOST_DEVICE T hat(T t) {
  const T height = T(1) - std::abs(t);
  return height > T(0) ? height : T(0);
}

// In double whatever T: far from the origin an edge rounded to float would leave a bin of a tiny box no
// width, or several times its own.
template <typename T>
MRCNN_HOST_DEVICE double bin_edge(const Axis<T>& axis, int64_t bin) {
  return double(axis.start) + double(bin) * double(axis.bin_size);
}

// The cells [from, to) as a Support, for edges that may lie anywhere.
template <typename T, typename Edge>
MRCNN_HOST_DEVICE Support clipped_support(const Axis<T>& axis, Edge from, Edge to) {
  const int64_t first = int64_t(clamp_to(from, Edge(0), Edge(axis.size)));
  const int64_t end = int64_t(clamp_to(to, Edge(0), Edge(axis.size)));
  return {first, end > first ? end - first : 0};
}

// Cells a bin of "pool" takes its maximum over.
template <typename T>
MRCNN_HOST_DEVICE Support pool_support(const Axis<T>& axis, int64_t bin) {
  if (axis.samples == 0) return {0, 0};
  return clipped_support(axis, std::floor(mul_rounded(T(bin), axis.bin_size)) + axis.start,
                         std::ceil(mul_rounded(T(bin + 1), axis.bin_size)) + axis.start);
}

// Cells a bin of an average mode reads.
template <typename T>
MRCNN_HOST_DEVICE Support bin_support(RoIMode mode, const Axis<T>& axis, int64_t bin) {
  if (axis.samples == 0) return {0, 0};
  if (mode == RoIMode::kExact) {
    return clipped_support(axis, std::floor(bin_edge(axis, bin)), std::ceil(bin_edge(axis, bin + 1)) + 1.0);
  }
  const SampleRange range = samples_inside(axis, bin);
  if (range.begin == range.end) return {0, 0};
  const Sample<T> first = make_sample(axis, sample_position(axis, bin, range.begin));
  const Sample<T> last = make_sample(axis, sample_position(axis, bin, range.end - 1));
  const int64_t low = first.low < last.low ? first.low : last.low;
  const int64_t high = first.high > last.high ? first.high : last.high;
  return {low, high - low + 1};
}

// Writes the weights of the cells of `support`, which bin_support returned for the same bin.
template <typename T>
MRCNN_HOST_DEVICE void bin_weights(RoIMode mode, const Axis<T>& axis, int64_t bin, Support support,
                                   T* weights) {
  if (mode == RoIMode::kExact) {
    const double from = bin_edge(axis, bin);
    const double to = bin_edge(axis, bin + 1);
    for (int64_t i = 0; i < support.count; ++i) {
      const double cell = double(support.first + i);
      weights[i] = T(hat_integral(from - cell, to - cell) / double(axis.bin_size));
    }
    return;
  }
  for (int64_t i = 0; i < support.count; ++i) weights[i] = T(0);
  if (support.count == 0) return;
  const SampleRange range = samples_inside(axis, bin);
  for (int64_t i = range.begin; i < range.end; ++i) {
    const Sample<T> sample = make_sample(axis, sample_position(axis, bin, i));
    weights[sample.low - support.first] += sample.low_weight;
    weights[sample.high - support.first] += sample.high_weight;
  }
  for (int64_t i = 0; i < support.count; ++i) weights[i] /= T(axis.samples);
}

// One weight of bin_weights, for any cell.
template <typename T>
MRCNN_HOST_DEVICE T bin_weight(RoIMode mode, const Axis<T>& axis, int64_t bin, int64_t cell) {
  if (axis.samples == 0) return T(0);
  if (mode == RoIMode::kExact) {
    const double from = bin_edge(axis, bin) - double(cell);
    const double to = bin_edge(axis, bin + 1) - double(cell);
    return T(hat_integral(from, to) / double(axis.bin_size));
  }
  T weight = T(0);
  const SampleRange range = samples_inside(axis, bin);
  for (int64_t i = range.begin; i < range.end; ++i) {
    const Sample<T> sample = make_sample(axis, sample_position(axis, bin, i));
    if (sample.low == cell) weight += sample.low_weight;
    if (sample.high == cell) weight += sample.high_weight;
  }
  return weight / T(axis.samples);
}

// d(bin_weights)/d(lo) or /d(hi), the two coordinates of the box, for "exact". With the bin [a, b],
//   dw/da = (w - hat(a - cell)) / (b - a) and dw/db = (hat(b - cell) - w) / (b - a);
// a and b are the mixtures (1 - bin / bins) lo + (bin / bins) hi, times the scale.
template <typename T>
MRCNN_HOST_DEVICE void bin_weight_gradients(const Axis<T>& axis, int64_t bin, int64_t bins, T scale,
                                            bool of_hi, Support support, T* gradients) {
  const double from = bin_edge(axis, bin);
  const double to = bin_edge(axis, bin + 1);
  const double bin_size = double(axis.bin_size);
  const double from_share = double(bin) / double(bins);
  const double to_share = double(bin + 1) / double(bins);
  for (int64_t i = 0; i < support.count; ++i) {
    const double cell = double(support.first + i);
    const double weight = hat_integral(from - cell, to - cell) / bin_size;
    const double d_from = (weight - hat(from - cell)) / bin_size;
    const double d_to = (hat(to - cell) - weight) / bin_size;
    gradients[i] = T(double(scale) * (of_hi ? d_from * from_share + d_to * to_share
                                            : d_from * (1.0 - from_share) + d_to * (1.0 - to_share)));
  }
}

}  // namespace mrcnn_ext
