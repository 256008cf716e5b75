"""A model that is ready to predict, from a config and weights."""

import hashlib
import logging
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
import yaml
from detectron2.config import CfgNode, instantiate
from detectron2.data import DatasetCatalog, DatasetMapper, Metadata, MetadataCatalog, transforms
from detectron2.data import detection_utils as utils
from detectron2.modeling import build_model
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from ..config_files import get_config_file
from ..engine import Checkpointer, UserError, load_config
from ..engine.description import config_of, data_of, instantiate_described, metadata_of, read_description
from ..engine.errors import did_you_mean
from ..engine.lazy import load_lazy_config, loader_of
from ..engine.settings import building, check_device, check_takes_images, device_here
from ..engine.setup import complete, merge_options, naming_unknown_objects
from ..engine.trainer import Trainer
from ..export import ExportedModel
from ..export.runtime import SUFFIXES

__all__ = ["ExportedDetector", "LoadedModel", "categories", "dataset_metadata", "load_predictor", "resized"]


@dataclass
class LoadedModel:
    """A model and what it needs around it.

    Attributes:
        model: gives ``instances`` for detectron2's inputs.
        mapper: its ``augmentations`` and ``image_format`` make the inputs from images.
        metadata: names of the classes, for the results and the pictures.
        int8: what an accelerated copy is calibrated for int8 with: a file or dataset, as ``MODEL.ACCELERATE_INT8``.
        int8_loader: gives the test loader of such a dataset.
        data: gives, for names of datasets, entries of ``DATASETS.COCO_FORMAT`` of those that the checkpoint knows.
    """

    model: nn.Module
    mapper: DatasetMapper
    metadata: Metadata
    int8: str = ""
    int8_loader: Callable[[str], Iterable] | None = None
    data: Callable[[Iterable[str]], list[list]] = lambda names: []

    def __post_init__(self):
        check_takes_images(self.model)

    def read(self, file: str | os.PathLike) -> Tensor:
        """An image file as the model takes it: (3, H, W) uint8, resized.

        Raises:
            UserError: it cannot be read.
        """
        try:
            image = utils.read_image(os.fspath(file), self.mapper.image_format)
        except Exception as error:  # decoders raise anything for a damaged file
            raise UserError(f"{file}: the image cannot be read: {error}") from error
        return resized(image, self.mapper)


class ExportedDetector(nn.Module):
    """A file of `export_model` in place of the model.

    Args:
        exported: the file, opened.
    """

    def __init__(self, exported: ExportedModel):
        super().__init__()
        self.exported = exported
        self.device = exported.device

    def forward(self, batched_inputs: list[dict]) -> list[dict]:
        """detectron2's interface."""
        return self.exported(batched_inputs)

    @property
    def identity(self) -> dict[str, str]:
        """Differs where the answers may."""
        content = hashlib.sha256()
        with open(self.exported.path, "rb") as file:
            while chunk := file.read(2**20):
                content.update(chunk)
        return {"model": "exported", "weights": content.hexdigest()[:16]}


def resized(image: np.ndarray, mapper: DatasetMapper) -> Tensor:
    """(H, W, C) as it was read -> (C, H', W'), with the mapper's augmentations."""
    augmented = transforms.AugInput(image)
    mapper.augmentations(augmented)
    return torch.as_tensor(np.ascontiguousarray(augmented.image.transpose(2, 0, 1)))


def load_predictor(
    config: str | CfgNode | DictConfig | None = None,
    weights: str = "",
    device: str = "",
    opts: Sequence[str] = (),
    *,
    trust: bool = False,
) -> LoadedModel:
    """
    Args:
        config: a yaml or LazyConfig file, the name of one of ours (``COCO-Keypoints/....yaml``), or its content. None
            for the config that ``weights``, a checkpoint of this package's trainers, holds. A checkpoint, an exported
            file or a name of detectron2's zoo may stand here too, as if it were ``weights``.
        weights: a checkpoint; a file of `export_model`, which needs no config; or, without a config, a name of
            detectron2's model zoo, ``COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x.yaml``, whose weights are
            downloaded. "" for the config's, ``MODEL.WEIGHTS`` or ``train.init_checkpoint``.
        device: "" for the config's, or the CPU where that has none.
        opts: go over the config file: KEY VALUE pairs of yaml, key=value of a LazyConfig.
        trust: run the code that a checkpoint or a yaml config may hold. A LazyConfig is code, and always runs.

    Raises:
        UserError: the config, the weights or the device are wrong, or the weights lack something of the model.
        ValueError: ``opts`` with a config that is read already.
    """
    if not config and not isinstance(config, (CfgNode, DictConfig)):
        return _from_weights(os.fspath(weights), device, opts, trust)
    if isinstance(config, (str, os.PathLike)) and not weights and _is_no_config(os.fspath(config)):
        return _from_weights(os.fspath(config), device, opts, trust)
    if os.path.splitext(weights)[1] in SUFFIXES:
        raise UserError(f"{weights} is an exported model and holds all that it needs: give no config with it")
    if isinstance(config, (str, os.PathLike)):
        config = _read(os.fspath(config), opts, trust)
    elif opts:
        raise ValueError(f"opts go over a config file: merge {' '.join(opts)} into the config before")
    load = _from_yaml if isinstance(config, CfgNode) else _from_lazy
    return load(config, weights, device, trust)


