"""Looks at image files without decoding them."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from PIL import Image, ImageOps, UnidentifiedImageError
from tqdm import tqdm

from .problems import Problems, kind_of

__all__ = [
    "ImageProblem",
    "ImageSize",
    "check_image_file",
    "check_images",
    "image_size",
    "read_rgb",
    "turned_size",
]

_JPEG_END = b"\xff\xd9"
_TAIL = 4096  # bytes at the end of a file among which its end marker must be
_ORIENTATION = 0x0112  # EXIF tag; 5 and up exchange height and width
_PNG_HEAD = 8  # bytes of its signature
_AT_ONCE = 1024  # images: a task for each of a hundred thousand takes memory
_MAX_SIZE = 1333  # pixels, detectron2's INPUT.MAX_SIZE_TRAIN


class ImageProblem(Exception):
    """What is wrong with an image file.

    Attributes:
        missing: whether there is no such file.
    """

    def __init__(self, text: str, *, missing: bool = False):
        super().__init__(text)
        self.missing = missing


@dataclass(frozen=True)
class ImageSize:
    """Height and width in pixels, as detectron2 reads the file, and whether its EXIF data turned it."""

    height: int
    width: int
    turned: bool


def check_image_file(path: str, *, max_size: int = _MAX_SIZE, decode: bool = False) -> ImageSize:
    """Looks at an image file: its header, and whether it ends as its format does.

    That takes 0.1 ms and finds truncated files, but not a damaged middle. Formats other than JPEG and PNG are decoded.

    Args:
        path: of the file.
        max_size: to which the longer side is shrunk; an image whose shorter side would vanish is refused.
        decode: decode it whole, which finds all damage.

    Raises:
        ImageProblem: it is missing, no image, damaged, or of a kind that detectron2 reads wrongly or not at all.
    """
    try:
        with Image.open(path) as image:
            size = turned_size(image, path)
            _check_pixels(image)
            whole = not decode and _has_end(path, image.format)
            if not whole:
                image.load()
    except FileNotFoundError:
        raise ImageProblem(
            "the file does not exist. datasets/README.md shows the expected tree", missing=True
        ) from None
    except Image.DecompressionBombError:
        raise ImageProblem(
            f"it has more than {2 * (Image.MAX_IMAGE_PIXELS or 0)} pixels, which Pillow refuses: cut it into parts"
        ) from None
    except UnidentifiedImageError:
        raise ImageProblem("the file is not an image, or its beginning is damaged: fetch it again") from None
    except (OSError, SyntaxError, ValueError, struct.error) as error:
        raise ImageProblem(f"the file is truncated or damaged ({error}): fetch it again") from None
    short, long = sorted((size.height, size.width))
    if long > max_size and short * max_size / long < 0.5:
        raise ImageProblem(
            f"it is {size.height} x {size.width} pixels (height x width): nothing is left of its shorter side when the "
            f"longer one is shrunk to {max_size}; cut it into parts"
        )
    return size


def check_images(
    records: Sequence[dict],
    problems: Problems,
    *,
    root: str = "",
    workers: int = 8,
    progress: bool = False,
    max_size: int = _MAX_SIZE,
    decode: bool = False,
) -> set:
    """Looks at the image files of many records, by threads: they wait for disks, and decoders let others run. The rest
    takes a core 0.1 ms an image, 12 s for COCO's 118287, of which processes would not save much more than they take to
    start.

    Args:
        records: with "file_name", "height" and "width", and "image_id" or "id".
        problems: takes what is wrong.
        root: folder that the file names start from.
        workers: threads.
        progress: show a progress bar.
        max_size, decode: as for `check_image_file`.

    Returns:
        Ids of the images with a problem.
    """

    def look(record):
        try:
            size = check_image_file(os.path.join(root, record["file_name"]), max_size=max_size, decode=decode)
        except ImageProblem as problem:
            return problem
        except Exception as error:  # what nobody foresaw has a file's name too
            return ImageProblem(f"it cannot be read: {type(error).__name__}: {error}")
        if (size.height, size.width) == (record["height"], record["width"]):
            return None
        return ImageProblem(
            f"the file has height {size.height} and width {size.width}"
            f"{', turned as its EXIF data say' if size.turned else ''}, the annotations say {record['height']} and "
            f"{record['width']}"
        )

    wrong = set()
    with (
        ThreadPoolExecutor(workers) as pool,
        tqdm(total=len(records), desc="images", disable=not progress) as bar,
    ):
        for start in range(0, len(records), _AT_ONCE):
            part = records[start : start + _AT_ONCE]
            for record, problem in zip(part, pool.map(look, part), strict=True):
                bar.update()
                if problem is None:
                    continue
                image_id = record.get("image_id", record.get("id"))
                wrong.add(image_id)
                where = f"image {'?' if image_id is None else image_id} ({record['file_name']})"
                problems.error(
                    f"image-{kind_of(str(problem))}",
                    where,
                    str(problem),
                    missing_file=problem.missing,
                    image=image_id,
                )
    return wrong


def read_rgb(path: str) -> Image.Image:
    """Reads an image in RGB, turned as its EXIF data say, as detectron2 reads it.

    Raises:
        FileNotFoundError: there is no such file.
        OSError: it cannot be read, or has more than 8 bits a pixel; the message names it.
    """
    try:
        with Image.open(path) as image:
            _check_pixels(image)
            image.load()  # before the EXIF data are asked for, which loses the error of a damaged PNG
            return ImageOps.exif_transpose(image).convert("RGB")
    except FileNotFoundError:
        raise
    except Exception as error:  # decoders raise anything for a damaged file
        raise OSError(f"{path}: the image cannot be read: {error}") from error


def _check_pixels(image: Image.Image):
    if image.mode.startswith("I") or image.mode == "F":
        kind = "floating-point pixels" if image.mode == "F" else "more than 8 bits a pixel"
        raise ImageProblem(f"it has {kind}, which detectron2 cuts off at 255: convert it to 8 bits")


def image_size(path: str) -> tuple[int, int]:
    """Height and width of an image file as it is read, turned as its EXIF data say.

    Raises:
        ValueError: it is no image.
    """
    try:
        with Image.open(path) as image:
            size = turned_size(image, path)
    except OSError as error:
        raise ValueError(f"{path}: it cannot be read as an image: {error}") from error
    return size.height, size.width


def turned_size(image: Image.Image, path: str) -> ImageSize:
    """The size of an opened image after the turn that its EXIF data ask for; nothing is decoded."""
    width, height = image.size
    turned = _orientation(image, path) >= 5
    return ImageSize(width, height, True) if turned else ImageSize(height, width, False)


def _orientation(image: Image.Image, path: str) -> int:
    if image.format != "PNG":
        return image.getexif().get(_ORIENTATION, 1)
    # Pillow decodes a PNG before it gives its EXIF data, which may come last in the file.
    for kind, data in _png_chunks(path, wanted=b"eXIf"):
        if kind == b"eXIf":
            exif = Image.Exif()
            exif.load(data)
            return exif.get(_ORIENTATION, 1)
    return 1


def _png_chunks(path: str, wanted: bytes = b"") -> Iterator[tuple[bytes, bytes]]:
    """Kind of each chunk, and the content of those wanted; ends early where the file does."""
    with open(path, "rb") as file:
        file.seek(0, 2)
        end = file.tell()
        place = _PNG_HEAD
        while place + 12 <= end:
            file.seek(place)
            length, kind = struct.unpack(">I4s", file.read(8))
            place += 12 + length
            if place > end:
                return
            yield kind, file.read(length) if kind == wanted else b""


def _has_end(path: str, image_format: str | None) -> bool:
    """Whether a JPEG or PNG file has its end."""
    if image_format == "PNG":
        return any(kind == b"IEND" for kind, _ in _png_chunks(path))
    if image_format not in ("JPEG", "MPO"):
        return False
    with open(path, "rb") as file:
        file.seek(0, 2)
        file.seek(-min(file.tell(), _TAIL), 2)
        return _JPEG_END in file.read()
