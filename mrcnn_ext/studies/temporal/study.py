"""The study: clips, one detector for all, its features of their people, then each head with each seed."""

from __future__ import annotations

import hashlib
import json
import logging
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import IO

import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_model
from detectron2.modeling.roi_heads import build_keypoint_head
from pycocotools.cocoeval import Params
from torch import nn

from ...config_files import get_config_file
from ...data.register import register_clips
from ...engine import Checkpointer
from ...engine.setup import load_config
from ...files import replacing
from ...scenes import CLIP_VERSION, get_clip_preset, write_clips
from ..kept import kept_file, kept_result
from .detector import train_detector
from .features import Tracks, pooled_tracks
from .heads import heatmaps_of, train_head
from .people import People, people_of
from .scores import score

__all__ = ["HEADS", "StudySize", "head_config", "run_study"]

_PREFIX = "temporal_study"
# Motion blur and things that stand before people in each clip. Who shows less than two fifths is not annotated.
_PRESET = get_clip_preset("hard", min_visible=0.4, size=(0.55, 0.9))
_DETECTOR_SEED = 1  # of the detector's clips: other people than those of the heads' clips, whose seed is 0
_COPIES = 2  # of each person that heads learn from, each in boxes with noise of their own
_LEARNING_RATE = 2e-3


@dataclass(frozen=True)
class StudySize:
    """
    Attributes:
        num_detector: frames, each of a clip of its own, that the detector learns from; 0 for those of the heads' clips.
            What a detector has learnt from is clearer to it than what it has not: a head that learns from the same
            frames finds little use for those before.
        num_train, num_val: clips of 8 frames that heads learn from and are measured on, of the preset "hard" with
            larger people.
        iterations: of the detector, with a head of single frames; 0 to take ``weights`` as they are.
        batch: frames of an iteration of the detector.
        updates: of each head.
        people: of an update, with all their frames.
        histories: numbers of frames that the heads are tried with, on frames with so many before them.
        weights: a checkpoint of the quickstart's that the detector begins with; "" to begin at random. All heads begin
            with the keypoint head of the detector, as far as they have its layers.
    """

    num_detector: int = 1500
    num_train: int = 220
    num_val: int = 80
    iterations: int = 1500
    batch: int = 12
    updates: int = 400
    people: int = 12
    histories: tuple[int, ...] = (1, 2, 3, 4, 5, 6, 7)
    weights: str = ""


@dataclass(frozen=True)
class StudyHead:
    """
    Attributes:
        title: in tables.
        keys: of MODEL.ROI_KEYPOINT_HEAD.
        in_time: whether it is trained on clips, or on the same frames as single images.
    """

    title: str
    keys: dict
    in_time: bool = True


_LSTM = {"NAME": "ConvLSTMKeypointHead", "LSTM_DIM": 64, "LSTM_CONVS": 1}
HEADS = {
    "single": StudyHead("HeatmapKeypointHead, single frames", {"NAME": "HeatmapKeypointHead"}, False),
    "lstm_single": StudyHead("ConvLSTMKeypointHead, single frames", _LSTM, False),
    "lstm": StudyHead("ConvLSTMKeypointHead", _LSTM),
    "lstm_lying": StudyHead("ConvLSTMKeypointHead, ALIGN_STATE False", {**_LSTM, "ALIGN_STATE": False}),
    "unipose": StudyHead(
        "UniPoseLSTMKeypointHead",
        {
            "NAME": "UniPoseLSTMKeypointHead",
            "LSTM_DIM": 64,
            "LSTM_CONVS": 1,
            "CONV_DIMS": (64, 64),
            "WASP_RATES": [1, 2],
        },
    ),
}


def run_study(
    output: Path, size: StudySize, heads: list[str], seeds: list[int], device: str = "cpu", processes: int = 1
) -> dict:
    """Does what is not done, and gives all results so far. It can be interrupted: each head with each seed is a step.

    Args:
        output: folder for clips, detector, features and results.
        heads: of `HEADS`.
        seeds: of the heads' weights and of the order of the people.
        device: of the detector and the heads. The clips and the boxes' noise are the same on any.
        processes: that draw clips, and heads that are trained at once, each in a process of its own.

    Returns:
        By head and seed: {"all": metrics of `score` over whole clips, "history": {number of frames: the same, of the
        last frames}, "parameters", "seconds": of an update, "arguments": what it was made with}.

    Raises:
        ValueError: the folder holds a study of another size.
    """
    output = Path(output)
    _keep_size(output, size)
    cfg = _detector_config(output, size, device, processes)
    weights, arguments = _detector(cfg, output, size)
    arguments = _write_features(cfg, output, weights, arguments)
    content = MetadataCatalog.get(f"{_PREFIX}_person_val").json_file
    wanted = {(name, seed): output / "heads" / f"{name}_{seed}.json" for name in heads for seed in seeds}
    made = [(cfg, *key, size, content, weights, path, arguments) for key, path in wanted.items()]
    if processes > 1 and len(made) > 1:
        # spawn: CUDA does not survive a fork.
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(min(processes, len(made)), context, torch.set_num_threads, (1,)) as pool:
            for future in [pool.submit(_head, *one) for one in made]:
                future.result()
    else:
        for one in made:
            _head(*one)
    results: dict[str, dict[str, dict]] = {}
    for name in HEADS:
        for seed in seeds:
            path = output / "heads" / f"{name}_{seed}.json"
            result = json.loads(path.read_text()) if path.is_file() else {}
            # Those of a head that was not asked for may be older than the rest.
            if result.get("arguments") == _head_arguments(name, seed, size, arguments):
                results.setdefault(name, {})[str(seed)] = result
    return results


