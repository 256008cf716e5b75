"""Cityscapes: fine annotations, and the coarse ones of more images."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ..check_cityscapes import check_cityscapes_tree
from ..problems import Problems
from .parts import Archive, Images, Plan
from .steps import check_counts, get_parts

__all__ = ["CITYSCAPES", "CITYSCAPES_COARSE", "prepare_cityscapes"]

_HOW = (
    "Cityscapes' archives need a free account: download them at https://www.cityscapes-dataset.com/downloads/ while "
    "logged in, or with `csDownload gtFine_trainvaltest.zip leftImg8bit_trainvaltest.zip`, a program of "
    "cityscapesscripts (pip install 'mrcnn_ext[cityscapes]') that asks for the account."
)
_TERMS = "https://www.cityscapes-dataset.com/license/"
_IMAGES = Archive("leftImg8bit_trainvaltest.zip", "")
_FINE = Archive("gtFine_trainvaltest.zip", "")
_EXTRA = Archive("leftImg8bit_trainextra.zip", "")
_COARSE = Archive("gtCoarse.zip", "")
_SPLITS = (("train", 2975), ("val", 500), ("test", 1525))
_IMAGE, _INSTANCES = "_leftImg8bit.png", "_instanceIds.png"
CITYSCAPES = Plan(
    "Cityscapes",
    images=(
        *(Images(f"leftImg8bit/{split}", count, _IMAGES, _IMAGE) for split, count in _SPLITS),
        *(Images(f"gtFine/{split}", count, _FINE, f"_gtFine{_INSTANCES}") for split, count in _SPLITS),
    ),
    how=_HOW,
    terms=_TERMS,
)
CITYSCAPES_COARSE = Plan(
    "Cityscapes, coarse",
    images=(
        *CITYSCAPES.images,
        Images("leftImg8bit/train_extra", 19998, _EXTRA, _IMAGE),
        *(
            Images(f"gtCoarse/{split}", count, _COARSE, f"_gtCoarse{_INSTANCES}")
            for split, count in (("train", 2975), ("val", 500), ("train_extra", 19998))
        ),
    ),
    how=_HOW,
    terms=_TERMS,
)
_CLASSES = ("person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle")


def prepare_cityscapes(
    root: str,
    *,
    archives: str | None = None,
    coarse: bool = False,
    plan: Plan | None = None,
    progress: bool = True,
    say: Callable[[str], object] = print,
) -> bool:
    """Makes ``root`` what detectron2 registers as ``cityscapes_fine_instance_seg_{train,val,test}``.

    Args:
        root: ``$DETECTRON2_DATASETS/cityscapes``.
        archives: folder of the zip files; default ``root``. They cannot be downloaded without an account.
        coarse: the coarse annotations and the images of train_extra too. Nothing here trains on them: their objects
            are outlined roughly and overlap.
        plan: what to expect; default `CITYSCAPES`, or `CITYSCAPES_COARSE`.
        progress: show progress bars.
        say: is called with lines of text.

    Returns:
        bool: whether everything is right: numbers of files, and the check of custom data (`check_cityscapes_tree`).

    Raises:
        FileNotFoundError: parts are missing; says which and how to get them.
        ValueError: an archive is damaged.
    """
    plan = plan or (CITYSCAPES_COARSE if coarse else CITYSCAPES)
    folder = Path(root)
    get_parts(plan, folder, Path(archives or root), False, progress, say)
    wrong = check_counts(plan, folder)
    for line in wrong:
        say(line)
    fine = not wrong
    for split, _ in _SPLITS:
        fine &= _check_split(folder, split, say)
    return fine


def _check_split(folder: Path, split: str, say) -> bool:
    name = f"cityscapes_fine_instance_seg_{split}"
    metadata: dict[str, Any] = {
        "image_dir": str(folder / "leftImg8bit" / split),
        "gt_dir": str(folder / "gtFine" / split),
        "thing_classes": _CLASSES,
    }
    problems = Problems(name, metadata["gt_dir"])
    check_cityscapes_tree(name, SimpleNamespace(**metadata, get=metadata.get), problems)
    lines = [f"{name}: {'it can be used' if not problems.errors else 'it has errors'}"]
    for finding in problems.findings.values():
        first, *others = finding.examples
        lines += [f"  {finding.count} x {first}", *(f"      {example}" for example in others)]
    say("\n".join(lines))
    return not problems.errors
