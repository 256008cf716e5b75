// What is known of every RoI before a feature is read: its place on its map and the 1-D weights of its bins,
// computed once per RoI, and the RoIs of every map in order.
#pragma once

#include <cstdint>

#include "device.cuh"

namespace mrcnn_ext {
namespace cuda {

// What one bin reads of one axis: cells [first, first + count). Average modes: their weights begin at
// `offset` among the RoI's. Max modes: `samples` samples from number `offset` on lie inside the map.
struct alignas(16) Tap {
  int32_t first;
  int32_t count;
  int32_t offset;
  int32_t samples;
};

// The cells [top, bottom) x [left, right) that a RoI reads.
struct alignas(16) Window {
  int32_t top;
  int32_t bottom;
  int32_t left;
  int32_t right;
};

// Both axes are without samples, and the window is empty, if the output of the RoI is 0.
template <typename acc>
struct PlannedRoI {
  int32_t level;
  int64_t image;
  acc scale;
  Axis<acc> rows;
  Axis<acc> columns;
  Window window;
};

struct Group {  // the RoIs of one map: places [first, first + count) of the order
  int32_t first;
  int32_t count;
};

template <typename acc>
struct Plan {
  int32_t count;  // R
  int32_t row_bins;
  int32_t column_bins;
  int64_t row_capacity;
  int64_t capacity;         // weights of both axes; 0 in max modes
  bool with_gradients;      // weights are followed by their derivatives by either coordinate of the box
  PlannedRoI<acc>* rois;    // (R)
  Tap* taps;                // (R, row_bins + column_bins)
  acc* weights;             // (R, with_gradients ? 3 : 1, capacity), rows first
  int32_t* groups_of_rois;  // (R), level * images + image; -1 where the window is empty
  Group* groups;            // (levels * images)
  int32_t* order;           // (R), numbers of RoIs by group, ascending in each
  Window* windows;          // (R), in that order