def _keep_size(output: Path, size: StudySize) -> None:
    path, own = output / "size.json", json.loads(json.dumps(asdict(size)))
    if not path.is_file():
        output.mkdir(parents=True, exist_ok=True)
        with replacing(path, "w") as file:
            json.dump(own, file)
    there = json.loads(path.read_text())
    if there != own:
        different = ", ".join(
            f"{key} {there.get(key)}, now {own[key]}" for key in own if there.get(key) != own[key]
        )
        raise ValueError(
            f"{output} holds a study of another size ({different}): give another folder (--output)"
        )


def _detector_config(output: Path, size: StudySize, device: str, processes: int) -> CfgNode:
    _write_clips(output / "clips", _PREFIX, _PRESET, size.num_train, size.num_val, 0, processes)
    if size.num_detector:
        frames = replace(_PRESET, frames=1)
        folder = output / "detector_clips"
        _write_clips(folder, f"{_PREFIX}_detector", frames, size.num_detector, 0, _DETECTOR_SEED, processes)
    keys = {
        "DATASETS.TRAIN": (_detector_clips(size),),
        "DATASETS.TEST": (f"{_PREFIX}_person_val",),
        "MODEL.ROI_HEADS.NUM_CLASSES": 1,
        "MODEL.MASK_ON": False,
        "MODEL.ROI_KEYPOINT_HEAD.BOX_SCALE": 1.25,
        "MODEL.ROI_KEYPOINT_HEAD.DECODING": "oks",
        "MODEL.ROI_KEYPOINT_HEAD.LOSS_WEIGHT": 1.0,
        "MODEL.ROI_KEYPOINT_HEAD.SAMPLES_PER_IMAGE": 16,
        "MODEL.DEVICE": device,
        "INPUT.MIN_SIZE_TEST": _PRESET.height,
        "MODEL.WEIGHTS": size.weights,
        "MODEL.ALLOW_PARTIAL_WEIGHTS": True,  # of another number of classes
        "OUTPUT_DIR": str(output / "detector"),
    }
    return load_config(get_config_file("quickstart.yaml"), [part for pair in keys.items() for part in pair])


def _write_clips(folder, prefix, preset, num_train, num_val, seed, processes) -> None:
    # Those of another preset or version are drawn anew, and then all that was made of them is.
    write_clips(folder, preset, num_train, num_val, seed, processes, force=True)
    register_clips(str(folder), prefix)


def _detector_clips(size: StudySize) -> str:
    return f"{_PREFIX}_detector_person_train" if size.num_detector else f"{_PREFIX}_person_train"


def _detector(cfg: CfgNode, output: Path, size: StudySize) -> tuple[str, dict]:
    """Trains the detector, if there is none; gives its checkpoint, and what it was made with."""
    own = asdict(size)
    arguments = {key: own[key] for key in ("num_detector", "num_train", "num_val", "iterations", "batch")}
    arguments |= {
        "preset": json.loads(json.dumps(asdict(_PRESET))),
        "clip_version": CLIP_VERSION,
        "weights": hashlib.sha256(Path(size.weights).read_bytes()).hexdigest() if size.weights else "",
        "learning_rate": _LEARNING_RATE,
    }
    if size.iterations == 0:
        return size.weights, arguments

    def train(file: IO[bytes]) -> None:
        torch.manual_seed(0)
        model = build_model(cfg)
        if size.weights:
            Checkpointer(model, allow_partial=True).load(size.weights)
        train_detector(
            model,
            _people(_detector_clips(size), mirrored=True),
            iterations=size.iterations,
            batch=size.batch,
            learning_rate=_LEARNING_RATE,
            seed=0,
        )
        with replacing(path.parent / "config.yaml", "w") as config:
            config.write(cfg.dump())
        torch.save({"model": model.state_dict()}, file)

    path = output / "detector" / "model_final.pth"
    kept_file(path, arguments, train)
    return str(path), arguments


