"""Pictures for "What Mask R-CNN is", computed by the package's own operators when the site is built."""

from __future__ import annotations

import io

import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle

from mrcnn_ext.layers import roi_align
from mrcnn_ext.scenes import generate_scene, get_preset

LAYERS = {"pool": "RoIPool", "warp_avg": "RoIWarp", "avg": "RoIAlign", "exact": "Precise RoI pooling"}
COLORS = {"pool": "#dc2626", "warp_avg": "#ea580c", "avg": "#2563eb", "exact": "#16a34a"}
SCENE, INSTANCE = (0, 2), 3  # seed and number of a scene, and an object in it
ROI = (2.35, 1.3, 7.75, 5.6)  # in cells


def parts() -> Figure:
    """Image, backbone, proposals, RoI layer, heads."""
    figure = Figure(figsize=(9.5, 3.1), layout="constrained")
    axes = figure.subplots()
    boxes = {
        "image": (0, 1.5, "image", "#e5e7eb"),
        "backbone": (2.1, 1.5, "backbone\n+ FPN", "#dbeafe"),
        "rpn": (4.2, 3.1, "region\nproposals", "#fef3c7"),
        "roi": (6.3, 1.5, "RoI layer\n7×7, 14×14", "#dcfce7"),
        "box": (8.9, 3.1, "box head\nclass, box", "#fae8ff"),
        "mask": (8.9, 1.5, "mask head\n28×28", "#fae8ff"),
        "keypoint": (8.9, -0.1, "keypoint head\n56×56 each", "#fae8ff"),
    }
    for x, y, text, color in boxes.values():
        look = {"boxstyle": "round,pad=0.05", "facecolor": color, "edgecolor": "#6b7280"}
        axes.add_patch(FancyBboxPatch((x, y), 1.6, 1.1, **look))
        axes.text(x + 0.8, y + 0.55, text, ha="center", va="center", fontsize=9.5)
    for start, end in (
        ("image", "backbone"),
        ("backbone", "rpn"),
        ("backbone", "roi"),
        ("rpn", "roi"),
        ("roi", "box"),
        ("roi", "mask"),
        ("roi", "keypoint"),
    ):
        (x0, y0, *_), (x1, y1, *_) = boxes[start], boxes[end]
        ends = (x0 + 1.68, y0 + 0.55), (x1 - 0.08, y1 + 0.55)
        axes.add_patch(FancyArrowPatch(*ends, arrowstyle="-|>", mutation_scale=12, color="#374151"))
    axes.set(xlim=(-0.2, 10.8), ylim=(-0.4, 4.5))
    axes.set_axis_off()
    return figure


def bins_of(mode, roi=ROI, size=3):
    """What a layer reads: borders (size + 1,) of its bins on both axes, and its sampling points, in cells."""
    x0, y0, x1, y1 = roi
    if mode in ("pool", "warp_avg"):
        x0, y0, x1, y1 = (float(np.floor(v + 0.5)) for v in roi)
        x1, y1 = x1 + 1, y1 + 1  # whole cells, the last one too
    borders = [np.linspace(low, high, size + 1) for low, high in ((x0, x1), (y0, y1))]
    if mode == "pool":
        return [(np.floor(b[:-1]), np.ceil(b[1:])) for b in borders], None
    if mode == "exact":
        return [(b[:-1], b[1:]) for b in borders], None
    # Two on each axis of a bin, at a quarter and at three quarters of it.
    points = [np.sort([b[:-1] + part * np.diff(b) for part in (0.25, 0.75)], axis=None) for b in borders]
    return [(b[:-1], b[1:]) for b in borders], points


