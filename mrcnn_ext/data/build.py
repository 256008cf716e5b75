"""detectron2's data loaders over datasets as `load_dataset` reads them."""

from collections.abc import Callable, Sequence
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetFromList, build_detection_test_loader, build_detection_train_loader
from detectron2.data import DatasetMapper as _DatasetMapper
from detectron2.data import get_detection_dataset_dicts as _get_detection_dataset_dicts
from detectron2.data.build import (
    filter_images_with_few_keypoints,
    filter_images_with_only_crowd_annotations,
)
from detectron2.utils.registry import _convert_target_to_string
from omegaconf import DictConfig
from torch.utils.data import Sampler

from .clips import build_clip_train_loader
from .copy_paste import CopyPasteMapper
from .loading import get_detection_dataset_dicts, load_dataset
from .mapper import DatasetMapper
from .person_crops import PersonCropMapper, person_crops
from .proposals import add_proposals

__all__ = [
    "build_mapper",
    "build_test_loader",
    "build_train_loader",
    "crops_people",
    "proposal_files",
    "read_lazily",
    "training_dicts",
]


def build_train_loader(cfg: CfgNode, mapper: Callable | None = None, sampler: Sampler | None = None):
    """As ``build_detection_train_loader(cfg)``, with copy-paste augmentation where ``INPUT.COPY_PASTE`` is enabled,
    and batches of clips where ``INPUT.CLIP.NUM_FRAMES`` is above 1.

    Args:
        cfg: DATASETS.TRAIN, DATALOADER, INPUT and SOLVER.IMS_PER_BATCH.
        mapper: default :class:`DatasetMapper`.
        sampler: default that of ``DATALOADER.SAMPLER_TRAIN``.
    """
    if mapper is None:
        mapper = build_mapper(cfg, True)
    if cfg.INPUT.get("CLIP") is not None and cfg.INPUT.CLIP.NUM_FRAMES != 1:
        return _build_clip_loader(cfg, mapper, sampler)
    dataset = training_dicts(cfg, cfg.DATASETS.TRAIN, proposal_files(cfg, "TRAIN"))
    copy_paste = cfg.INPUT.get("COPY_PASTE")
    if copy_paste is not None and copy_paste.ENABLED:
        if crops_people(cfg):
            raise ValueError("INPUT.COPY_PASTE does not work with INPUT.PERSON_CROPS: switch one of them off")
        if cfg.MODEL.LOAD_PROPOSALS:
            raise ValueError(
                "INPUT.COPY_PASTE does not work with MODEL.LOAD_PROPOSALS: switch one of them off"
            )
        dataset = DatasetFromList(dataset, copy=False)
        mapper = CopyPasteMapper(
            mapper, dataset, copy_paste.PROBABILITY, copy_paste.MAX_OBJECTS, keep_masks=cfg.MODEL.MASK_ON
        )
    return build_detection_train_loader(cfg, mapper=mapper, dataset=dataset, sampler=sampler)


def training_dicts(cfg: CfgNode, names: Sequence[str], files: Sequence[str] | None = None) -> list[dict]:
    """The images of datasets that losses are computed on: without those that have nothing to learn, and cut into people
    where ``INPUT.PERSON_CROPS`` is enabled.

    Args:
        cfg: DATALOADER, INPUT.PERSON_CROPS and the keypoint head.
        names: of the datasets.
        files: of precomputed proposals, one for each of them; None for none.

    Raises:
        ValueError: as `get_detection_dataset_dicts` and `person_crops`.
    """
    dicts = get_detection_dataset_dicts(
        list(names),
        filter_empty=cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS,
        min_keypoints=cfg.MODEL.ROI_KEYPOINT_HEAD.MIN_KEYPOINTS_PER_IMAGE if cfg.MODEL.KEYPOINT_ON else 0,
        proposal_files=None if files is None else list(files),
    )
    return person_crops(dicts) if crops_people(cfg) else dicts


