// For each of many boxes the target that it overlaps most, without the matrix of all overlaps, on the CPU.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <ATen/ceil_div.h>
#include <torch/library.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <tuple>
#include <type_traits>
#include <vector>

#include "parallel.h"

namespace mrcnn_ext {
namespace training_targets {
namespace {

constexpr int64_t kBlock = 256;  // boxes that a thread takes at a time

template <typename T>
struct Box {
  explicit Box(const T* from)
      : x0(from[0]), y0(from[1]), x1(from[2]), y1(from[3]), area((x1 - x0) * (y1 - y0)) {}
  T x0, y0, x1, y1, area;
};

// The coordinates of a block of boxes, each by itself.
template <typename T>
struct Boxes {
  Boxes(const T* from, int64_t number) : count(number) {
    for (int64_t i = 0; i < count; ++i) {
      const Box<T> box(from + 4 * i);
      x0[i] = box.x0, y0[i] = box.y0, x1[i] = box.x1, y1[i] = box.y1, areas[i] = box.area;
    }
    left = *std::min_element(x0, x0 + count), right = *std::max_element(x1, x1 + count);
    top = *std::min_element(y0, y0 + count), bottom = *std::max_element(y1, y1 + count);
  }

  // Whether some box may share cells with the target: most blocks lie elsewhere.
  bool may_overlap(const Box<T>& target) const {
    return target.x0 < right && target.x1 > left && target.y0 < bottom && target.y1 > top;
  }

  int64_t count;
  T left, top, right, bottom;  // of all of them
  T x0[kBlock], y0[kBlock], x1[kBlock], y1[kBlock], areas[kBlock];
};

// With the roundings of detectron2's pairwise_iou. Loops without branches, which compilers make vectors of.
template <typename T>
inline void overlaps_with(const Box<T>& target, const Boxes<T>& boxes, T* overlaps) {
  for (int64_t i = 0; i < boxes.count; ++i) {
    const T left = target.x0 > boxes.x0[i] ? target.x0 : boxes.x0[i];
    const T right = target.x1 < boxes.x1[i] ? target.x1 : boxes.x1[i];
    const T top = target.y0 > boxes.y0[i] ? target.y0 : boxes.y0[i];
    const T bottom = target.y1 < boxes.y1[i] ? target.y1 : boxes.y1[i];
    const T width = right - left > 0 ? right - left : 0, height = bottom - top > 0 ? bottom - top : 0;
    const T shared = width * height;
    const T overlap = shared / (target.area + boxes.areas[i] - shared);
    overlaps[i] = shared > 0 ? overlap : 0;
  }
}

// Of values that are not negative, which are ordered as their bits are.
template <typename T>
inline T largest_of(const T* values, int64_t count) {
  using Bits = std::conditional_t<sizeof(T) == 4, int32_t, int64_t>;
  Bits largest = 0;
  for (int64_t i = 0; i < count; ++i) {
    Bits bits;
    std::memcpy(&bits, values + i, sizeof(bits));
    largest = bits > largest ? bits : largest;
  }
  T value;
  std::memcpy(&value, &largest, sizeof(value));
  return value;
}

template <typename T>
void match(const at::Tensor& boxes, const at::Tensor& targets, T* overlaps, int64_t* indices, bool* best) {
  const int64_t count = boxes.size(0), number = targets.size(0), blocks = at::ceil_div(count, kBlock);
  const T* from = boxes.const_data_ptr<T>();
  std::vector<Box<T>> all;
  for (int64_t i = 0; i < number; ++i) all.emplace_back(targets.const_data_ptr<T>() + 4 * i);
  std::vector<T> largest(blocks * number);  // of each block and target

  share_out(blocks, [&](int64_t unit) {
    const int64_t begin = unit * kBlock;
    const Boxes<T> block(from + 4 * begin, std::min(kBlock, count - begin));
    T some[kBlock], most[kBlock];
    int32_t which[kBlock];
    // With none, of all of which the overlap is the largest, the first target counts.
    std::fill_n(most, block.count, T(0));
    std::fill_n(which, block.count, 0);
    for (int64_t target = 0; target < number; ++target) {
      largest[unit * number + target] = 0;
      if (!block.may_overlap(all[target])) continue;
      overlaps_with(all[target], block, some);
      for (int64_t i = 0; i < block.count; ++i) {
        const bool more = some[i] > most[i];
        most[i] = more ? some[i] : most[i];
        which[i] = more ? static_cast<int32_t>(target) : which[i];
      }
      largest[unit * number + target] = largest_of(some, block.count);
    }
    std::copy_n(most, block.count, overlaps + begin);
    std::copy_n(which, block.count, indices + begin);
    std::fill_n(best + begin, block.count, false);
  });

  std::vector<T> of_all(number, T(0));
  for (int64_t unit = 0; unit < blocks; ++unit)
    for (int64_t target = 0; target < number; ++target)
      of_all[target] = std::max(of_all[target], largest[unit * number + target]);
  // Computed again where they are: few blocks have a target's largest overlap.
  share_out(blocks, [&](int64_t unit) {
    const T* of_block = largest.data() + unit * number;
    if (std::mismatch(of_block, of_block + number, of_all.data(), std::not_equal_to<T>()).first ==
        of_block + number)
      return;
    const int64_t begin = unit * kBlock;
    const Boxes<T> block(from + 4 * begin, std::min(kBlock, count - begin));
    T some[kBlock];
    for (int64_t target = 0; target < number; ++target) {
      if (of_block[target] != of_all[target]) continue;
      overlaps_with(all[target], block, some);
      for (int64_t i = 0; i < block.count; ++i) best[begin + i] |= some[i] == of_all[target];
    }
  });
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> match_boxes(const at::Tensor& boxes,
                                                           const at::Tensor& targets) {
  TORCH_CHECK_VALUE(boxes.dim() == 2 && boxes.size(1) == 4, "match_boxes: boxes must be (R, 4), got ",
                    boxes.sizes());
  TORCH_CHECK_VALUE(
      targets.dim() == 2 && targets.size(1) == 4 && targets.size(0) > 0 && targets.size(0) < (1 << 30),
      "match_boxes: targets must be (G, 4) with G > 0, got ", targets.sizes());
  const at::ScalarType dtype = boxes.scalar_type();
  TORCH_CHECK_TYPE((dtype == at::kFloat || dtype == at::kDouble) && targets.scalar_type() == dtype,
                   "match_boxes: boxes and targets must both be float32 or float64, got ", dtype, " and ",
                   targets.scalar_type());
  const at::Tensor overlaps = at::empty({boxes.size(0)}, boxes.options());
  const at::Tensor indices = at::empty({boxes.size(0)}, boxes.options().dtype(at::kLong));
  const at::Tensor best = at::empty({boxes.size(0)}, boxes.options().dtype(at::kBool));
  const auto run = [&](auto value) {
    using T = decltype(value);
    match<T>(boxes.contiguous(), targets.contiguous(), overlaps.mutable_data_ptr<T>(),
             indices.mutable_data_ptr<int64_t>(), best.mutable_data_ptr<bool>());
  };
  dtype == at::kFloat ? run(float()) : run(double());
  return {overlaps, indices, best};
}

}  // namespace

TORCH_LIBRARY_IMPL(mrcnn_ext, CPU, m) { m.impl("match_boxes", match_boxes); }

}  // namespace training_targets
}  // namespace mrcnn_ext