def grids() -> Figure:
    """The bins and sampling points of one RoI in each layer."""
    figure = Figure(figsize=(10.5, 2.9), layout="constrained")
    for axes, (mode, name) in zip(figure.subplots(1, 4), LAYERS.items(), strict=True):
        ((left, right), (top, bottom)), points = bins_of(mode)
        axes.set_xticks(range(11), [])
        axes.set_yticks(range(8), [])
        axes.grid(color="#d1d5db", linewidth=0.8)
        for k in range(3):
            for j in range(3):
                # Bins of whole cells overlap: drawn a little smaller.
                inset = 0.06 if mode == "pool" else 0
                size = right[j] - left[j] - 2 * inset, bottom[k] - top[k] - 2 * inset
                color = matplotlib.colors.to_rgba(COLORS[mode], 0.3 if mode == "exact" else 0.12)
                look = {"facecolor": color, "edgecolor": COLORS[mode], "linewidth": 1.3}
                axes.add_patch(Rectangle((left[j] + inset, top[k] + inset), *size, **look))
        if points:
            axes.plot(*(grid.ravel() for grid in np.meshgrid(*points)), ".", color=COLORS[mode], markersize=4)
        axes.add_patch(
            Rectangle(ROI[:2], ROI[2] - ROI[0], ROI[3] - ROI[1], fill=False, linestyle="--", linewidth=1.6)
        )
        axes.set_title(name, fontsize=10)
        axes.set(xlim=(0.5, 9.9), ylim=(7.4, 0.1), aspect="equal")
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
    return figure


def moving() -> Figure:
    """One bin's value over a ramp while the RoI moves."""
    ramp = torch.arange(24.0).repeat(24, 1)[None, None]
    shifts = torch.linspace(0, 3, 241)
    boxes = torch.stack([shifts * 0, 4.2 + shifts, shifts * 0 + 4.2, 10.8 + shifts, shifts * 0 + 10.8], dim=1)
    figure = Figure(figsize=(7.5, 3.0), layout="constrained")
    axes = figure.subplots()
    for mode, name in LAYERS.items():
        values = roi_align(ramp, boxes, (3, 3), 1.0, 2, True, mode)[:, 0, 1, 1]
        style = {"pool": "-", "warp_avg": "-", "avg": "-", "exact": "--"}[mode]
        axes.plot(shifts, values - values[0], color=COLORS[mode], linestyle=style, linewidth=1.8, label=name)
    axes.set(xlabel="RoI moved by (cells)", ylabel="pooled value moved by (cells)")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=9, frameon=False)
    return figure


def pooled() -> Figure:
    """A part of a scene, and what the layers read of its pixels at stride 8."""
    scene = generate_scene(get_preset("easy"), *SCENE)
    x0, y0, x1, y1 = scene.instances[INSTANCE].box
    x0, y0, x1, y1 = box = x0 - 1.3, y0 - 2.2, x1 + 1.3, y1 + 1.7  # on no border of a cell
    stride, margin = 8, 18
    pixels = torch.from_numpy(scene.image).permute(2, 0, 1).float()[None]
    features = torch.nn.functional.avg_pool2d(pixels, stride)
    boxes = torch.tensor([[0.0, *box]])
    figure = Figure(figsize=(10.5, 3.4), layout="constrained")
    first, *others = figure.subplots(1, 5)
    top, left = max(0, int(y0) - margin), max(0, int(x0) - margin)
    part = scene.image[top : int(y1) + margin, left : int(x1) + margin]
    first.imshow(part, extent=(left, left + part.shape[1], top + part.shape[0], top))
    look = {"fill": False, "linestyle": "--", "linewidth": 1.6, "edgecolor": "white"}
    first.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, **look))
    first.set_title("image and RoI", fontsize=10)
    for axes, (mode, name) in zip(others, LAYERS.items(), strict=True):
        values = roi_align(features, boxes, (14, 14), 1 / stride, 2, True, mode)[0]
        axes.imshow(values.permute(1, 2, 0).numpy() / 255, extent=(x0, x1, y1, y0), interpolation="nearest")
        axes.set_title(name, fontsize=10)
    for axes in (first, *others):
        axes.set_xticks([])
        axes.set_yticks([])
    return figure


def figures() -> dict[str, bytes]:
    """{path under docs: content}."""
    drawn = {}
    with matplotlib.rc_context({"svg.hashsalt": "mrcnn_ext", "font.size": 10}):
        for draw, kind in ((parts, "svg"), (grids, "svg"), (moving, "svg"), (pooled, "png")):
            file = io.BytesIO()
            metadata = {"Date": None} if kind == "svg" else None
            draw().savefig(file, format=kind, dpi=110, metadata=metadata)
            drawn[f"figures/{draw.__name__}.{kind}"] = file.getvalue()
    return drawn


def on_files(files, config):
    from mkdocs.structure.files import File

    for path, content in figures().items():
        files.append(File.generated(config, path, content=content))
    return files
