// How work is shared out over blocks: the arithmetic that the host launches with and the kernels read back.
#pragma once

#include <cstdint>

#include "roi_align/axis_weights.h"

namespace mrcnn_ext {
namespace cuda {

constexpr int32_t kMostLevels = 8;
constexpr int32_t kWarp = 32;

// Planning: a block per RoI, one warp for its rows and one for its columns.
constexpr int32_t kPlanThreads = 2 * kWarp;
// Grouping: a block per level and image.
constexpr int32_t kGroupThreads = 256;
// Forward: a block per RoI and group of channels.
constexpr int32_t kPoolWarps = 4;
constexpr int32_t kPoolThreads = kPoolWarps * kWarp;
constexpr int32_t kPlaneChannels = 64;  // NCHW; in NHWC a group is what one warp reads at once
constexpr int32_t kBufferedCells = 256;
// NCHW: channels that a warp pools together; NHWC: cells that it reads before it uses the first.
template <typename acc>
constexpr int32_t kPlanesAtOnce = 16 / sizeof(acc);
constexpr int32_t kRowsAtOnce = 2;
constexpr int32_t kCellsAtOnce = 6;
constexpr int32_t kBandTaps = 64;  // of a RoI, kept in shared memory
constexpr int32_t kBandWeights = 512;
// Backward: a block per tile of kTile x kTile cells and group of channels: kWarp of them in the average
// modes, one of each thread in the max modes.
constexpr int32_t kTile = 8;
// Of a level: as many as keep a large GPU busy. Where one warp for 32 channels of a tile makes fewer, several
// do.
constexpr int64_t kEnoughBlocks = 512;
constexpr int32_t kWindowsAtOnce = 4;  // of RoIs that may touch the tile, by a thread
constexpr int32_t kBinsAtOnce = 4;     // NHWC: of a row of bins, read before the first is used
constexpr int32_t kWinnersAtOnce = 4;
constexpr int32_t kChannelsAtOnce = 8;  // NCHW: of a bin, by a lane
// A row of the sums of a tile's channels; so that lanes that write 8 columns of 4 channels meet in no bank.
constexpr int32_t kSumStride = kWarp + 4;
// Half as many where numbers are twice as wide, which keeps shared memory under the 48 KB of every GPU.
template <typename acc>
constexpr int32_t kAverageThreads = sizeof(acc) > 4 ? 64 : 128;
constexpr int32_t kMaximumThreads = 64;
constexpr int32_t kStagedBins = kWarp;
constexpr int32_t kStagedStride = kStagedBins + 1;  // odd, so that lanes meet in no bank of shared memory
// Gradients of boxes: a block per RoI.
constexpr int32_t kBoxThreads = 256;

// Blocks that a multiprocessor is to hold: few enough that no kernel has to spill registers, but for
// scatter_average: in NHWC on an H200 4 blocks that spill some are faster, by a fifth, than 3 that spill
// none.
constexpr int32_t kAverageBlocks = 4;
constexpr int32_t kMaximumBlocks = 8;
constexpr int32_t kPlanBlocks = 8;
template <typename acc>
constexpr int32_t kPoolBlocks = 5;
template <typename acc>
constexpr int32_t kPlaneBlocks = sizeof(acc) > 4 ? 4 : 8;
template <typename acc>
constexpr int32_t kPoolMaximumBlocks = sizeof(acc) > 4 ? 5 : 6;

MRCNN_HOST_DEVICE int64_t divide_up(int64_t size, int64_t part) { return (size + part - 1) / part; }

// Consecutive bins share at most two cells at either end, so this is enough for the weights of any RoI's
// axis.
MRCNN_HOST_DEVICE int64_t band_capacity(int64_t size, int64_t bins) { return size + 4 * bins + 4; }

MRCNN_HOST_DEVICE int64_t tiles_of_map(int64_t height, int64_t width) {
  return divide_up(height, kTile) * divide_up(width, kTile);
}

struct TilePlace {
  int64_t image;
  int32_t y;
  int32_t x;
};

// Tile `index` of the maps of one level, all images one after the other. A grid has fewer than 2^31 blocks.
MRCNN_HOST_DEVICE TilePlace tile_place(uint32_t index, int32_t height, int32_t width) {
  const uint32_t across = uint32_t(divide_up(width, kTile));
  const uint32_t down = uint32_t(divide_up(height, kTile));
  return {int64_t(index / (across * down)), int32_t(index / across % down) * kTile,
          int32_t(index % across) * kTile};
}

}  // namespace cuda
}  // namespace mrcnn_ext
