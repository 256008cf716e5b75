"""Counts the work of RoI pooling on CUDA, on the emulated device, beside that of an atomic backward and the least.

    PYTHONPATH=tests/ops python tests/ops/cuda_emulation/count_work.py [--channels 256] [--problem 1x1000x7 ...]

The pyramid is P2 to P5 of an 800 x 1216 image in float32; boxes have sides log-uniform in 16 to 600 pixels, sampling
is adaptive, mode "avg". Counted are calls that locate a RoI on its map, bytes of device memory read and written by
all threads (what a warp reads alike once), and multiply-adds. Work is the same in every group of 128 channels, so that
--channels 128 takes half the time and the counts of the maps half the value.

- atomic: torchvision's kernels, level by level: every output locates its RoI; a sample is four multiply-adds and,
  in the backward, four atomic additions, each of which reads and writes 4 bytes; the maps are first filled with zeros.
- least: every value of the input, output and gradients moved once, and the two banded products.
"""

import argparse

import emulated_cuda
import numpy as np
import torch

BUILD = "emulated"
SCALES = [1 / 4, 1 / 8, 1 / 16, 1 / 32]
SIZE = (800, 1216)


def boxes(images, rois, seed=0):
    generator = np.random.default_rng(seed)
    sides = np.exp(generator.uniform(np.log(16), np.log(600), (images * rois, 2)))
    corners = generator.uniform(0, 1, (images * rois, 2)) * (np.array(SIZE[::-1]) - sides).clip(0)
    index = np.repeat(np.arange(images), rois)[:, None]
    return torch.from_numpy(np.concatenate([index, corners, corners + sides], 1)).float()


def level_of(rois):
    area = (rois[:, 3] - rois[:, 1]) * (rois[:, 4] - rois[:, 2])
    return (torch.floor(4 + torch.log2(area.sqrt() / 224 + 1e-8)).clamp(2, 5) - 2).long()


def bands(low, high, bins, size):
    """Of one axis, in cells: samples per bin, weights that are not 0, cells that are read."""
    start, extent = low - 0.5, high - low
    samples = int(np.ceil(extent / bins))
    position = start + (np.arange(bins * samples) + 0.5) * extent / (bins * samples)
    first = np.minimum(np.floor(position.clip(0)).astype(int), size - 1).reshape(bins, samples)
    end = np.minimum(first + 2, size)
    return samples, int((end[:, -1] - first[:, 0]).sum()), int(end.max() - first.min())


def atomic_and_least(rois, images, channels, bins):
    """(locate, read, written, multiply-adds) of the atomic forward and backward, and of the least."""
    outputs = len(rois) * channels * bins**2
    cells = sum(images * channels * int(SIZE[0] * s) * int(SIZE[1] * s) for s in SCALES)
    samples = window = multiply_adds = 0
    for (_, x0, y0, x1, y1), level in zip(rois.double().tolist(), level_of(rois).tolist(), strict=True):
        scale = SCALES[level]
        row_samples, row_weights, rows = bands(y0 * scale, y1 * scale, bins, int(SIZE[0] * scale))
        column_samples, column_weights, columns = bands(x0 * scale, x1 * scale, bins, int(SIZE[1] * scale))
        samples += channels * bins**2 * row_samples * column_samples
        window += channels * rows * columns
        # The two products in the better order.
        multiply_adds += channels * min(
            row_weights * columns + bins * column_weights, column_weights * rows + bins * row_weights
        )
    of_rois = 20 * len(rois)
    return {
        "forward": {
            "atomic": (outputs, 16 * samples + 20 * outputs, 4 * outputs, 4 * samples),
            "least": (len(rois), 4 * min(window, cells) + of_rois, 4 * outputs, multiply_adds),
        },
        "backward": {
            "atomic": (outputs, 16 * samples + 24 * outputs, 16 * samples + 4 * cells, 4 * samples),
            "least": (len(rois), 4 * outputs + of_rois, 4 * cells, multiply_adds),
        },
    }


def ours(rois, images, channels, bins, memory_format):
    features = [
        torch.zeros(images, channels, int(SIZE[0] * s), int(SIZE[1] * s)).to(memory_format=memory_format)
        for s in SCALES
    ]
    arguments = (features, rois, SCALES, bins, bins, 0, True, "avg", 224.0, 4)
    take_counts = getattr(torch.ops.mrcnn_ext, f"take_counts_{BUILD}")
    counted = {}
    take_counts()
    output = getattr(torch.ops.mrcnn_ext, f"roi_align_{BUILD}_once")(*arguments)
    counted["forward"] = take_counts()
    getattr(torch.ops.mrcnn_ext, f"roi_align_{BUILD}_backward_once")(output, *arguments, False)
    counted["backward"] = take_counts()
    return counted


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--channels", type=int, default=256)
    parser.add_argument("--problem", nargs="*", default=["1x1000x7", "2x1000x7", "16x512x7", "1x1000x14"])
    parser.add_argument("--layout", nargs="*", default=["NHWC", "NCHW"], choices=["NHWC", "NCHW"])
    args = parser.parse_args()
    emulated_cuda.load(BUILD)
    print(
        "| images x RoIs x bins | pass | kernel | locate | GB read | GB written | G multiply-adds | visits of warps |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- | --- |", flush=True)
    for problem in args.problem:
        images, count, bins = map(int, problem.split("x"))
        rois = boxes(images, count)
        table = atomic_and_least(rois, images, args.channels, bins)
        for layout in args.layout:
            memory_format = torch.channels_last if layout == "NHWC" else torch.contiguous_format
            for direction, counts in ours(rois, images, args.channels, bins, memory_format).items():
                table[direction][layout] = counts
        for direction, rows in table.items():
            for kernel, (locate, read, written, multiply_adds, *visits) in rows.items():
                numbers = f"{locate:,} | {read / 1e9:.3f} | {written / 1e9:.3f} | {multiply_adds / 1e9:.3f}"
                print(
                    f"| {problem} | {direction} | {kernel} | {numbers} | {visits[0] if visits else ''} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
