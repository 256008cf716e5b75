"""Schedule, learning rate, anchors and image sizes by the data: what ``--recipe auto`` chooses, and why."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from ..data.box_statistics import BoxStatistics, anchor_overlaps, common_ratios

__all__ = ["Choice", "Settings", "choose", "resize_factors", "shown"]

# Iterations: detectron2's published schedules are 12 passes over COCO's 117266 images, 64 over Cityscapes' 2975 and 17
# over Pascal VOC's 16551. Passes that grow with the root of how much smaller a dataset is are within a factor 2 of all.
_COCO_IMAGES, _COCO_EPOCHS = 117266, 12
_MOST_EPOCHS, _FEWEST_ITERATIONS = 100, 500
# Warm-up is a tenth of the training at most.
_WARMUP_SHARE = 10
# Image sizes: all but this share of the objects are to be at least half the smallest anchor of the config ...
_SMALL_SHARE = 0.1
# ... if that takes no more than this many times its image sizes, and no image is enlarged by more than this.
_MOST_LARGER, _MOST_ENLARGED = 2.0, 2.0
_LEAST_CHANGE = 1.1
# Anchors: what the mean IoU of objects with their best anchor must win by, for other sizes or ratios, and for more of
# them; weights of an RPN that is trained already fit the same number alone.
_LEAST_GAIN, _LEAST_GAIN_OF_MORE = 0.05, 0.05
_SIZE_STEPS = 4  # to the octave
_SMALLEST_ANCHOR = 1.0  # in strides
# Image sizes and anchors: with fewer objects the config's, which are for thousands, are the better guess.
_FEWEST_BOXES = 50


@dataclass
class Settings:
    """What a config says.

    Attributes:
        batch_size: images of an iteration, all processes together.
        max_iter, warmup: iterations.
        steps: iterations at which the learning rate falls; empty if it does not fall in steps.
        learning_rate: of the optimiser.
        sqrt_scaling: whether the learning rate grows with the root of the batch size, as for Adam and its kin.
        train_sizes, max_train_size, test_size, max_test_size: shorter and longer sides of the network's input; no
            train_sizes if images are not resized so.
        square: side of the square that images are fitted into instead; 0 for none.
        anchor_sizes, anchor_ratios, strides: of each feature map of the RPN; no anchor_sizes without anchors.
    """

    batch_size: int
    max_iter: int
    warmup: int
    steps: tuple[int, ...]
    learning_rate: float
    sqrt_scaling: bool
    train_sizes: tuple[int, ...]
    max_train_size: int
    test_size: int
    max_test_size: int
    anchor_sizes: list[list[float]]
    anchor_ratios: list[list[float]]
    strides: list[int]
    square: int = 0


@dataclass
class Choice:
    """A value for one of the `Settings`.

    Attributes:
        name: of the setting.
        value: chosen, or what the config has.
        why: a sentence.
        changed: whether it is another than the config's.
        said: whether the user has set it, so that it stays.
    """

    name: str
    value: object
    why: str
    changed: bool = True
    said: bool = False


@dataclass
class _Chooser:
    data: BoxStatistics
    usual: Settings
    set_by_user: dict
    choices: dict[str, Choice] = field(default_factory=dict)

    def put(self, name: str, value, why: str):
        """Takes a value for a setting, unless the user has said another."""
        if name in self.set_by_user:
            said = self.set_by_user[name]
            by_data = f"; the data say {shown(value)}: {why}" if said != value else ""
            self.choices[name] = Choice(name, said, f"as you have set it{by_data}", changed=False, said=True)
        else:
            self.choices[name] = Choice(name, value, why, changed=value != getattr(self.usual, name))

    def value(self, name: str):
        return self.choices[name].value


def choose(data: BoxStatistics, usual: Settings, set_by_user: dict) -> list[Choice]:
    """Chooses settings by the data.

    Args:
        data: statistics of what is trained on.
        usual: of the config without what the user has set; the batch size among them is the one for which its
            learning rate is meant.
        set_by_user: values by names of settings, which stay; "batch_size" is what is trained with.

    Returns:
        A choice for each setting that the config has, in the order in which they are made.

    Raises:
        ValueError: there are no objects.
    """
    if not data.num_boxes:
        raise ValueError("there is no recipe for data without objects")
    chooser = _Chooser(data, usual, set_by_user)
    _choose_schedule(chooser)
    _choose_learning_rate(chooser)
    scales = _choose_sizes(chooser)
    if usual.anchor_sizes:
        _choose_anchors(chooser, data.scaled(scales))
    return list(chooser.choices.values())


def _choose_schedule(chooser: _Chooser):
    usual, images = chooser.usual, chooser.data.num_images
    batch = chooser.set_by_user.get("batch_size", usual.batch_size)
    epochs = min(_MOST_EPOCHS, max(_COCO_EPOCHS, _COCO_EPOCHS * math.sqrt(_COCO_IMAGES / images)))
    needed = epochs * images / batch
    iterations = max(_FEWEST_ITERATIONS, _to_two_digits(needed))
    why = f"{iterations * batch / images:.3g} passes over {images} images in batches of {batch}"
    if needed < _FEWEST_ITERATIONS:
        why += f", since fewer than {_FEWEST_ITERATIONS} iterations teach little"
    chooser.put("max_iter", iterations, why)
    iterations = chooser.value("max_iter")
    if usual.steps:
        shares = [step / usual.max_iter for step in usual.steps if step < usual.max_iter]
        steps = tuple(round(share * iterations) for share in shares)
        listed = " and ".join(f"{share:.2g}" for share in shares)
        chooser.put("steps", steps, f"after {listed} of the iterations, as in the config")
    warmup = max(1, min(usual.warmup, iterations // _WARMUP_SHARE)) if usual.warmup else 0
    chooser.put("warmup", warmup, f"a {_WARMUP_SHARE}th of the iterations, and {usual.warmup} at most")


def _choose_learning_rate(chooser: _Chooser):
    usual = chooser.usual
    batch = chooser.set_by_user.get("batch_size", usual.batch_size)
    share = batch / usual.batch_size
    rate = float(f"{usual.learning_rate * (share**0.5 if usual.sqrt_scaling else share):.3g}")
    how = (
        "in proportion to the root of the batch size"
        if usual.sqrt_scaling
        else "in proportion to the batch size"
    )
    if batch == usual.batch_size:
        how = "which is the batch size"
    chooser.put("learning_rate", rate, f"{usual.learning_rate:g} is for batches of {usual.batch_size}, {how}")


def _choose_sizes(chooser: _Chooser) -> np.ndarray:
    """Factors by which the image of each box is resized."""
    usual, data = chooser.usual, chooser.data
    if not usual.train_sizes:
        return usual.square / data.sizes.max(1) if usual.square else np.ones(len(data.boxes))
    smallest = min(min(level) for level in usual.anchor_sizes) if usual.anchor_sizes else 32
    scales = resize_factors(data.sizes, max(usual.train_sizes), usual.max_train_size)
    if data.num_boxes < _FEWEST_BOXES:
        for name in ("train_sizes", "max_train_size", "test_size", "max_test_size"):
            chooser.put(name, getattr(usual, name), _too_few(data.num_boxes))
        return resize_factors(data.sizes, max(chooser.value("train_sizes")), chooser.value("max_train_size"))
    sides = np.sqrt(data.boxes[:, 2] * data.boxes[:, 3])
    small = float(np.quantile(sides * scales, _SMALL_SHARE))
    wanted, factor = smallest / 2, 1.0
    typical = float(np.median(scales))
    largest = max(1.0, min(_MOST_LARGER, _MOST_ENLARGED / typical))
    text = f"a tenth of the objects would be under {small:.0f} px"
    if small < wanted:
        factor = min(wanted / small, largest)
    elif typical > _MOST_ENLARGED and small * _MOST_ENLARGED / typical >= 2 * wanted:
        factor = _MOST_ENLARGED / typical
        text = f"images would be enlarged {typical:.1f} times, for objects that are large"
    if 1 / _LEAST_CHANGE < factor < _LEAST_CHANGE:
        factor = 1.0
    after = small * factor
    if factor == 1:
        why = f"all but a tenth of the objects are {small:.0f} px or more"
        if small < wanted:
            why = f"{text}, but images would be enlarged by more than {_MOST_ENLARGED:g} for more"
        values = usual.train_sizes, usual.max_train_size, usual.test_size, usual.max_test_size
    else:
        why = f"at {max(usual.train_sizes)} px {text}; here {after:.0f} px"
        if small < wanted and after < 0.9 * wanted:
            limit = f"the config's sizes are not more than {_MOST_LARGER:g} times"
            if largest < _MOST_LARGER:
                limit = f"images are not enlarged by more than {_MOST_ENLARGED:g}"
            why += f" ({limit}; cutting images into tiles would help)"
        longest = int(usual.max_train_size * factor)
        values = (
            tuple(dict.fromkeys(_side(size * factor) for size in usual.train_sizes)),
            longest,
            _side(usual.test_size * factor),
            int(usual.max_test_size * factor),
        )
    for name, value in zip(
        ("train_sizes", "max_train_size", "test_size", "max_test_size"), values, strict=True
    ):
        chooser.put(name, value, why if name == "train_sizes" else "with the others")
    return resize_factors(data.sizes, max(chooser.value("train_sizes")), chooser.value("max_train_size"))


def resize_factors(sizes: np.ndarray, short: int, longest: int) -> np.ndarray:
    """What detectron2's ResizeShortestEdge multiplies the (N, 2) sizes of images by."""
    return np.minimum(short / sizes.min(1), longest / sizes.max(1))