_CONFIGS = (".yaml", ".yml", ".py")


def _is_no_config(name: str) -> bool:
    """Whether a name is a checkpoint's, an exported file's, or one of detectron2's zoo."""
    return not name.endswith(_CONFIGS) or (not os.path.isfile(name) and name in _zoo())


def _zoo() -> dict[str, str]:
    """Names of detectron2's model zoo that have trained weights, with the paths of these."""
    from detectron2.model_zoo.model_zoo import _ModelZooUrls

    return {f"{name}.yaml": name for name in _ModelZooUrls.CONFIG_PATH_TO_URL_SUFFIX}


def _from_zoo(name, device, opts, trust):
    from detectron2 import model_zoo

    cfg = load_config(model_zoo.get_config_file(name), opts, trust)
    url = model_zoo.get_checkpoint_url(name)
    try:
        return _from_yaml(cfg, url, device, trust)
    except OSError as error:
        raise UserError(f"{name}: its weights cannot be downloaded from {url}: {error}") from error


def _from_exported(path, device, opts, trust):
    if opts:
        raise UserError(f"{path} is an exported model, which takes no config options: {' '.join(opts)}")
    try:
        exported = ExportedModel(path, trust=trust)
    except FileNotFoundError:
        raise UserError(f"exported model not found: {path}") from None
    if device and torch.device(device).type != exported.device.type:
        raise UserError(f"{path} was exported for {exported.device}, and cannot run on {device}")
    about = exported.metadata
    size = about.get("test_size")
    if size is None:
        raise UserError(
            f"{path} does not say how large its images should be: export it again with this version, with its config"
        )
    resize = transforms.ResizeShortestEdge(size["min"], size["max"])
    mapper = DatasetMapper(False, augmentations=[resize], image_format=about["input_format"])
    return LoadedModel(ExportedDetector(exported), mapper, exported_metadata(about))


def exported_metadata(about: dict) -> Metadata:
    """Names of the classes and keypoints of an exported model, from what its file says."""
    metadata, classes = Metadata(), about.get("classes") or []
    if classes:
        ids = {kind["id"]: label for label, kind in enumerate(classes)}
        metadata.set(thing_classes=[kind["name"] for kind in classes], thing_dataset_id_to_contiguous_id=ids)
    if about.get("keypoint_names"):
        names = about["keypoint_names"]
        rules = [(names[a], names[b], (255, 255, 255)) for a, b in about.get("skeleton", ())]
        metadata.set(keypoint_names=names, keypoint_connection_rules=rules)
    return metadata


def _read(name, opts, trust):
    if not os.path.isfile(name):
        try:
            name = get_config_file(name)
        except ValueError as error:
            raise UserError(f"config file not found: {name} ({error})") from None
    return load_lazy_config(name, opts) if name.endswith(".py") else load_config(name, opts, trust)


def _from_yaml(cfg, weights, device, trust):
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.DEVICE = _device(device, "MODEL.DEVICE", cfg.MODEL.DEVICE)
    cfg = complete(cfg)
    cfg.defrost()
    with naming_unknown_objects(cfg), building("the model"):
        model = build_model(cfg)
    allow_partial = cfg.MODEL.get("ALLOW_PARTIAL_WEIGHTS", False)
    _load_weights(model, weights or cfg.MODEL.WEIGHTS, "MODEL.WEIGHTS", allow_partial, trust)
    # Without what from_config adds for training, which asks for the training data.
    augmentations = utils.build_augmentation(cfg, is_train=False)
    mapper = DatasetMapper(False, augmentations=augmentations, image_format=cfg.INPUT.FORMAT)
    int8_loader = partial(Trainer.build_test_loader, cfg)
    return LoadedModel(model, mapper, _metadata(cfg.DATASETS.TEST), cfg.MODEL.ACCELERATE_INT8, int8_loader)


