"""Pascal VOC: an XML file of boxes for each image."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

from .coco_writer import IMAGE_SUFFIXES, Found, FoundImage, FoundObject, image_size

__all__ = ["read_pascal_voc"]


def read_pascal_voc(source: str, split: str | None = None) -> Found:
    """Reads the boxes of a folder in Pascal VOC's layout, or of a folder of XML files with the images beside them.

    VOC counts pixels from 1 and boxes include their last pixel. Many tools count from 0: where a 0 is anywhere,
    they do, and boxes end at their last coordinate. "difficult" is kept as a key of the annotations.

    Args:
        source: folder with ``Annotations/``, ``JPEGImages/`` and, for a split, ``ImageSets/Main/<split>.txt``; or with
            XML files.
        split: the name of a list of images; default all.

    Raises:
        FileNotFoundError: a file or folder is missing.
        ValueError: a file is not as above; names the file.
    """
    root = Path(source)
    folder = root / "Annotations" if (root / "Annotations").is_dir() else root
    if not folder.is_dir():
        raise FileNotFoundError(f"{root}: there is no such folder")
    files = sorted(path for path in folder.rglob("*.xml") if not path.name.startswith("."))
    if split is not None:
        listed = root / "ImageSets" / "Main" / f"{split}.txt"
        if not listed.is_file():
            raise FileNotFoundError(f"{listed}: there is no such list of images")
        stems = {line.split()[0] for line in listed.read_text().splitlines() if line.strip()}
        files = [path for path in files if path.stem in stems]
        missing = stems - {path.stem for path in files}
        if missing:
            raise FileNotFoundError(f"{folder / min(missing)}.xml, which {listed} lists, is missing")
    if not files:
        raise FileNotFoundError(f"{folder}: there are no XML files in it")
    read = [_read(path, root) for path in files]
    boxes = [(one, one.bbox) for image in read for one in image.objects if one.bbox is not None]
    corners = [value for _, box in boxes for value in box[:2]]
    first = 0 if any(value < 1 for value in corners) else 1
    for one, (x0, y0, x1, y1) in boxes:
        one.bbox = [x0 - first, y0 - first, x1 - x0 + first, y1 - y0 + first]
    return Found(read)


def _read(path: Path, root: Path) -> FoundImage:
    try:
        tree = ElementTree.parse(path).getroot()
    except ElementTree.ParseError as error:
        raise ValueError(f"{path}: it is no XML: {error}") from error
    image = _image_of(path, root, tree.findtext("filename"))
    height, width = image_size(str(image))
    return FoundImage(
        str(image), height, width, [_object(one, path) for one in tree.iter("object")], str(path)
    )


def _image_of(path: Path, root: Path, name: str | None) -> Path:
    """By the name in the file, or else by the file's own."""
    folders = [root / "JPEGImages", root / "images", path.parent, root]
    names = [Path(name.replace("\\", "/")).name] if name else []
    names += [path.stem + suffix for suffix in (*IMAGE_SUFFIXES, *map(str.upper, IMAGE_SUFFIXES))]
    for candidate in names:
        for folder in folders:
            if (folder / candidate).is_file():
                return folder / candidate
    raise FileNotFoundError(f"{path}: there is no image {names[0]} for it in {', '.join(map(str, folders))}")


def _object(one: ElementTree.Element, path: Path) -> FoundObject:
    name = (one.findtext("name") or "").strip()
    box = one.find("bndbox")
    if not name or box is None:
        raise ValueError(f"{path}: an object must have a 'name' and a 'bndbox'")
    try:
        corners = [float(box.findtext(key) or "") for key in ("xmin", "ymin", "xmax", "ymax")]
    except (TypeError, ValueError):
        raise ValueError(f"{path}: the bndbox of {name!r} must have numbers xmin, ymin, xmax, ymax") from None
    difficult = (one.findtext("difficult") or "0").strip()
    return FoundObject(name, corners, extra={"difficult": int(difficult)} if difficult != "0" else {})
