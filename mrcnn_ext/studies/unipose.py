"""UniPose on crops of people beside the RoI keypoint head on whole images: the same people, whose boxes are given, the
same backbone, scenes, iterations and people per iteration."""

from __future__ import annotations

import json
import time
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data import transforms as T
from detectron2.data.detection_utils import read_image
from detectron2.engine import HookBase
from detectron2.structures import Boxes, Instances

from ..config_files import get_config_file
from ..data import PersonCropMapper, load_dataset, person_crops, register_scenes
from ..engine.setup import load_config
from ..engine.trainer import Trainer
from ..evaluation import COCOEvaluator
from ..evaluation.pck import box_sizes, percentage_of_correct_keypoints
from ..scenes import get_preset, write_dataset
from .kept import kept_result

__all__ = ["HEADS", "run_study", "study_table"]

SCENES = "scenes_unipose"
HEADS = {"unipose": "UniPose", "roi": "RoI head"}
# Both: ResNet-18 at half width, from scratch.
_BOTH = {
    "MODEL.WEIGHTS": "",
    "MODEL.DEVICE": "cpu",
    "MODEL.CHANNELS_LAST": True,
    "MODEL.ACCELERATE_TRAINING": True,
    "MODEL.MASK_ON": False,
    "MODEL.PIXEL_MEAN": [103.530, 116.280, 123.675],
    "MODEL.PIXEL_STD": [57.375, 57.120, 58.395],
    "MODEL.ROI_HEADS.NUM_CLASSES": 1,
    "MODEL.TIMM.PRETRAINED": False,
    "MODEL.TIMM.NAME": "resnet18",
    "DATASETS.CHECK": False,
    "DATALOADER.NUM_WORKERS": 0,
    "INPUT.FORMAT": "BGR",
    "SOLVER.OPTIMIZER": "AdamW",
    "SOLVER.BASE_LR": 0.0015,
    "SOLVER.WEIGHT_DECAY": 0.05,
    "SOLVER.LR_SCHEDULER_NAME": "WarmupCosineLR",
    "SOLVER.CHECKPOINT_PERIOD": 0,
    "SOLVER.AMP.ENABLED": True,
    "VAL_LOSS.ENABLED": False,
    "TEST.REPORT": False,
}
_UNIPOSE = {
    "MODEL.TIMM.ARGS": {"channels": [32, 64, 128, 256], "output_stride": 8},
    "MODEL.UNIPOSE.RATES": [1, 2, 3, 4],  # for maps of 16 x 12 cells
    "MODEL.UNIPOSE.DIM": 64,
    "MODEL.UNIPOSE.LOW_DIM": 16,
    "INPUT.PERSON_CROPS.SIZE": [128, 96],
    "MODEL.ROI_KEYPOINT_HEAD.TARGET_SIGMA": 2.0,
    "SOLVER.IMS_PER_BATCH": 8,
}
_ROI = {
    "MODEL.TIMM.ARGS": {"channels": [32, 64, 128, 256]},
    "MODEL.ROI_KEYPOINT_HEAD.LOSS_WEIGHT": 1.0,
    "MODEL.ROI_KEYPOINT_HEAD.SAMPLES_PER_IMAGE": 8,
    "MODEL.ROI_KEYPOINT_HEAD.MIN_KEYPOINTS_PER_IMAGE": 1,
    "SOLVER.IMS_PER_BATCH": 4,
}


def run_study(
    output: Path, heads: list[str], *, iterations: int, num_train: int, num_val: int, seed: int
) -> dict:
    """Trains and evaluates what has not been with these arguments, and gives all results so far.

    Args:
        output: folder for scenes, checkpoints and results.
        heads: of `HEADS`, to train now.
        iterations: of each training. UniPose sees 8 crops in each; the RoI head 4 images, of each at most 8 RoIs.
        num_train, num_val: scenes, whose actors are people.
        seed: of the training.

    Returns:
        By head: "AP" and "AP50" of keypoints (COCO's), "PCK@0.2" and "PCK@0.1" of the box's longer side, over labelled
        joints, "people", "train_seconds" and "seconds" a person at inference in float32, both the processor's,
        "parameters", and "arguments", which it was made with.
    """
    output, results = Path(output), {}
    arguments = {"iterations": iterations, "num_train": num_train, "num_val": num_val}

    def train(head, folder):
        preset = get_preset("easy", weights={"person": 1.0})
        write_dataset(output / "scenes", preset, num_train, num_val, formats=["coco"], force=True)
        if f"{SCENES}_train" not in DatasetCatalog.list():
            register_scenes(str(output / "scenes"), SCENES)
        return _train(head, folder, iterations, seed)

    for head in HEADS:
        path = output / head / f"result_{seed}.json"
        if head in heads:
            results[head] = kept_result(path, arguments, partial(train, head, path.parent))
        elif path.is_file():
            results[head] = json.loads(path.read_text())
    return results