def _from_lazy(cfg, weights, device, trust):
    with building("model"):
        model = instantiate(cfg.model)
    model.to(_device(device, "train.device", cfg.train.device))
    allow_partial = cfg.train.get("allow_partial_weights", False)
    _load_weights(model, weights or cfg.train.init_checkpoint, "train.init_checkpoint", allow_partial, trust)
    names = OmegaConf.select(cfg, "dataloader.test.dataset.names", default=())
    names = [names] if isinstance(names, str) else list(names)
    int8, int8_loader = cfg.train.get("accelerate_int8", ""), partial(loader_of, cfg)
    return LoadedModel(model, instantiate(cfg.dataloader.test.mapper), _metadata(names), int8, int8_loader)


def _from_weights(weights, device, opts, trust):
    if not weights:
        raise UserError(
            "no model: give a checkpoint that holds its own config, an exported file or a name of the zoo (--weights), "
            "or a config (--config-file)"
        )
    if os.path.splitext(weights)[1] in SUFFIXES:
        return _from_exported(weights, device, opts, trust)
    if weights.endswith(_CONFIGS) and not os.path.isfile(weights):
        if weights not in _zoo():
            message = "no model zoo has trained weights of this name"
            raise UserError(f"{weights}: {message}{did_you_mean(weights, list(_zoo()))}")
        return _from_zoo(weights, device, opts, trust)
    if weights.endswith(_CONFIGS):
        return load_predictor(weights, "", device, opts, trust=trust)
    about = read_description(weights, trust)
    if about["kind"] == "yaml":
        cfg = config_of(about, weights)
        merge_options(cfg, opts)
        cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = (), ()
        predictor = _from_yaml(cfg, weights, device, trust)
    else:
        if opts:
            raise UserError(f"{weights} holds a LazyConfig, which takes no options: give --config-file")
        parts = yaml.safe_load(about["config"])
        with building("model"):
            model = instantiate_described(parts["model"], weights, trust)
        model.to(_device(device, "train.device", parts["device"]))
        _load_weights(model, weights, "", False, trust)
        predictor = LoadedModel(model, instantiate_described(parts["mapper"], weights, trust), Metadata())
    return replace(predictor, metadata=metadata_of(about), data=partial(data_of, about, weights))


def _device(asked, key, configured):
    if not asked:
        return device_here(key, configured)
    check_device("device", asked)
    if asked.startswith("cuda") and not torch.cuda.is_available():
        raise UserError(f"device {asked!r}: PyTorch finds no GPU here; the other is cpu")
    return asked


def _load_weights(model, weights, key, partial, trust):
    if not weights:
        raise UserError(f"no weights to predict with: give a checkpoint (--weights, or {key} in the config)")
    _TrainedWeights(model, allow_partial=partial, trust=trust).load(weights)


class _TrainedWeights(Checkpointer):
    """Refuses a file without all of the model, such as a backbone to start training from."""

    def _load_model(self, checkpoint):
        incompatible = super()._load_model(checkpoint)
        trained = {name for name, _ in self.model.named_parameters()}
        missing = [name for name in incompatible.missing_keys if name in trained]
        if missing and not self._allow_partial:
            raise UserError(
                f"{self._file} lacks {len(missing)} of the model's {len(trained)} parameters ({missing[0]}, ...): "
                "is it a file to start training from?"
            )
        return incompatible


def _metadata(names) -> Metadata:
    """That of the first dataset, if there is one."""
    name = next(iter(names), "")
    if not name:
        return Metadata()
    if name not in DatasetCatalog.list():
        message = "Categories have the model's own numbers, from 0, and no names: the test dataset %s is not registered"
        logging.getLogger(__name__).warning(message, name)
        return Metadata()
    return dataset_metadata(name)


def dataset_metadata(name: str) -> Metadata:
    """Names and ids of the classes of a registered dataset.

    Raises:
        UserError: there is none of this name.
    """
    if name not in DatasetCatalog.list():
        raise UserError(f"no dataset {name!r} is registered{did_you_mean(name, DatasetCatalog.list())}")
    metadata = MetadataCatalog.get(name)
    if not metadata.get("thing_dataset_id_to_contiguous_id"):
        # A dataset in COCO's format knows its categories once it is read.
        try:
            DatasetCatalog.get(name)
        except FileNotFoundError:
            message = "Categories have the model's own numbers, from 0: dataset %s, which tells theirs, is not on disk"
            logging.getLogger(__name__).warning(message, name)
    return metadata


def categories(metadata: Metadata) -> dict[int, dict]:
    """The model's classes -> COCO categories, ``id`` and ``name``, with the dataset's ids where it has some."""
    names = metadata.get("thing_classes", [])
    ids = metadata.get("thing_dataset_id_to_contiguous_id") or {i: i for i in range(len(names))}
    return {
        label: {"id": id, "name": names[label] if label < len(names) else str(id)}
        for id, label in ids.items()
    }
