"""What one user's session keeps: their pictures and predictions, never another's."""

from collections import OrderedDict
from dataclasses import dataclass

import numpy as np
import streamlit as st
from detectron2.structures import Instances

from ...engine.errors import UserError
from ..drawing import Shown
from ..inputs import Limits, Picture, read_upload
from ..models import Prediction, ShownModel

__all__ = [
    "Settings",
    "choose",
    "chosen_object",
    "escaped",
    "kept_uploads",
    "pick_object",
    "pixels_of",
    "predict",
]

_KEPT = 8  # predictions


@dataclass(frozen=True)
class Settings:
    """What the sidebar says.

    Attributes:
        model: of which the pages of one model are.
        pictures: all that there are to look at.
        min_score: detections below are left out.
        labels: classes that are shown, by the model's names; empty for all.
        shown: what is drawn.
    """

    model: ShownModel
    pictures: list[Picture]
    min_score: float
    labels: tuple[str, ...]
    shown: Shown

    def wanted(self, prediction: Prediction, classes: list[str]) -> Instances:
        """The instances that pass the threshold and are of a class that is shown."""
        instances = prediction.instances
        keep = instances.scores >= self.min_score
        if self.labels:
            for i, label in enumerate(instances.pred_classes.tolist()):
                keep[i] &= classes[label] in self.labels
        return instances[keep]


def predict(model: ShownModel, picture: Picture) -> Prediction:
    """A model's prediction, made once while the session remembers it."""
    kept: OrderedDict = st.session_state.setdefault("predictions", OrderedDict())
    key = (model.path, picture.key)
    if key not in kept:
        kept[key] = model.predict(picture)
        while len(kept) > _KEPT:
            kept.popitem(last=False)
    kept.move_to_end(key)
    return kept[key]


def pixels_of(picture: Picture) -> np.ndarray:
    """(H, W, 3) uint8 RGB; of the picture that is looked at it is kept."""
    kept = st.session_state.get("pixels", (None, None))
    if kept[0] != picture.key:
        st.session_state["pixels"] = kept = (picture.key, picture.read())
    return kept[1]


def kept_uploads(files, limits: Limits) -> tuple[list[Picture], list[str]]:
    """Pictures of uploaded files, each read once, and what is wrong with the others."""
    before: dict = st.session_state.get("uploads", {})
    now = {}
    for file in files[: limits.files]:
        now[file.file_id] = before.get(file.file_id) or _read(file, limits)
    st.session_state["uploads"] = now
    pictures = [picture for found in now.values() if isinstance(found, list) for picture in found]
    problems = [found for found in now.values() if isinstance(found, str)]
    if len(files) > limits.files:
        problems.append(
            f"{len(files)} files are more than the {limits.files} that are taken: the rest is left out"
        )
    return pictures, problems


def _read(file, limits) -> list[Picture] | str:
    try:
        return read_upload(file.name, file.getvalue(), limits)
    except UserError as error:
        return str(error)


def escaped(text: str) -> str:
    """Text of a file's name or a decoder, to be shown as it is and not as Markdown."""
    return "".join(f"\\{letter}" if letter in r"\`*_{}[]()<>#+-.!|~:$" else letter for letter in text)


def _object_name(instances: Instances, place: int, classes: list[str]) -> str:
    """For lists: class, score and where it is."""
    label, score = int(instances.pred_classes[place]), float(instances.scores[place])
    x0, y0, x1, y1 = instances.pred_boxes.tensor[place].tolist()
    return f"{classes[label]} {score:.2f}, at {(x0 + x1) / 2:.0f}, {(y0 + y1) / 2:.0f}"


def chosen_object(model: ShownModel, picture: Picture) -> int | None:
    """``number`` of the object of a model that was clicked or picked on this picture."""
    return st.session_state.get("chosen", {}).get((model.path, picture.key))


def choose(model: ShownModel, picture: Picture, number: int) -> None:
    """Remembers an object of a model on a picture, the last one alone, for all parts of the page."""
    st.session_state["chosen"] = {(model.path, picture.key): number}


def pick_object(model: ShownModel, picture: Picture, instances: Instances, key: str) -> int:
    """A list of the objects; gives the place of the one that is chosen."""
    numbers = instances.number.tolist()
    chosen = chosen_object(model, picture)
    place = st.selectbox(
        "Object",
        range(len(numbers)),
        index=numbers.index(chosen) if chosen in numbers else 0,
        format_func=lambda i: _object_name(instances, i, model.classes),
        # Another list for other objects, and when one was clicked elsewhere.
        key=f"{key}-{picture.key}-{numbers}-{chosen}",
    )
    if numbers[place] != chosen and (chosen is not None or place != 0):
        choose(model, picture, numbers[place])
        st.rerun()
    return place
