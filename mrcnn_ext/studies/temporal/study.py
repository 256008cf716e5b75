"""The study: clips, one detector for all, its features of their people, then each head with each seed."""

from __future__ import annotations

import json
import logging
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_model
from detectron2.modeling.roi_heads import build_keypoint_head
from pycocotools.cocoeval import Params

from ...config_files import get_config_file
from ...data.register import register_clips
from ...engine import Checkpointer
from ...engine.setup import load_config
from ...scenes import get_clip_preset, write_clips
from .detector import train_detector
from .features import Tracks, pooled_tracks
from .heads import heatmaps_of, train_head
from .people import People, people_of
from .scores import score

__all__ = ["HEADS", "StudySize", "head_config", "run_study"]

_PREFIX = "temporal_study"
# Motion blur and things that stand before people in each clip. Who shows less than a quarter is not annotated.
_PRESET = get_clip_preset("hard", min_visible=0.25)


@dataclass(frozen=True)
class StudySize:
    """
    Attributes:
        num_train, num_val: clips of 8 frames, of the preset "hard".
        iterations: of the detector, with a head of single frames; 0 to take ``weights`` as they are.
        batch: frames of an iteration of the detector.
        updates: of each head.
        people: of an update, with all their frames.
        histories: numbers of frames that the heads are tried with, on frames with so many before them.
        weights: a checkpoint of the quickstart's that the detector begins with, and all heads with the keypoint head of
            the detector, as far as they have its layers; "" to begin at random.
    """

    num_train: int = 200
    num_val: int = 60
    iterations: int = 1000
    batch: int = 4
    updates: int = 1500
    people: int = 6
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
        last frames}, "parameters", "seconds": of an update}.

    Raises:
        ValueError: the folder holds a study of another size.
    """
    output = Path(output)
    _keep_size(output, size)
    cfg = _detector_config(output, size, device, processes)
    weights = _detector(cfg, output, size)
    _write_features(cfg, output, weights)
    content = MetadataCatalog.get(f"{_PREFIX}_person_val").json_file
    paths = {(name, seed): output / "heads" / f"{name}_{seed}.json" for name in HEADS for seed in seeds}
    (output / "heads").mkdir(exist_ok=True)
    missing = [key for key, path in paths.items() if key[0] in heads and not path.is_file()]
    arguments = [(cfg, *key, size, content, weights if size.weights else "", paths[key]) for key in missing]
    if processes > 1 and len(missing) > 1:
        # spawn: CUDA does not survive a fork.
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(min(processes, len(missing)), context, torch.set_num_threads, (1,)) as pool:
            for future in [pool.submit(_head, *one) for one in arguments]:
                future.result()
    else:
        for one in arguments:
            _head(*one)
    results: dict[str, dict[str, dict]] = {}
    for (name, seed), path in paths.items():
        if path.is_file():
            results.setdefault(name, {})[str(seed)] = json.loads(path.read_text())
    return results


def _keep_size(output: Path, size: StudySize) -> None:
    path, own = output / "size.json", json.loads(json.dumps(asdict(size)))
    if not path.is_file():
        output.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(own))
    there = json.loads(path.read_text())
    if there != own:
        different = ", ".join(
            f"{key} {there.get(key)}, now {own[key]}" for key in own if there.get(key) != own[key]
        )
        raise ValueError(
            f"{output} holds a study of another size ({different}): give another folder (--output)"
        )


def _detector_config(output: Path, size: StudySize, device: str, processes: int) -> CfgNode:
    write_clips(output / "clips", _PRESET, size.num_train, size.num_val, seed=0, workers=processes)
    register_clips(str(output / "clips"), _PREFIX)
    keys = {
        "DATASETS.TRAIN": (f"{_PREFIX}_person_train",),
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


def _detector(cfg: CfgNode, output: Path, size: StudySize) -> str:
    """Trains the detector, if there is none; gives its checkpoint."""
    if size.iterations == 0:
        return size.weights
    path = output / "detector" / "model_final.pth"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(0)
        model = build_model(cfg)
        if size.weights:
            Checkpointer(model, allow_partial=True).load(size.weights)
        train_detector(
            model,
            _people("train"),
            iterations=size.iterations,
            batch=size.batch,
            learning_rate=2e-3,
            seed=0,
        )
        (path.parent / "config.yaml").write_text(cfg.dump())
        torch.save({"model": model.state_dict()}, path.with_suffix(".part"))
        path.with_suffix(".part").replace(path)
    return str(path)


def _people(split: str) -> list[People]:
    metadata = MetadataCatalog.get(f"{_PREFIX}_person_{split}")
    flips = list(metadata.keypoint_flip_map) if split == "train" else None
    return people_of(metadata.name, flips, list(metadata.keypoint_names))


def _write_features(cfg: CfgNode, output: Path, weights: str) -> None:
    model = None
    for split, seed in (("train", 1), ("val", 2)):
        path = output / f"features_{split}.pt"
        if path.is_file():
            continue
        if model is None:
            model = build_model(cfg)
            Checkpointer(model, allow_partial=True).load(weights)
        pooled_tracks(model, _people(split), seed).save(path.with_suffix(".part"))
        path.with_suffix(".part").replace(path)


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
    cfg: CfgNode, name: str, seed: int, size: StudySize, content: str, weights: str, path: Path
) -> None:
    """Trains a head and writes its results to ``path``, its weights beside it."""
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
        learning_rate=2e-3,
        seed=seed,
    )
    torch.save(head.state_dict(), path.with_suffix(".pth"))
    result = {
        **_tried(head, name, val, json.loads(Path(content).read_text()), size, cfg),
        "parameters": sum(p.numel() for p in head.parameters()),
        "seconds": seconds,
        "size": asdict(size),
    }
    path.with_suffix(".part").write_text(json.dumps(result, indent=1))
    path.with_suffix(".part").replace(path)
    logging.getLogger(__name__).info("%s, seed %d: %s", name, seed, result["all"])


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
