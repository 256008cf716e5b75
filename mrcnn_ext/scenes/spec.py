"""What a scene may hold: categories, keypoints and the presets."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

# Part of every dataset's record. Raise it whenever the same (preset, seed, index) gives another picture.
VERSION = 1

# Cityscapes' eight categories with instances, in its order: (name, Cityscapes label id, colour).
CATEGORIES = (
    ("person", 24, (220, 20, 60)),
    ("rider", 25, (255, 0, 0)),
    ("car", 26, (0, 0, 142)),
    ("truck", 27, (0, 0, 70)),
    ("bus", 28, (0, 60, 100)),
    ("train", 31, (0, 80, 100)),
    ("motorcycle", 32, (0, 0, 230)),
    ("bicycle", 33, (119, 11, 32)),
)
CATEGORY_NAMES = tuple(name for name, _, _ in CATEGORIES)
LABEL_IDS = {name: label for name, label, _ in CATEGORIES}

# Cityscapes label ids of what surrounds the instances.
STUFF = {
    "unlabeled": 0,
    "static": 4,
    "road": 7,
    "sidewalk": 8,
    "rail track": 10,
    "building": 11,
    "pole": 17,
    "traffic light": 19,
    "traffic sign": 20,
    "vegetation": 21,
    "terrain": 22,
    "sky": 23,
}

KEYPOINT_NAMES = (
    "nose",
    "left_eye",
    "right_eye",
    "left_ear",
    "right_ear",
    "left_shoulder",
    "right_shoulder",
    "left_elbow",
    "right_elbow",
    "left_wrist",
    "right_wrist",
    "left_hip",
    "right_hip",
    "left_knee",
    "right_knee",
    "left_ankle",
    "right_ankle",
)
KEYPOINT_FLIP_MAP = tuple(
    (name, name.replace("left", "right")) for name in KEYPOINT_NAMES if name.startswith("left")
)
# Lines of the drawn skeleton, as pairs of keypoint names.
SKELETON = (
    ("left_ankle", "left_knee"),
    ("left_knee", "left_hip"),
    ("right_ankle", "right_knee"),
    ("right_knee", "right_hip"),
    ("left_hip", "right_hip"),
    ("left_shoulder", "left_hip"),
    ("right_shoulder", "right_hip"),
    ("left_shoulder", "right_shoulder"),
    ("left_shoulder", "left_elbow"),
    ("right_shoulder", "right_elbow"),
    ("left_elbow", "left_wrist"),
    ("right_elbow", "right_wrist"),
    ("left_eye", "right_eye"),
    ("nose", "left_eye"),
    ("nose", "right_eye"),
    ("left_eye", "left_ear"),
    ("right_eye", "right_ear"),
)

# What is placed in a scene. A cyclist is a rider and a bicycle, a biker a rider and a motorcycle.
ACTORS = ("person", "cyclist", "biker", "car", "truck", "bus", "train", "motorcycle", "bicycle")


def check_common_keys(preset, kind: str, known: tuple[str, ...], of: str) -> None:
    """Checks what presets of images and of clips have in common: ``weights``, ``min_area``, ``night`` and ``dusk``.

    Args:
        preset: has these attributes.
        kind: what ``weights`` has frequencies of.
        known: these.
        of: what the scenes are.

    Raises:
        ValueError: one is not what it must be.
    """
    if unknown := set(preset.weights) - set(known):
        raise ValueError(f"weights has unknown {kind} {sorted(unknown)}; known: {known}")
    if not sum(preset.weights.values()) > 0 or min(preset.weights.values()) < 0:
        raise ValueError(f"weights must be frequencies of 0 or more, some above 0, got {preset.weights}")
    if preset.min_area < 1:
        raise ValueError(f"min_area must be at least 1 pixel, got {preset.min_area}")
    if min(preset.night, preset.dusk) < 0 or preset.night + preset.dusk > 1:
        raise ValueError(
            f"night and dusk are fractions of the {of}, of a sum of 1 at most, got {preset.night} and {preset.dusk}"
        )


@dataclass(frozen=True)
class ScenePreset:
    """
    How scenes look and how hard they are.

    Attributes:
        name: what the dataset's record calls it.
        height, width: size of the images in pixels.
        actors: least and greatest number of actors of one scene (crowds and street furniture come on top).
        weights: relative frequency of each of `ACTORS`.
        size: least and greatest longer side of an actor's box, as it stands before occlusion and
            truncation: the first in pixels, the second as a fraction of the image's side it lies along.
        max_overlap: how much of an actor's box the box of another may cover, 0 to 1.
        min_inside: how much of an actor's box must lie in the image, 0 to 1.
        min_visible: an actor of which a smaller fraction can be seen is left without annotation.
        min_area: the same in pixels.
        empty: fraction of images without any instance.
        crowd: fraction of the other images that hold a crowd.
        night, dusk: fraction of the images of that light; the rest is day.
        facing: greatest angle in degrees between where people on foot look and the camera; 180 is any.
        furniture: greatest number of trees, lamps, signs, bins, which hide what is behind them.
        noise: greatest standard deviation of the sensor noise, in grey levels.
        blur: greatest standard deviation of the lens blur, in pixels.
    """

    name: str
    height: int
    width: int
    actors: tuple[int, int]
    weights: dict[str, float]
    size: tuple[float, float]
    max_overlap: float
    min_inside: float
    min_visible: float = 0.05
    min_area: int = 8
    empty: float = 0.04
    crowd: float = 0.1
    night: float = 0.15
    dusk: float = 0.15
    facing: float = 180.0
    furniture: int = 8
    noise: float = 7.0
    blur: float = 0.8

    def __post_init__(self):
        for key in ("height", "width"):
            if getattr(self, key) < 32:
                raise ValueError(f"{key} must be at least 32 pixels, got {getattr(self, key)}")
        if not 0 <= self.actors[0] <= self.actors[1]:
            raise ValueError(
                f"actors must be (least, greatest) with 0 <= least <= greatest, got {self.actors}"
            )
        check_common_keys(self, "actors", ACTORS, "images")
        if not 4 <= self.size[0] < self.size[1] * self.height:
            raise ValueError(
                f"size must be (pixels >= 4, fraction of the height) in rising order, got {self.size} "
                f"for a height of {self.height}"
            )


PRESETS = {
    "street": ScenePreset(
        name="street",
        height=512,
        width=1024,
        actors=(3, 18),
        weights={
            "person": 30,
            "cyclist": 7,
            "biker": 6,
            "car": 24,
            "truck": 7,
            "bus": 6,
            "train": 5,
            "motorcycle": 6,
            "bicycle": 9,
        },
        size=(8, 0.95),
        max_overlap=0.75,
        min_inside=0.35,
        crowd=0.2,
    ),
    "easy": ScenePreset(
        name="easy",
        height=160,
        width=256,
        actors=(2, 6),
        weights={
            "person": 30,
            "cyclist": 8,
            "biker": 8,
            "car": 14,
            "truck": 12,
            "bus": 12,
            "train": 12,
            "motorcycle": 6,
            "bicycle": 6,
        },
        size=(56, 0.95),
        max_overlap=0.15,
        min_inside=0.9,
        min_visible=0.2,
        min_area=40,
        empty=0.03,
        crowd=0.05,
        night=0.0,
        dusk=0.1,
        facing=40.0,
        furniture=2,
        noise=3.0,
        blur=0.4,
    ),
}


def get_preset(name: str, **overrides) -> ScenePreset:
    """
    Args:
        name: "street" (full difficulty) or "easy" (small images, few large objects, little occlusion).
        overrides: fields of `ScenePreset` to change.

    Raises:
        ValueError: an unknown name or field, or a value out of range.
    """
    return changed_preset(PRESETS, "preset", name, overrides)


def changed_preset(presets: dict, kind: str, name: str, overrides: dict):
    """
    Args:
        presets: dataclass instances by name.
        kind: what they are called in messages.
        name: of one of them.
        overrides: fields of it to change.

    Raises:
        ValueError: an unknown name or field, or a value out of range.
    """
    if name not in presets:
        raise ValueError(f"unknown {kind} {name!r}; presets: {', '.join(presets)}")
    known = {f.name for f in dataclasses.fields(presets[name])}
    if set(overrides) - known:
        raise ValueError(f"unknown {kind} fields {sorted(set(overrides) - known)}; fields: {sorted(known)}")
    return dataclasses.replace(presets[name], **overrides)
