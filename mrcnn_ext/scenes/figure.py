"""People: a skeleton in metres, posed by angles or by what hands and feet reach for, and its clothes."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from .geometry import Frame, circle, two_bones
from .sketch import Sketch
from .spec import KEYPOINT_NAMES

SKINS = ((255, 224, 196), (241, 194, 160), (224, 172, 125), (198, 134, 90), (141, 85, 55), (92, 58, 40))
HAIRS = (
    (30, 22, 18),
    (60, 40, 25),
    (95, 60, 30),
    (150, 100, 50),
    (215, 180, 110),
    (150, 60, 25),
    (170, 170, 170),
)
CLOTHES = (
    (200, 40, 45),
    (225, 110, 40),
    (240, 200, 60),
    (60, 140, 70),
    (40, 90, 170),
    (90, 160, 210),
    (110, 60, 140),
    (235, 235, 230),
    (50, 50, 55),
    (120, 120, 125),
    (20, 130, 130),
    (225, 130, 160),
    (30, 60, 60),
    (170, 200, 120),
)
TROUSERS = (
    (40, 50, 90),
    (70, 90, 140),
    (35, 35, 40),
    (95, 90, 85),
    (150, 130, 100),
    (60, 65, 55),
    (200, 195, 185),
)
SHOES = ((25, 25, 28), (90, 55, 35), (235, 235, 235), (190, 50, 50), (60, 60, 70))

# Lengths in metres of an adult 1.75 m tall.
_HEAD = np.array([0.098, 0.078, 0.125])  # half axes: forward, left, up
_SHOULDER, _HIP = 0.185, 0.095  # half widths
_SPINE, _NECK = 0.52, 0.235  # hips to shoulders, shoulders to the middle of the head
_UPPER_ARM, _FOREARM, _HAND = 0.29, 0.25, 0.09
_THIGH, _SHIN, _FOOT = 0.43, 0.42, 0.19


@dataclass
class Body:
    """Proportions: overall scale (1 for 1.75 m), girth, and how large the head is."""

    scale: float = 1.0
    girth: float = 1.0
    head: float = 1.0

    @staticmethod
    def sample(rng: np.random.Generator) -> Body:
        if rng.random() < 0.12:
            return Body(float(rng.uniform(0.62, 0.82)), float(rng.uniform(0.95, 1.15)), 1.3)
        return Body(float(rng.uniform(0.9, 1.1)), float(rng.uniform(0.88, 1.3)), 1.0)


@dataclass
class Look:
    """Colours and clothes."""

    skin: tuple
    hair: tuple
    hair_style: str  # short, long, bun, bald, cap, hat, bike_helmet, helmet
    shirt: tuple
    sleeves: str  # short, long
    pattern: str  # plain, stripes, badge, open_jacket, vest
    accent: tuple
    legs: tuple
    bottom: str  # trousers, shorts, skirt, dress, coat
    shoes: tuple
    bag: str  # none, backpack, handbag

    @staticmethod
    def sample(rng: np.random.Generator, riding: str | None = None) -> Look:
        def pick(options, p=None):
            return options[int(rng.choice(len(options), p=p))]

        look = Look(
            skin=pick(SKINS),
            hair=pick(HAIRS),
            hair_style=pick(
                ("short", "long", "bun", "bald", "cap", "hat"), (0.4, 0.27, 0.1, 0.06, 0.1, 0.07)
            ),
            shirt=pick(CLOTHES),
            sleeves=pick(("short", "long"), (0.4, 0.6)),
            pattern=pick(
                ("plain", "stripes", "badge", "open_jacket", "vest"), (0.45, 0.15, 0.15, 0.18, 0.07)
            ),
            accent=pick(CLOTHES),
            legs=pick(TROUSERS),
            bottom=pick(("trousers", "shorts", "skirt", "dress", "coat"), (0.6, 0.14, 0.08, 0.08, 0.1)),
            shoes=pick(SHOES),
            bag=pick(("none", "backpack", "handbag"), (0.66, 0.2, 0.14)),
        )
        if riding:
            look.bottom = pick(("trousers", "shorts"), (0.75, 0.25))
            look.bag = pick(("none", "backpack"), (0.75, 0.25))
            if riding == "motorcycle":
                look.hair_style, look.sleeves, look.bottom = "helmet", "long", "trousers"
            elif rng.random() < 0.6:
                look.hair_style = "bike_helmet"
        return look


@dataclass
class Pose:
    """
    Angles in degrees. A limb's (swing, spread): 0 hangs down, swing turns it forward (90 is level, 180 up),
    spread turns it outward.
    """

    lean: float = 0.0
    twist: float = 0.0
    head_turn: float = 0.0
    head_nod: float = 0.0
    arms: dict = field(default_factory=dict)  # side: ((swing, spread) of the upper arm, of the forearm)
    legs: dict = field(default_factory=dict)  # side: ((swing, spread) of the thigh, of the shin)
    seat: float | None = None  # height of the hips when sitting


def sample_pose(rng: np.random.Generator) -> tuple[str, Pose]:
    """A random pose of someone on foot, with its name."""
    names = (
        "standing",
        "walking",
        "running",
        "arms_up",
        "hands_on_hips",
        "phone",
        "waving",
        "sitting",
        "pointing",
    )
    name = names[int(rng.choice(len(names), p=(0.2, 0.33, 0.08, 0.07, 0.06, 0.06, 0.06, 0.08, 0.06)))]
    j = lambda s: float(rng.normal(0, s))  # noqa: E731  (jitter)
    hang = {s: ((j(6), 8 + abs(j(4))), (8 + abs(j(8)), 5 + abs(j(3)))) for s in "LR"}
    stand = {s: ((j(3), 4 + abs(j(3))), (-2 - abs(j(2)), 3)) for s in "LR"}
    pose = Pose(lean=j(3), twist=j(5), head_turn=j(18), head_nod=j(6), arms=hang, legs=stand)
    side, other = ("L", "R") if rng.random() < 0.5 else ("R", "L")
    if name in ("walking", "running"):
        fast = name == "running"
        stride = rng.uniform(14, 28) * (1.3 if fast else 1.0) * rng.choice((-1, 1))
        pose.lean = rng.uniform(8, 16) if fast else rng.uniform(0, 6)
        for s, sign in (("L", 1), ("R", -1)):
            swing = sign * stride
            back = -55.0 * (swing < 0) if fast else -22.0 * (swing < 0)
            pose.legs[s] = ((swing, 2), (swing - abs(rng.normal(6, 3)) + back * 0.8, 1))
            bend = 80 if fast else rng.uniform(12, 35)
            pose.arms[s] = ((-swing * 1.1, 7), (-swing * 1.1 + bend, 2))
    elif name == "arms_up":
        for s in "LR":
            pose.arms[s] = (
                (rng.uniform(150, 180), rng.uniform(15, 40)),
                (rng.uniform(160, 190), rng.uniform(5, 35)),
            )
    elif name == "hands_on_hips":
        for s in "LR":
            pose.arms[s] = ((-12, 42), (15, -48))
    elif name == "phone":
        pose.arms[side] = ((35, 15), (160, -25))
        pose.head_nod = 8
    elif name == "waving":
        pose.arms[side] = ((20, 95), (10, rng.uniform(150, 185)))
    elif name == "pointing":
        pose.arms[side] = ((rng.uniform(75, 100), rng.uniform(5, 50)),) * 2
    elif name == "sitting":
        pose.seat = 0.5
        for s in "LR":
            pose.legs[s] = ((85 + j(3), 8 + abs(j(6))), (-3 + j(8), 3))
            pose.arms[s] = ((28 + j(6), 8), (70 + j(8), -4))
    if name != "sitting" and rng.random() < 0.2:
        pose.arms[other] = ((5, 10), (95, -8))
    return name, pose


def _limb(swing: float, spread: float, side: int) -> np.ndarray:
    a, b = np.radians(swing), np.radians(spread)
    return np.array([np.sin(a) * np.cos(b), side * np.sin(b), -np.cos(a) * np.cos(b)])


def _turn(yaw: float) -> np.ndarray:
    c, s = np.cos(np.radians(yaw)), np.sin(np.radians(yaw))
    return np.array([[c, s, 0], [-s, c, 0], [0, 0, 1.0]])


class Skeleton:
    """
    Joints of a posed figure in the local axes (forward, left, up) of its frame, metres; feet on the ground.

    `joints` maps names ("shoulder_L", "head", ...) to (3,) points; `head_axes` rows are the head's forward,
    left and up.
    """

    def __init__(self, body: Body, pose: Pose):
        k = body.scale
        self.body = body
        lean = np.radians(pose.lean)
        up = np.array([np.sin(lean), 0, np.cos(lean)])
        j: dict[str, np.ndarray] = {"pelvis": np.zeros(3)}
        chest = up * _SPINE * k
        across = np.array([0, 1.0, 0]) @ _turn(pose.twist)
        self._finish_trunk(j, chest, up, across, pose)
        for s, sign in (("L", 1), ("R", -1)):
            upper, fore = pose.arms[s]
            j[f"elbow_{s}"] = j[f"shoulder_{s}"] + _limb(*upper, sign) * _UPPER_ARM * k
            j[f"wrist_{s}"] = j[f"elbow_{s}"] + _limb(*fore, sign) * _FOREARM * k
            j[f"hand_{s}"] = j[f"wrist_{s}"] + _limb(*fore, sign) * _HAND * k
            thigh, shin = pose.legs[s]
            j[f"knee_{s}"] = j[f"hip_{s}"] + _limb(*thigh, sign) * _THIGH * k
            j[f"ankle_{s}"] = j[f"knee_{s}"] + _limb(*shin, sign) * _SHIN * k
            pitch = np.radians(max(-60.0, min(0.0, shin[0] + 8)) * 0.9) if pose.seat is None else 0.0
            toe = np.array([np.cos(pitch), 0.12 * sign, np.sin(pitch)])
            j[f"toe_{s}"] = j[f"ankle_{s}"] + (toe * _FOOT - np.array([0, 0, 0.05])) * k
        low = min(min(j[f"ankle_{s}"][2] - 0.07 * k, j[f"toe_{s}"][2] - 0.03 * k) for s in "LR")
        lift = -low if pose.seat is None else pose.seat * k
        self.joints = {name: p + np.array([0, 0, lift]) for name, p in j.items()}

    def _finish_trunk(self, j, chest, up, across, pose) -> None:
        k = self.body.scale
        neck = chest + up * 0.06 * k
        nod = _turn_nod(pose.head_nod + 0.15 * pose.lean)
        self.head_axes = nod @ _turn(pose.head_turn)
        j["chest"], j["neck"] = chest, neck
        j["head"] = chest + (0.75 * up + np.array([0.1, 0, 0.25])) * _NECK * k * (0.5 + 0.5 * self.body.head)
        for s, sign in (("L", 1), ("R", -1)):
            j[f"shoulder_{s}"] = chest + across * sign * _SHOULDER * k * (0.6 + 0.4 * self.body.girth)
            j[f"hip_{s}"] = j["pelvis"] + np.array([0, sign * _HIP * k, 0])

    @staticmethod
    def riding(body: Body, hips, lean: float, hands: dict, feet: dict, head_turn: float = 0.0) -> Skeleton:
        """A figure whose hips sit at `hips`, whose hands and feet reach for given points, one per side."""
        self = object.__new__(Skeleton)
        self.body = body
        k = body.scale
        angle = np.radians(lean)
        up = np.array([np.sin(angle), 0, np.cos(angle)])
        j = {"pelvis": np.zeros(3)}
        pose = Pose(lean=lean, head_turn=head_turn, head_nod=-0.15 * lean)
        self._finish_trunk(j, up * _SPINE * k, up, np.array([0, 1.0, 0]), pose)
        j = {name: p + np.asarray(hips, dtype=np.float64) for name, p in j.items()}
        for s, sign in (("L", 1), ("R", -1)):
            bend = np.array([-0.4, 0.9 * sign, -0.7])
            elbow, wrist = two_bones(
                j[f"shoulder_{s}"], hands[s], _UPPER_ARM * k, (_FOREARM + 0.04) * k, bend
            )
            j[f"elbow_{s}"], j[f"wrist_{s}"] = elbow, wrist
            j[f"hand_{s}"] = wrist + (wrist - elbow) / max(np.linalg.norm(wrist - elbow), 1e-6) * 0.06 * k
            bend = np.array([1.0, 0.25 * sign, 0.5])
            knee, ankle = two_bones(j[f"hip_{s}"], feet[s], _THIGH * k, _SHIN * k, bend)
            j[f"knee_{s}"], j[f"ankle_{s}"] = knee, ankle
            j[f"toe_{s}"] = ankle + np.array([0.16, 0.02 * sign, -0.05]) * k
        self.joints = j
        return self


def _turn_nod(nod: float) -> np.ndarray:
    c, s = np.cos(np.radians(nod)), np.sin(np.radians(nod))
    return np.array([[c, 0, -s], [0, 1, 0], [s, 0, c]])


@dataclass
class DrawnKeypoints:
    """
    Attributes:
        points: (17, 3) world points.
        pixels: (17, 2) their projections.
        reach: pixels within which a part counts as being at the point.
        parts: per keypoint, the parts through which it counts as seen.
        facing: (17,) bool, False where the figure itself hides the point.
        head: (2, 2) pixels of the bottom and the top of the head.
    """

    points: np.ndarray
    pixels: np.ndarray
    reach: float
    parts: list[tuple[int, ...]]
    facing: np.ndarray
    head: np.ndarray


def draw_figure(sketch: Sketch, frame: Frame, skeleton: Skeleton, look: Look, slot: int) -> DrawnKeypoints:
    """Adds a figure to the sketch as the instance in `slot`."""
    k, girth = skeleton.body.scale, skeleton.body.girth
    joints = {name: frame.world(p)[0] for name, p in skeleton.joints.items()}
    ids = {
        name: sketch.part(slot)
        for name in ("torso", "pelvis", "head", "hair", "bag", "skirt")
        + tuple(f"{limb}_{s}" for limb in ("upper", "fore", "thigh", "shin", "foot") for s in "LR")
    }
    eye = np.array([0.0, 0.0, sketch.camera.height])
    to_camera = eye - joints["chest"]
    to_camera /= np.linalg.norm(to_camera)
    forward, left, up = frame.axes
    trunk_depth = 0.5 * (joints["chest"][1] + joints["pelvis"][1])

    shirt = np.array(look.shirt, dtype=np.float64)
    legs = np.array(look.shirt if look.bottom in ("dress",) else look.legs, dtype=np.float64)
    bare = look.bottom in ("shorts", "skirt", "dress")
    skin = np.array(look.skin, dtype=np.float64)

    for s in "LR":
        hip, knee, ankle, toe = (joints[f"{n}_{s}"] for n in ("hip", "knee", "ankle", "toe"))
        # The shirt hangs over the thighs, unless they point at the camera.
        middle = 0.5 * (hip[1] + knee[1])
        sketch.at(middle if middle < trunk_depth - 0.15 * k else max(middle, trunk_depth + 0.01))
        thigh = skin if look.bottom in ("skirt", "dress") else legs
        sketch.blob([(hip, 0.085 * girth * k), (knee, 0.062 * girth * k)], thigh, ids[f"thigh_{s}"])
        sketch.at(0.5 * (knee[1] + ankle[1]) + 0.01)
        wide = 1.0 if bare else 1.15
        shin = skin if bare else legs
        sketch.blob(
            [
                (knee, 0.058 * girth * k),
                (knee * 0.65 + ankle * 0.35, 0.056 * wide * girth * k),
                (ankle, 0.042 * wide * k),
            ],
            shin,
            ids[f"shin_{s}"],
        )
        sketch.at(0.5 * (ankle[1] + toe[1]))
        heel = ankle - (toe - ankle) * 0.25 - np.array([0, 0, 0.03 * k])
        sketch.blob([(heel, 0.042 * k), (ankle, 0.045 * k), (toe, 0.034 * k)], look.shoes, ids[f"foot_{s}"])

    # Trunk: hips in the colour of the trousers, then the shirt over them.
    sketch.at(trunk_depth + 0.3)
    sketch.blob(
        [(joints["hip_L"], 0.088 * girth * k), (joints["hip_R"], 0.088 * girth * k)], legs, ids["pelvis"]
    )
    if look.bottom in ("skirt", "dress", "coat"):
        length = {"skirt": 0.95, "dress": 1.05, "coat": 0.8}[look.bottom]
        hem = [
            joints[f"hip_{s}"] * (1 - length) + joints[f"knee_{s}"] * length + left * sign * 0.05 * k
            for s, sign in (("L", 1), ("R", -1))
        ]
        color = legs if look.bottom == "skirt" else shirt
        sketch.at(min(trunk_depth, joints["knee_L"][1], joints["knee_R"][1]) - 0.03)
        sketch.blob(
            [(joints["hip_L"], 0.095 * girth * k), (joints["hip_R"], 0.095 * girth * k)]
            + [(p, 0.075 * girth * k) for p in hem],
            color,
            ids["skirt"],
        )
    sketch.at(trunk_depth)
    waist = joints["pelvis"] + (joints["chest"] - joints["pelvis"]) * 0.1
    torso = [(joints[f"shoulder_{s}"] - up * 0.045 * k, 0.065 * girth * k) for s in "LR"]
    torso += [(joints["chest"] + up * 0.005 * k, 0.085 * girth * k)]
    torso += [(joints["chest"] * 0.6 + joints["pelvis"] * 0.4, 0.125 * girth * k)]
    torso += [(waist + left * sign * 0.06 * k, 0.092 * girth * k) for sign in (-1, 1)]
    sketch.blob(torso, shirt, ids["torso"])
    front = float(np.dot(forward, to_camera))
    _draw_pattern(sketch, look, joints, forward, left, up, front, k, girth, ids["torso"])
    if look.bag == "backpack":
        back = -forward * 0.17 * girth * k
        sketch.at(float((joints["chest"] + back)[1]))
        top, bottom = joints["chest"] - up * 0.05 * k, waist + up * 0.12 * k
        sketch.blob(
            [(p + back + left * x * k, 0.075 * k) for p in (top, bottom) for x in (-0.09, 0.09)],
            look.accent,
            ids["bag"],
        )
        if front < -0.3:
            pocket = bottom + back - forward * 0.08 * k + up * 0.03 * k
            corners = [
                pocket + left * x * k + up * u * k
                for x, u in ((-0.1, 0), (0.1, 0), (0.1, 0.13), (-0.1, 0.13))
            ]
            sketch.polygon(corners, np.array(look.accent) * 0.75, ids["bag"])
        elif front > 0.3:
            sketch.at(trunk_depth - 0.001)
            for sign in (-1, 1):
                strap = [
                    joints["chest"] + left * sign * 0.11 * k + forward * 0.1 * k + up * u * k
                    for u in (0.06, -0.3)
                ]
                sketch.stroke(strap, 0.03 * k, np.array(look.accent) * 0.8, ids["torso"])
    elif look.bag == "handbag":
        hand = joints["hand_L"]
        sketch.at(float(hand[1]) - 0.02)
        box = [
            hand + forward * f * k - up * u * k
            for f, u in ((-0.15, 0.16), (0.15, 0.16), (0.17, 0.4), (-0.17, 0.4))
        ]
        wide = [p + left * x for p in box for x in (-0.05 * k, 0.05 * k)]
        sketch.hull(wide, look.accent, ids["bag"])
        sketch.stroke([box[0], hand, box[1]], 0.02 * k, np.array(look.accent) * 0.6, ids["bag"])

    for s in "LR":
        shoulder, elbow, wrist, hand = (joints[f"{n}_{s}"] for n in ("shoulder", "elbow", "wrist", "hand"))
        sleeve = np.array(look.accent if look.pattern == "vest" else shirt, dtype=np.float64) * 0.95
        sketch.at(0.5 * (shoulder[1] + elbow[1]) - 0.015)
        shoulder = shoulder - up * 0.03 * k
        sketch.blob([(shoulder, 0.056 * girth * k), (elbow, 0.043 * girth * k)], sleeve, ids[f"upper_{s}"])
        sketch.at(0.5 * (elbow[1] + wrist[1]) - 0.03)
        fore = skin if look.sleeves == "short" else sleeve
        if look.sleeves == "short":
            sketch.blob(
                [(elbow, 0.041 * girth * k), (elbow * 0.6 + shoulder * 0.4, 0.04 * k)], skin, ids[f"fore_{s}"]
            )
        sketch.blob([(hand, 0.036 * k), (wrist, 0.03 * k)], skin, ids[f"fore_{s}"])
        sketch.blob([(elbow, 0.042 * girth * k), (wrist, 0.032 * girth * k)], fore, ids[f"fore_{s}"])

    face = _draw_head(sketch, frame, skeleton, look, joints, ids)
    crown = joints["head"] + (skeleton.head_axes @ frame.axes)[2] * _HEAD[2] * k * skeleton.body.head
    return _keypoints(sketch, joints, face, crown, ids, left, to_camera)


def _draw_pattern(sketch, look, joints, forward, left, up, front, k, girth, part) -> None:
    chest, pelvis = joints["chest"], joints["pelvis"]
    depth = 0.125 * girth * k
    face = forward * depth * (1 if front > 0 else -1)
    side = left * (0.16 * girth * k)

    def row(t):
        return chest * (1 - t) + pelvis * t + face * 0.8

    accent = np.array(look.accent, dtype=np.float64)
    if look.pattern == "stripes" and abs(front) > 0.6:
        for t in (0.2, 0.4, 0.6, 0.8):
            sketch.stroke([row(t) - side, row(t) + side], 0.035 * k, accent, part)
    elif look.pattern == "badge" and abs(front) > 0.5:
        center = row(0.3)
        sketch.polygon(
            [
                center + side * x + up * u * k
                for x, u in ((-0.45, 0.06), (0.45, 0.06), (0.45, -0.09), (-0.45, -0.09))
            ],
            accent,
            part,
        )
    elif look.pattern == "open_jacket" and front > 0.6:
        points = [row(t) + side * x for t, x in ((-0.08, -0.2), (-0.08, 0.2), (0.95, 0.32), (0.95, -0.32))]
        sketch.polygon(points, accent, part)
        for x in (-0.27, 0.27):
            sketch.stroke(
                [row(-0.05) + side * x, row(0.95) + side * x * 1.2],
                0.02 * k,
                np.array(look.shirt) * 0.6,
                part,
            )
    elif look.pattern == "vest" and abs(front) > 0.7:
        for x in (-0.55, 0.55):
            sketch.stroke([row(0.02) + side * x, row(0.95) + side * x], 0.04 * k, (235, 235, 120), part)
        sketch.stroke([row(0.6) - side, row(0.6) + side], 0.05 * k, (235, 235, 120), part)
    if front > 0.6 and look.bottom in ("trousers", "shorts"):
        sketch.stroke(
            [row(0.98) - side * 0.5, row(0.98) + side * 0.5], 0.03 * k, np.array(look.legs) * 0.5, part
        )


def _draw_head(sketch, frame, skeleton, look, joints, ids) -> dict[str, tuple[np.ndarray, bool]]:
    """Draws neck and head; returns the five points of the face with whether they face the camera."""
    k = skeleton.body.scale * skeleton.body.head
    axes = skeleton.head_axes @ frame.axes
    ahead, left, up = axes
    center = joints["head"]
    half = _HEAD * k
    view = np.array([0.0, 0.0, sketch.camera.height]) - center
    view /= np.linalg.norm(view)
    skin = np.array(look.skin, dtype=np.float64)
    hair = np.array(look.hair, dtype=np.float64)

    def on(direction, out=1.0):
        return center + (np.asarray(direction) * half * out) @ axes

    def ellipsoid(grow=1.0):
        side = np.cross(view, np.array([0, 0, 1.0]))
        side /= np.linalg.norm(side)
        reach = np.linalg.norm((axes @ side) * half) * grow
        # Three balls along the head's own vertical make its egg shape.
        return [
            (center + up * (half[2] * grow - reach * s) * t, reach * s)
            for t, s in ((1, 1.0), (0, 1.0), (-1, 0.72))
        ]

    def cap(axis, degrees, grow=1.0):
        """The outline of a cap of the head around a direction, kept to what faces the camera."""
        axis = np.asarray(axis, dtype=np.float64)
        axis = axis / np.linalg.norm(axis)
        e1 = np.cross(axis, [0.0, 0.0, 1.0] if abs(axis[2]) < 0.9 else [0.0, 1.0, 0.0])
        e1 /= np.linalg.norm(e1)
        e2 = np.cross(axis, e1)
        a = np.radians(degrees)
        ring = circle(np.cos(a) * axis, np.sin(a), e1, e2, 28)
        local_view = axes @ view
        behind = ring @ local_view
        if behind.max() <= 0:
            return None
        ring = ring - np.minimum(behind, 0)[:, None] * local_view
        ring /= np.linalg.norm(ring, axis=1, keepdims=True)
        return center + (ring * half * grow) @ axes

    def facing(direction):
        d = np.asarray(direction) @ axes
        return float(np.dot(d / np.linalg.norm(d), view))

    depth = float(center[1])
    trunk = float(joints["chest"][1])
    sketch.at(min(trunk, depth) - 0.005 if look.hair_style != "long" else trunk - 0.005)
    sketch.blob(
        [(joints["neck"] - up * 0.04 * k, 0.056 * k), (center - up * 0.08 * k, 0.052 * k)],
        skin * 0.9,
        ids["head"],
    )

    if look.hair_style == "long":
        back = center - ahead * 0.045 * k
        sketch.at(float(back[1]) + (0.0 if facing((1, 0, 0)) > 0 else -0.05))
        sketch.blob(
            [(back + up * 0.02 * k, 0.105 * k), (back - up * 0.2 * k, 0.085 * k)], hair * 0.9, ids["hair"]
        )
    elif look.hair_style == "bun":
        back = center - ahead * 0.115 * k + up * 0.07 * k
        sketch.at(float(back[1]))
        sketch.blob([(back, 0.045 * k)], hair, ids["hair"])

    sketch.at(min(depth, trunk if abs(depth - trunk) < 0.12 * k else depth) - 0.02)
    covered = look.hair_style in ("helmet",)
    if covered:
        sketch.blob(ellipsoid(1.2), look.accent, ids["head"])
    else:
        sketch.blob(ellipsoid(), skin if look.hair_style == "bald" else hair, ids["head"])
    face = cap((1.0, 0, -0.12), 42, 1.2) if covered else cap((0.93, 0, -0.37), 72)
    if face is not None:
        sketch.polygon(face, skin, ids["head"])
        shadow = cap((0.5, 0, -0.9), 32)
        if shadow is not None:
            sketch.polygon(shadow, skin * 0.93, ids["head"])
    directions = {
        "nose": (1.0, 0.0, -0.12),
        "left_eye": (0.87, 0.42, 0.16),
        "right_eye": (0.87, -0.42, 0.16),
        "left_ear": (-0.05, 1.0, 0.0),
        "right_ear": (-0.05, -1.0, 0.0),
    }
    seen = {name: facing(d) for name, d in directions.items()}
    for name in ("left_ear", "right_ear"):
        if seen[name] > -0.15 and look.hair_style not in ("long", "helmet"):
            out = on(directions[name], 1.02)
            sketch.blob(
                [(out + up * 0.012 * k, 0.02 * k), (out - up * 0.015 * k, 0.016 * k)],
                skin * 0.88,
                ids["head"],
            )
    for name in ("left_eye", "right_eye"):
        if seen[name] > 0.12:
            spot = on(directions[name])
            side = left * (0.021 * k)
            sketch.stroke([spot - side, spot + side], 0.02 * k, (245, 245, 245), ids["head"])
            sketch.stroke([spot - side * 0.2, spot + side * 0.2], 0.02 * k, (35, 25, 25), ids["head"])
            brow = on(np.array(directions[name]) + [0, 0, 0.22])
            sketch.stroke([brow - side * 1.2, brow + side * 1.2], 0.013 * k, hair * 0.8, ids["head"])
    if seen["nose"] > -0.05:
        tip, root = on(directions["nose"], 1.13), on((0.97, 0, 0.12))
        sketch.blob([(tip, 0.017 * k), (root, 0.008 * k)], skin * 0.86, ids["head"])
        if facing((1, 0, -0.5)) > 0.2:
            corners = [on((0.86, y, -0.5)) for y in (-0.26, 0.0, 0.26)]
            sketch.stroke(corners, 0.014 * k, (165, 65, 65), ids["head"])
    _draw_headgear(sketch, look, on, cap, ellipsoid, facing, k, ids)
    points = {"nose": on(directions["nose"], 1.05)}
    points.update({n: on(directions[n]) for n in directions if n != "nose"})
    limits = {"nose": -0.1, "left_eye": 0.1, "right_eye": 0.1, "left_ear": -0.1, "right_ear": -0.1}
    visible = {n: seen[n] > limits[n] for n in directions}
    if look.hair_style in ("long",) or covered:
        visible["left_ear"] = visible["right_ear"] = False
    return {n: (points[n], visible[n]) for n in directions}


def _draw_headgear(sketch, look, on, cap, ellipsoid, facing, k, ids) -> None:
    style = look.hair_style
    accent = np.array(look.accent, dtype=np.float64)
    hair = np.array(look.hair, dtype=np.float64)
    if style in ("short", "long", "bun"):
        fringe = cap((0.15, 0, 1.0), 58, 1.05)
        if fringe is not None:
            sketch.polygon(fringe, hair, ids["head"])
    elif style == "cap":
        sketch.polygon(cap((-0.08, 0, 1.0), 72, 1.08), accent, ids["head"])
        brim = [
            on((f, y, 0.32)) for f, y in ((0.7, -0.75), (1.75, -0.5), (1.85, 0), (1.75, 0.5), (0.7, 0.75))
        ]
        if facing((1, 0, 0)) > -0.75:
            sketch.polygon(brim, accent * 0.75, ids["head"])
            sketch.stroke(brim, 0.02 * k, accent * 0.75, ids["head"], closed=True)
    elif style == "hat":
        ring = [
            on((1.75 * np.cos(a), 1.85 * np.sin(a), 0.45))
            for a in np.linspace(0, 2 * np.pi, 20, endpoint=False)
        ]
        sketch.polygon(ring, accent * 0.8, ids["head"])
        sketch.stroke(ring, 0.018 * k, accent * 0.7, ids["head"], closed=True)
        sketch.blob([(on((0, 0, 0.75)), 0.085 * k), (on((0, 0, 1.15)), 0.065 * k)], accent, ids["head"])
    elif style == "bike_helmet":
        sketch.polygon(cap((-0.1, 0, 1.0), 74, 1.2), accent, ids["head"])
        for y in (-0.4, 0.0, 0.4):
            rib = [on((f, y, u), 1.1) for f, u in ((0.62, 0.68), (0.0, 0.95), (-0.62, 0.65))]
            sketch.stroke(rib, 0.02 * k, accent * 0.5, ids["head"])
    elif style == "helmet" and facing((1, 0, 0)) > -0.3:
        visor = cap((0.86, 0, 0.62), 30, 1.22)
        if visor is not None:
            sketch.polygon(visor, (60, 65, 75), ids["head"])


def _keypoints(sketch, joints, face, crown, ids, left, to_camera) -> DrawnKeypoints:
    names = {"shoulder": ("upper", "torso"), "elbow": ("upper", "fore"), "wrist": ("fore",)}
    names |= {
        "hip": ("thigh", "pelvis", "torso", "skirt"),
        "knee": ("thigh", "shin", "skirt"),
        "ankle": ("shin", "foot"),
    }
    points, parts, facing = [], [], []
    for name in KEYPOINT_NAMES:
        if name in face:
            point, seen = face[name]
            points.append(point)
            parts.append((ids["head"],))
            facing.append(seen)
            continue
        side, joint = name.split("_")
        s = side[0].upper()
        points.append(joints[f"{joint}_{s}"])
        allowed = [ids.get(n, ids.get(f"{n}_{s}")) for n in names[joint]]
        away = float(np.dot(left if s == "L" else -left, to_camera))
        if joint in ("shoulder", "hip") and away < -0.8:
            # Seen from the side, the trunk hides the far shoulder and hip.
            allowed = [ids[f"upper_{s}"]] if joint == "shoulder" else []
        parts.append(tuple(allowed))
        facing.append(True)
    points = np.array(points)
    reach = 0.02 * sketch.camera.scale_at(float(joints["chest"][1]))
    pixels, head = sketch.camera.project(points), sketch.camera.project([joints["neck"], crown])
    return DrawnKeypoints(points, pixels, reach, parts, np.array(facing), head)