  __device__ Tap* row_taps(int64_t roi) const { return taps + roi * (row_bins + column_bins); }
  __device__ Tap* column_taps(int64_t roi) const { return row_taps(roi) + row_bins; }
  __device__ acc* row_weights(int64_t roi) const {
    return weights + roi * (with_gradients ? 3 : 1) * capacity;
  }
  __device__ acc* column_weights(int64_t roi) const { return row_weights(roi) + row_capacity; }
};

// detectron2's assignment with the roundings of its operators on CUDA, which divide by a number by
// multiplying with its inverse. -1 where the area has no square root.
__device__ inline int32_t assign_level(float x0, float y0, float x1, float y1, const Parameters& parameters) {
  const float size = sqrtf(mul_rounded(x1 - x0, y1 - y0));
  const float relative = mul_rounded(size, 1.0f / parameters.canonical_box_size) + 1e-8f;
  const float level = floorf(log2f(relative) + parameters.canonical_level);
  if (!(level == level)) return -1;
  return int32_t(clamp_to(level, parameters.min_level, parameters.max_level) - parameters.min_level);
}

template <typename acc>
__device__ PlannedRoI<acc> locate(const Geometry& geometry, const acc* roi, const Parameters& parameters) {
  MRCNN_EXT_COUNT(locate, 1);
  MRCNN_EXT_COUNT(read, 5 * sizeof(acc));
  PlannedRoI<acc> located{};
  if (!(roi[0] > acc(-1) && roi[0] < acc(geometry.images))) return located;
  if (geometry.level_count > 1) {
    located.level = assign_level(float(roi[1]), float(roi[2]), float(roi[3]), float(roi[4]), parameters);
  }
  if (located.level < 0) {
    located.level = 0;
    return located;
  }
  located.image = int64_t(roi[0]);
  located.scale = acc(geometry.scales[located.level]);
  located.rows = make_axis(parameters.mode, roi[2], roi[4], located.scale, parameters.pooled_height,
                           geometry.heights[located.level], parameters.sampling_ratio, parameters.aligned);
  located.columns = make_axis(parameters.mode, roi[1], roi[3], located.scale, parameters.pooled_width,
                              geometry.widths[located.level], parameters.sampling_ratio, parameters.aligned);
  if (located.rows.samples == 0 || located.columns.samples == 0) {
    located.rows.samples = 0;
    located.columns.samples = 0;
  }
  return located;
}

template <typename acc>
__device__ Tap make_tap(RoIMode mode, const Axis<acc>& axis, int64_t bin) {
  const Support support = mode == RoIMode::kPool ? pool_support(axis, bin) : bin_support(mode, axis, bin);
  Tap tap{int32_t(support.first), int32_t(support.count), 0, 0};
  if (mode == RoIMode::kPool) {
    tap.offset = tap.first;
    tap.samples = tap.count;
  } else if (is_max_mode(mode) && support.count > 0) {
    const SampleRange range = samples_inside(axis, bin);
    tap.offset = int32_t(range.begin);
    tap.samples = int32_t(range.end - range.begin);
  }
  return tap;
}

// One warp plans one axis; returns its cells in .first and .count.
template <typename acc>
__device__ Support plan_axis(const Parameters& parameters, const PlannedRoI<acc>& located,
                             const Axis<acc>& axis, int32_t bins, const Plan<acc>& plan, Tap* taps,
                             acc* weights) {
  const bool average = !is_max_mode(parameters.mode);
  int32_t used = 0;
  int32_t begin = INT32_MAX;
  int32_t end = 0;
  for (int32_t base = 0; base < bins; base += kWarp) {
    const int32_t bin = base + lane_of_thread();
    const Tap none{};
    Tap tap = bin < bins ? make_tap(parameters.mode, axis, bin) : none;
    if (average) {
      const int32_t up_to_here = sum_up_to_lane(tap.count);
      tap.offset = used + up_to_here - tap.count;
      used += __shfl_sync(kWholeWarp, up_to_here, kWarp - 1);
    }
    if (bin >= bins) continue;
    write_global(taps + bin, tap);
    if (tap.count == 0) continue;
    begin = begin < tap.first ? begin : tap.first;
    end = end > tap.first + tap.count ? end : tap.first + tap.count;
    if (!average) continue;
    const Support support{tap.first, tap.count};
    acc* const to = weights + tap.offset;
    bin_weights(parameters.mode, axis, bin, support, to);
    MRCNN_EXT_COUNT(written, tap.count * sizeof(acc));
    if (!plan.with_gradients) continue;
    bin_weight_gradients(axis, bin, bins, located.scale, false, support, to + plan.capacity);
    bin_weight_gradients(axis, bin, bins, located.scale, true, support, to + 2 * plan.capacity);
    MRCNN_EXT_COUNT(written, 2 * tap.count * sizeof(acc));
  }
  __syncwarp();
  begin = combine_warp(begin, [](int32_t a, int32_t b) { return a < b ? a : b; });
  end = combine_warp(end, [](int32_t a, int32_t b) { return a > b ? a : b; });
  return {begin, begin < end ? end - begin : 0};
}

template <typename acc>
struct PlanMemory {  // shared
  PlannedRoI<acc> roi;
  Support cells[2];
};

template <typename acc>
__global__ void __launch_bounds__(kPlanThreads, kPlanBlocks)
    plan_rois(Geometry geometry, Parameters parameters, const acc* rois, Plan<acc> plan) {
  PlanMemory<acc>& memory = *shared_memory<PlanMemory<acc>>();
  const int64_t roi = blockIdx.x;
  if (threadIdx.x == 0) memory.roi = locate(geometry, rois + roi * 5, parameters);
  __syncthreads();
  const bool of_rows = warp_of_thread() == 0;
  const Support cells = of_rows ? plan_axis(parameters, memory.roi, memory.roi.rows, plan.row_bins, plan,
                                            plan.row_taps(roi), plan.row_weights(roi))
                                : plan_axis(parameters, memory.roi, memory.roi.columns, plan.column_bins,
                                            plan, plan.column_taps(roi), plan.column_weights(roi));
  if (lane_of_thread() == 0) memory.cells[of_rows ? 0 : 1] = cells;
  __syncthreads();
  if (threadIdx.x > 0) return;
  const Support rows = memory.cells[0];
  const Support columns = memory.cells[1];
  PlannedRoI<acc> planned = memory.roi;
  if (rows.count > 0 && columns.count > 0) {
    planned.window = {int32_t(rows.first), int32_t(rows.first + rows.count), int32_t(columns.first),
                      int32_t(columns.first + columns.count)};
  }
  write_global(plan.rois + roi, planned);
  const bool empty = planned.window.top == planned.window.bottom;
  write_global(plan.groups_of_rois + roi,
               empty ? -1 : int32_t(planned.level * geometry.images + planned.image));
}

// One block gathers the RoIs of one map. How many belong to maps before is counted again by every block: that
// reads 4 bytes a RoI, and needs neither atomics nor a second launch.
template <typename acc>
__global__ void __launch_bounds__(kGroupThreads) group_rois(Plan<acc> plan) {
  constexpr int32_t kWarps = kGroupThreads / kWarp;
  int32_t* const of_warps = shared_memory<int32_t>();
  const int32_t group = int32_t(blockIdx.x);
  const int32_t lane = lane_of_thread();
  const int32_t warp = warp_of_thread();
  const auto add = [](int32_t a, int32_t b) { return a + b; };
  int32_t before = 0;
  for (int32_t i = threadIdx.x; i < plan.count; i += kGroupThreads) {
    const int32_t other = read_global(plan.groups_of_rois + i);
    before += other >= 0 && other < group;
  }
  before = combine_warp(before, add);
  if (lane == 0) of_warps[warp] = before;
  __syncthreads();
  int32_t first = 0;
  for (int32_t i = 0; i < kWarps; ++i) first += of_warps[i];
  __syncthreads();
  int32_t found = 0;
  for (int32_t base = 0; base < plan.count; base += kGroupThreads) {
    const int32_t roi = base + int32_t(threadIdx.x);
    const bool mine = roi < plan.count && read_global(plan.groups_of_rois + roi) == group;
    const uint32_t votes = __ballot_sync(kWholeWarp, mine);
    if (lane == 0) of_warps[warp] = __popc(votes);
    __syncthreads();
    int32_t place = first + found + __popc(votes & ((1u << lane) - 1));
    for (int32_t i = 0; i < kWarps; ++i) {
      if (i < warp) place += of_warps[i];
      found += of_warps[i];
    }
    if (mine) {
      write_global(plan.order + place, roi);
      write_global(plan.windows + place, read_global(&plan.rois[roi].window));
    }
    __syncthreads();  // of_warps is read no longer
  }
  if (threadIdx.x == 0) write_global(plan.groups + group, Group{first, found});
}

}  // namespace cuda
}  // namespace mrcnn_ext
