"""What is made of each image besides its results: a picture, cut-outs, masks, a file for LabelMe."""

import hashlib
import io
import json
import os
import re
from collections import Counter
from collections.abc import Container, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import cv2
import numpy as np
from detectron2.data import Metadata
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from ..engine.errors import UserError
from ..files import naming_full_disk
from ..scenes.masks import mask_to_polygons
from .detections import Detection, detections_of
from .downloads import is_url
from .drawing import Painter, Style
from .drawing.shapes import soft_mask
from .earlier_files import EarlierFiles
from .identity import digest
from .image_marks import is_as_marked, marked
from .sources import IMAGE_SUFFIXES

__all__ = ["ImageOutputs", "OutputOptions", "limbs_of"]

_SOFT = 0.7  # pixels, sigma of the edges of cut-outs
_KINDS = ("pictures", "cutouts", "masks", "labelme")
_MARK = "mrcnn_ext"  # key of the digest that tells whether a file is as it was written
_FEWER = 0.004  # of an outline's length: how far LabelMe's polygons, which people correct, may be from it


@dataclass(frozen=True)
class OutputOptions:
    """Folders of what is made for each image; None for what is not.

    Attributes:
        pictures: for a picture with the detections, of the image's name.
        cutouts: for a PNG of each object without its background, ``<image>_<number>_<class>.png``, RGBA.
        masks: for a PNG of each object's mask, 0 and 255, ``<class>/<image>_<number>.png``: the layout of
            ``masks/`` that `mrcnn_ext.data`'s converter reads.
        labelme: for a JSON file of each image that LabelMe opens, and the image where it has no file of its own.
        min_score: detections below take no part.
        style: of the pictures.
    """

    pictures: str | None = None
    cutouts: str | None = None
    masks: str | None = None
    labelme: str | None = None
    min_score: float = 0.5
    style: Style = field(default_factory=Style)

    @property
    def folders(self) -> dict[str, str]:
        return {kind: getattr(self, kind) for kind in _KINDS if getattr(self, kind) is not None}

    @property
    def identity(self) -> dict[str, str]:
        """By kind, what differs where other files would be made."""
        looks = {"pictures": asdict(self.style), "labelme": self.style.keypoint_score}
        return {
            kind: digest([os.path.abspath(folder), self.min_score, looks.get(kind)])
            for kind, folder in self.folders.items()
        }


