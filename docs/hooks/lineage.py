"""Pictures for "From R-CNN to Mask R-CNN", drawn when the site is built."""

from __future__ import annotations

import io

import matplotlib
import torch
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle

from mrcnn_ext.layers import roi_align
from mrcnn_ext.layers.boxes import scaled_boxes
from mrcnn_ext.scenes import generate_scene, get_preset

# What each step computes for an image, left to right. The third entry of a box says what it is computed for.
STEPS = {
    "R-CNN": [("search", "image"), ("warp", "RoI"), ("CNN", "RoI"), ("fc", "RoI")],
    "Fast R-CNN": [("search", "image"), ("CNN", "image"), ("RoIPool", "RoI"), ("fc", "RoI")],
    "Faster R-CNN": [("CNN", "image"), ("RPN", "image"), ("RoIPool", "RoI"), ("fc", "RoI")],
    "with FPN": [("CNN + FPN", "image"), ("RPN", "image"), ("RoIPool", "RoI"), ("fc", "RoI")],
    "Mask R-CNN": [("CNN + FPN", "image"), ("RPN", "image"), ("RoIAlign", "RoI"), ("fc, mask", "RoI")],
}
COLORS = {"image": "#dbeafe", "RoI": "#fae8ff"}
SCENE, CROPS, SIDE, CONTEXT = (0, 2), 4, 112, 8


def lineage_steps() -> Figure:
    """What is computed once for an image, and what for every RoI."""
    figure = Figure(figsize=(9, 4.3), layout="constrained")
    axes = figure.subplots()
    for row, (name, parts) in enumerate(STEPS.items()):
        y = -row * 1.35
        axes.text(-0.3, y + 0.4, name, ha="right", va="center", fontsize=10.5)
        for column, (text, of) in enumerate(parts):
            x = column * 2.4
            look = {"boxstyle": "round,pad=0.05", "edgecolor": "#6b7280"}
            if of == "RoI":  # a stack
                axes.add_patch(FancyBboxPatch((x + 0.1, y - 0.1), 1.7, 0.8, facecolor="#f3f4f6", **look))
            axes.add_patch(FancyBboxPatch((x, y), 1.7, 0.8, facecolor=COLORS[of], **look))
            axes.text(x + 0.85, y + 0.4, text, ha="center", va="center", fontsize=9.5)
            if column:
                ends = (x - 0.6, y + 0.4), (x - 0.08, y + 0.4)
                axes.add_patch(FancyArrowPatch(*ends, arrowstyle="-|>", mutation_scale=11, color="#374151"))
    for k, (of, text) in enumerate((("image", "once for an image"), ("RoI", "for every RoI"))):
        axes.add_patch(Rectangle((2.4 * 2 * k, 1.35), 0.35, 0.3, facecolor=COLORS[of], edgecolor="#6b7280"))
        axes.text(2.4 * 2 * k + 0.5, 1.5, text, va="center", fontsize=9.5)
    axes.set(xlim=(-2.4, 9.4), ylim=(-5.7, 1.9))
    axes.set_axis_off()
    return figure


def crops_of(image: torch.Tensor, boxes: torch.Tensor) -> torch.Tensor:
    """R-CNN's crops, as `mrcnn_ext.modeling.CropPooler` makes them: (C, H, W), (R, 4) -> (R, C, 112, 112)."""
    rois = scaled_boxes(boxes, SIDE / (SIDE - 2 * CONTEXT))
    rois = torch.cat([torch.zeros(len(rois), 1), rois], dim=1)
    return roi_align(image[None], rois, (SIDE, SIDE), 1.0, 0, True, "avg")


