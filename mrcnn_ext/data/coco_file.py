"""COCO annotation files as people have them, read piece by piece, mended and checked.

Training, the check, both evaluators and torchvision's data read annotation files by this module alone.
"""

from __future__ import annotations

import copy
import difflib
import os
from collections import Counter
from collections.abc import Iterator
from typing import Any

from .annotations import SMALLEST_SIDE, clean_annotation, plain_number
from .json_stream import stream_sections
from .keypoint_names import keypoints_of_categories
from .problems import Problems, Unusable, kind_of, shown
from .reading_once import file_key, kept

__all__ = ["CocoFile", "MOST_STRAYING", "check_box"]

MOST_STRAYING = 0.2  # share of boxes beyond which odd ones are of another format
_SECTIONS = ("images", "annotations", "categories")


class CocoFile:
    """An annotation file of COCO's format.

    Construction reads the images and categories; `annotations` reads the annotations, one at a time. What is mended,
    left out or wrong goes to ``problems``; nothing is raised for it, so that all of it can be told at once.

    Args:
        path: of the JSON file.
        problems: takes what is found.

    Attributes:
        images: image records by id, with "id", "file_name", "height" and "width"; ids in the file's order.
        categories: category records, sorted by id.
        keypoint_names: of the categories that have keypoints; empty without any.
        num_keypoints: of an object: as many as there are names, or as most objects have; None without any. Objects
            without keypoints have so many that are not visible.
        num_annotations: in the file, usable or not.
        repeated_images: ids that two images have; their objects may be of either.
        has_annotations: False for a file of images alone, as COCO's test sets have.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it cannot be read, or it is no annotation file.
    """

    def __init__(self, path: str | os.PathLike, problems: Problems):
        self.path = os.fspath(path)
        self.problems = problems
        self.images: dict = {}
        self.categories: list[dict] = []
        self.has_annotations = False
        self.other: dict = {}
        self._ids: set = set()
        self._renumber = self._has_twins = False
        self._odd_ids = self.num_annotations = 0
        self.repeated_images: set = set()
        self._keypoint_counts: Counter[int] = Counter()
        self._read_head()
        self._ids.clear()
        self.keypoint_names = keypoints_of_categories(self.categories, self.path)
        self._image_by_text = {str(key): key for key in self.images}
        self._category_ids = {category["id"]: category["id"] for category in self.categories}
        self._category_ids |= {str(key): key for key in list(self._category_ids)}
        most_common = self._keypoint_counts.most_common(1)
        self.num_keypoints = len(self.keypoint_names) or (most_common[0][0] if most_common else None)

    @classmethod
    def shared(cls, path: str | os.PathLike, problems: Problems) -> CocoFile:
        """As the constructor; within `reading_once` what it reads is read once."""
        first = kept(("head", file_key(path)), lambda: cls(path, Problems(problems.dataset, problems.source)))
        file = copy.copy(first)
        file.problems = problems
        problems.include(first.problems)
        return file

    def _sections(self) -> Iterator[tuple[str, object, bool]]:
        try:
            yield from stream_sections(self.path, arrays=_SECTIONS)
        except FileNotFoundError:
            raise
        except (ValueError, OSError) as error:
            if str(error).startswith("it must be an object"):
                self._refuse(str(error))
            kind = "" if str(error).startswith("JSONDecodeError") else f"{type(error).__name__}: "
            raise ValueError(
                f"dataset {self.problems.dataset!r} cannot be read from {self.path}: {kind}{error}"
            ) from error

    def _read_head(self):
        found = {}
        categories = []
        for key, value, is_element in self._sections():
            found[key] = True
            if key not in _SECTIONS:
                self.other[key] = value
                continue
            if not is_element and value != []:
                self._refuse(f"its {key!r} must be a list of objects, got {shown(value)}")
            if key == "annotations":
                self.has_annotations = True
                self._look_at(value)
            elif is_element and not isinstance(value, dict):
                self._refuse(f"its {key!r} must be a list of objects, got {shown(value)} among them")
            elif is_element:
                self._add_image(value) if key == "images" else categories.append(value)
        for key in ("images", "categories"):
            if key not in found:
                close = difflib.get_close_matches(key, found, 1, 0.6)
                hint = (
                    f"it has {close[0]!r}: is it misspelt?"
                    if close
                    else f"it has {', '.join(found) or 'nothing'}"
                )
                self._refuse(f"there is no {key!r} in it; {hint}")
        if not categories:
            self._refuse("its 'categories' is empty: there must be at least one, {'id': 1, 'name': ...}")
        self._set_categories(categories)

    def _refuse(self, text: str):
        raise ValueError(
            f"dataset {self.problems.dataset!r}: {self.path} is not a COCO annotation file: {text}"
        )

    def _set_categories(self, categories: list[dict]):
        ids: dict[Any, Any] = {}
        names: dict[Any, Any] = {}
        for category in categories:
            number, name = category.get("id"), category.get("name")
            is_number = isinstance(number, (int, str)) and not isinstance(number, bool)
            if not is_number or not isinstance(name, str) or not name:
                self._refuse(f"a category must have a number as 'id' and a 'name', got {shown(category)}")
            category = {**category, "id": _number_id(category["id"])}
            if category["id"] in ids:
                self._refuse(
                    f"two categories, {ids[category['id']]!r} and {name!r}, have the id {category['id']}"
                )
            if name in names:
                self._refuse(
                    f"two categories, of ids {names[name]} and {category['id']}, have the name {name!r}"
                )
            ids[category["id"]], names[name] = name, category["id"]
            self.categories.append(category)
        if not all(isinstance(key, (int, float)) for key in ids):
            self._refuse(f"the ids of its categories must be numbers, got {shown(list(ids))}")
        self.categories.sort(key=lambda category: category["id"])

    def _add_image(self, record: dict):
        name = record.get("file_name")
        where = f"image {record.get('id', '(without an id)')} ({name or 'no file name'})"
        if not isinstance(record.get("id"), (int, str)) or isinstance(record["id"], bool):
            return self.problems.error(
                "image-id", where, f"its id must be a number, got {shown(record.get('id'))}"
            )
        if not isinstance(name, str) or not name:
            return self.problems.error("image-file-name", where, "its record has no 'file_name'")
        if record["id"] in self.images:
            other = self.images[record["id"]]["file_name"]
            self.repeated_images.add(record["id"])
            return self.problems.error(
                "image-id-twice",
                where,
                f"{other} has the same id: every image needs its own, or the objects of one are drawn on the other",
                image=record["id"],
            )
        clean = record
        for key in ("height", "width"):
            if key not in record:
                self.problems.error("image-size", where, f"its record has no {key!r}", image=record["id"])
                return
            try:
                size = int(plain_number(record[key]))
                if size <= 0:
                    raise Unusable(f"{size} is no size")
                if size is not record[key]:
                    clean = {**clean, key: size}
            except Unusable as problem:
                self.problems.error("image-size", where, f"its {key}: {problem}", image=record["id"])
                return
        self.images[record["id"]] = clean

    def place(self, annotation: dict) -> str:
        """Names an annotation by the ids of its image and its own."""
        which = annotation.get("id")
        which = f"annotation id {which}" if which is not None else "an annotation without an id"
        image_id = annotation.get("image_id")
        record = self.images.get(self._image_of(image_id))
        return f"image {image_id} ({record['file_name'] if record else 'not in the file'}), {which}"

    def _image_of(self, image_id):
        if isinstance(image_id, (int, str, float)) and image_id in self.images:
            return image_id
        return self._image_by_text.get(str(image_id))

    def annotations(self, *, broken: bool = False, renumber: bool = True) -> Iterator[dict]:
        """The annotations as `clean_annotation` gives them, with the ids that images and categories have as
        "image_id" and "category_id".

        Left out, with a finding: those of images that are not there, those that cannot be used, and those with an
        empty box.

        Args:
            broken: give what cannot be used too, with its description as "problem".
            renumber: give all new ids if one is not a number above 0 or there twice. pycocotools takes an object
                of id 0 for one that was not found.
        """
        seen: set = set()
        boxes = number = 0
        if self._odd_ids:
            text = (
                f"{self._odd_ids} of its {self.num_annotations} annotations have an id that is missing, or no whole "
                "number above 0: all get new ones, from 1, where they are evaluated"
            )
            self.problems.warn("id", "", text)
        for key, raw, is_element in self._sections():
            if key != "annotations" or not is_element:
                continue
            boxes += 1
            clean = self._annotation(raw, seen)
            if "problem" not in clean:
                number += 1
                if renumber and self._renumber:
                    clean["id"] = number
            if broken or "problem" not in clean:
                yield clean
        for kind in ("bbox-outside", "bbox-relative"):
            self.problems.judge_share(kind, boxes, MOST_STRAYING)

    def _look_at(self, annotation):
        """Notes whether annotations need new ids, and how many keypoints they have."""
        if not isinstance(annotation, dict):
            return
        self.num_annotations += 1
        number = annotation.get("id")
        if isinstance(number, (int, str)):
            self._has_twins |= number in self._ids
            self._ids.add(number)
        if type(number) is not int or number <= 0:
            self._odd_ids += 1
        self._renumber = bool(self._odd_ids) or self._has_twins
        keypoints = annotation.get("keypoints")
        if isinstance(keypoints, list) and keypoints:
            nested = isinstance(keypoints[0], list)
            self._keypoint_counts[len(keypoints) if nested else len(keypoints) // 3] += 1

    def _annotation(self, raw, seen: set) -> dict:
        if not isinstance(raw, dict):
            text = f"an annotation must be an object, {{...}}, got {shown(raw)}"
            self.problems.error("annotation", "", text)
            return {"problem": text}
        image_id = self._image_of(raw.get("image_id"))

        def where():
            return self.place(raw)

        def broken(kind, text, is_error=True):
            self.problems.add(kind, where, text, is_error=is_error, image=image_id)
            return {**raw, "image_id": image_id, "problem": text}

        if image_id is None:
            return broken("image-unknown", "the file has no image of this id: it is left out", is_error=False)
        if image_id != raw["image_id"]:
            text = (
                f"its image_id is {raw['image_id']!r}, the image's id {image_id!r}: it is taken for the same"
            )
            self.problems.warn("image-id-type", where, text)
        number = raw.get("id")
        if self._has_twins and isinstance(number, (int, str)):
            if number in seen:
                self.problems.warn("id-twice", where, "another has the same id: they get new ones")
            seen.add(number)
        record = self.images[image_id]

        def note(kind, text):
            self.problems.warn(kind, where, text, image=image_id)

        try:
            category = raw.get("category_id")
            if isinstance(category, float):
                category = int(category) if category.is_integer() else category
            category_id = self._category_ids.get(category) if isinstance(category, (int, str)) else None
            if category_id is None:
                known = ", ".join(str(c["id"]) for c in self.categories[:10])
                raise Unusable(f"category_id {shown(category)} is not among the file's categories ({known})")
            clean = clean_annotation(raw, record["height"], record["width"], note, self.num_keypoints)
            clean["image_id"], clean["category_id"] = image_id, category_id
            check_box(clean["bbox"], record["height"], record["width"], note)
        except Unusable as problem:
            return broken(kind_of(str(problem)), str(problem))
        except Exception as error:  # what nobody foresaw has a place too
            return broken("unreadable", f"it cannot be read: {type(error).__name__}: {error}")
        if min(clean["bbox"][2:]) <= SMALLEST_SIDE:
            return broken("bbox-empty", f"its bbox {clean['bbox']} is empty: it is left out", is_error=False)
        if clean.get("undrawable") and not clean["iscrowd"]:
            note(
                "undrawable",
                "nothing of its segmentation can be drawn: it is left out where masks are needed",
            )
        return clean

    def content(self) -> dict:
        """The whole, mended, as pycocotools takes it: {"images", "categories", "annotations", ...}."""
        content = {**self.other, "images": list(self.images.values()), "categories": self.categories}
        if self.has_annotations:
            content["annotations"] = list(self.annotations())
        return content


def check_box(box: list[float], height: int, width: int, note) -> None:
    """Tells of boxes that reach far beyond the image, and of those that may be in units of the image's size.

    Raises:
        Unusable: it lies outside of the image altogether.
    """
    x0, y0 = box[0], box[1]
    x1, y1 = x0 + box[2], y0 + box[3]
    if 0 <= x0 and 0 <= y0 and x1 <= 1 and y1 <= 1 and max(box) > 0:
        note(
            "bbox-relative",
            f"its bbox {box} lies in the first pixel: is it in units of the image's width and height? It must be "
            "in pixels",
        )
    # Boxes drawn by hand stray over the border; those of whole bodies, cut off by it, do so by more.
    slack_x, slack_y = 2 + 0.05 * width, 2 + 0.05 * height
    if x0 >= -slack_x and y0 >= -slack_y and x1 <= width + slack_x and y1 <= height + slack_y:
        return
    text = (
        f"its bbox, x0 y0 x1 y1 = {[round(v, 1) for v in (x0, y0, x1, y1)]}, lies outside the image of width {width} "
        f"and height {height}"
    )
    if x1 < 0 or y1 < 0 or x0 > width or y0 > height:
        raise Unusable(f"{text}: is it x, y, width, height, in pixels?")
    note("bbox-outside", f"{text}; what is outside is cut off. Is it x, y, width, height, in pixels?")


def _number_id(value):
    """An id that is a number, where text says one."""
    return int(value) if isinstance(value, str) and value.strip().isdigit() else value
