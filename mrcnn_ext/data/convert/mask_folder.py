"""Masks as image files: one for each object, or one for each image with a number for each object."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pycocotools.mask as mask_util
from PIL import Image

from .coco_writer import IMAGE_SUFFIXES, Found, FoundImage, FoundObject, image_size

__all__ = ["read_mask_folder"]

_CLASS = "object"


def read_mask_folder(source: str, split: str | None = None) -> Found:
    """Reads ``images/`` and ``masks/`` in a folder.

    The masks of ``images/a.jpg`` are ``masks/a.png``, ``masks/a_*.png`` or ``masks/a/*.png``, or the same within a
    folder of the class's name, ``masks/cat/a_0.png``; without such a folder the class is "object". Pixels that are 0
    are background. In a file with one other value that is one object, with more values each is one.

    Args:
        source: the folder.
        split: must be None; give the folder of one.

    Raises:
        FileNotFoundError: a folder is missing.
        ValueError: a mask is of another size than its image, of colours, or of no image; names the file.
    """
    if split is not None:
        raise ValueError("folders of masks have no splits: give the folder of one")
    root = Path(source)
    for name in ("images", "masks"):
        if not (root / name).is_dir():
            raise FileNotFoundError(
                f"{root / name}: there is no such folder; images/ and masks/ are expected"
            )
    images = {path.stem: path for path in _files(root / "images")}
    masks: dict[str, list[tuple[str, Path]]] = {stem: [] for stem in images}
    for path in _files(root / "masks"):
        folders = path.relative_to(root / "masks").parts[:-1]
        stem = folders[-1] if folders and folders[-1] in images else _stem_of(path, images)
        names = [folder for folder in folders if folder != stem]
        masks[stem].append((names[0] if names else _CLASS, path))
    return Found(_image(path, masks[stem], root) for stem, path in sorted(images.items()))


def _files(folder: Path) -> list[Path]:
    return sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")
    )


def _stem_of(path: Path, images: dict[str, Path]) -> str:
    """The image whose name a mask's begins with; the longest one."""
    stem = path.stem
    while stem:
        if stem in images:
            return stem
        stem = stem.rpartition("_")[0]
    raise ValueError(f"{path}: there is no image for this mask: its name must begin with that of an image")


def _image(path: Path, masks: list[tuple[str, Path]], root: Path) -> FoundImage:
    height, width = image_size(str(path))
    objects = []
    for category, mask_path in masks:
        with Image.open(mask_path) as image:
            numbers = np.array(image)
        if numbers.shape != (height, width):
            raise ValueError(
                f"{mask_path}: it must be of one channel and of its image's height and width, {(height, width)}, got "
                f"{numbers.shape}"
            )
        for number in np.unique(numbers[numbers != 0]):
            mask = np.asfortranarray(numbers == number, dtype=np.uint8)
            objects.append(FoundObject(category, segmentation=mask_util.encode(mask)))
    return FoundImage(str(path), height, width, objects, str(root / "masks"))
