"""RoI pooling beside torchvision, detectron2's ROIPooler and the memory floor.

The scene is the box pooler's of Mask R-CNN with FPN: P2 to P5 of 800 x 1216 pixels with 256 channels,
aligned, 7 x 7 bins; RoIPool also in that of a model on C4, one map of stride 16 and 14 x 14 bins. torchvision
pools level by level boxes that were assigned to levels beforehand, and its results are not gathered into one
tensor; ours and detectron2's ROIPooler do all that within their time. The memory floor is a copy that moves as
many bytes as reading the features and writing the output once.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from pathlib import Path

import torch
import torchvision
from torch import Tensor

from ..layers import roi_align_pyramid
from ..ops import _extension
from ..ops.roi_align import MODES
from ..ops.roi_align_eager import assign_levels
from .tables import Target
from .timing import kernel_seconds, race

IMAGE = (800, 1216)
SCALES = [1 / 4, 1 / 8, 1 / 16, 1 / 32]
BINS = 7
CANONICAL = (224, 4)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# Largest differences for which two poolings are the same: sums in another order, one rounding of half types.
SAME = {"float32": 1e-4, "bfloat16": 5e-2, "float16": 1e-2}


@dataclass(frozen=True)
class Case:
    """What is measured."""

    direction: str = "forward"
    layout: str = "NHWC"
    dtype: str = "float32"
    mode: str = "avg"
    sampling_ratio: int = 0
    rois: int = 1000
    threads: int = 1
    device: str = "cpu"
    channels: int = 256
    images: int = 1  # each with so many RoIs
    bins: int = BINS
    c4: bool = False  # one map of stride 16 instead of P2 to P5

    @property
    def scales(self) -> list[float]:
        return [1 / 16] if self.c4 else SCALES

    def __str__(self) -> str:
        ratio = self.sampling_ratio or "adaptive"
        images = f"{self.images} images x " if self.images > 1 else ""
        return (
            f"{self.direction} {self.layout} {self.dtype} {self.mode}, {images}{self.rois} RoIs, samples {ratio}, "
            f"{self.device}"
            + (f" {self.threads} thread(s)" if self.device == "cpu" else "")
            + (", C4" if self.c4 else "")
            + (f", {self.bins} x {self.bins}" if self.bins != BINS else "")
        )


class Contest:
    """The inputs of a case, and every implementation of it as a function without arguments."""

    def __init__(self, case: Case, image: tuple[int, int] = IMAGE):
        self.case = case
        self.device = torch.device(case.device)
        dtype = DTYPES[case.dtype]
        generator = torch.Generator().manual_seed(0)
        memory_format = torch.channels_last if case.layout == "NHWC" else torch.contiguous_format
        self.features = []
        for scale in case.scales:
            size = [-(-int(side * scale * 32) // 32) for side in image]
            x = torch.randn(case.images, case.channels, *size, generator=generator)
            x = x.to(self.device, dtype).contiguous(memory_format=memory_format)
            self.features.append(x.requires_grad_(case.direction == "backward"))
        boxes = [random_boxes(case.rois, image, generator) for _ in range(case.images)]
        for i, of_image in enumerate(boxes):
            of_image[:, 0] = i
        self.boxes = torch.cat(boxes).to(self.device)
        shape = (len(self.boxes), case.channels, case.bins, case.bins)
        grad = torch.randn(shape, generator=generator).to(self.device, dtype)
        self.grad = grad.contiguous(memory_format=memory_format)

    def _timed(self, pool: Callable[[], Tensor | list[Tensor]], inputs: list[Tensor], grads) -> Callable:
        """`pool`, or its backward."""
        if self.case.direction == "forward":
            return torch.no_grad()(pool)
        out = pool()
        return lambda: torch.autograd.grad(out, inputs, grads, retain_graph=True)

    def ours(self) -> Callable:
        case = self.case

        def pool():
            options = (case.scales, case.sampling_ratio, True, case.mode, *CANONICAL)
            return roi_align_pyramid(self.features, self.boxes, case.bins, *options)

        return self._timed(pool, self.features, self.grad)

    def torchvision(self) -> Callable | None:
        """Level by level, in float32 where torchvision has no half type; None for modes it does not have."""
        case = self.case
        if case.mode not in ("avg", "pool"):
            return None
        narrow = self.device.type == "cuda" and case.dtype == "float16"
        dtype = self.features[0].dtype if narrow else torch.float32
        features = [f.detach().to(dtype).requires_grad_(f.requires_grad) for f in self.features]
        scales, bins = case.scales, case.bins
        levels = assign_levels(self.boxes, scales, *CANONICAL)
        index = [torch.nonzero(levels == i).flatten() for i in range(len(scales))]
        boxes = [self.boxes[i].to(dtype) for i in index]

        def pool():
            if case.mode == "pool":
                one = torchvision.ops.roi_pool
                return [one(f, b, bins, s) for f, b, s in zip(features, boxes, scales, strict=True)]
            one = torchvision.ops.roi_align
            options = (case.sampling_ratio, True)
            return [one(f, b, bins, s, *options) for f, b, s in zip(features, boxes, scales, strict=True)]

        self.index = index
        return self._timed(pool, features, [self.grad[i].to(dtype) for i in index])

    def detectron2(self) -> Callable | None:
        """detectron2's ROIPooler; None where it is not installed or has no such type."""
        types = {"avg": "ROIAlignV2", "pool": "ROIPool"}
        case = self.case
        half_on_cpu = case.dtype != "float32" and self.device.type == "cpu"
        if find_spec("detectron2") is None or case.mode not in types or half_on_cpu:
            return None
        from detectron2.modeling.poolers import ROIPooler
        from detectron2.structures import Boxes

        pooler = ROIPooler(case.bins, case.scales, case.sampling_ratio, types[case.mode], *CANONICAL)
        boxes = [Boxes(self.boxes[self.boxes[:, 0] == i, 1:]) for i in range(case.images)]
        return self._timed(lambda: pooler(self.features, boxes), self.features, self.grad)

    def floor(self) -> Callable:
        """A copy of half the bytes: it reads one half and writes the other."""
        values = sum(f.numel() for f in self.features) + self.grad.numel()
        source, target = (torch.ones(values // 2, dtype=self.grad.dtype, device=self.device) for _ in "ab")
        return lambda: target.copy_(source)

    def difference(self) -> float:
        """Largest difference between ours and torchvision's results, or the eager path's on 20 boxes."""
        reference = self.torchvision()
        if reference is not None:
            ours, theirs = self.ours()(), reference()
            if self.case.direction == "forward":
                ours = [ours[i] for i in self.index]
        else:
            self = Contest(replace(self.case, rois=min(20, self.case.rois), channels=16))
            ours = self.ours()()
            with _extension.use_backend("eager"):
                theirs = self.ours()()
            if self.case.direction == "forward":
                ours, theirs = [ours], [theirs]
        pairs = [(a.float(), b.float()) for a, b in zip(ours, theirs, strict=True) if a.numel()]
        # Gradients add up hundreds of RoIs; relative to the largest they compare as the outputs do.
        return max(float((a - b).abs().max() / b.abs().max().clamp(min=1)) for a, b in pairs)


def random_boxes(count: int, image: tuple[int, int], generator: torch.Generator) -> Tensor:
    """(count, 5) boxes of one image like proposals: sides from 8 pixels to most of the image, anywhere."""
    side = 8 * (min(image) * 0.9 / 8) ** torch.rand(count, generator=generator)
    aspect = torch.exp(torch.randn(count, generator=generator) * 0.4)
    size = torch.stack([side * aspect.sqrt(), side / aspect.sqrt()], dim=1)
    limit = torch.tensor([image[1], image[0]], dtype=torch.float32)
    centre = torch.rand(count, 2, generator=generator) * limit
    low, high = ((centre + sign * size / 2).minimum(limit).clamp(min=0) for sign in (-1, 1))
    return torch.cat([torch.zeros(count, 1), low, high], dim=1)


def measure(case: Case, budget: float, image: tuple[int, int] = IMAGE) -> dict:
    """One row: the case, milliseconds of each implementation, ratios, the largest difference of results."""
    torch.set_num_threads(case.threads)
    contest = Contest(case, image)
    difference = contest.difference()
    if not difference <= SAME[case.dtype]:
        raise AssertionError(f"{case}: results differ by {difference:.2g}: there is nothing to compare")
    candidates = {
        "ours": contest.ours(),
        "torchvision": contest.torchvision(),
        "detectron2": contest.detectron2(),
        "floor": contest.floor(),
    }
    seconds = race({k: f for k, f in candidates.items() if f is not None}, contest.device, budget)
    row = {**asdict(case), "difference": difference}
    row |= {f"{name}_ms": 1000 * value for name, value in seconds.items()}
    row |= {f"{name}_ratio": value / seconds["ours"] for name, value in seconds.items() if name != "ours"}
    return row


def sweep(device: str, quick: bool, threads: int) -> list[Case]:
    """Cases that vary one thing at a time around the standard one, forward and backward in both layouts."""
    cases = []
    for direction in ("forward", "backward"):
        for layout in ("NHWC", "NCHW"):
            base = Case(direction, layout, device=device, rois=300 if quick else 1000)
            cases.append(base)
            if quick:
                continue
            cases += [replace(base, mode=mode) for mode in MODES if mode != "avg"]
            cases.append(replace(base, mode="pool", c4=True, bins=14))
            cases += [replace(base, dtype=dtype) for dtype in DTYPES if dtype != "float32"]
            cases += [replace(base, rois=rois) for rois in (10, 100, 10_000)]
            cases += [replace(base, sampling_ratio=ratio) for ratio in (1, 2, 4, 8, 16)]
            if device == "cpu" and threads > 1:
                cases.append(replace(base, threads=threads))
    if quick:
        base = Case(device=device, rois=300)
        cases += [replace(base, mode="max"), replace(base, dtype="bfloat16"), replace(base, sampling_ratio=2)]
    return cases


def _ours_between(cases: dict[str, Case], budget: float) -> dict[str, float]:
    """Seconds of ours in several cases, in turns."""

    def with_threads(case):
        torch.set_num_threads(case.threads)
        run = Contest(case).ours()
        return lambda: torch.set_num_threads(case.threads), run

    device = torch.device(next(iter(cases.values())).device)
    prepared = {name: with_threads(case) for name, case in cases.items()}
    before = {name: prepare for name, (prepare, _) in prepared.items()}
    return race({name: run for name, (_, run) in prepared.items()}, device, budget, before=before)


def targets(device: str, budget: float) -> list[Target]:
    """The RoIAlign rows of the project's target table, measured on this machine."""
    if device == "cuda":
        return _gpu_targets(budget)
    rows = []
    wanted = {
        ("forward", "NHWC"): 15,
        ("forward", "NCHW"): 7,
        ("backward", "NHWC"): 20,
        ("backward", "NCHW"): 12,
    }
    for (direction, layout), ratio in wanted.items():
        case = Case(direction, layout)
        row = measure(case, budget)
        name = f"RoIAlign {direction}, CPU, 1 thread, {layout}"
        rows.append(Target(name, "torchvision, per level", row["torchvision_ratio"], ratio))
        if (direction, layout) == ("forward", "NHWC"):
            rows.append(Target(f"{name}: time", "copy of the same bytes", 1 / row["floor_ratio"], 2, False))
    for layout in ("NHWC", "NCHW"):
        row = measure(Case("backward", layout, mode="pool", c4=True, bins=14), budget)
        name = f"RoIPool backward, C4, CPU, 1 thread, {layout}"
        rows.append(Target(name, "torchvision", row["torchvision_ratio"], 4))
    for direction, layout in wanted:
        case = Case(direction, layout)
        seconds = _ours_between({"one": case, "two": replace(case, threads=2)}, budget)
        name = f"RoIAlign {direction}, {layout}, 2 threads over 1"
        rows.append(Target(name, "itself", seconds["one"] / seconds["two"], 1.7))
    for layout in ("NHWC", "NCHW"):
        case = Case("forward", layout, sampling_ratio=2)
        seconds = _ours_between({"two": case, "eight": replace(case, sampling_ratio=8)}, budget)
        name = f"RoIAlign forward, {layout}, cost from 2 to 8 samples"
        rows.append(Target(name, "itself", seconds["eight"] / seconds["two"], 1.5, False))
    for dtype in ("bfloat16", "float16"):
        seconds = _ours_between({"half": Case(dtype=dtype), "full": Case()}, budget)
        name = f"RoIAlign forward, NHWC, {dtype}"
        rows.append(Target(name, "its own float32", seconds["full"] / seconds["half"], 1.5))
    return rows


def _gpu_targets(budget: float) -> list[Target]:
    """Each by the time of a call and, where the host keeps ahead of the device, by that of its kernels."""
    rows = []
    for images, rois in ((1, 1000), (2, 512), (16, 512)):
        for direction, ratio in (("forward", 3), ("backward", 5)):
            for layout in ("NHWC", "NCHW"):
                case = Case(direction, layout, device="cuda", images=images, rois=rois)
                contest = Contest(case)
                ours, theirs = contest.ours(), contest.detectron2()
                if theirs is None:
                    raise RuntimeError(
                        "the GPU targets are laid beside detectron2's ROIPooler: install detectron2"
                    )
                if not contest.difference() <= SAME[case.dtype]:
                    raise AssertionError(f"{case}: results differ: there is nothing to compare")
                calls = race({"ours": ours, "theirs": theirs}, contest.device, budget)
                kernels = {"ours": kernel_seconds(ours), "theirs": kernel_seconds(theirs)}
                for what, seconds in (("call", calls), ("kernels", kernels)):
                    name = f"RoI pooling, GPU, {images} x {rois} RoIs, {direction}, {layout}, {what}"
                    times = {key: f"{1000 * value:.3f}" for key, value in seconds.items()}
                    remark = f"{times['theirs']} ms, ours {times['ours']} ms"
                    measured = seconds["theirs"] / seconds["ours"]
                    rows.append(Target(name, "detectron2's ROIPooler", measured, ratio, remark=remark))
    return rows


COLUMNS = ("torchvision", "detectron2", "floor")


def header() -> str:
    return (
        f"{'case':78}{'ours ms':>9}" + "".join(f"{name + ' ms (x ours)':>24}" for name in COLUMNS) + "   diff"
    )


def line(row: dict) -> str:
    """A row of `measure` as text."""
    case = Case(**{name: row[name] for name in Case.__dataclass_fields__})
    text = f"{str(case):78}{row['ours_ms']:9.2f}"
    for name in COLUMNS:
        cell = f"{row[f'{name}_ms']:.2f} ({row[f'{name}_ratio']:.2f})" if f"{name}_ms" in row else "-"
        text += f"{cell:>24}"
    return f"{text}   {row['difference']:.0e}"


def plot(rows: list[dict], path: Path) -> None:
    """Time beside torchvision's over the number of RoIs, samples, modes and dtypes, one panel each."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    panels = {"rois": "RoIs", "sampling_ratio": "samples per bin and axis", "mode": "mode", "dtype": "dtype"}
    figure, axes = pyplot.subplots(2, 2, figsize=(13, 9), layout="constrained")
    standard = Case(rois=rows[0]["rois"])
    for axis, (field, label) in zip(axes.flat, panels.items(), strict=True):
        labels = []
        for direction in ("forward", "backward"):
            for layout in ("NHWC", "NCHW"):
                base = replace(standard, direction=direction, layout=layout, device=rows[0]["device"])
                chosen = [r for r in rows if _varies_only(r, base, field)]
                for name, style in (("ours", "o-"), ("torchvision", "x--")):
                    style = style[0] if field in ("mode", "dtype") else style
                    points = [(r[field], r[f"{name}_ms"]) for r in chosen if f"{name}_ms" in r]
                    if not points:
                        continue
                    points.sort(key=lambda p: (isinstance(p[0], str), p[0]))
                    labels += [str(x) for x, _ in points if str(x) not in labels]
                    colour = f"C{2 * (direction == 'backward') + (layout == 'NCHW')}"
                    xs = [labels.index(str(x)) for x, _ in points]
                    ys = [y for _, y in points]
                    axis.plot(xs, ys, style, color=colour, label=f"{name}, {direction} {layout}")
        axis.set(yscale="log", xlabel=label, ylabel="milliseconds", xticks=range(len(labels)))
        axis.set_xticklabels("adaptive" if field == "sampling_ratio" and x == "0" else x for x in labels)
        axis.grid(alpha=0.3, which="both")
    handles, names = axes.flat[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=4)
    figure.suptitle(f"RoI pooling, P2 to P5 of {IMAGE[0]} x {IMAGE[1]}; {standard.rois} RoIs, adaptive, avg")
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _varies_only(row: dict, base: Case, field: str) -> bool:
    return all(row[name] == value for name, value in asdict(base).items() if name != field)
