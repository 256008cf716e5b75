"""A small file that names the parts of a dataset, for ``mrcnn-ext train data=skiers.yaml``. Runs without detectron2."""

from __future__ import annotations

import difflib
import os
from dataclasses import dataclass

import yaml

from .description import DESCRIPTION_KEYS

__all__ = ["DataFile", "default_name", "read_data_file"]

_PARTS = ("train", "val", "test")
_EXAMPLE = "train: [annotations/train.json, images/train]"


@dataclass(frozen=True)
class DataFile:
    """What `read_data_file` has read.

    Attributes:
        path: the file.
        coco_format: entries of ``DATASETS.COCO_FORMAT``, arguments of `register_coco_format`: [name, annotation file,
            image folder, description] each, with paths that are valid from the working directory.
        train: names for ``DATASETS.TRAIN``; empty if the file has no "train".
        test: names for ``DATASETS.TEST``: those of "val", or of "test" if there is no "val".
    """

    path: str
    coco_format: list[list]
    train: tuple[str, ...]
    test: tuple[str, ...]


def read_data_file(path: str | os.PathLike, converted_to: str | os.PathLike | None = None) -> DataFile:
    """Reads a yaml file such as ::

        train: [annotations/train.json, images/train]
        val: [annotations/val.json, images/val]
        flip_pairs: [[port, starboard]]      # and what else `read_description` takes
        sigmas: uniform

    Paths start from the file's folder. A part may be a list of such pairs. The datasets are named after the file:
    skiers_train and skiers_val for skiers.yaml, or after "name" in it; of several pairs skiers_train_1, skiers_train_2.

    YOLO's data.yaml is taken too: its parts are converted to COCO's format (`read_yolo`), at each call anew, into
    ``<name>_<part>.coco.json``.

    Args:
        path: of the file.
        converted_to: folder for the annotation files that a YOLO dataset becomes; default the file's own.

    Returns:
        DataFile:

    Raises:
        FileNotFoundError: the file, or a file or folder that it names, is missing.
        ValueError: it is not as above; the message names the file and the key.
    """
    path = os.fspath(path)
    if not os.path.isfile(path):
        raise FileNotFoundError(
            f"data file {path}: there is no such file" + (", but a folder" if os.path.isdir(path) else "")
        )
    with open(path) as file:
        try:
            content = yaml.safe_load(file)
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            reason = " ".join(str(error).split())
            raise ValueError(f"data file {path} is no yaml: {reason}") from error
    if not isinstance(content, dict):
        raise ValueError(f"data file {path} must have keys, such as {_EXAMPLE}; got {content!r:.60}")
    if not any(content.get(part) for part in _PARTS):
        raise ValueError(
            f"data file {path} has none of {', '.join(_PARTS)}; it needs one at least, such as {_EXAMPLE}"
        )
    name = _name(content, path)
    if _is_yolo(content):
        by_part = _convert_yolo(content, path, name, converted_to)
    else:
        by_part = _read_pairs(content, path, name)
    return DataFile(
        path,
        [entry for entries in by_part.values() for entry in entries],
        _names(by_part.get("train")),
        _names(by_part.get("val") or by_part.get("test")),
    )


def _names(entries: list[list] | None) -> tuple[str, ...]:
    return tuple(entry[0] for entry in entries or ())


def _name(content: dict, path: str) -> str:
    name = content.get("name")
    if name is None:
        name = default_name(path)
    if not isinstance(name, str) or not name.strip():
        raise ValueError(f"data file {path}: name must be what to call the data, got {name!r}")
    return name.strip().replace(" ", "_")


def default_name(path: str | os.PathLike) -> str:
    """What the data of a file are called that has no "name"."""
    folder, base = os.path.split(os.path.abspath(path))
    name = os.path.splitext(base)[0]
    if name in ("data", "dataset"):  # of YOLO's, whose folders bear the name
        name = os.path.basename(folder) or name
    return name


def _is_yolo(content: dict) -> bool:
    """Whether the parts are folders or lists of images, not annotation files."""
    if any(key in content for key in ("nc", "kpt_shape")):
        return True
    parts = [content[part] for part in _PARTS if content.get(part)]
    firsts = [part[0] if isinstance(part, list) and part else part for part in parts]
    return all(isinstance(first, str) and not first.lower().endswith(".json") for first in firsts)


def _read_pairs(content: dict, path: str, name: str) -> dict[str, list[list]]:
    known = (*_PARTS, "name", *DESCRIPTION_KEYS)
    for key in content:
        if key not in known:
            close = difflib.get_close_matches(str(key), known, 1)
            hint = f"; did you mean {close[0]!r}?" if close else f"; known are {', '.join(known)}"
            raise ValueError(f"data file {path} has an unknown key {key!r}{hint}")
    description = {key: content[key] for key in DESCRIPTION_KEYS if content.get(key) is not None}
    folder = os.path.dirname(path)
    return {
        part: _entries(content[part], f"{name}_{part}", folder, description, f"data file {path}: {part}")
        for part in _PARTS
        if content.get(part)
    }


def _entries(value, name: str, folder: str, description: dict, where: str) -> list[list]:
    several = isinstance(value, list) and value and all(isinstance(pair, list) for pair in value)
    pairs = value if several else [value]
    entries = []
    for number, pair in enumerate(pairs, 1):
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(v, str) and v for v in pair):
            raise ValueError(
                f"{where} must be [annotation file, image folder], or a list of those; got {pair!r}"
            )
        annotations, images = (os.path.join(folder, os.path.expanduser(v)) for v in pair)
        if not os.path.isfile(annotations):
            raise FileNotFoundError(f"{where}: there is no annotation file {annotations}")
        if not os.path.isdir(images):
            raise FileNotFoundError(f"{where}: there is no image folder {images}")
        entries.append([f"{name}_{number}" if len(pairs) > 1 else name, annotations, images, description])
    return entries


def _convert_yolo(content: dict, path: str, name: str, converted_to) -> dict[str, list[list]]:
    from .convert import convert_dataset

    folder = os.path.dirname(path) if converted_to is None else os.fspath(converted_to)
    if not os.access(folder or ".", os.W_OK):
        raise ValueError(
            f"data file {path} is YOLO's, and is to be converted into {folder or '.'}, which cannot be written to: "
            "convert it with `mrcnn-ext datasets convert yolo`, and name the result"
        )
    by_part = {}
    for part in _PARTS:
        if not content.get(part):
            continue
        called = f"{name}_{part}"
        done = convert_dataset("yolo", path, os.path.join(folder, f"{called}.coco.json"), part)
        entry = [called, done.annotations, done.image_root, *([done.description] if done.description else [])]
        by_part[part] = [entry]
    return by_part
