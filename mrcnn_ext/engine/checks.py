"""Finds before training what would stop it, or its evaluation, hours later."""

import logging
import os

from detectron2.config import CfgNode, instantiate
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils import comm
from omegaconf import OmegaConf

from ..data import check_dataset
from ..data.same_names import check_same_names
from ..evaluation import build_evaluator
from .errors import UserError, did_you_mean
from .int8 import check_int8

__all__ = [
    "check_config",
    "check_dataset_names",
    "check_lazy_config",
    "learnt_from",
    "learnt_from_lazily",
    "names_for_losses",
    "names_of",
]


def check_config(cfg: CfgNode, eval_only: bool = False):
    """Check the datasets of a yaml config against its model, and that they can be evaluated.

    Args:
        cfg: ``DATASETS.CHECK`` False leaves the files alone.
        eval_only: whether ``DATASETS.TEST`` alone is needed.

    Raises:
        UserError: a dataset is not registered, missing or damaged, or its classes or keypoints are not the
            model's; or int8 cannot be calibrated with what is named.
    """
    train = () if eval_only else cfg.DATASETS.TRAIN
    check_dataset_names((*train, *cfg.DATASETS.TEST))
    model = cfg.MODEL
    if model.ACCELERATE and cfg.DATASETS.TEST:
        check_int8(model.ACCELERATE_INT8, not eval_only)
    heads = {"GeneralizedRCNN": model.ROI_HEADS, "RetinaNet": model.RETINANET}.get(model.META_ARCHITECTURE)
    if not cfg.DATASETS.CHECK:
        return
    _check(
        train,
        cfg.DATASETS.TEST,
        num_classes=heads.NUM_CLASSES if heads else None,
        classes_key="MODEL.RETINANET.NUM_CLASSES"
        if heads is model.RETINANET
        else "MODEL.ROI_HEADS.NUM_CLASSES",
        **learnt_from(cfg),
        pastes=cfg.INPUT.COPY_PASTE.ENABLED,
        max_size=min(cfg.INPUT.MAX_SIZE_TRAIN, cfg.INPUT.MAX_SIZE_TEST),
        evaluate=lambda name: build_evaluator(cfg, name),
    )


def check_lazy_config(cfg, eval_only=False):
    """As :func:`check_config`, for a LazyConfig; ``train.check_datasets`` False leaves the files alone."""
    train = [] if eval_only else names_of(cfg.dataloader.get("train"))
    test = names_of(cfg.dataloader.get("test"))
    check_dataset_names((*train, *test))
    if cfg.train.get("accelerate") and "evaluator" in cfg.dataloader:
        check_int8(cfg.train.get("accelerate_int8", ""), not eval_only)
    if not cfg.train.get("check_datasets", True):
        return
    _check(
        train,
        test,
        num_classes=OmegaConf.select(cfg, "model.roi_heads.num_classes"),
        classes_key="model.roi_heads.num_classes",
        **learnt_from_lazily(cfg),
        evaluate=(lambda _: instantiate(cfg.dataloader.evaluator)) if "evaluator" in cfg.dataloader else None,
    )


def learnt_from(cfg):
    """What the model of a yaml config learns from besides boxes: the arguments of `names_for_losses`."""
    model, pastes = cfg.MODEL, cfg.INPUT.COPY_PASTE.ENABLED
    return {
        "num_keypoints": model.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS if model.KEYPOINT_ON else None,
        "needs_masks": model.MASK_ON,
        "mask_format": "bitmask" if pastes else cfg.INPUT.MASK_FORMAT,
    }


def learnt_from_lazily(cfg):
    """The same of a LazyConfig."""
    mapper = OmegaConf.select(cfg, "dataloader.train.mapper", default={})
    keypoint_head = OmegaConf.select(cfg, "model.roi_heads.keypoint_head") or OmegaConf.select(
        cfg, "model.head"
    )
    return {
        "num_keypoints": keypoint_head.get("num_keypoints") if mapper.get("use_keypoint") else None,
        "needs_masks": mapper.get("use_instance_mask", False),
        "mask_format": mapper.get("instance_mask_format", "polygon"),
    }


def names_for_losses(names: list[str], *, num_keypoints: int, needs_masks: bool, mask_format: str):
    """Those of some test sets on which training losses can be computed, by their annotations; warns of the others.

    Args:
        names: registered datasets.
        num_keypoints: of the model's keypoint head; None without one.
        needs_masks: whether the model has a mask head.
        mask_format: "polygon" or "bitmask".
    """
    usable = []
    for name in names:
        problem = None
        if num_keypoints is not None and not MetadataCatalog.get(name).get("keypoint_names"):
            problem = f"dataset {name!r} has no keypoints"
        else:
            try:
                check_dataset(
                    name,
                    num_keypoints=num_keypoints,
                    needs_masks=needs_masks,
                    needs_keypoints=num_keypoints is not None,
                    mask_format=mask_format,
                    check_images=False,
                    quiet=True,  # told by the check before training
                )
            except ValueError as error:
                problem = str(error)
        if problem is None:
            usable.append(name)
        else:
            logging.getLogger(__name__).warning("No validation losses on it: %s", problem)
    return usable