class ImageOutputs:
    """Makes the files of one image after the other.

    Args:
        options: which.
        names: of the classes by category id.
        metadata: names of the keypoints, and the lines between them.
        source: of the images.
        overwrite: replace files whoever wrote them.

    Raises:
        UserError: a folder is that of the source's images.
    """

    def __init__(
        self, options: OutputOptions, names: dict[int, str], metadata: Metadata, source, overwrite=False
    ):
        self.options = options
        self._overwrite = overwrite
        self._names = names
        self._keypoints = list(metadata.get("keypoint_names", None) or ())
        self._painter = Painter(options.style, self._keypoints, limbs_of(metadata))
        files = getattr(source, "short_names", ())
        classes = sorted({_safe(name) for name in names.values()})
        self._earlier = EarlierFiles(options.cutouts, options.masks, classes)
        self._stems = Counter(Path(_relative(name, id)).with_suffix("") for id, name in files)
        if source.root:
            root = Path(source.root).resolve()
            for kind, folder in options.folders.items():
                if Path(folder).resolve().is_relative_to(root):
                    raise UserError(
                        f"{folder}: the {kind} would be among the images of {source.root}: give another folder"
                    )

    def write(
        self,
        pixels: np.ndarray,
        image: dict,
        file_name: str,
        records: Sequence[dict],
        kinds: Container[str] = _KINDS,
    ) -> None:
        """
        Args:
            pixels: (H, W, 3) uint8, RGB.
            image: ``id`` and ``file_name`` of the results, ``frame`` of a video.
            file_name: of the image on disk, or its video's.
            records: its COCO results.
            kinds: which of the files to write.

        Raises:
            UserError: a picture would take the place of its image, or a file that would be replaced is not as
                `write` has written it.
            mrcnn_ext.files.DiskFullError: there is no room.
        """
        if not self.options.folders:
            return
        found = detections_of(records, self._names or None, self.options.min_score)
        path = _relative(image["file_name"], image["id"], image.get("frame"))
        stem = path.with_suffix("")
        if self._stems[stem] > 1:  # a.jpg and a.png
            stem = path.with_name(path.name.replace(".", "_"))
        options = self.options
        if options.pictures is not None:
            _check_apart(Path(options.pictures, path), file_name)
        self._check_replaced(stem, path, kinds)
        if options.pictures is not None and "pictures" in kinds:
            _write_image(Path(options.pictures, path), self._painter.draw(pixels, found))
        if options.cutouts is not None and "cutouts" in kinds:
            _remove(self._earlier.cutouts(stem))
            self._write_cutouts(Path(options.cutouts, stem), pixels, found)
        if options.masks is not None and "masks" in kinds:
            _remove(self._earlier.masks(stem))
            self._write_masks(Path(options.masks), stem, pixels.shape[:2], found)
        if options.labelme is not None and "labelme" in kinds:
            self._write_labelme(Path(options.labelme, stem), pixels, image, file_name, found)

    def _check_replaced(self, stem, picture, kinds):
        """Files of others may lie there; and people correct masks and LabelMe files by hand."""
        if self._overwrite:
            return
        options = self.options
        if options.pictures is not None and "pictures" in kinds:
            self._check_ours(Path(options.pictures, picture), is_as_marked)
        if "cutouts" in kinds:
            for path in self._earlier.cutouts(stem):
                self._check_ours(path, is_as_marked)
        if options.labelme is not None and "labelme" in kinds:
            self._check_ours(Path(options.labelme, f"{stem}.json"), _labelme_is_ours)
        if "masks" in kinds:
            for path in self._earlier.masks(stem):
                self._check_ours(path, _mask_is_ours)

    def _check_ours(self, path, is_ours):
        if not self._overwrite and path.exists() and not is_ours(path):
            raise UserError(
                f"{path} would be replaced, and is not as this program wrote it (changed since, or of something else): "
                "give another folder, or replace it (overwrite=True, --overwrite)"
            )

    def _write_cutouts(self, stem, pixels, found):
        for number, one in enumerate(found, 1):
            cut = _cut_out(pixels, one)
            if cut is not None:
                _write_image(stem.with_name(f"{stem.name}_{number:03d}_{_safe(one.name)}.png"), cut)

    def _write_masks(self, folder, stem, size, found):
        for number, one in enumerate(found, 1):
            mask = np.zeros(size, np.uint8)
            if one.mask is None:
                raise UserError("the model gives no masks, so there are none to write (masks=, --masks)")
            y, x = one.corner[1], one.corner[0]
            mask[y : y + one.mask.shape[0], x : x + one.mask.shape[1]] = 255 * one.mask
            _write_mask(folder / _safe(one.name) / stem.parent / f"{stem.name}_{number:03d}.png", mask)

    def _write_labelme(self, stem, pixels, image, file_name, found):
        path = stem.with_name(f"{stem.name}.json")
        own_file = "frame" not in image and image["file_name"] and os.path.isfile(file_name)
        if own_file and not is_url(image["file_name"]) and not image["file_name"].startswith("stdin"):
            where = Path(os.path.relpath(file_name, path.parent)).as_posix()
        else:
            where = f"{stem.name}.jpg"
            self._check_ours(path.with_name(where), is_as_marked)
            _write_image(path.with_name(where), pixels)
        content = {
            "version": "5.5.0",
            "flags": {},
            "shapes": [shape for n, one in enumerate(found, 1) for shape in self._shapes(one, n)],
            "imagePath": where,
            "imageData": None,
            "imageHeight": pixels.shape[0],
            "imageWidth": pixels.shape[1],
        }
        content[_MARK] = digest(content)
        _write(path, json.dumps(content, indent=1).encode())

    def _shapes(self, one: Detection, number: int):
        about = {"group_id": number, "flags": {}, "description": f"{one.score:.3f}"}
        polygons = _polygons(one)
        for points in polygons:
            yield {"label": one.name, "points": points, "shape_type": "polygon", **about}
        if not polygons:
            corners = one.box.reshape(2, 2).tolist()
            yield {"label": one.name, "points": corners, "shape_type": "rectangle", **about}
        for place, (x, y, score) in enumerate(one.keypoints if one.keypoints is not None else ()):
            if score >= self.options.style.keypoint_score:
                name = self._keypoints[place] if place < len(self._keypoints) else f"keypoint_{place}"
                shape = {"label": name, "points": [[x, y]], "shape_type": "point"}
                yield {**shape, **about, "description": f"{score:.3f}"}


def limbs_of(metadata: Metadata) -> list[tuple[int, int]]:
    """Pairs of indices of the keypoints between which the metadata's ``keypoint_connection_rules`` have lines."""
    names = list(metadata.get("keypoint_names", None) or ())
    places = {name: place for place, name in enumerate(names)}
    rules = metadata.get("keypoint_connection_rules", None) or ()
    return [(places[rule[0]], places[rule[1]]) for rule in rules if rule[0] in places and rule[1] in places]