def _build_clip_loader(cfg, mapper, sampler):
    copy_paste = cfg.INPUT.get("COPY_PASTE")
    for key, is_on in (
        ("INPUT.COPY_PASTE.ENABLED", copy_paste is not None and copy_paste.ENABLED),
        ("MODEL.LOAD_PROPOSALS", cfg.MODEL.LOAD_PROPOSALS),
        ("INPUT.PERSON_CROPS.ENABLED", crops_people(cfg)),
    ):
        if is_on:
            raise ValueError(
                f"{key} does not work with clips (INPUT.CLIP.NUM_FRAMES): switch one of them off"
            )
    if sampler is None and cfg.DATALOADER.SAMPLER_TRAIN != "TrainingSampler":
        raise ValueError(
            f"DATALOADER.SAMPLER_TRAIN must be TrainingSampler for clips (INPUT.CLIP.NUM_FRAMES), got "
            f"{cfg.DATALOADER.SAMPLER_TRAIN}"
        )
    # Frames without objects are part of a clip; a clip of none but these is what is left out.
    dicts = get_detection_dataset_dicts(cfg.DATASETS.TRAIN, filter_empty=False)
    kept = (
        filter_images_with_only_crowd_annotations(dicts) if cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS else dicts
    )
    min_keypoints = cfg.MODEL.ROI_KEYPOINT_HEAD.MIN_KEYPOINTS_PER_IMAGE
    if cfg.MODEL.KEYPOINT_ON and min_keypoints > 0:
        kept = filter_images_with_few_keypoints(kept, min_keypoints)
    wanted = {id(image) for image in kept}
    return build_clip_train_loader(
        dicts,
        mapper=mapper,
        num_frames=cfg.INPUT.CLIP.NUM_FRAMES,
        stride=cfg.INPUT.CLIP.STRIDE,
        total_batch_size=cfg.SOLVER.IMS_PER_BATCH,
        sampler=sampler,
        seed=None if cfg.SEED < 0 else cfg.SEED,
        wanted=lambda image: id(image) in wanted,
        aspect_ratio_grouping=cfg.DATALOADER.ASPECT_RATIO_GROUPING,
        num_workers=cfg.DATALOADER.NUM_WORKERS,
    )


def build_test_loader(cfg, dataset_name):
    """As ``build_detection_test_loader(cfg, dataset_name)``."""
    dicts = load_dataset(dataset_name)
    files = proposal_files(cfg, "TEST")
    if files is not None:
        file = dict(zip(cfg.DATASETS.TEST, files, strict=False)).get(dataset_name)
        if file is None:
            raise ValueError(
                f"dataset {dataset_name!r} has no file of proposals: DATASETS.PROPOSAL_FILES_TEST needs one for each "
                "of DATASETS.TEST"
            )
        dicts = add_proposals(dicts, file, dataset_name)
    if crops_people(cfg):
        dicts = person_crops(dicts)
    return build_detection_test_loader(
        dicts, mapper=build_mapper(cfg, False), num_workers=cfg.DATALOADER.NUM_WORKERS
    )


def crops_people(cfg: CfgNode) -> bool:
    """Whether the images are people cut out of the datasets' images."""
    crops = cfg.INPUT.get("PERSON_CROPS")
    return crops is not None and crops.ENABLED


def build_mapper(cfg: CfgNode, is_train: bool, **arguments) -> DatasetMapper:
    """The mapper of a config.

    Args:
        cfg: INPUT and what the model learns.
        is_train: whether with augmentation and ground truth.
        arguments: in place of those that the config gives.
    """
    return (PersonCropMapper if crops_people(cfg) else DatasetMapper)(cfg, is_train, **arguments)


def proposal_files(cfg: CfgNode, split: str) -> list[str] | None:
    """Files of precomputed proposals of "TRAIN" or "TEST"; None where the model makes its own."""
    return list(cfg.DATASETS[f"PROPOSAL_FILES_{split}"]) if cfg.MODEL.LOAD_PROPOSALS else None


def read_lazily(cfg: DictConfig):
    """Puts our reading and our mapper into the loaders of a LazyConfig that have detectron2's; others stay.

    Args:
        cfg: with ``dataloader``; it is changed.
    """
    ours = {
        _convert_target_to_string(_get_detection_dataset_dicts): get_detection_dataset_dicts,
        "detectron2.data.get_detection_dataset_dicts": get_detection_dataset_dicts,
        _convert_target_to_string(_DatasetMapper): DatasetMapper,
    }
    for loader in (cfg.dataloader.get("train"), cfg.dataloader.get("test")):
        for part in ("dataset", "mapper"):
            node: Any = loader.get(part) if loader is not None else None
            target = node.get("_target_") if hasattr(node, "get") else None
            name = target if isinstance(target, str) or target is None else _convert_target_to_string(target)
            if name in ours:
                node._target_ = ours[name]
