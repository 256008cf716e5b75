"""Checkpoints that a kill cannot corrupt, that run nothing, and that are checked against the model they go into."""

import os
from collections.abc import Callable, Mapping, Sequence
from urllib.error import URLError

import numpy as np
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.modeling.backbone.resnet import BottleneckBlock
from torch import Tensor

from ..files import DamagedFileError, replacing, verify_archive
from ..integrations.torchvision.parameter_names import (
    is_torchvision_detector,
    is_torchvision_resnet,
    resnet_names,
)
from ..integrations.torchvision.weights import detectron2_weights
from .averaging import WeightAverage
from .class_mapping import ClassMapping
from .errors import NonFiniteError, UserError
from .evaluated_names import check_evaluated_names
from .load_report import load_report
from .sharding import is_sharded, whole
from .weight_files import ABOUT, AVERAGED, read_weights

__all__ = ["Checkpointer", "not_finite"]

_TORCHVISION_INPUT = {"pixel_mean": [123.675, 116.280, 103.530], "pixel_std": [58.395, 57.120, 57.375]}


class Checkpointer(DetectionCheckpointer):
    """detectron2's checkpointer, with atomic saves and a check of what is loaded.

    A checkpoint and the ``last_checkpoint`` file are written beside their place and then moved there: at any
    moment ``last_checkpoint`` names a complete file. Weights that are not finite are not saved. Nothing that a file
    holds is run, archives are verified by their checksums, and weights that are not finite are not loaded.

    Args:
        model, save_dir, checkpointables: as :class:`detectron2.checkpoint.DetectionCheckpointer`.
        allow_partial: load whatever fits. By default a file of another architecture is an error.
        about: returns what checkpoints say of themselves, as plain values, stored under "about".
        averaged: saved beside the weights; such an average in a file is loaded instead of its weights
            wherever training is not resumed.
        trust: run whatever code a file holds.
        classes: maps the class-specific weights of a file with other classes, wherever training is not resumed.
        for_inference: the weights are not trained further: one of another shape, or a head's that is not in the file,
            is an error unless ``allow_partial``.
        evaluated_on: names of datasets, whose classes and keypoints must be those that a file says it has learnt.
    """

    # Tensors of the file that may be without a place in the model: a mask head, predictors of other classes.
    MAX_UNUSED = 0.2
    # Tensors of the backbone that may be missing from a file that has some of them.
    MAX_MISSING_IN_BACKBONE = 0.2

    def __init__(
        self,
        model,
        save_dir="",
        *,
        allow_partial: bool = False,
        about: Callable[[], dict] | None = None,
        averaged: WeightAverage | None = None,
        trust: bool = False,
        classes: ClassMapping | None = None,
        for_inference: bool = False,
        evaluated_on: Sequence[str] = (),
        **kwargs,
    ):
        super().__init__(model, save_dir, **kwargs)
        self._for_inference = for_inference
        self._evaluated_on = evaluated_on
        self._classes = classes
        self.trust = trust
        self.about = about
        self.averaged = averaged
        self._allow_partial = allow_partial
        self._file = None
        self._resuming = False

    def save(self, name: str, *, tag: bool = True, **kwargs):
        """Writes ``<name>.pth`` in the main process. Of a sharded model in all processes at once.

        Args:
            name: without folder and suffix.
            tag: whether training is to be resumed from it.
            **kwargs: more to store.

        Raises:
            NonFiniteError: a weight is not finite; nothing is written.
            mrcnn_ext.files.DiskFullError: there is no room for it; the last checkpoint is as it was.
        """
        sharded = is_sharded(self.model)
        if not self.save_dir or not (self.save_to_disk or sharded):
            return
        path = os.path.join(self.save_dir, f"{name}.pth")
        gather = whole if sharded else lambda state: state
        weights = gather(self.model.state_dict())
        if wrong := not_finite(weights):
            raise NonFiniteError(
                f"{name}.pth was not saved: {len(wrong)} of the model's {len(weights)} tensors are not finite "
                f"({wrong[0]}, ...). The last good checkpoint is {self.get_checkpoint_file() or '(none)'}; a lower "
                "learning rate, a longer warm-up or gradient clipping may keep them finite"
            )
        data = {"model": weights}
        data.update((key, gather(obj.state_dict())) for key, obj in self.checkpointables.items())
        if not self.save_to_disk:
            return  # it has given its parts
        if self.averaged is not None and (averaged := self.averaged.state_dict()) is not None:
            data[AVERAGED] = averaged
        if self.about is not None:
            data[ABOUT] = self.about()
        data.update(kwargs)
        self.logger.info(f"Saving checkpoint to {path}")
        with replacing(path) as file:
            torch.save(data, file)
        if tag:
            self.tag_last_checkpoint(os.path.basename(path))

    def tag_last_checkpoint(self, last_filename_basename):
        with replacing(os.path.join(self.save_dir, "last_checkpoint")) as file:
            file.write(last_filename_basename.encode())

    def resume_or_load(self, path, *, resume=True):
        """As detectron2's.

        Raises:
            UserError: as `load`; of the checkpoint to resume from, the message names an older one that is whole.
        """
        if not (resume and self.has_checkpoint()):
            return super().resume_or_load(path, resume=resume)
        last = self.get_checkpoint_file()
        self._resuming = True
        try:
            return self.load(last)
        except UserError as error:
            raise UserError(f"{error}{self._instead_of(last)}") from error
        finally:
            self._resuming = False

    def require_checkpoint(self):
        """
        Raises:
            UserError: there is none to resume from in ``save_dir``.
        """
        if self.has_checkpoint():
            return
        where = os.path.join(self.save_dir, "last_checkpoint")
        found = self._instead_of("") if os.path.isdir(self.save_dir) else ""
        raise UserError(
            f"--resume: there is no {where}, which names the checkpoint to resume from"
            + (found or "; to begin a training, leave --resume out")
        )

    def _instead_of(self, path):
        """ "; ..." about the newest checkpoint besides ``path`` that is whole, "" if there is none."""
        files = (f for f in self.get_all_checkpoint_files() if os.path.abspath(f) != os.path.abspath(path))
        for file in sorted(files, key=os.path.getmtime, reverse=True):
            try:
                verify_archive(file)
            except DamagedFileError:
                continue
            name = os.path.basename(file)
            return f"; the newest whole checkpoint is {name}: to resume from it, write its name into last_checkpoint"
        return ""

    def load(self, path, *args, **kwargs):
        """As detectron2's.

        Raises:
            UserError: no such file, not a checkpoint, damaged, holding code, with weights that are not finite, one
                of another architecture, or at an address that cannot be fetched.
        """
        if path and "://" not in path and not os.path.isfile(path.partition("?")[0]):
            raise UserError(f"weights file not found: {path}")
        self._file = path
        try:
            return super().load(path, *args, **kwargs)
        except URLError as error:
            raise UserError(
                f"the weights {path} could not be fetched ({error.reason}). Without a network: put the file there by "
                'hand and give its path, or "" to start from random weights (MODEL.WEIGHTS, train.init_checkpoint)'
            ) from error
        finally:
            # detectron2 forgets to, after an error, and then refuses to load anything else.
            self._parsed_url_during_load = None

    def _load_file(self, filename):
        if filename.endswith(".pkl"):
            loaded = _from_pickle(read_weights(filename, self.trust))
        elif filename.endswith(".pyth"):
            # Of pycls, as in detectron2.
            weights = _mapping(read_weights(filename, self.trust), "model_state")
            weights = {k: v for k, v in weights.items() if not k.endswith("num_batches_tracked")}
            loaded = {"model": weights, "__author__": "pycls", "matching_heuristics": True}
        else:
            # detectron2 adds what the query of the URL says.
            loaded = super()._load_file(filename)
        weights = _mapping(loaded, "model")
        if not weights or not all(isinstance(value, (Tensor, np.ndarray)) for value in weights.values()):
            raise UserError(f"{self._file}: not a checkpoint: it holds no tensors by their names")
        if is_torchvision_detector(weights):
            self.logger.info(
                "%s is a detector of torchvision: its weights get detectron2's names", self._file
            )
            self._check_torchvision_settings()
            loaded = {**loaded, "model": detectron2_weights(weights)}
        elif is_torchvision_resnet(weights):
            loaded = {**loaded, "model": self._resnet_weights(weights)}
        return loaded

    def _resnet_weights(self, weights):
        """Of a ResNet for classification, by detectron2's names."""
        own = self.model.state_dict()
        if not {"backbone.bottom_up.stem.conv1.weight", "backbone.stem.conv1.weight"} & own.keys():
            backbone = type(getattr(self.model, "backbone", self.model)).__name__
            raise UserError(
                f"{self._file}: a ResNet of torchvision or timm for classification, and the model's backbone, "
                f"{backbone}, is no ResNet of detectron2. timm's backbones take their weights by MODEL.TIMM.WEIGHTS "
                "(LazyConfig: model.backbone.bottom_up.weights)"
            )
        self.logger.info("%s is a ResNet for classification: its weights get detectron2's names", self._file)
        self._check_torchvision_settings()
        return {new: weights[old] for old, new in resnet_names(weights, own).items()}

    def _check_torchvision_settings(self):
        """torchvision's weights want its images and its ResNet; nothing else would tell."""
        wrong = []
        for key, wanted in _TORCHVISION_INPUT.items():
            value = getattr(self.model, key, None)
            if value is not None and not torch.allclose(
                value.flatten().cpu().float(), torch.tensor(wanted), rtol=0.01
            ):
                wrong.append(f"MODEL.{key.upper()} {wanted}")
        if getattr(self.model, "input_format", None) not in ("RGB", None):
            wrong.append('INPUT.FORMAT "RGB"')
        bottlenecks = (m for m in self.model.modules() if isinstance(m, BottleneckBlock))
        if any(block.conv1.stride not in (1, (1, 1)) for block in bottlenecks):
            wrong.append("MODEL.RESNETS.STRIDE_IN_1X1 False")
        if wrong and not self._allow_partial:
            raise UserError(
                f"{self._file}: weights of torchvision need {', '.join(wrong)} (in a LazyConfig model.pixel_mean, "
                ".pixel_std, .input_format with the mappers' image_format, and stages.stride_in_1x1 of the ResNet); "
                "the whole config is COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_torchvision.yaml (or "
                "COCO-Keypoints/keypoint_..., or .py)"
            )

    def _torch_load(self, f):
        loaded = read_weights(f, self.trust)
        if not isinstance(loaded, Mapping):
            raise UserError(
                f"{self._file}: not a checkpoint: it holds a {type(loaded).__name__}, not tensors by name"
            )
        return dict(loaded)

    def _load_model(self, checkpoint):
        if self._evaluated_on:
            has_keypoints = any(".keypoint_head." in name for name, _ in self.model.named_parameters())
            check_evaluated_names(checkpoint.get(ABOUT), self._file, self._evaluated_on, has_keypoints)
        averaged = checkpoint.pop(AVERAGED, None)
        if averaged is not None and self._resuming and self.averaged is not None:
            self.averaged.load_state_dict(averaged)
        elif averaged is not None and not self._resuming:
            self.logger.info("Loading the moving average of the weights")
            checkpoint["model"] = averaged
        if wrong := not_finite(checkpoint["model"]):
            raise UserError(
                f"{self._file}: {len(wrong)} of its {len(checkpoint['model'])} tensors are not finite ({wrong[0]}, "
                "...): it was saved by a training that had diverged. Take an older checkpoint"
            )
        if self._classes is not None and not self._resuming:
            checkpoint["model"], report = self._classes.apply(checkpoint, self.model.state_dict(), self._file)
            self.logger.info(report)
        if not (self._resuming or checkpoint.get("matching_heuristics")):
            _drop_counters(checkpoint["model"], self.model.state_dict())
        incompatible = super()._load_model(checkpoint)
        if not self._resuming:
            misshapen = {name for name, _, _ in incompatible.incorrect_shapes}
            self.logger.info(
                load_report(
                    os.path.basename(self._file or ""),
                    self.model.state_dict(),
                    misshapen | set(incompatible.missing_keys),
                    [*incompatible.unexpected_keys, *misshapen],
                )
            )
        if not self._allow_partial:
            self._check(incompatible)
            if self._resuming:
                self._check_same(incompatible)
        return incompatible

    def _check_same(self, incompatible):
        """A training goes on with its own model: new parts would begin at random in the midst of its schedule."""
        wrong = [
            f"{key} is {tuple(theirs)} in the file, {tuple(ours)} in the model"
            for key, theirs, ours in incompatible.incorrect_shapes
        ]
        misshapen = {key for key, _, _ in incompatible.incorrect_shapes}
        wrong += [f"{key} is not in the model" for key in incompatible.unexpected_keys]
        wrong += [f"{key} is not in the file" for key in incompatible.missing_keys if key not in misshapen]
        if wrong:
            raise UserError(
                f"--resume: {self._file} is of another model, {len(wrong)} tensors differ ({'; '.join(wrong[:3])}): "
                "give the config it was trained with; or begin a new training from it with weights= (MODEL.WEIGHTS)"
            )

    def _check(self, incompatible):
        unused = [key for key in incompatible.unexpected_keys if not key.endswith("num_batches_tracked")]
        misshapen = [key for key, _, _ in incompatible.incorrect_shapes]
        absent = {*incompatible.missing_keys, *misshapen}
        wanted = [key for key in self.model.state_dict() if not key.endswith("num_batches_tracked")]
        loaded = [key for key in wanted if key not in absent]

        reasons = []
        num_unused = len(unused) + len(misshapen)
        if num_unused > self.MAX_UNUSED * (num_unused + len(loaded)):
            total = num_unused + len(loaded)
            reasons.append(f"{num_unused} of its {total} tensors have no place in the model")
        backbone = [key for key in wanted if key.startswith("backbone.bottom_up.")]
        backbone = backbone or [key for key in wanted if key.startswith("backbone.")]
        num_missing = sum(key in absent for key in backbone)
        if self.MAX_MISSING_IN_BACKBONE * len(backbone) < num_missing < len(backbone):
            reasons.append(f"it lacks {num_missing} of the {len(backbone)} tensors of the model's backbone")
        if not reasons:
            if self._for_inference:
                self._check_heads(incompatible)
            return

        examples = [
            f"{key} is {tuple(theirs)} in the file, {tuple(ours)} in the model"
            for key, theirs, ours in incompatible.incorrect_shapes[:3]
        ]
        examples += [f"{key} is not in the model" for key in unused[:3]]
        examples += [f"{key} is not in the file" for key in incompatible.missing_keys[:3]]
        raise UserError(
            f"{self._file} is a checkpoint of another architecture: {' and '.join(reasons)} "
            f"({'; '.join(examples[:4])}). To load what fits, set MODEL.ALLOW_PARTIAL_WEIGHTS True "
            "(LazyConfig: train.allow_partial_weights=True)"
        )

    def _check_heads(self, incompatible):
        """What few weights of another shape are to a training, random predictions are without one."""
        wrong = [
            f"{key} is {tuple(theirs)} in the file, {tuple(ours)} in the model"
            for key, theirs, ours in incompatible.incorrect_shapes
        ]
        trained = {name for name, _ in self.model.named_parameters() if name.startswith("roi_heads.")}
        trained -= {key for key, _, _ in incompatible.incorrect_shapes}  # which are missing keys too
        wrong += [f"{key} is not in the file" for key in incompatible.missing_keys if key in trained]
        if wrong:
            raise UserError(
                f"{self._file} does not fit the model, which would predict with {len(wrong)} random tensors "
                f"({'; '.join(wrong[:3])}): give the config that it was trained with, its numbers of classes and "
                "keypoints too. To use what fits, set MODEL.ALLOW_PARTIAL_WEIGHTS True (LazyConfig: "
                "train.allow_partial_weights=True)"
            )