def _relative(name: str, id, frame: int | None = None) -> Path:
    """Where an image's files are within their folders."""
    if is_url(name):
        name = f"{id}_{os.path.basename(urlsplit(name).path) or 'image'}"
    path = Path(name)
    if frame is not None:
        stem = path.stem if path.suffix else path.name
        return Path(f"{_safe(stem)}_{frame:06d}.jpg")
    if path.is_absolute() or ".." in path.parts:
        path = Path(f"{id}_{path.name}")
    return path if path.suffix.lower() in IMAGE_SUFFIXES else path.with_name(f"{path.name}.jpg")


def _remove(paths):
    for path in paths:
        path.unlink(missing_ok=True)  # this run may have made the image's files twice


def _safe(name: str) -> str:
    """A class's name as part of a file's."""
    return re.sub(r'[\\/:*?"<>|\s]+', "_", name).strip("._") or "object"


def _check_apart(path: Path, image: str) -> None:
    if path.exists() and os.path.exists(image) and path.samefile(image):
        raise UserError(f"{path}: the picture would take the place of the image: give another folder")


def _cut_out(pixels: np.ndarray, one: Detection) -> np.ndarray | None:
    """(h, w, 4) uint8, RGB and opacity; None for an object of no pixels."""
    if one.mask is None:
        x0, y0, x1, y1 = (max(0, round(side)) for side in one.box)
        part = pixels[y0:y1, x0:x1]
        alpha = np.full(part.shape[:2], 255, np.uint8)
    else:
        if one.mask.size == 0:
            return None
        soft, margin = soft_mask(one.mask, 1, _SOFT)
        x, y = one.corner[0] - margin, one.corner[1] - margin
        x0, y0 = max(0, x), max(0, y)
        part = pixels[y0 : y + soft.shape[0], x0 : x + soft.shape[1]]
        alpha = soft[y0 - y :, x0 - x :][: part.shape[0], : part.shape[1]]
        alpha = np.rint(255 * alpha).astype(np.uint8)
    return np.dstack([part, alpha]) if part.size else None


def _polygons(one: Detection) -> list[list[list[float]]]:
    """Outlines of a mask with few enough corners to be moved by hand."""
    if one.mask is None or one.mask.size == 0:
        return []
    found = []
    for flat in mask_to_polygons(one.mask.astype(np.uint8), one.corner):
        points = np.array(flat, np.float32).reshape(-1, 1, 2)
        tolerance = max(1.0, _FEWER * cv2.arcLength(points, True))
        fewer = cv2.approxPolyDP(points, tolerance, True)[:, 0]
        if len(fewer) >= 3:
            found.append(fewer.astype(float).tolist())
    return found


def _write_image(path: Path, pixels: np.ndarray) -> None:
    """Writes RGB, RGBA or gray pixels in the format that the path's suffix names."""
    if pixels.ndim == 3:
        pixels = pixels[:, :, [2, 1, 0, 3][: pixels.shape[2]]]
    _, data = cv2.imencode(path.suffix.lower(), pixels)
    _write(path, marked(data.tobytes()))


def _write_mask(path: Path, mask: np.ndarray) -> None:
    """A PNG that says what it was written with."""
    about = PngInfo()
    about.add_text(_MARK, _pixel_digest(mask))
    content = io.BytesIO()
    Image.fromarray(mask).save(content, "PNG", pnginfo=about)
    _write(path, content.getvalue())


def _pixel_digest(pixels: np.ndarray) -> str:
    return hashlib.sha256(repr(pixels.shape).encode() + pixels.tobytes()).hexdigest()[:16]


def _mask_is_ours(path: Path) -> bool:
    try:
        with Image.open(path) as image:
            return image.info.get(_MARK) == _pixel_digest(np.asarray(image))
    except Exception:  # decoders raise anything
        return False


def _labelme_is_ours(path: Path) -> bool:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return content.pop(_MARK, None) == digest(content)
    except (OSError, ValueError, AttributeError, TypeError):
        return False


def _write(path: Path, content: bytes) -> None:
    with naming_full_disk(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        # Not half a file after a kill: it would count as one that somebody has changed.
        draft = path.with_name(f"{path.name}.tmp")
        try:
            draft.write_bytes(content)
            os.replace(draft, path)
        finally:
            draft.unlink(missing_ok=True)