def _side(value: float) -> int:
    """A multiple of 32, the coarsest stride that backbones have, where that is a small change."""
    return max(32, round(value / 32) * 32)


def _too_few(boxes: int) -> str:
    return f"{boxes} objects are too few to choose by, of which there should be {_FEWEST_BOXES}"


def _choose_anchors(chooser: _Chooser, boxes: np.ndarray):
    usual = chooser.usual
    if chooser.data.num_boxes < _FEWEST_BOXES:
        for name in ("anchor_sizes", "anchor_ratios"):
            chooser.put(name, getattr(usual, name), _too_few(chooser.data.num_boxes))
        return
    sizes = chooser.set_by_user.get("anchor_sizes", usual.anchor_sizes)
    ratios = chooser.set_by_user.get("anchor_ratios", usual.anchor_ratios)
    as_they_are = _fit(boxes, sizes, ratios, usual.strides)
    best, fit = (sizes, ratios), as_they_are
    numbers = [len(level) for level in usual.anchor_ratios]
    candidates = [(ratios, _LEAST_GAIN)]
    if "anchor_ratios" not in chooser.set_by_user and len(set(numbers)) == 1:
        for number, gain in ((numbers[0], _LEAST_GAIN), (numbers[0] + 2, _LEAST_GAIN_OF_MORE)):
            candidates.append(([_ratios(boxes, number)] * len(usual.anchor_ratios), gain))
    for other, gain in candidates:
        tried = sizes
        if "anchor_sizes" not in chooser.set_by_user:
            tried = max(
                _other_sizes(usual.anchor_sizes, usual.strides),
                key=lambda some: _fit(boxes, some, other, usual.strides)[0],
            )
        result = _fit(boxes, tried, other, usual.strides)
        if result[0] >= fit[0] + gain:
            best, fit = (tried, other), result
    why = (
        f"the mean IoU of objects with their best anchor is {fit[0]:.2f} ({as_they_are[0]:.2f} with the config's), "
        f"{fit[1]:.0%} of them are above 0.5 ({as_they_are[1]:.0%})"
    )
    if best == (sizes, ratios):
        why = (
            f"other anchors would not fit better by {_LEAST_GAIN}: the mean IoU of objects with their best anchor is "
            f"{fit[0]:.2f}, {fit[1]:.0%} of them are above 0.5"
        )
    chooser.put("anchor_sizes", best[0], why)
    chooser.put("anchor_ratios", best[1], "with the sizes")


