// The maximum of one bin of a max mode.
#pragma once

#include <cfloat>
#include <cstdint>

#include "plan.cuh"

namespace mrcnn_ext {
namespace cuda {

// Sample `index` of `tap`, counted from the first inside the map. kCells: "pool", whose samples are cells.
template <bool kCells, typename acc>
__device__ Sample<acc> sample_of_tap(const Axis<acc>& axis, int32_t bin, const Tap& tap, int32_t index) {
  const int64_t number = int64_t(tap.offset) + index;
  if (kCells) return {number, number, acc(1), acc(0)};
  return make_sample(axis, sample_position(axis, bin, number));
}

template <typename acc>
struct Maximum {
  acc value;
  int32_t winner;  // row sample * column samples + column sample; -1 where nothing has a gradient
};

// `at(y, x)` is the value of a cell.
template <bool kCells, typename acc, typename At>
__device__ Maximum<acc> find_maximum(const PlannedRoI<acc>& roi, int32_t ph, const Tap& row_tap, int32_t pw,
                                     const Tap& column_tap, const At& at) {
  if (row_tap.samples == 0 || column_tap.samples == 0) return {acc(0), -1};
  Maximum<acc> best{acc(-FLT_MAX), -1};
  for (int32_t i = 0; i < row_tap.samples; ++i) {
    const Sample<acc> row = sample_of_tap<kCells>(roi.rows, ph, row_tap, i);
    for (int32_t j = 0; j < column_tap.samples; ++j) {
      const Sample<acc> column = sample_of_tap<kCells>(roi.columns, pw, column_tap, j);
      acc value = at(row.low, column.low);
      if (!kCells) {
        // Rounded as on the CPU, where nothing is fused: ties have to fall alike.
        value = mul_rounded(row.low_weight, mul_rounded(column.low_weight, value) +
                                                mul_rounded(column.high_weight, at(row.low, column.high))) +
                mul_rounded(row.high_weight, mul_rounded(column.low_weight, at(row.high, column.low)) +
                                                 mul_rounded(column.high_weight, at(row.high, column.high)));
        MRCNN_EXT_COUNT(multiply_adds, 4);
      }
      if (value > best.value) best = {value, i * column_tap.samples + j};
    }
  }
  const bool outside =
      !kCells && (row_tap.samples < roi.rows.samples || column_tap.samples < roi.columns.samples);
  if (outside && best.value < acc(0)) return {acc(0), -1};
  return best;
}

}  // namespace cuda
}  // namespace mrcnn_ext
