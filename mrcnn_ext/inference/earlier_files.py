"""Which cut-outs and masks of an image are there already: the new ones may have other numbers and classes."""

import os
import re
from collections.abc import Iterable
from pathlib import Path

__all__ = ["EarlierFiles"]

_NUMBER = r"(?:\d{3}|[1-9]\d{3,})"


class EarlierFiles:
    """The cut-outs and masks that earlier calls have made, by image.

    Each folder is listed once, before the first file is written to it, however many images it is of.

    Args:
        cutouts, masks: the folders; None where there is none.
        classes: names of the classes as they are in names of files; without any, they have their numbers.
    """

    def __init__(self, cutouts: str | None, masks: str | None, classes: Iterable[str]):
        self._cutouts, self._masks = cutouts, masks
        self._class = "|".join(map(re.escape, classes)) or r"\d+"
        self._by_image: dict[Path, dict[str, list[Path]]] = {}
        self._folders_of_classes: list[Path] | None = None

    def cutouts(self, stem: Path) -> list[Path]:
        """``<stem>_<number>_<class>.png``."""
        if self._cutouts is None:
            return []
        return self._of_image(Path(self._cutouts, stem), rf"_{_NUMBER}_(?:{self._class})\.png")

    def masks(self, stem: Path) -> list[Path]:
        """``<class>/<stem>_<number>.png``."""
        if self._masks is None:
            return []
        if self._folders_of_classes is None:
            paths = [Path(self._masks, name) for name in _names(self._masks)]
            self._folders_of_classes = [path for path in paths if re.fullmatch(self._class, path.name)]
        folders = self._folders_of_classes
        return [path for folder in folders for path in self._of_image(folder / stem, rf"_{_NUMBER}\.png")]

    def _of_image(self, path, ending):
        folder = path.parent
        if folder not in self._by_image:
            self._by_image[folder] = by_image = {}
            for name in _names(folder):
                if match := re.fullmatch(f"(.+){ending}", name):
                    by_image.setdefault(match[1], []).append(folder / name)
        return self._by_image[folder].get(path.name, [])


def _names(folder):
    return sorted(os.listdir(folder)) if os.path.isdir(folder) else []
