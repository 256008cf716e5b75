"""Lays detectors of torchvision beside their accelerated copies; run it with python -m."""

import argparse
import statistics
import time

import torch
from torch import nn
from torchvision.models import detection

from ...accel import accelerate

MODELS = ("maskrcnn_resnet50_fpn", "keypointrcnn_resnet50_fpn", "maskrcnn_resnet50_fpn_v2")
CHECKED_SIZE = 256  # pixels, the shorter side of the image that outputs are compared on


def main(argv=None) -> None:
    """Prints a table of seconds an image and of differences; ``argv`` are the command line's arguments."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS)
    parser.add_argument("--size", type=int, default=800, help="shorter side of the image, in pixels; 2:3")
    parser.add_argument("--repeats", type=int, default=5, help="times each model runs; the median counts")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)

    print(
        f"torch {torch.__version__}, {args.threads} threads; random weights, 100 boxes of an image of noise"
    )
    print("difference: the greatest in boxes, keypoints (pixels), scores, masks; float64, a small image")
    print()
    print(f"| model | {args.size} x {args.size * 3 // 2}: torchvision | accelerated | ratio | difference |")
    print("| --- | --- | --- | --- | --- |")
    for name in args.models:
        model = _build(name, args.size)
        stock, fast = _seconds([model, accelerate(model)], _image(args.size), args.repeats)
        difference = _difference(model.double())
        print(
            f"| {name} | {stock:.2f} s | {fast:.2f} s | {stock / fast:.2f} | {difference:.1e} |", flush=True
        )


def _image(size: int) -> torch.Tensor:
    return torch.rand(3, size, size * 3 // 2, generator=torch.Generator().manual_seed(0))


def _build(name: str, size: int) -> nn.Module:
    build = getattr(detection, name)
    model = build(weights=None, weights_backbone=None, box_score_thresh=0.0, min_size=size).eval()
    # Random weights need the statistics of their features, or these would explode.
    norms = [layer for layer in model.modules() if isinstance(layer, nn.BatchNorm2d)]
    for layer in norms:
        layer.momentum = 1.0
        layer.train()
    with torch.inference_mode():
        model([_image(CHECKED_SIZE)])
    return model.eval()


def _seconds(models: list[nn.Module], image: torch.Tensor, repeats: int) -> list[float]:
    """Median seconds of each; the models take turns, so that what else the machine does meets all alike."""
    times = [[] for _ in models]
    with torch.inference_mode():
        for repeat in range(repeats + 1):
            for model, own in zip(models, times, strict=True):
                start = time.perf_counter()
                model([image])
                if repeat:  # the first is for warming up
                    own.append(time.perf_counter() - start)
    return [statistics.median(own) for own in times]


def _difference(model: nn.Module) -> float:
    model.transform.min_size = (CHECKED_SIZE,)
    image = _image(CHECKED_SIZE).double()
    with torch.inference_mode():
        (expected,), (found,) = model([image]), accelerate(model)([image])
    return max((found[key] - value).abs().max().item() for key, value in expected.items())


if __name__ == "__main__":
    main()
