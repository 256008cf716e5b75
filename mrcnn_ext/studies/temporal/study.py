"""The study: clips, one detector for all, its features of their people, then each head with each seed."""

from __future__ import annotations

import json
import logging
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
from ...engine import Checkpointer, Trainer
from ...engine.setup import load_config
from ...scenes import write_clips
from .features import Tracks, pooled_tracks
from .heads import heatmaps_of, train_head
from .scores import score

__all__ = ["HEADS", "StudySize", "head_config", "run_study"]

_PREFIX = "temporal_study"


@dataclass(frozen=True)
class StudySize:
    """
    Attributes:
        num_train, num_val: clips of 8 frames, of the preset "hard".
        iterations: of the detector, with a head of single frames, on batches of 4 frames; 0 to take ``weights`` as they
            are.
        updates: of each head.
        people: of an update, with all their frames.
        histories: numbers of frames that the heads are tried with, on frames with so many before them.
        weights: a checkpoint of the quickstart's that the detector begins with, and all heads with its keypoint head,
            as far as they have its layers; "" to begin at random.
    """

    num_train: int = 100
    num_val: int = 40
    iterations: int = 500
    updates: int = 200
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


_LSTM = {"NAME": "ConvLSTMKeypointHead", "LSTM_DIM": 32}
HEADS = {
    "single": StudyHead("HeatmapKeypointHead, single frames", {"NAME": "HeatmapKeypointHead"}, False),
    "lstm_single": StudyHead("ConvLSTMKeypointHead, single frames", _LSTM, False),
    "lstm": StudyHead("ConvLSTMKeypointHead", _LSTM),
    "lstm_lying": StudyHead("ConvLSTMKeypointHead, ALIGN_STATE False", {**_LSTM, "ALIGN_STATE": False}),
    "unipose": StudyHead(
        "UniPoseLSTMKeypointHead",
        {
            "NAME": "UniPoseLSTMKeypointHead",
            "LSTM_DIM": 32,
            "LSTM_CONVS": 1,
            "CONV_DIMS": (64, 64),
            "WASP_RATES": [1, 2],
        },
    ),
}


def run_study(output: Path, size: StudySize, heads: list[str], seeds: list[int]) -> dict:
    """Does what is not done, and gives all results so far. It can be interrupted: each head with each seed is a step.

    Args:
        output: folder for clips, detector, features and results.
        heads: of `HEADS`.
        seeds: of the heads' weights and of the order of the people.

    Returns:
        By head and seed: {"all": metrics of `score` over whole clips, "history": {number of frames: the same, of the
        last frames}, "parameters", "seconds": of an update}.

    Raises:
        ValueError: the folder holds a study of another size.
    """
    output = Path(output)
    _keep_size(output, size)
    cfg = _detector_config(output, size)
    weights = _detector(cfg, output, size)
    train, val = _features(cfg, output, weights)
    content = json.loads(Path(MetadataCatalog.get(f"{_PREFIX}_person_val").json_file).read_text())
    results: dict[str, dict[str, dict]] = {}
    for name in HEADS:
        for seed in seeds:
            path = output / "heads" / f"{name}_{seed}.json"
            if not path.is_file() and name in heads:
                path.parent.mkdir(parents=True, exist_ok=True)
                known = _known_head(weights) if size.weights else {}
                result = _head(cfg, name, seed, size, train, val, content, known, path.with_suffix(".pth"))
                path.write_text(json.dumps(result, indent=1))
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


def _detector_config(output: Path, size: StudySize) -> CfgNode:
    write_clips(output / "clips", "hard", size.num_train, size.num_val, seed=0)
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
        "MODEL.ACCELERATE_TRAINING": True,
        "INPUT.MIN_SIZE_TRAIN": (192,),
        "INPUT.MIN_SIZE_TEST": 192,
        "INPUT.COLOR_JITTER": 0.2,
        "SOLVER.MAX_ITER": max(1, size.iterations),
        "MODEL.WEIGHTS": size.weights,
        "MODEL.ALLOW_PARTIAL_WEIGHTS": True,  # of another number of classes
        "SOLVER.CHECKPOINT_PERIOD": 150,
        "TEST.EVAL_PERIOD": 0,
        "TEST.REPORT": False,
        "VAL_LOSS.ENABLED": False,
        "OUTPUT_DIR": str(output / "detector"),
        "SEED": 0,
    }
    return load_config(get_config_file("quickstart.yaml"), [part for pair in keys.items() for part in pair])


def _detector(cfg: CfgNode, output: Path, size: StudySize) -> str:
    """Trains the detector, if there is none; gives its checkpoint."""
    if size.iterations == 0:
        return size.weights
    if not (output / "detector" / "model_final.pth").is_file():
        (output / "detector").mkdir(parents=True, exist_ok=True)
        trainer = Trainer(cfg)
        trainer.resume_or_load(resume=True)
        trainer.train()
    return str(output / "detector" / "model_final.pth")


def _features(cfg: CfgNode, output: Path, weights: str) -> tuple[Tracks, Tracks]:
    found, model = [], None
    for split, seed in (("train", 1), ("val", 2)):
        path = output / f"features_{split}.pt"
        if not path.is_file():
            if model is None:
                model = build_model(cfg)
                Checkpointer(model, allow_partial=True).load(weights)
            metadata = MetadataCatalog.get(f"{_PREFIX}_person_{split}")
            flips = list(metadata.keypoint_flip_map) if split == "train" else None
            tracks = pooled_tracks(model, metadata.name, flips, list(metadata.keypoint_names), seed)
            tracks.save(path)
        found.append(Tracks.load(path))
    return found[0], found[1]


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


def _head(cfg, name, seed, size, train, val, content, known, path) -> dict:
    shape = ShapeSpec(channels=train.features.shape[1], height=14, width=14)
    torch.manual_seed(seed)
    head = build_keypoint_head(head_config(cfg, name), shape)
    head.load_state_dict(known, strict=False)
    parameters = sum(p.numel() for p in head.parameters())
    seconds = train_head(
        head,
        train,
        in_time=HEADS[name].in_time,
        updates=size.updates,
        people=size.people,
        num_frames=8,
        learning_rate=2e-3,
        seed=seed,
    )
    torch.save(head.state_dict(), path)
    sigmas = [float(sigma) for sigma in Params("keypoints").kpt_oks_sigmas]
    options = (sigmas, cfg.MODEL.ROI_KEYPOINT_HEAD.BOX_SCALE)
    # A head that has learnt from single frames has no use for a state.
    history = 0 if HEADS[name].in_time else 1
    result = {
        "all": score(content, val, heatmaps_of(head, val, history), *options),
        "history": {},
        "parameters": parameters,
        "seconds": seconds,
        "size": asdict(size),
    }
    # Those with a whole history: the same frames for all numbers of frames.
    longest = max(size.histories)
    late = [row for rows in val.by_track() for row in rows[longest - 1 :]]
    for count in size.histories if history == 0 else (1,):
        found = heatmaps_of(head, val, count, late)
        result["history"][str(count)] = score(content, val, found, *options, rows=late)
    logging.getLogger(__name__).info("%s, seed %d: %s", name, seed, result["all"])
    return result