def lineage_crops() -> Figure:
    """A scene with some boxes, and the crops that R-CNN's network sees of them."""
    scene = generate_scene(get_preset("easy"), *SCENE)
    boxes = torch.tensor([list(instance.box) for instance in scene.instances[:CROPS]], dtype=torch.float32)
    crops = crops_of(torch.from_numpy(scene.image).permute(2, 0, 1).float(), boxes)
    figure = Figure(figsize=(10.5, 2.5), layout="constrained")
    first, *others = figure.subplots(1, 1 + len(boxes), width_ratios=[1.6] + [1] * len(boxes))
    first.imshow(scene.image)
    colors = ("#dc2626", "#2563eb", "#16a34a", "#ea580c")
    for (x0, y0, x1, y1), color in zip(boxes.tolist(), colors, strict=False):
        first.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, edgecolor=color, linewidth=1.8))
    first.set_title("image and proposals", fontsize=10)
    for axes, crop, color in zip(others, crops, colors, strict=False):
        axes.imshow(crop.permute(1, 2, 0).numpy() / 255)
        axes.add_patch(
            Rectangle(
                (CONTEXT - 0.5, CONTEXT - 0.5),
                SIDE - 2 * CONTEXT,
                SIDE - 2 * CONTEXT,
                fill=False,
                linestyle="--",
                edgecolor=color,
            )
        )
    for axes in (first, *others):
        axes.set_xticks([])
        axes.set_yticks([])
    return figure


def waterfall() -> Figure:
    """UniPose: backbone, waterfall, decoder."""
    figure = Figure(figsize=(10, 3.4), layout="constrained")
    axes = figure.subplots()
    boxes = {
        "crop": (0, 1.1, "crop", "#e5e7eb"),
        "backbone": (2.0, 1.1, "backbone,\nstride 8", "#dbeafe"),
        **{f"r{k}": (4.4, 3.3 - 1.1 * k, f"3×3, rate {6 * (k + 1)}", "#dcfce7") for k in range(4)},
        "mean": (4.4, -1.1, "mean", "#dcfce7"),
        "fuse": (7.0, 1.1, "1×1", "#dcfce7"),
        "decoder": (9.2, 1.1, "decoder,\nstride 4", "#fae8ff"),
        "maps": (11.4, 1.1, "K heatmaps,\nstride 1", "#fef3c7"),
    }
    for x, y, text, color in boxes.values():
        look = {"boxstyle": "round,pad=0.04", "facecolor": color, "edgecolor": "#6b7280"}
        axes.add_patch(FancyBboxPatch((x, y), 1.5, 0.75, **look))
        axes.text(x + 0.75, y + 0.375, text, ha="center", va="center", fontsize=9)

    def arrow(start, end, down=False, bend=0.0):
        (x0, y0, *_), (x1, y1, *_) = boxes[start], boxes[end]
        ends = (
            ((x0 + 0.75, y0 - 0.05), (x1 + 0.75, y1 + 0.8))
            if down
            else ((x0 + 1.55, y0 + 0.375), (x1 - 0.05, y1 + 0.375))
        )
        style = {"arrowstyle": "-|>", "mutation_scale": 11, "color": "#374151"}
        axes.add_patch(FancyArrowPatch(*ends, connectionstyle=f"arc3,rad={bend}", **style))

    arrow("crop", "backbone")
    arrow("backbone", "r0")
    arrow("backbone", "mean")
    for k in range(4):
        if k:
            arrow(f"r{k - 1}", f"r{k}", down=True)
        arrow(f"r{k}", "fuse")
    arrow("mean", "fuse")
    arrow("fuse", "decoder")
    arrow("decoder", "maps")
    low = (2.75, 1.05), (9.95, 1.05)
    style = {"arrowstyle": "-|>", "mutation_scale": 11, "color": "#9ca3af", "linestyle": "--"}
    axes.add_patch(FancyArrowPatch(*low, connectionstyle="arc3,rad=0.6", **style))
    axes.text(9.0, -1.0, "features of stride 4", fontsize=8.5, color="#6b7280")
    axes.set(xlim=(-0.2, 13.2), ylim=(-2.7, 4.2))
    axes.set_axis_off()
    return figure


def figures() -> dict[str, bytes]:
    """{path under docs: content}."""
    drawn = {}
    with matplotlib.rc_context({"svg.hashsalt": "mrcnn_ext", "font.size": 10}):
        for draw, kind in ((lineage_steps, "svg"), (lineage_crops, "png"), (waterfall, "svg")):
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
