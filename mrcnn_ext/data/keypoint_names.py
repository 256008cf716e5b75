"""What the names of keypoints say: which are left and right, and which are COCO's."""

from __future__ import annotations

import difflib
import logging
import re
from collections.abc import Sequence

__all__ = [
    "COCO_SIGMAS",
    "are_coco_keypoints",
    "keypoints_of_categories",
    "mirrored_pairs",
    "one_sided",
    "skeleton_lines",
    "suggested_sigmas",
]

# Standard deviations of annotators relative to object scale, COCO's keypoint evaluation.
COCO_SIGMAS = {
    "nose": 0.026,
    "eye": 0.025,
    "ear": 0.035,
    "shoulder": 0.079,
    "elbow": 0.072,
    "wrist": 0.062,
    "hip": 0.107,
    "knee": 0.087,
    "ankle": 0.089,
}
_COCO_NAMES = ["nose"] + [f"{side}_{part}" for part in list(COCO_SIGMAS)[1:] for side in ("left", "right")]
_OTHER_SIDE = {"left": "right", "right": "left", "l": "r", "r": "l"}
_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+|[^A-Za-z\d]+")
_FEW_PAIRS = 2


def keypoints_of_categories(categories: Sequence[dict], source: str) -> list[str]:
    """The names of the keypoints that the categories with keypoints share, stripped of blanks; [] without any.

    Args:
        categories: of a COCO annotation file; those without "keypoints", or with null or an empty list, have none.
        source: the file, for messages.

    Raises:
        ValueError: they are no list of different names, differ between categories, or the key is misspelt.
    """
    found: dict[tuple[str, ...], str] = {}
    for category in categories:
        where = f"{source}: category {category['name']!r}"
        if "keypoints" not in category:
            close = [
                key for key in difflib.get_close_matches("keypoints", category, 3, 0.75) if category[key]
            ]
            if close:
                raise ValueError(f"{where} has {close[0]!r}: is 'keypoints' meant?")
        names = category.get("keypoints")
        if names is None or names == []:
            continue
        if not isinstance(names, list) or not all(isinstance(name, str) and name.strip() for name in names):
            raise ValueError(
                f"{where}: its keypoints must be a list of names, ['nose', 'left_eye', ...], got {names!r}"
            )
        stripped = tuple(name.strip() for name in names)
        twice = sorted({name for name in stripped if stripped.count(name) > 1})
        if twice:
            raise ValueError(f"{where}: two of its keypoints have the name {twice[0]!r}")
        found.setdefault(stripped, category["name"])
    if len(found) > 1:
        (first, a), (second, b) = list(found.items())[:2]
        raise ValueError(
            f"the categories of {source} must share one list of keypoints: {a!r} has {len(first)} "
            f"({', '.join(first[:3])}, ...), {b!r} {len(second)} ({', '.join(second[:3])}, ...)"
        )
    return list(next(iter(found), ()))


def mirrored_pairs(names: Sequence[str]) -> list[tuple[str, str]]:
    """The (left, right) pairs among the names of keypoints.

    Two names are a pair if they differ in left and right, or l and r, as a word of their own (left_eye, Eye Left,
    L_eye, eyeL, forelegL1), at the beginning or end of a word (lefteye), or in their first letter, l and r, where
    several do (lwrist, lhip). Case and blanks around a name do not matter.
    """
    by_key = {name.strip().lower(): name for name in names}
    pairs: dict[str, str] = {}
    for name in names:
        other = next(
            (key for key in _other_sides(name) if key in by_key and key != name.strip().lower()), None
        )
        if other is not None and name not in pairs.values():
            pairs[name] = by_key[other]
    taken = set(pairs) | set(pairs.values())
    initials = {
        name: by_key["r" + key[1:]]
        for key, name in by_key.items()
        if key[0] == "l" and len(key) > 2 and "r" + key[1:] in by_key and name not in taken
    }
    if len(initials) >= _FEW_PAIRS:
        pairs |= initials
    order = {name: place for place, name in enumerate(names)}
    return sorted(pairs.items(), key=lambda pair: min(order[pair[0]], order[pair[1]]))


def one_sided(names: Sequence[str]) -> list[str]:
    """Names that say left or right as a word, and have no counterpart."""
    paired = {name for pair in mirrored_pairs(names) for name in pair}
    return [
        name
        for name in names
        if name not in paired and any(word.lower() in ("left", "right") for word in _WORD.findall(name))
    ]


def _other_sides(name: str):
    """What the name on the right of a name on the left may be, in lower case."""
    words = _WORD.findall(name.strip())
    for place, word in enumerate(words):
        lower = word.lower()
        others = []
        if lower in ("left", "l"):
            others.append(_OTHER_SIDE[lower])
        elif lower.startswith("left"):
            others.append("right" + lower[4:])
        elif lower.endswith("left"):
            others.append(lower[:-4] + "right")
        for other in others:
            yield "".join(words[:place]).lower() + other + "".join(words[place + 1 :]).lower()


def skeleton_lines(skeleton, names: Sequence[str], where: str) -> list[tuple[str, str]]:
    """The pairs of names that a category's skeleton connects.

    COCO counts keypoints from 1. A file with a 0 anywhere counts from 0.

    Args:
        skeleton: [[a, b], ...], or None, which is none.
        names: of the keypoints.
        where: the dataset, for the warning where it is not as it should be; no lines are drawn then.
    """
    if not skeleton:
        return []
    pairs = isinstance(skeleton, list) and all(
        isinstance(pair, (list, tuple)) and len(pair) == 2 and all(type(k) is int for k in pair)
        for pair in skeleton
    )
    problem = None if pairs else "it must be a list of pairs of numbers, [[1, 2], ...]"
    if pairs:
        first = 0 if any(0 in pair for pair in skeleton) else 1
        ends = [end for pair in skeleton for end in pair]
        if first <= min(ends) and max(ends) < first + len(names):
            return [(names[a - first], names[b - first]) for a, b in skeleton]
        problem = f"it connects keypoints {min(ends)} to {max(ends)}, of which there are {len(names)}"
    logging.getLogger(__name__).warning("%s: no lines of its skeleton are drawn: %s", where, problem)
    return []


def are_coco_keypoints(names: Sequence[str]) -> bool:
    """Whether names are those of COCO's 17 keypoints in COCO's order; case, blanks and underscores do not matter."""
    return [_letters(name) for name in names] == [_letters(name) for name in _COCO_NAMES]


def suggested_sigmas(names: Sequence[str]) -> list[float]:
    """Sigmas to start from: COCO's for the parts that COCO has, 0.05 for others."""
    words = [{word.lower() for word in _WORD.findall(name)} for name in names]
    return [next((s for part, s in COCO_SIGMAS.items() if part in known), 0.05) for known in words]


def _letters(name: str) -> str:
    return re.sub(r"[^a-z]", "", name.lower())
