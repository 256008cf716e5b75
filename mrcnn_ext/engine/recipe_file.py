"""A recipe as lines that say what was chosen and why, and as a config file."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from detectron2.structures import BoxMode
from detectron2.utils import comm

from ..data.box_statistics import BoxStatistics, box_statistics
from ..data.loading import load_dataset
from ..files import replacing
from .checks import check_dataset_names
from .errors import UserError
from .recipe import Choice, Settings, choose, shown

__all__ = ["Recipe", "choose_for"]


@dataclass
class Recipe:
    """What was chosen.

    Attributes:
        choices: of `choose`.
        keys: of the config, by the names of the settings.
        usual: what the config has without the user's values.
        file_name: "recipe.yaml" or "recipe.py".
        content: the file's text, of the lines and the config's path from the folder of the recipe.
        config_file: that the recipe goes over; "" for none.
    """

    choices: list[Choice]
    keys: dict[str, str]
    usual: Settings
    file_name: str
    content: Callable[[list[str], str], str]
    config_file: str

    def __str__(self) -> str:
        return "\n".join(self.lines())

    def lines(self) -> list[str]:
        """A line for each setting: key, value, and why."""
        lines = []
        for choice in self.choices:
            old = getattr(self.usual, choice.name)
            kind = f" (was {shown(old)})" if choice.changed else " stays" if not choice.said else ""
            lines.append(f"{self.keys[choice.name]} {shown(choice.value)}{kind}: {choice.why}")
        return lines

    def tell_and_write(self, folder: str) -> None:
        """Logs the lines and writes the config to a folder, in the main process."""
        if not comm.is_main_process():
            return
        path = os.path.join(folder, self.file_name)
        logging.getLogger(__name__).info(
            "The recipe by the data, in %s:\n  %s", path, "\n  ".join(self.lines())
        )
        base = self.config_file
        if base and "://" not in base:
            base = os.path.relpath(os.path.realpath(base), os.path.realpath(folder))
        with replacing(path, "w") as file:
            file.write(self.content(self.lines(), base.replace(os.sep, "/")))


def choose_for(
    names: Sequence[str], usual: Settings, set_by_user: dict, *, with_empty: bool, min_keypoints: int
) -> list[Choice]:
    """Chooses by registered datasets.

    Args:
        names: of the datasets that are trained on.
        usual, set_by_user: as of `choose`.
        with_empty: whether images without objects are trained on.
        min_keypoints: images with fewer visible keypoints are not.

    Raises:
        UserError: there are none, they cannot be read, or they have no objects.
    """
    if not names:
        raise UserError("--recipe needs training data to choose by, and the config names none")
    check_dataset_names(names)
    try:
        return choose(_statistics(names, with_empty, min_keypoints), usual, set_by_user)
    except (ValueError, FileNotFoundError) as error:
        raise UserError(f"--recipe: {error}") from error


def _statistics(names: Iterable[str], with_empty: bool, min_keypoints: int) -> BoxStatistics:
    records = [record for name in names for record in load_dataset(name)]
    if min_keypoints > 0:
        records = [record for record in records if _visible(record) >= min_keypoints]
    return box_statistics(records, _to_xywh, with_empty)


def _visible(record: dict) -> int:
    objects = (a for a in record.get("annotations", ()) if not a.get("iscrowd", 0))
    return sum(v > 0 for a in objects for v in a.get("keypoints", ())[2::3])


def _to_xywh(annotation: dict) -> list[float]:
    box, mode = annotation["bbox"], annotation["bbox_mode"]
    if mode == BoxMode.XYWH_ABS:
        return box
    if mode == BoxMode.XYWHA_ABS:
        x0, y0, x1, y1 = BoxMode.convert([box], mode, BoxMode.XYXY_ABS)[0]
        return [float(v) for v in (x0, y0, x1 - x0, y1 - y0)]
    return BoxMode.convert(box, mode, BoxMode.XYWH_ABS)
