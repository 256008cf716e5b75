"""Results on disk, image by image, so that a killed run loses nothing and writes nothing twice."""

import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from ..engine.errors import UserError
from ..files import naming_full_disk, replacing
from .formats import BINARY, FORMATS, read_results, write_results
from .parquet_results import check_pyarrow

try:
    import fcntl
except ImportError:  # not on Windows, where two processes must not write one file
    fcntl = None

__all__ = ["ResultsFile"]


class ResultsFile:
    """A file of results that grows by one image at a time and appears when it is complete.

    While it grows it is ``<path>.part``: what is predicted with what in the first line, then one line an image,
    appended whole. A line that a kill cut short is dropped when the run continues. `finish` makes of it

    * ``path``: the results in the order of the source, in the format of its suffix (`formats.write_results`);
    * ``<path without suffix>.images.json``: the images with their ids and file names, the categories, and the
      images that were skipped, in COCO's annotation format, so that ``COCO(images).loadRes(results)`` works.

    Args:
        path: of the results, ending with .json, .jsonl, .csv or .parquet.
        identity: what decides the predictions, as plain values by what they are called. A run continues or is
            found complete only where they are equal.
        overwrite: begin anew, whatever there is.

    Attributes:
        done: places in the source of the images that have their results, each with its stamp.
        complete: whether there is nothing left to predict.
        owned: files, such as a video, that were made of the results; see `own`.

    Raises:
        UserError: ``path`` belongs to another run, or another process is writing it.
    """

    def __init__(self, path: str | os.PathLike, identity: dict, overwrite: bool = False):
        self.path = Path(path)
        if self.path.suffix not in FORMATS:
            raise UserError(f"{path}: the name of the results must end with {', '.join(FORMATS)}")
        if self.path.suffix == ".parquet":
            check_pyarrow()
        self.part = Path(f"{path}.part")
        self.images = self.path.with_suffix(".images.json")
        self._identity = json.loads(json.dumps(identity))
        self.done = {}
        self.owned = set()
        self._lines = {}  # place in the source -> where its line begins
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.complete = not overwrite and not self.part.exists() and self._is_complete()
        self._file = None if self.complete else self._open(overwrite)

    def write(
        self,
        index: int,
        image: dict,
        results: list[dict],
        error: str = "",
        stamp: int | None = None,
        made: dict[str, str] | None = None,
    ) -> None:
        """Appends an image.

        Args:
            index: its place in the source.
            image: ``id``, ``file_name``, ``height``, ``width``.
            results: COCO results, without anything that is not finite.
            error: why it was skipped; such an image is tried again when the run continues.
            stamp: what tells whether the image is another one when the run continues.
            made: by kind, what tells which other files were made of it.
        """
        line = {"index": index, "image": image, "stamp": stamp, "results": results}
        if made:
            line["made"] = made
        if error:
            line["error"] = error
        self._append(line, index)
        if not error:
            self.done[index] = stamp

    def lines(self) -> Iterator[tuple[int, dict, list[dict], dict[str, str]]]:
        """Place in the source, image, results, and what `write` was given as ``made``, of all images that are done.

        Raises:
            UserError: the results are complete and a CSV file.
        """
        if not self.complete:
            for line in self._in_order():
                if "error" not in line:
                    yield line["index"], line["image"], line["results"], _by_kind(line.get("made"))
            return
        content = json.loads(self.images.read_text())
        images, made = content["images"], content.get("made", {})
        found = read_results(self.path, images)
        for index, image, results in zip(content["stamps"], images, found, strict=True):
            yield int(index), image, results, made

    def made(self, kind: str) -> str:
        """What `finish` or `note` was given for the results, when they were complete."""
        return json.loads(self.images.read_text()).get("made", {}).get(kind, "") if self.complete else ""

    def own(self, path: str) -> None:
        """Writes down, before it is made, that a file is of these results, so that a later call may replace it."""
        if path in self.owned:
            return
        self.owned.add(path)
        if not self.complete:
            return self._append({"owns": path})
        content = json.loads(self.images.read_text())
        self._write_sidecar({**content, "owned": sorted(self.owned)})

    def finish(
        self,
        categories: list[dict],
        made: dict[str, str] | None = None,
        keypoint_names: Sequence[str] = (),
        change: Callable[[list[dict], dict], object] | None = None,
    ) -> dict:
        """Makes the results and the images file, and removes the part file.

        Args:
            categories: COCO's.
            made: by kind, what tells which other files there are; see `made`.
            keypoint_names: for the columns of a CSV file.
            change: is called with the results of each image, in the order of the source, and the image, and may
                change them.

        Returns:
            {"images", "results", "skipped": [{"file_name", "error"}]}: two counts, and a list.
        """
        images, stamps, skipped = [], {}, []

        def lines():
            for line in self._in_order():
                if "error" in line:
                    skipped.append({"file_name": line["image"]["file_name"], "error": line["error"]})
                    continue
                images.append(line["image"])
                stamps[line["index"]] = line["stamp"]
                if change is not None:
                    change(line["results"], line["image"])
                yield line["image"], line["results"]

        names = {category["id"]: category["name"] for category in categories}
        with replacing(self.path, "wb" if self.path.suffix in BINARY else "w") as file:
            count = write_results(file, self.path.suffix, lines(), names, keypoint_names)
            # Before the results are there: they are complete only with it.
            content = {"images": images, "annotations": [], "categories": categories}
            with replacing(self.images, "w") as sidecar:
                about = {"skipped": skipped, "run": self._identity, "stamps": stamps, "results": count}
                about["owned"] = sorted(self.owned)
                json.dump({**content, **about, "made": made or {}}, sidecar)
        self.part.unlink()
        self.close()
        return {"images": len(images), "results": count, "skipped": skipped}

    def note(self, made: dict[str, str]) -> None:
        """Writes down what was made of complete results."""
        content = json.loads(self.images.read_text())
        self._write_sidecar({**content, "made": {**content.get("made", {}), **made}})

    def _write_sidecar(self, content):
        with replacing(self.images, "w") as sidecar:
            json.dump(content, sidecar)

    def summary(self) -> dict:
        """What `finish` returned for complete results."""
        content = json.loads(self.images.read_text())
        return {
            "images": len(content["images"]),
            "results": content["results"],
            "skipped": content["skipped"],
        }

    def close(self) -> None:
        """Ends writing; the part file stays for the next run, if there is an image in it."""
        if self._file is not None:
            if not self._lines and not self.owned:
                self.part.unlink(missing_ok=True)
            self._file.close()
            self._file = None

    def _is_complete(self) -> bool:
        if not self.path.exists():
            return False
        try:
            content = json.loads(self.images.read_text())
            run, stamps = content["run"], content["stamps"].items()
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            raise UserError(
                f"{self.path} exists and is not known to be of this program: give another output, or "
                "overwrite it (overwrite=True, --overwrite)"
            ) from None
        self._check(run, self.path)
        self.done = {int(index): stamp for index, stamp in stamps}
        self.owned = set(content.get("owned", ()))
        return True

    def _open(self, overwrite):
        file = open(self.part, "a+b")
        try:
            if fcntl is not None:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # ends with the process, however it ends
        except BlockingIOError:
            file.close()
            raise UserError(f"{self.part}: another process is writing it") from None
        self._file = file
        try:
            if overwrite:
                file.truncate(0)  # what is complete stays until the new results are
            self._continue()
        except BaseException:  # it may be another run's
            self._file = None
            file.close()
            raise
        return file

    def _continue(self):
        end = 0
        for place, line in self._read_lines():
            if place == 0:
                self._check(line["run"], self.part)
            elif "owns" in line:
                self.owned.add(line["owns"])
            elif "error" not in line:
                self._lines[line["index"]] = place
                self.done[line["index"]] = line["stamp"]
            end = self._file.tell()
        self._file.truncate(end)
        if end == 0:
            self._append({"run": self._identity})

    def _read_lines(self) -> Iterator[tuple[int, dict]]:
        """Place and content of each line up to one that is not whole."""
        self._file.seek(0)
        place = 0
        while (text := self._file.readline()).endswith(b"\n"):
            try:
                line = json.loads(text)
            except ValueError:  # after a power cut
                break
            yield place, line
            place = self._file.tell()

    def _check(self, run, path):
        different = [
            # Hashes say nothing to a person.
            key if isinstance(value, str) else f"{key} ({run.get(key)}, now {value})"
            # What is at its default is left out, of either.
            for key, value in {**dict.fromkeys(run), **self._identity}.items()
            if run.get(key) != value
        ]
        if different:
            raise UserError(
                f"{path} is of a run with other {' and '.join(different)}: give what it was made with, another "
                "output, or overwrite it (overwrite=True, --overwrite)"
            )

    def _append(self, line, index=None):
        text = json.dumps(line, allow_nan=False).encode() + b"\n"
        self._file.seek(0, os.SEEK_END)
        if index is not None:
            self._lines[index] = self._file.tell()
        with naming_full_disk(self.part):
            self._file.write(text)
            self._file.flush()

    def _in_order(self) -> Iterator[dict]:
        for index in sorted(self._lines):
            self._file.seek(self._lines[index])
            yield json.loads(self._file.readline())


def _by_kind(made) -> dict[str, str]:
    """Earlier versions wrote one string for all kinds, which says of none what it needs."""
    return made if isinstance(made, dict) else {}
