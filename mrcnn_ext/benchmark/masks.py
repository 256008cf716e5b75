"""From mask probabilities to COCO RLE beside detectron2's paste followed by pycocotools' encode."""

from collections.abc import Callable

import numpy as np
import torch
from detectron2.layers import paste_masks_in_image
from pycocotools import mask as mask_utils
from torch import Tensor
from torch.nn import functional as F

from ..evaluation.bitmap_rle import bitmap_to_rle
from ..layers import masks_to_rle
from .memory import peak_memory
from .roi_align import random_boxes
from .tables import Target
from .timing import race

IMAGES = ((800, 1216), (1024, 2048))
CELLS = 28
METHODS = ("ours", "bitmaps", "stock")
_CPU = torch.device("cpu")


def random_instances(count: int, image: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Masks (count, 28, 28), each a blob with an uneven edge, and boxes (count, 4) like detections."""
    generator = torch.Generator().manual_seed(0)
    side = torch.linspace(-1, 1, CELLS)
    blob = 1 - 1.3 * (side[:, None] ** 2 + side**2)
    unevenness = F.avg_pool2d(torch.randn(count, CELLS, CELLS, generator=generator), 5, 1, 2)
    return (4 * blob + 4 * unevenness).sigmoid(), random_boxes(count, image, generator)[:, 1:]


def contest(count: int, image: tuple[int, int]) -> dict[str, Callable[[], list[dict]]]:
    """Every way from the same masks to RLE: without a bitmap; by bitmaps, cropped; by bitmaps as detectron2."""
    masks, boxes = random_instances(count, image)

    def pasted():
        return paste_masks_in_image(masks, boxes, image)

    def stock():
        # As detectron2's COCOEvaluator.
        return [mask_utils.encode(np.asfortranarray(bitmap, dtype=np.uint8)) for bitmap in pasted().numpy()]

    return {
        "ours": lambda: masks_to_rle(masks, boxes, image),
        "bitmaps": lambda: [bitmap_to_rle(bitmap) for bitmap in pasted().numpy()],
        "stock": stock,
    }


def measure(count: int, image: tuple[int, int], budget: float, threads: int = 1) -> dict:
    """One row: milliseconds and peak megabytes of each way, and ratios of time.

    Raises:
        AssertionError: the encodings are not equal, byte for byte.
    """
    torch.set_num_threads(threads)
    functions = contest(count, image)
    expected = functions["stock"]()
    for name in ("ours", "bitmaps"):
        if functions[name]() != expected:
            raise AssertionError(
                f"{name}, {count} masks, {image}: encodings differ: there is nothing to compare"
            )
    row = {"instances": count, "height": image[0], "width": image[1], "threads": threads}
    row |= {f"{name}_mb": peak_memory(functions[name], _CPU) / 1e6 for name in METHODS}
    seconds = race(functions, _CPU, budget, (2, 50))
    row |= {f"{name}_ms": 1000 * seconds[name] for name in METHODS}
    return row | {f"{name}_ratio": seconds["stock"] / seconds[name] for name in ("ours", "bitmaps")}


def header() -> str:
    names = {"ours": "masks_to_rle", "bitmaps": "paste, cropped encode", "stock": "paste, encode"}
    return f"{'instances, image, threads':34}" + "".join(
        f"{names[name] + ' ms (MB)':>30}" for name in METHODS
    )


def line(row: dict) -> str:
    """A row of `measure` as text."""
    case = f"{row['instances']}, {row['height']} x {row['width']}, {row['threads']}"
    cells = [f"{row[f'{name}_ms']:.1f} ({row[f'{name}_mb']:.1f})" for name in METHODS]
    return f"{case:34}" + "".join(f"{cell:>30}" for cell in cells)


def target(row: dict) -> Target:
    """What the project wants of a row."""
    what = f"masks to RLE, {row['instances']}, {row['height']} x {row['width']}, {row['threads']} thread(s)"
    return Target(what, "paste, pycocotools encode", row["ours_ratio"], 8)