def check_dataset_names(names):
    """Raise UserError for the first of ``names`` that is not registered with detectron2."""
    registered = DatasetCatalog.list()
    for name in names:
        if name not in registered:
            raise UserError(
                f"dataset {name!r} is not registered with detectron2{did_you_mean(name, registered)} "
                "(data in COCO's format: add [name, annotation file, image folder] to DATASETS.COCO_FORMAT)"
            )


def names_of(loader):
    """The datasets of a LazyConfig's ``dataloader.train`` or ``dataloader.test``."""
    names = OmegaConf.select(loader, "dataset.names", default=[]) if loader is not None else []
    return [names] if isinstance(names, str) else list(names)


def _check(train, test, **options):
    """In all processes, which share the images; the main process's error is raised in all."""
    message = None
    try:
        _check_files(train, test, **options)
    except (ValueError, FileNotFoundError) as error:
        message = str(error)
    message = comm.all_gather(message)[0]
    if message is not None:
        raise UserError(message)


def _check_files(
    train,
    test,
    *,
    num_classes,
    classes_key,
    num_keypoints,
    needs_masks,
    mask_format,
    pastes=False,
    max_size=1333,
    evaluate=None,
):
    """Raises one error for all datasets: a line for each kind of problem. What is not shared is the main process's."""
    problems, trained_on, is_main = [], {}, comm.is_main_process()
    for name in dict.fromkeys((*train, *test)):
        try:
            dicts = check_dataset(
                name,
                num_classes=num_classes,
                num_keypoints=num_keypoints,
                needs_masks=(needs_masks or pastes) and name in train,
                masks_for="" if needs_masks else "copy-paste (INPUT.COPY_PASTE)",
                needs_keypoints=num_keypoints is not None and name in train,
                needs_annotations=name in train,
                mask_format=mask_format,
                max_size=max_size,
                quiet=not is_main,
                sharded=True,
            )
            if not is_main:
                continue
            _tell_of_trained_images(name, dicts, trained_on, name in train)
            _check_metadata(
                name, name in train or not train, name in test, num_classes, classes_key, num_keypoints
            )
            if name in test and evaluate is not None:
                _check_evaluation(name, dicts, needs_masks)
                evaluate(name)
        except (ValueError, FileNotFoundError) as error:
            problems.append(error)
    if is_main and not problems:
        names = dict.fromkeys((*train, *test))
        metadata = {name: MetadataCatalog.get(name) for name in names}
        check_same_names("class", {name: metadata[name].get("thing_classes", ()) for name in names})
        if num_keypoints is not None:
            check_same_names("keypoint", {name: metadata[name].get("keypoint_names", ()) for name in names})
    if problems:
        raise type(problems[0])("\n".join(map(str, problems)))


def _tell_of_trained_images(name, dicts, trained_on, is_train):
    """Warns of images in the test data that are in the training data, ``trained_on``, too."""
    files = {os.path.abspath(record["file_name"]) for record in dicts}
    if is_train:
        trained_on.update(dict.fromkeys(files, name))
        return
    shared = sorted(files & trained_on.keys())
    if shared:
        logging.getLogger(__name__).warning(
            "dataset %r: %d of its %d images are trained on, %s of dataset %r for one: its figures do not tell how the "
            "model does on others",
            name,
            len(shared),
            len(files),
            shared[0],
            trained_on[shared[0]],
        )


def _check_metadata(name, needs_keypoints, is_test, num_classes, classes_key, num_keypoints):
    metadata = MetadataCatalog.get(name)
    names = metadata.get("keypoint_names")
    if needs_keypoints and num_keypoints is not None and not names:
        raise ValueError(
            f"dataset {name!r}: a model with keypoints needs keypoint_names and keypoint_flip_map in its metadata. In "
            'COCO\'s format they are "keypoints" of its categories, or of the description in DATASETS.COCO_FORMAT; '
            "of data registered in Python MetadataCatalog.get(NAME).set(keypoint_names=[...], keypoint_flip_map=[...])"
        )
    if num_keypoints is not None and names and len(names) != num_keypoints:
        raise ValueError(
            f"dataset {name!r} has {len(names)} keypoints ({', '.join(names[:3])}, ...), the model {num_keypoints}: "
            "set MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS"
        )
    classes = metadata.get("thing_classes", ())
    if is_test and num_classes is not None and num_classes != len(classes):
        listed = ", ".join([*classes[:5], "..."] if len(classes) > 5 else classes)
        raise ValueError(
            f"dataset {name!r} has {len(classes)} classes ({listed}), the model {num_classes}: set {classes_key}"
        )


def _check_evaluation(name, dicts, needs_masks):
    """What an evaluator would find missing at the end."""
    for record in dicts:
        if "image_id" not in record:
            raise ValueError(
                f"dataset {name!r}: {record['file_name']} has no image_id, which evaluators need"
            )
    objects = [a for record in dicts for a in record.get("annotations", ()) if not a["iscrowd"]]
    if needs_masks and objects and not any("segmentation" in a for a in objects):
        raise ValueError(
            f"dataset {name!r}: none of its {len(objects)} objects has a segmentation, which mask AP needs: add them, "
            "or set MODEL.MASK_ON to False"
        )
