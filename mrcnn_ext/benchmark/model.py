"""A detector as detectron2 runs it beside itself accelerated, with the same weights in the same process."""

import copy
import os
import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from pathlib import Path

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.data import DatasetCatalog
from detectron2.data.detection_utils import read_image
from detectron2.evaluation.coco_evaluation import instances_to_coco_json as stock_instances_to_coco_json
from detectron2.layers import FrozenBatchNorm2d
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Boxes, Instances, Keypoints
from detectron2.utils.events import EventStorage
from torch import Tensor, nn
from torch.nn import functional as F

from ..config_files import get_config_file, list_configs
from ..engine.setup import load_config
from ..evaluation.coco_evaluation import instances_to_coco_json
from ..model_zoo import detectron2_zoo
from ..modeling import accelerate
from .agreement import agreement
from .memory import peak_memory
from .roi_align import random_boxes
from .stages import STAGES, breakdown
from .timing import race_times

ZOO = (
    "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x.yaml",
    "COCO-Keypoints/keypoint_rcnn_R_50_FPN_3x.yaml",
)
# Our components in a config -> detectron2's which take the same weights.
_STOCK_ROI_HEADS = {
    "FusedROIHeads": "StandardROIHeads",
    "FusedCascadeROIHeads": "CascadeROIHeads",
    "FusedRes5ROIHeads": "Res5ROIHeads",
}

_STOCK_POOLERS = ("ROIAlign", "ROIAlignV2", "ROIPool", "ROIAlignRotated")

# To detections; to records of COCO's results, masks encoded; one step from images to new weights.
TASKS = ("inference", "evaluation", "training")


# Random weights find boxes as their anchors are, mostly the smallest. These are as large as people and cars are
# on images of 800 pixels.
_ANCHORS = [[64], [128], [256], [384], [512]]


@dataclass(frozen=True)
class Case:
    """What is measured."""

    task: str = "inference"
    height: int = 800
    width: int = 1216
    batch: int = 1
    instances: int = 100

    def __str__(self) -> str:
        what = f"{self.instances} {'objects' if self.task == 'training' else 'detections'}"
        return f"{self.task} {self.height} x {self.width}, batch {self.batch}, {what}"


