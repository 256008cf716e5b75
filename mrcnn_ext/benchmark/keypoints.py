"""Decoding of keypoint heatmaps beside detectron2's, which resizes each of them to its box."""

import torch
from detectron2.structures.keypoints import heatmaps_to_keypoints as stock_heatmaps_to_keypoints
from torch import Tensor

from ..layers import heatmaps_to_keypoints
from .memory import peak_memory
from .tables import Target
from .timing import race

CELLS = 56
HEIGHTS = (50, 100, 200, 400, 700)  # of the people, in pixels; they are half as wide
SAME = 1e-3  # by how much the logit at a keypoint may be below that at the other's


def random_people(count: int, keypoints: int, height: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Heatmaps (count, keypoints, 56, 56) with one peak each over noise, and boxes (count, 4)."""
    generator = torch.Generator().manual_seed(0)
    cells = torch.arange(CELLS)
    y, x, width = torch.rand(3, count, keypoints, 1, 1, generator=generator)
    squared = (cells[:, None] - y * (CELLS - 1)) ** 2 + (cells - x * (CELLS - 1)) ** 2
    noise = torch.randn(count, keypoints, CELLS, CELLS, generator=generator)
    maps = 14 * torch.exp(-squared / (2 * (1 + 3 * width) ** 2)) + 0.3 * noise - 6
    corner = torch.rand(count, 2, generator=generator) * 400
    scale = 0.8 + 0.4 * torch.rand(count, 1, generator=generator)
    boxes = torch.cat([corner, corner + scale * torch.tensor([height / 2, height])], dim=1)
    return maps.to(device), boxes.to(device)


def measure(count: int, keypoints: int, height: int, device: str, budget: float, threads: int = 1) -> dict:
    """One row: milliseconds and peak megabytes of both, ratio, share of keypoints at the very same place.

    Raises:
        AssertionError: a keypoint is at a place where the resized heatmap is lower.
    """
    torch.set_num_threads(threads)
    where = torch.device(device)
    maps, boxes = random_people(count, keypoints, height, where)
    functions = {
        "ours": lambda: heatmaps_to_keypoints(maps, boxes),
        "stock": lambda: stock_heatmaps_to_keypoints(maps, boxes),
    }
    ours, stock = functions["ours"](), functions["stock"]()
    difference = float((ours[..., 2:] - stock[..., 2:]).abs().max())
    if not difference <= SAME:
        raise AssertionError(f"logits differ by {difference:.2g}: there is nothing to compare")
    same = (ours[..., :2] - stock[..., :2]).abs().amax(dim=2) < 0.01
    row = {"instances": count, "keypoints": keypoints, "height": height, "device": device, "threads": threads}
    row |= {"difference": difference, "same_place": float(same.float().mean())}
    row |= {f"{name}_mb": peak_memory(function, where) / 1e6 for name, function in functions.items()}
    seconds = race(functions, where, budget, (1, 50))
    row |= {f"{name}_ms": 1000 * value for name, value in seconds.items()}
    return row | {"ratio": seconds["stock"] / seconds["ours"]}


def header() -> str:
    return (
        f"{'instances x keypoints, box height':36}{'ours ms (MB)':>18}{'detectron2 ms (MB)':>22}   same place"
    )


def line(row: dict) -> str:
    """A row of `measure` as text."""
    case = f"{row['instances']} x {row['keypoints']}, {row['height']} px, {row['device']} {row['threads']}"
    ours, stock = (f"{row[f'{name}_ms']:.1f} ({row[f'{name}_mb']:.1f})" for name in ("ours", "stock"))
    return f"{case:36}{ours:>18}{stock:>22}   {row['same_place']:.2%}"


def targets(rows: list[dict]) -> list[Target]:
    """What the project wants of rows which differ in the boxes alone."""
    times = [row["ours_ms"] for row in rows]
    largest = max(rows, key=lambda row: row["height"])
    what = f"keypoints, {largest['instances']} x {largest['keypoints']}"
    return [
        Target(f"{what}, {largest['height']} px", "detectron2's decoding", largest["ratio"], 50),
        Target(f"{what}, dearest over cheapest box size", "itself", max(times) / min(times), 2, False),
    ]
