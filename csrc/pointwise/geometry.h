// Where the rows of a 1x1 convolution lie in its maps.
#pragma once

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <ATen/ceil_div.h>

#include <algorithm>
#include <cstdint>
#include <vector>

#include "kernels.h"
#include "parallel.h"

namespace mrcnn_ext {
namespace pointwise {

// A block of rows, and of outputs, that a thread computes at a time.
struct Block {
  int64_t first, count;  // rows
  int64_t first_output, outputs;
  // Rows up to the next multiple of kRows, which are multiplied too.
  int64_t padded() const { return at::ceil_div(count, kRows) * kRows; }
};

// Of input, added (if any) and output, all channels-last; added is as large as output, or half as large on
// both sides.
class Geometry {
 public:
  Geometry(const at::Tensor& input, const at::Tensor& added, int64_t stride, const at::Tensor& output)
      : channels(input.size(1)),
        outputs(output.size(1)),
        rows(output.size(0) * output.size(2) * output.size(3)),
        in_height_(input.size(2)),
        in_width_(input.size(3)),
        height_(output.size(2)),
        width_(output.size(3)),
        stride_(stride),
        halved_(added.defined() && added.size(2) != height_ ? 1 : 0) {}

  // Where the rows of a block are in input and, for its first output, in added (or nullptr). Of the input,
  // what follows the last row up to the next multiple of kRows repeats the first.
  template <typename In, typename Out>
  void find(const Block& block, const In* input, const Out* added, std::vector<const In*>& inputs,
            std::vector<const Out*>& addends) const {
    inputs.resize(block.padded());
    addends.resize(added == nullptr ? 0 : block.count);
    int64_t x = block.first % width_, y = block.first / width_ % height_,
            image = block.first / width_ / height_;
    for (int64_t row = 0; row < block.count;) {
      const In* line = input + (image * in_height_ + y * stride_) * in_width_ * channels;
      const int64_t add_line = (image * (height_ >> halved_) + (y >> halved_)) * (width_ >> halved_);
      for (; x < width_ && row < block.count; ++x, ++row) {
        inputs[row] = line + x * stride_ * channels;
        if (added != nullptr)
          addends[row] = added + (add_line + (x >> halved_)) * outputs + block.first_output;
      }
      x = 0;
      if (++y == height_) y = 0, ++image;
    }
    std::fill(inputs.begin() + block.count, inputs.end(), inputs[0]);
  }

  const int64_t channels, outputs, rows;

 private:
  int64_t in_height_, in_width_, height_, width_, stride_;
  int halved_;
};

// Calls body(block) for blocks of up to `largest` rows, on whichever thread is free. A block has all outputs,
// unless there are too few blocks of rows for all threads; the first output is a multiple of kChunk.
class Blocks {
 public:
  Blocks(const Geometry& geometry, int64_t largest)
      : rows_(geometry.rows),
        outputs_(geometry.outputs),
        rows(balanced_block(rows_, kRows, largest)),
        blocks_(at::ceil_div(rows_, rows)) {
    const int64_t shares = at::ceil_div<int64_t>(at::get_num_threads(), blocks_);
    outputs = at::ceil_div(at::ceil_div(outputs_, shares), kChunk) * kChunk;
  }

  template <typename Body>
  void share_out(const Body& body) const {
    const int64_t shares = at::ceil_div(outputs_, outputs);
    mrcnn_ext::share_out(blocks_ * shares, [&](int64_t unit) {
      const int64_t first = unit / shares * rows, first_output = unit % shares * outputs;
      body(Block{first, std::min(rows, rows_ - first), first_output,
                 std::min(outputs, outputs_ - first_output)});
    });
  }

 private:
  int64_t rows_, outputs_;

 public:
  int64_t rows, outputs;  // of a block, at most; rows is a multiple of kRows

 private:
  int64_t blocks_;
};

}  // namespace pointwise
}  // namespace mrcnn_ext
