"""One model in every form that it can be run in: as detectron2 runs it, accelerated, and as each exported file."""

from __future__ import annotations

import logging
import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch
from detectron2.structures import Instances

from ..accel import accelerate
from ..accel.cpu_features import cpu_has_bf16, int8_kernels_are_available
from ..export import ExportedModel, WrongAnswersError, export_model
from ..inference import LoadedModel
from .agreement import agreement
from .precisions import COLUMNS, DatasetPrecisions

__all__ = ["FORMS", "measure_forms", "table"]

# Of the detections that are compared, as the pictures of `mrcnn-ext predict`.
_MIN_SCORE = 0.5


@dataclass(frozen=True)
class Form:
    """A way to run a model.

    Attributes:
        name: what the command line calls it.
        suffix: of the exported file; "" for the model in PyTorch.
        precision: "float32", "bfloat16" or "int8".
        packages: that must be installed.
        missing: says what this processor lacks; "" for nothing.
    """

    name: str
    suffix: str = ""
    precision: str = "float32"
    packages: tuple[str, ...] = ()
    missing: Callable[[], str] = lambda: ""


def _without_bf16():
    return "" if cpu_has_bf16() else "this processor has no bf16 instructions"


def _without_int8():
    return "" if int8_kernels_are_available() else "this processor has no AVX2"


FORMS = (
    Form("stock"),
    Form("accelerated-float32"),
    Form("accelerated-bfloat16", precision="bfloat16", missing=_without_bf16),
    Form("accelerated-int8", precision="int8", missing=_without_int8),
    Form("torchscript", ".ts"),
    Form("torch.export", ".pt2"),
    Form("onnx", ".onnx", packages=("onnx", "onnxruntime")),
    Form("openvino-float32", ".xml", packages=("onnx", "openvino")),
    Form("openvino-bfloat16", ".xml", "bfloat16", ("onnx", "openvino")),
    Form("openvino-int8", ".xml", "int8", ("onnx", "openvino", "nncf")),
)


def measure_forms(
    loaded: LoadedModel,
    files: Sequence[str | os.PathLike],
    folder: str | os.PathLike,
    forms: Sequence[str] = (),
    runs: int = 3,
    tell: Callable[[dict], None] = lambda row: None,
    dataset: str = "",
) -> list[dict]:
    """Size, time and agreement of each form of a model, and its average precisions.

    Args:
        loaded: the model, of `load_predictor`.
        files: images to run on, and to calibrate int8 with.
        folder: for the exported files, made if need be.
        forms: names of `FORMS`; all by default. What cannot be run here gives a row that says why.
        runs: how often each image is timed, after one run over all of them.
        tell: takes each row when it is measured.
        dataset: a registered one in COCO's format, on all of whose images each form is evaluated; "" for none.

    Returns:
        A dict for each form: "form", "size" in MB, "ms" an image (median), "images_per_second", "detections" of stock
        with a score from 0.5 on, "matched" (the share of them that are found: same class, IoU 0.8), "box_px" (the
        largest difference of their boxes), with ``dataset`` "box_AP", "mask_AP" and "keypoint_AP" in points, of what
        the model and the data have; and "note": why there are no figures.

    Raises:
        ValueError: an unknown form, or no images.
        UserError: an image cannot be read, or the dataset has other classes than the model.
    """
    known = {form.name: form for form in FORMS}
    unknown = [name for name in forms if name not in known]
    if unknown:
        raise ValueError(f"forms: {unknown[0]!r} is none of {', '.join(known)}")
    if not files:
        raise ValueError("there are no images to run on")
    images = [loaded.read(file) for file in files]
    inputs = [{"image": image, "height": image.shape[1], "width": image.shape[2]} for image in images]
    Path(folder).mkdir(parents=True, exist_ok=True)
    loaded.model.eval()
    stock = _predicted(loaded.model, inputs)
    precisions = DatasetPrecisions(loaded, dataset, stock[0]) if dataset else None
    rows = []
    for form in [known[name] for name in forms] or FORMS:
        row = {
            "form": form.name,
            **_measured(form, loaded, images, inputs, Path(folder), stock, runs, precisions),
        }
        rows.append(row)
        tell(row)
    return rows


def _measured(form, loaded, images, inputs, folder, stock, runs, precisions):
    lacking = [name for name in form.packages if find_spec(name) is None]
    note = f"not installed: {', '.join(lacking)}" if lacking else form.missing()
    if note:
        return {"note": note}
    try:
        run, size, note = _made(form, loaded, images, folder)
    except (NotImplementedError, ImportError, WrongAnswersError, ValueError, TypeError) as error:
        return {"note": str(error).partition("\n")[0] or type(error).__name__}
    found = _predicted(run, inputs)  # prepares buffers and threads, too
    seconds = []
    for one in inputs:
        for _ in range(runs):
            start = time.perf_counter()
            with torch.no_grad():
                run([one])
            seconds.append(time.perf_counter() - start)
    ms = 1000 * statistics.median(seconds)
    compared = agreement(stock, found, _MIN_SCORE)
    kept = {key: compared[key] for key in ("detections", "matched", "box_px")}
    points = precisions(run) if precisions is not None else {}
    return {"size": size, "ms": ms, "images_per_second": 1000 / ms, **kept, **points, "note": note}


def _made(form, loaded, images, folder):
    """What runs it, its size in MB, and what is to be said of it."""
    if not form.suffix:
        model, note = loaded.model, ""
        size = sum(p.numel() * p.element_size() for p in model.parameters()) / 1e6
        if form.name != "stock":
            int8 = [[{"image": image}] for image in images] if form.precision == "int8" else None
            model = accelerate(
                model, training=False, masks=True, bf16=form.precision != "float32", int8=int8
            ).eval()
        return model, size, note
    path = folder / f"{form.name.replace('.', '_')}{form.suffix}"
    calibration = images if form.precision == "int8" else ()
    logger = logging.getLogger("mrcnn_ext.export")
    level = logger.level
    logger.setLevel(logging.ERROR)  # the table tells how the answers agree
    try:
        export_model(
            loaded.model,
            path,
            images[0],
            write_anyway=form.precision != "float32",
            mapper=loaded.mapper,
            metadata=loaded.metadata,
            precision=form.precision,
            calibration=calibration,
        )
    finally:
        logger.setLevel(level)
    size = sum(file.stat().st_size for file in folder.glob(f"{path.stem}.*")) / 1e6
    return ExportedModel(path), size, ""


def _predicted(run, inputs) -> list[Instances]:
    with torch.no_grad():
        return [run([one])[0]["instances"].to(torch.device("cpu")) for one in inputs]


def table(rows: Sequence[dict]) -> str:
    """The rows in Markdown."""
    columns = [column for column in COLUMNS.values() if any(column in row for row in rows)]
    head = ["form", "MB", "ms an image", "detections of stock that it finds", "boxes differ by, px"]
    lines = [[*head, *(column.replace("_", " ") for column in columns), ""]]
    lines.append(["---"] * len(lines[0]))
    for row in rows:
        cells = [""] * (len(head) - 1 + len(columns))
        if "ms" in row:
            matched = (
                f"{row['matched']:.1%} of {row['detections']}" if row["detections"] else "there are none"
            )
            box = f"{row['box_px']:.2g}" if row["detections"] else ""
            points = [f"{row[column]:.2f}" for column in columns]
            cells = [f"{row['size']:.0f}", f"{row['ms']:.0f}", matched, box, *points]
        lines.append([row["form"], *cells, row["note"]])
    return "\n".join(f"| {' | '.join(line)} |".replace("  ", " ") for line in lines)
