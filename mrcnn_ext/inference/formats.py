"""Results as files: COCO's JSON, JSON lines, CSV, Parquet."""

import csv
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

from ..engine.errors import UserError
from .parquet_results import read_parquet, write_parquet

__all__ = ["BINARY", "FORMATS", "read_results", "write_results"]

BINARY = (".parquet",)  # suffixes of files that are not text


def write_results(
    file: IO,
    suffix: str,
    lines: Iterable[tuple[dict, list[dict]]],
    names: Mapping[int, str],
    keypoint_names: Sequence[str] = (),
) -> int:
    """Writes results in the format of a suffix.

    * ``.json``: COCO's results, one array.
    * ``.jsonl``: an object for each image, with ``file_name``, ``image_id``, ``height``, ``width``, ``frame`` of a
      video, and ``detections``: COCO's results with the class's name as ``category``.
    * ``.csv``: a row for each detection: image, class, score, box and keypoints, without the mask.
    * ``.parquet``: a row for each detection, with the mask as COCO's compressed RLE; ``image_id`` is JSON.

    Args:
        file: opened as text; as binary for the suffixes of `BINARY`.
        suffix: one of `FORMATS`.
        lines: image (``id``, ``file_name``, ...) and results of each, in the order of the file.
        names: of the classes by category id.
        keypoint_names: for the columns of a CSV file; numbers where they are too few.

    Returns:
        How many results there are.
    """
    return FORMATS[suffix](file, lines, names, keypoint_names)


def _write_coco(file, lines, names, keypoint_names) -> int:
    count = 0
    file.write("[")
    for _, results in lines:
        for result in results:
            file.write((",\n" if count else "") + json.dumps(result))
            count += 1
    file.write("]\n")
    return count


def _write_json_lines(file, lines, names, keypoint_names) -> int:
    count = 0
    for image, results in lines:
        detections = [
            {"category": names.get(result["category_id"], ""), **_without(result, "image_id")}
            for result in results
        ]
        about = {"image_id": image["id"], **_without(image, "id")}
        file.write(json.dumps({**about, "detections": detections}) + "\n")
        count += len(results)
    return count


def _without(record, key):
    return {name: value for name, value in record.items() if name != key}


_COLUMNS = ("file_name", "image_id", "frame", "category_id", "category", "score", "x", "y", "width", "height")


def _write_csv(file, lines, names, keypoint_names) -> int:
    writer = csv.writer(file, lineterminator="\n")
    points = None
    count = 0
    # The columns are known with the first result: every model gives the same ones in all images.
    for image, results in lines:
        for result in results:
            if points is None:
                points = _point_names(len(result.get("keypoints", ())) // 3, keypoint_names)
                extra = [f"{name}_{part}" for name in points for part in ("x", "y", "score")]
                track = ["track_id"] if "track_id" in result else []
                writer.writerow([*_COLUMNS, *track, *extra])
            about = (image["file_name"], image["id"], image.get("frame", ""))
            id = result["category_id"]
            track = [_or_empty(result["track_id"])] if "track_id" in result else []
            keypoints = result.get("keypoints", ())
            row = (*about, id, names.get(id, ""), result["score"], *result["bbox"], *track, *keypoints)
            writer.writerow(row)
            count += 1
    if points is None:
        writer.writerow(_COLUMNS)
    return count


def _or_empty(value):
    return "" if value is None else value


def _point_names(count: int, names: Sequence[str]) -> list[str]:
    return [names[i] if i < len(names) else f"keypoint_{i}" for i in range(count)]


FORMATS = {
    ".json": _write_coco,
    ".jsonl": _write_json_lines,
    ".csv": _write_csv,
    ".parquet": write_parquet,
}


def read_results(path: Path, images: Sequence[dict]) -> Iterator[list[dict]]:
    """COCO's results of each of the images, from a complete file of `write_results`.

    Raises:
        UserError: it is a CSV file, which does not hold all of them.
    """
    if path.suffix == ".csv":
        raise UserError(
            f"{path}: a CSV file does not hold masks, so nothing can be drawn from it: write .json, .jsonl or "
            ".parquet, or overwrite it (overwrite=True, --overwrite)"
        )
    if path.suffix == ".parquet":
        yield from read_parquet(path, images)
        return
    if path.suffix == ".jsonl":
        with open(path, encoding="utf-8") as file:
            for line in file:
                content = json.loads(line)
                yield [
                    {"image_id": content["image_id"], **_without(record, "category")}
                    for record in content["detections"]
                ]
        return
    by_image: dict = {}
    for record in json.loads(path.read_text()):
        by_image.setdefault(record["image_id"], []).append(record)
    for image in images:
        yield by_image.get(image["id"], [])