class Subject:
    """The model of a config twice: stock, and accelerated."""

    def __init__(
        self,
        config: str,
        weights: str = "",
        device: str = "cpu",
        opts=(),
        dataset: str = "",
        min_score: float = 0.0,
        bf16: bool | str = "auto",
        calibrated: bool = True,
    ):
        """
        Args:
            config: a yaml file, or the name of one in our zoo or in detectron2's.
            weights: a checkpoint. Without one they are random: batch normalisation gets statistics of a random
                picture, without which features would explode, and the anchors of an FPN are made larger.
            opts: KEY VALUE pairs that go over the config.
            dataset: a registered one whose images are taken instead of random pictures.
            min_score: of the detections that the model gives. 0 stands for one that lets some ten times as many
                candidates into non-maximum suppression as detections are wanted.
            bf16: as `accelerate` takes it; of training too.
            calibrated: whether random weights' batch normalisation gets statistics.
        """
        self.name = os.path.splitext(os.path.basename(config))[0]
        self.weights = os.path.basename(weights)
        self.device = torch.device(device)
        self.min_score = min_score
        self.dataset = dataset
        self.cfg = _stock_config(config, opts)
        self.cfg.MODEL.DEVICE, self.cfg.MODEL.WEIGHTS = device, weights
        if not weights and self.cfg.MODEL.ANCHOR_GENERATOR.SIZES == [[32], [64], [128], [256], [512]]:
            self.cfg.MODEL.ANCHOR_GENERATOR.SIZES = _ANCHORS
        torch.manual_seed(0)
        self.stock = build_model(self.cfg).eval()
        if weights:
            DetectionCheckpointer(self.stock).load(weights)
        elif calibrated:
            calibrate(self.stock, self.inputs(Case(height=320, width=480)))
        self.bf16 = bf16

    def accelerated(self, **options) -> nn.Module:
        """A copy of stock by `accelerate`, with these options over the subject's."""
        return accelerate(self.stock, **{"training": False, "bf16": self.bf16, **options})

    @cached_property
    def runs_in_bf16(self) -> bool:
        """Whether the accelerated model computes in bf16, in training too; stock is float32."""
        return self.accelerated().acceleration.bf16

    def inputs(self, case: Case) -> list[dict]:
        """A batch of images, uint8, as detectron2's mapper gives them."""
        size = (case.height, case.width)
        if self.dataset:
            records = DatasetCatalog.get(self.dataset)
            chosen = [records[i * len(records) // case.batch] for i in range(case.batch)]
            pictures = [read_image(record["file_name"], self.cfg.INPUT.FORMAT) for record in chosen]
            pictures = [_resized(torch.from_numpy(picture.copy()), size) for picture in pictures]
        else:
            pictures = [random_picture(size, seed) for seed in range(case.batch)]
        return [
            {"image": picture, "height": size[0], "width": size[1], "image_id": i}
            for i, picture in enumerate(pictures)
        ]

    def training_inputs(self, case: Case) -> list[dict]:
        """The same with random objects."""
        batch = self.inputs(case)
        for seed, item in enumerate(batch):
            item["instances"] = random_objects(self.cfg, (case.height, case.width), case.instances, seed)
        return batch


def _stock_config(config: str, opts):
    if os.path.isfile(config):
        file = config
    elif config not in list_configs() and config.endswith(("_1x.yaml", "_3x.yaml")):
        file = detectron2_zoo.get_config_file(config)
    else:
        file = get_config_file(config)
    cfg = load_config(file, opts)
    heads = cfg.MODEL.ROI_HEADS
    enlarges = cfg.MODEL.KEYPOINT_ON and cfg.MODEL.ROI_KEYPOINT_HEAD.BOX_SCALE != 1
    if cfg.MODEL.ROI_BOX_HEAD.POOLER_TYPE in _STOCK_POOLERS and not enlarges:  # the others have none but ours
        heads.NAME = _STOCK_ROI_HEADS.get(heads.NAME, heads.NAME)
    return cfg


def random_picture(size: tuple[int, int], seed: int) -> Tensor:
    """(3, *size) uint8: random colours that change over 32 pixels, and finer noise."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 3, -(-size[0] // 32), -(-size[1] // 32), generator=generator)
    picture = F.interpolate(coarse, size, mode="bilinear")[0] + 0.1 * torch.randn(
        3, *size, generator=generator
    )
    return picture.clamp(0, 1).mul(255).byte()


def _resized(picture: Tensor, size: tuple[int, int]) -> Tensor:
    """(H, W, 3) -> (3, *size) uint8."""
    picture = F.interpolate(picture.permute(2, 0, 1)[None].float(), size, mode="bilinear", antialias=True)
    return picture[0].round().byte()


def random_objects(cfg, size: tuple[int, int], count: int, seed: int) -> Instances:
    """Ground truth of an image: boxes as `random_boxes` makes them, elliptical masks, visible keypoints."""
    generator = torch.Generator().manual_seed(seed)
    boxes = random_boxes(count, size, generator)[:, 1:]
    objects = Instances(size, gt_boxes=Boxes(boxes))
    objects.gt_classes = torch.randint(cfg.MODEL.ROI_HEADS.NUM_CLASSES, (count,), generator=generator)
    if cfg.MODEL.MASK_ON:
        y, x = torch.arange(size[0])[:, None] + 0.5, torch.arange(size[1]) + 0.5
        x0, y0, x1, y1 = boxes[:, :, None, None].unbind(1)
        ellipses = ((2 * x - x0 - x1) / (x1 - x0)) ** 2 + ((2 * y - y0 - y1) / (y1 - y0)) ** 2 <= 1
        objects.gt_masks = BitMasks(ellipses)
    if cfg.MODEL.KEYPOINT_ON:
        number = cfg.MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS
        place = torch.rand(count, number, 2, generator=generator)
        place = boxes[:, None, :2] + place * (boxes[:, None, 2:] - boxes[:, None, :2])
        objects.gt_keypoints = Keypoints(torch.cat([place, torch.full_like(place[..., :1], 2)], dim=2))
    return objects


@torch.no_grad()
def calibrate(model: nn.Module, inputs: list[dict]) -> None:
    """Gives the batch normalisations the mean and variance of what they get for the inputs."""

    def measure(layer, args):
        (x,) = args
        layer.running_mean.copy_(x.mean(dim=(0, 2, 3)))
        layer.running_var.copy_(x.var(dim=(0, 2, 3)))

    norms = [
        m for m in model.modules() if isinstance(m, (FrozenBatchNorm2d, nn.modules.batchnorm._BatchNorm))
    ]
    hooks = [norm.register_forward_pre_hook(measure) for norm in norms]
    model.backbone(model.preprocess_image(inputs).tensor)
    for hook in hooks:
        hook.remove()


def sweep(tasks, sizes, batches, instances, quick: bool) -> list[Case]:
    """Cases that vary one thing at a time around the first of each; of training and evaluation only that one."""
    cases = []
    for task in tasks:
        base = Case(task, *sizes[0], batches[0], instances[0])
        cases.append(base)
        if quick or task != "inference":
            continue
        cases += [replace(base, height=height, width=width) for height, width in sizes[1:]]
        cases += [replace(base, batch=batch) for batch in batches[1:]]
        cases += [replace(base, instances=number) for number in instances[1:]]
    return cases


def limit_detections(model: nn.Module, limit: int, min_score: float) -> None:
    for module in model.modules():
        if hasattr(module, "test_topk_per_image"):
            module.test_topk_per_image, module.test_score_thresh = limit, min_score


def score_for(model: nn.Module, inputs: list[dict], instances: int) -> float:
    """A score threshold at which random weights give so many detections of an image, if they ever do.

    All scores of a random model are small and alike. Without a threshold each of them would be a candidate, ten
    or a hundred times more than a trained model has.
    """
    predictor = next(m for m in model.roi_heads.modules() if hasattr(m, "test_topk_per_image"))
    calls, inference = [], predictor.inference
    predictor.inference = lambda *args: calls.append(args) or inference(*args)
    limit_detections(model, instances, 0.0)
    with torch.no_grad():
        model(inputs)
        del predictor.inference
        if not calls:  # Cascade R-CNN averages its stages' scores elsewhere
            return 0.0
        scores = torch.cat([image[:, :-1].flatten() for image in predictor.predict_probs(*calls[0])])
        scores = scores.sort(descending=True).values
        candidates = 10 * instances * len(inputs)
        while candidates < len(scores):
            limit_detections(model, instances, float(scores[candidates]))
            found, _ = predictor.inference(*calls[0])
            if min(map(len, found)) >= instances:
                return float(scores[candidates])
            candidates *= 2
    return 0.0


def measure(
    subject: Subject,
    case: Case,
    budget: float,
    threads: int,
    brief: bool = False,
    least_matched: float = 0.98,
) -> dict:
    """One row: times, images per second, peak memory and stages of both, and how well the outputs agree.

    Args:
        subject: what is measured.
        case: in what.
        budget: seconds for the times, about; three rounds at least.
        threads: of the CPU.
        brief: leave out the stages, and the agreement of masks and keypoints within the same boxes.
        least_matched: share of stock's detections that the model accelerated in float32 must have.

    Raises:
        AssertionError: the model accelerated in the arithmetic of stock's, float32, detects something else.
    """
    torch.set_num_threads(threads)
    row = {"model": subject.name, "weights": subject.weights or "random", **asdict(case)}
    row |= {"device": subject.device.type, "threads": threads}
    if case.task == "training":
        functions, models, compared = _training(subject, case)
    else:
        functions, models, compared = _inference(subject, case, brief, least_matched)
    row |= {"bf16": subject.runs_in_bf16, **compared}
    for name, function in functions.items():
        row[f"{name}_mb"] = peak_memory(function, subject.device) / 1e6
    # Memory was measured by a run of each.
    times = race_times(functions, subject.device, budget, (3, 50), warm=False)
    for name, seconds in times.items():
        middle = statistics.median(seconds)
        row[f"{name}_ms"] = 1000 * middle
        row[f"{name}_p95_ms"] = 1000 * float(torch.tensor(seconds).quantile(0.95))
        row[f"{name}_images_per_s"] = case.batch / middle
    row["runs"] = len(times["stock"])
    row["ratio"] = row["stock_ms"] / row["ours_ms"]
    if case.task != "training" and not brief:
        for name, function in functions.items():
            parts = breakdown(models[name], function, subject.device)
            row |= {f"{name}_{stage}_ms": 1000 * parts[stage] for stage in STAGES}
    return row


def _inference(subject: Subject, case: Case, brief: bool, least_matched: float):
    inputs = subject.inputs(case)
    lazy = case.task == "evaluation"
    models = {"stock": subject.stock, "ours": subject.accelerated(masks="lazy" if lazy else True)}
    exact = subject.accelerated(bf16=False)
    min_score = subject.min_score or score_for(subject.stock, inputs, case.instances)
    for model in (*models.values(), exact):
        limit_detections(model, case.instances, min_score)

    def run(model) -> list[Instances]:
        with torch.no_grad():
            return [output["instances"] for output in model(inputs)]

    def evaluate(model, to_records):
        return [to_records(instances.to("cpu"), i) for i, instances in enumerate(run(model))]

    # Convolutions of CUDA round their inputs to TF32 unless told not to, which moves near-equal scores.
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        stock = run(subject.stock)
        same = agreement(stock, run(exact))
    sides = torch.cat([instances.pred_boxes.area() for instances in stock]).sqrt()
    if same["detections"] and not same["matched"] > least_matched:
        raise AssertionError(
            f"{subject.name}, {case}: of stock's detections the accelerated model in float32 has "
            f"{same['matched']:.1%}: there is nothing to compare"
        )
    compared = agreement(stock, run(models["ours"])) | {f"fp32_{name}": value for name, value in same.items()}
    if not brief:
        compared |= _agreement_within_boxes(subject.stock, models["ours"], inputs)
    compared |= {"box_side_px": float(sides.mean()), "min_score": min_score}
    functions: dict[str, Callable] = {name: partial(run, model) for name, model in models.items()}
    if case.task == "evaluation":
        functions = {
            "stock": partial(evaluate, models["stock"], stock_instances_to_coco_json),
            "ours": partial(evaluate, models["ours"], instances_to_coco_json),
        }
    return functions, models, compared


def _agreement_within_boxes(stock: nn.Module, ours: nn.Module, inputs: list[dict]) -> dict[str, float]:
    """Of the masks and keypoints that ours gives to the boxes which stock detects.

    Scores of random weights are alike, so that in bf16 other boxes come first: only here masks and keypoints of
    all detections compare.
    """
    with torch.no_grad():
        boxes = stock.inference(inputs, do_postprocess=False)
        results = []
        for model in (stock, ours):
            given = [
                Instances(
                    image.image_size,
                    pred_boxes=image.pred_boxes.clone(),
                    pred_classes=image.pred_classes,
                    scores=image.scores,
                )
                for image in boxes
            ]
            outputs = model.inference(inputs, detected_instances=given)
            results.append([output["instances"] for output in outputs])
    same = agreement(*results)
    names = ("mask_iou", "mask_iou_mean", "keypoint_px", "keypoint_px_median")
    return {f"same_box_{name}": same[name] for name in names}


def _training(subject: Subject, case: Case):
    inputs = subject.training_inputs(case)
    models = {"stock": copy.deepcopy(subject.stock), "ours": subject.accelerated(training=True)}
    optimisers = {}
    for name, model in models.items():
        model.train()
        parameters = [p for p in model.parameters() if p.requires_grad]
        optimisers[name] = torch.optim.SGD(parameters, lr=0.0)  # every step starts from the same weights

    def step(name: str) -> float:
        torch.manual_seed(0)  # the same samples of anchors and proposals
        autocast = torch.autocast(
            subject.device.type, torch.bfloat16, enabled=subject.runs_in_bf16 and name == "ours"
        )
        with EventStorage(), autocast:
            loss = sum(models[name](inputs).values())
        optimisers[name].zero_grad()
        loss.backward()
        optimisers[name].step()
        return float(loss.detach())

    losses = {name: step(name) for name in models}
    compared = {"loss": losses["stock"], "loss_difference": abs(losses["ours"] / losses["stock"] - 1)}
    return {name: partial(step, name) for name in models}, models, compared


def header() -> str:
    return f"{'case':54}{'stock ms (p95)':>18}{'ours ms (p95)':>18}{'ratio':>7}{'images/s':>14}{'MB':>14}   agreement"


def line(row: dict) -> str:
    """A row of `measure` as text."""
    times = [f"{row[f'{name}_ms']:.0f} ({row[f'{name}_p95_ms']:.0f})" for name in ("stock", "ours")]
    speed = f"{row['stock_images_per_s']:.2f}, {row['ours_images_per_s']:.2f}"
    memory = f"{row['stock_mb']:.0f}, {row['ours_mb']:.0f}"
    ratio = f"{row['ratio']:.2f}"
    cells = f"{str(_case(row)):54}{times[0]:>18}{times[1]:>18}{ratio:>7}{speed:>14}{memory:>14}"
    return f"{cells}   {_agreement(row)}"


def _agreement(row: dict) -> str:
    if row["task"] == "training":
        return f"losses within {row['loss_difference']:.2%}"
    parts = [
        f"{row['matched']:.1%} of {row['detections']} ({row['box_side_px']:.0f} px) found, "
        f"boxes within {row['box_px']:.2g} px"
    ]
    if row["mask_iou"] == row["mask_iou"]:
        parts.append(
            f"mask IoU {row['mask_iou_mean']:.4f}, on stock's boxes {row['same_box_mask_iou_mean']:.4f}"
        )
    if row["keypoint_px"] == row["keypoint_px"]:
        medians = f"{row['keypoint_px_median']:.2g}, {row['same_box_keypoint_px_median']:.2g}"
        parts.append(f"keypoints (median; on stock's boxes) {medians} px")
    return f"{'; '.join(parts)}; in float32 {row['fp32_matched']:.1%}, {row['fp32_box_px']:.2g} px"


def stages(row: dict) -> str:
    """Where the time of a row went, milliseconds; only of inference and evaluation."""
    lines = [f"{row['model']}, {_case(row)}"]
    for name in ("stock", "ours"):
        parts = "  ".join(f"{stage} {row[f'{name}_{stage}_ms']:.0f}" for stage in STAGES)
        lines.append(f"    {name:6}{parts}")
    return "\n".join(lines)


def _case(row: dict) -> Case:
    return Case(**{name: row[name] for name in Case.__dataclass_fields__})


def plot(rows: list[dict], path: Path) -> None:
    """Milliseconds of every row, by stage, stock's above ours, and images per second beside them."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    figure = Figure(figsize=(13, 1.8 + 0.75 * len(rows)), layout="constrained")
    bars, speeds = figure.subplots(1, 2, sharey=True, width_ratios=[2, 1])
    places, labels = [], []
    for i, row in enumerate(rows):
        for k, name in enumerate(("stock", "ours")):
            place = -(3 * i + k)
            places.append(place)
            labels.append(f"{row['model']}\n{_case(row)}, stock" if k == 0 else "ours")
            left = 0.0
            for colour, stage in enumerate(STAGES):
                width = row.get(f"{name}_{stage}_ms", 0.0)
                bars.barh(place, width, left=left, color=f"C{colour}")
                left += width
            if left == 0:  # training
                bars.barh(place, row[f"{name}_ms"], color="grey")
            speed = row[f"{name}_images_per_s"]
            speeds.barh(place, speed, color="grey" if k == 0 else "C2")
            text = f" {speed:.2f}" + (f"  ({row['ratio']:.1f} x)" if k else "")
            speeds.text(speed, place, text, va="center", fontsize="small")
    bars.set(xlabel="milliseconds a batch", yticks=places, yticklabels=labels)
    bars.tick_params(axis="y", labelsize="x-small")
    keys = [Patch(color=f"C{colour}", label=stage) for colour, stage in enumerate(STAGES)]
    keys.append(Patch(color="grey", label="training step"))
    figure.legend(handles=keys, loc="outside lower center", ncols=len(keys), fontsize="small")
    speeds.set(xlabel="images per second")
    speeds.margins(x=0.4)
    figure.suptitle(f"stock detectron2 and mrcnn_ext, {rows[0]['device']}, {rows[0]['threads']} thread(s)")
    figure.savefig(path, dpi=110)