def study_table(results: dict) -> str:
    """Markdown, a row for each head."""
    columns = ("AP", "AP50", "PCK@0.2", "PCK@0.1")
    lines = [
        f"| | {' | '.join(columns)} | people | parameters | ms a person | training |",
        "| --- " * (len(columns) + 5) + "|",
    ]
    for head, result in results.items():
        cells = [
            HEADS[head],
            *(f"{result[key]:.1f}" for key in columns),
            str(result["people"]),
            f"{result['parameters'] / 1e6:.2f} M",
            f"{1e3 * result['seconds']:.1f}",
            f"{result['train_seconds']:.0f} s",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


class _StepTimer(HookBase):
    """The processor's seconds that the iterations take."""

    seconds = 0.0

    def before_step(self):
        self._start = time.process_time()

    def after_step(self):
        self.seconds += time.process_time() - self._start


class _Trainer(Trainer):
    @classmethod
    def test(cls, cfg, model, evaluators=None):
        """Left to `_evaluate`, which gives both heads the same boxes."""
        return {}


def _train(head, folder, iterations, seed):
    options = {
        **_BOTH,
        **(_UNIPOSE if head == "unipose" else _ROI),
        "DATASETS.TRAIN": (f"{SCENES}_person_train",),
        "DATASETS.TEST": (f"{SCENES}_person_val",),
        "SOLVER.MAX_ITER": iterations,
        "SOLVER.WARMUP_ITERS": max(1, iterations // 10),
        "SOLVER.STEPS": (),
        "OUTPUT_DIR": str(folder),
        "SEED": seed,
    }
    file = "UniPose/unipose_timm_resnet50.yaml" if head == "unipose" else "quickstart.yaml"
    cfg = load_config(get_config_file(file), [part for pair in options.items() for part in pair])
    cfg.freeze()
    folder.mkdir(parents=True, exist_ok=True)
    cv2.setNumThreads(1)
    trainer = _Trainer(cfg)
    trainer.resume_or_load(resume=False)
    timer = _StepTimer()
    trainer.register_hooks([timer])
    trainer.train()
    parameters = sum(p.numel() for p in trainer.model.parameters())
    metrics = _evaluate(cfg, trainer.model.eval(), head)
    return {**metrics, "train_seconds": timer.seconds, "parameters": parameters}


@torch.no_grad()
def _evaluate(cfg, model, head):
    name = cfg.DATASETS.TEST[0]
    evaluator = COCOEvaluator(name, tasks=("keypoints",), output_dir=None, distributed=False)
    evaluator.reset()
    infer = _unipose(cfg, model) if head == "unipose" else _roi_head(cfg, model)
    predicted, seconds = [], 0.0
    people = person_crops(load_dataset(name))
    for record in people:
        start = time.process_time()
        instances = infer(record)
        seconds += time.process_time() - start
        evaluator.process([record], [{"instances": instances}])
        predicted.append(instances.pred_keypoints[0, :, :2].numpy())
    points = np.array([np.reshape(r["annotations"][0]["keypoints"], (-1, 3)) for r in people])
    boxes = np.array([r["person_box"] for r in people])
    sizes = box_sizes(np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1))
    names = MetadataCatalog.get(name).keypoint_names
    result = {"people": len(people), "seconds": seconds / len(people)}
    for threshold in (0.2, 0.1):
        pck = percentage_of_correct_keypoints(
            predicted, points[..., :2], points[..., 2] > 0, sizes, threshold, names
        )
        result[f"PCK@{threshold}"] = pck.mean
    keypoints = evaluator.evaluate()["keypoints"]
    return {**result, "AP": keypoints["AP"], "AP50": keypoints["AP50"]}


def _unipose(cfg, model):
    mapper = PersonCropMapper(cfg, False)
    return lambda record: model([mapper(record)])[0]["instances"]


def _roi_head(cfg, model):
    """The keypoints of one person by its box; the image's features are those of the whole image."""
    resize = T.ResizeShortestEdge(cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST)

    def infer(record):
        image = read_image(record["file_name"], cfg.INPUT.FORMAT)
        transform = resize.get_transform(image)
        pixels = torch.from_numpy(np.ascontiguousarray(transform.apply_image(image).transpose(2, 0, 1)))
        box = transform.apply_box(np.array([record["person_box"]]))
        known = Instances(tuple(pixels.shape[1:]), pred_boxes=Boxes(torch.tensor(box, dtype=torch.float32)))
        known.pred_classes, known.scores = torch.zeros(1, dtype=torch.int64), torch.ones(1)
        given = {"image": pixels, "height": record["height"], "width": record["width"]}
        found = model.inference([given], [known])[0]["instances"]
        found.scores = found.pred_keypoints[..., 2].mean(dim=1)  # as UniPose's
        return found

    return infer