def not_finite(weights: Mapping[str, Tensor | np.ndarray]) -> list[str]:
    """Names of those tensors of a state dict that hold something infinite or NaN."""
    wrong = []
    for name, value in weights.items():
        value = torch.as_tensor(value)
        if (value.is_floating_point() or value.is_complex()) and not bool(value.isfinite().all()):
            wrong.append(name)
    return wrong


def _drop_counters(weights, own):
    """Batch norms count their batches, frozen ones do not, and nothing depends on it: no news, 50 times."""
    for name in [name for name in weights if name.endswith("num_batches_tracked") and name not in own]:
        del weights[name]


def _mapping(data, key):
    """``data[key]`` where both are mappings; else an empty one."""
    value = data.get(key) if isinstance(data, Mapping) else None
    return value if isinstance(value, Mapping) else {}


def _from_pickle(data):
    """detectron2's reading of the pickles of its own and of Detectron's model zoo."""
    if not isinstance(data, Mapping):
        return {}
    if "model" in data and "__author__" in data:
        return dict(data)
    blobs = data["blobs"] if isinstance(data.get("blobs"), Mapping) else data
    blobs = {name: value for name, value in blobs.items() if not str(name).endswith("_momentum")}
    return {"model": blobs, "__author__": "Caffe2", "matching_heuristics": True}