def _people(name: str, mirrored: bool) -> list[People]:
    metadata = MetadataCatalog.get(name)
    flips = list(metadata.keypoint_flip_map) if mirrored else None
    return people_of(metadata.name, flips, list(metadata.keypoint_names))


def _write_features(cfg: CfgNode, output: Path, weights: str, arguments: dict) -> dict:
    """Pools what has not been; gives what it was made with."""
    arguments = {**arguments, "copies": _COPIES}

    @cache
    def detector() -> nn.Module:
        model = build_model(cfg)
        Checkpointer(model, allow_partial=True).load(weights)
        return model

    def pool(split: str, seed: int, file: IO[bytes]) -> None:
        learning = split == "train"
        people = _people(f"{_PREFIX}_person_{split}", mirrored=learning)
        pooled_tracks(detector(), people, seed, _COPIES if learning else 1).save(file)

    for split, seed in (("train", 1), ("val", 2)):
        kept_file(output / f"features_{split}.pt", arguments, partial(pool, split, seed))
    return arguments


def _known_head(weights: str) -> dict[str, torch.Tensor]:
    """The weights of a checkpoint's keypoint head."""
    prefix = "roi_heads.keypoint_head."
    state = torch.load(weights, map_location="cpu", weights_only=True)["model"]
    return {
        key.removeprefix(prefix): torch.as_tensor(value)
        for key, value in state.items()
        if key.startswith(prefix)
    }


def head_config(cfg: CfgNode, name: str) -> CfgNode:
    """The detector's config with a head of the study."""
    cfg = cfg.clone()
    for key, value in HEADS[name].keys.items():
        cfg.MODEL.ROI_KEYPOINT_HEAD[key] = value
    return cfg


def _head(
    cfg: CfgNode,
    name: str,
    seed: int,
    size: StudySize,
    content: str,
    weights: str,
    path: Path,
    arguments: dict,
) -> None:
    """Trains a head, if it is not there, and writes its results to ``path``, its weights beside it."""
    arguments = _head_arguments(name, seed, size, arguments)
    kept_result(path, arguments, partial(_trained, cfg, name, seed, size, content, weights, path))


def _head_arguments(name: str, seed: int, size: StudySize, arguments: dict) -> dict:
    own = {"updates": size.updates, "people": size.people, "histories": list(size.histories)}
    return {**arguments, **own, "head": json.loads(json.dumps(asdict(HEADS[name]))), "seed": seed}


def _trained(
    cfg: CfgNode, name: str, seed: int, size: StudySize, content: str, weights: str, path: Path
) -> dict:
    device = torch.device(cfg.MODEL.DEVICE)
    train, val = (Tracks.load(path.parents[1] / f"features_{split}.pt", device) for split in ("train", "val"))
    torch.manual_seed(seed)
    head = build_keypoint_head(head_config(cfg, name), ShapeSpec(channels=train.features.shape[1]))
    head.load_state_dict(_known_head(weights) if weights else {}, strict=False)
    head.to(device)
    seconds = train_head(
        head,
        train,
        in_time=HEADS[name].in_time,
        updates=size.updates,
        people=size.people,
        num_frames=_PRESET.frames,
        learning_rate=_LEARNING_RATE,
        seed=seed,
    )
    with replacing(path.with_suffix(".pth")) as file:
        torch.save(head.state_dict(), file)
    result = {
        **_tried(head, name, val, json.loads(Path(content).read_text()), size, cfg),
        "parameters": sum(p.numel() for p in head.parameters()),
        "seconds": seconds,
    }
    logging.getLogger(__name__).info("%s, seed %d: %s", name, seed, result["all"])
    return result


def _tried(head, name: str, val: Tracks, content: dict, size: StudySize, cfg: CfgNode) -> dict:
    """What a head finds with whole clips behind it, and with some frames."""
    sigmas = [float(sigma) for sigma in Params("keypoints").kpt_oks_sigmas]
    options = (sigmas, cfg.MODEL.ROI_KEYPOINT_HEAD.BOX_SCALE)
    # A head that has learnt from single frames has no use for a state.
    history = 0 if HEADS[name].in_time else 1
    result = {"all": score(content, val, heatmaps_of(head, val, history), *options), "history": {}}
    # Those with a whole history: the same frames for all numbers of frames.
    longest = max(size.histories)
    late = [row for rows in val.by_track() for row in rows[longest - 1 :]]
    for count in size.histories if history == 0 else (1,):
        found = heatmaps_of(head, val, count, late)
        result["history"][str(count)] = score(content, val, found, *options, rows=late)
    return result