def _ratios(boxes: np.ndarray, number: int) -> list[float]:
    """Those of the boxes; where the boxes have fewer, as many around them, a root of two apart."""
    found = common_ratios(boxes, number)
    if len(found) == number:
        return found
    middle = math.exp(float(np.log(found).mean()))
    return [float(f"{middle * 2 ** ((k - (number - 1) / 2) / 2):.2g}") for k in range(number)]


def _other_sizes(sizes: Sequence[Sequence[float]], strides: Sequence[int]):
    """Those of the config times powers of the fourth root of two, from a stride to eight times as large."""
    smallest = min(min(level) / stride for level, stride in zip(sizes, strides, strict=False))
    lowest = math.ceil(_SIZE_STEPS * math.log2(_SMALLEST_ANCHOR / smallest))
    for step in range(lowest, 3 * _SIZE_STEPS + 1):
        factor = 2 ** (step / _SIZE_STEPS)
        yield (
            [[_rounded_size(size * factor) for size in level] for level in sizes]
            if step
            else [list(level) for level in sizes]
        )


def _rounded_size(value: float) -> float:
    return float(round(value)) if value >= 16 else round(value, 1)


def _fit(boxes, sizes, ratios, strides) -> tuple[float, float]:
    """Mean IoU with the best anchor, and the share of boxes above 0.5."""
    best = anchor_overlaps(boxes, sizes, ratios, strides)
    return float(best.mean()), float((best >= 0.5).mean())


def _to_two_digits(value: float) -> int:
    return int(float(f"{value:.2g}"))


def shown(value) -> str:
    """A value as a config has it."""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, (list, tuple)):
        left, right = "[]" if isinstance(value, list) else "()"
        comma = "," if isinstance(value, tuple) and len(value) == 1 else ""
        return f"{left}{', '.join(map(shown, value))}{comma}{right}"
    return str(value)
