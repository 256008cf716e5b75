"""What detectron2 needs to work with today's packages, and to name our keys.

Three of its classes do not know what keys of ours ask them for, and would be silent or obscure about it:
`DefaultTrainer` and `DefaultPredictor` warn of those that they do not heed, and `ROIPooler` says which ROI heads have
the poolers that it lacks. Otherwise they do what they did.

Every repair belongs to one module and is made while that module is being imported, so that
``import mrcnn_ext`` imports nothing for it and nothing changes for who never imports the module. A repair of what is
missing looks whether it is; any other gives what the module's own function gives wherever that works. Nothing is
edited on disk.
"""

import contextlib
import functools
import importlib
import importlib.machinery
import importlib.util
import json
import os
import sys
import types
import warnings

import numpy as np

__all__ = ["apply"]

_CITYSCAPES_ALIAS = "deeplearning.projects.cityscapesApi.cityscapesscripts"


def apply():
    """Install every repair. Calling it again changes nothing.

    Modules that are already imported are repaired at once, others when they are first imported.
    """
    if any(isinstance(finder, _RepairFinder) for finder in sys.meta_path):
        return
    sys.meta_path.insert(0, _RepairFinder())
    # The alias stands at the front too: once its top package is in sys.modules, the path finder would follow
    # that package's path and load second copies of the modules under their alias names.
    if importlib.util.find_spec(_CITYSCAPES_ALIAS.partition(".")[0]) is None:
        sys.meta_path.insert(0, _CityscapesAliasFinder())
    for name, repair in _REPAIRS.items():
        if name in sys.modules:
            with repair(sys.modules[name]):
                pass


# --- Importing cityscapesscripts under the name detectron2 uses


class _CityscapesAliasFinder:
    """Finds cityscapesscripts under the name that detectron2 imports it by, inside a package of Meta's.

    The alias gives the very module objects of ``cityscapesscripts.*``: ``args`` of its evaluation scripts is
    global state which detectron2 sets through the alias and the scripts read.
    """

    def find_spec(self, name, path=None, target=None):
        if name == _CITYSCAPES_ALIAS or name.startswith(_CITYSCAPES_ALIAS + "."):
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        if _CITYSCAPES_ALIAS.startswith(name + "."):
            return importlib.machinery.ModuleSpec(name, _EmptyPackageLoader(), is_package=True)
        return None

    def create_module(self, spec):
        real_name = "cityscapesscripts" + spec.name[len(_CITYSCAPES_ALIAS) :]
        try:
            module = importlib.import_module(real_name)
        except ModuleNotFoundError as error:
            if error.name != "cityscapesscripts":
                raise
            raise ModuleNotFoundError(
                "Cityscapes needs the package cityscapesscripts: pip install cityscapesscripts",
                name="cityscapesscripts",
            ) from error
        spec.loader_state = module.__spec__
        return module

    def exec_module(self, module):
        # The import system has just put the alias's spec on the real module.
        module.__spec__ = module.__spec__.loader_state


class _EmptyPackageLoader:
    def create_module(self, spec):
        return None

    def exec_module(self, module):
        pass


# --- Repairs of single modules


class _RepairFinder:
    """Wraps the loader of the modules in ``_REPAIRS`` so that each is repaired while it is imported."""

    def find_spec(self, name, path=None, target=None):
        if name not in _REPAIRS:
            return None
        others = (finder for finder in sys.meta_path if finder is not self)
        spec = next(filter(None, (finder.find_spec(name, path, target) for finder in others)), None)
        if spec is not None and spec.loader is not None:
            exec_module = spec.loader.exec_module

            def exec_and_repair(module):
                with _REPAIRS[name](module):
                    exec_module(module)

            # On the instance: the loader keeps its class, which importlib.resources and inspect rely on.
            spec.loader.exec_module = exec_and_repair
        return spec


@contextlib.contextmanager
def _provide_pkg_resources(model_zoo):
    """``detectron2.model_zoo`` imports ``pkg_resources``, gone from setuptools 81, for one function."""
    if importlib.util.find_spec("pkg_resources") is not None:
        yield
        return
    stand_in = types.ModuleType("pkg_resources")
    stand_in.resource_filename = _resource_filename
    # Only while the module is imported: others test for setuptools by importing pkg_resources.
    sys.modules["pkg_resources"] = stand_in
    try:
        yield
    finally:
        del sys.modules["pkg_resources"]


def _resource_filename(package, path):
    return os.path.join(os.path.dirname(importlib.import_module(package).__file__), path)


@contextlib.contextmanager
def _dynamo_when_called(roi_align):
    """``torchvision.ops.roi_align`` imports TorchDynamo, a second's work, for one function that it calls on GPUs in
    deterministic mode: it imports that when it is called."""
    name = "torch._dynamo.utils"
    if name in sys.modules:
        yield
        return
    stand_in = types.ModuleType(name)
    stand_in.is_compile_supported = lambda device: importlib.import_module(name).is_compile_supported(device)
    sys.modules[name] = stand_in
    try:
        yield
    finally:
        del sys.modules[name]


@contextlib.contextmanager
def _disabled_when_called(wrappers):
    """`disable_torch_compiler`, which marks functions on rotated boxes, imports TorchDynamo at once; PyTorch's own
    decorator for itself does so when the function is called."""
    yield
    import torch  # which the module has imported

    wrappers.disable_torch_compiler = getattr(torch, "_disable_dynamo", wrappers.disable_torch_compiler)


@contextlib.contextmanager
def _quiet_scripting(module):
    """These script what they define as they are imported, and PyTorch warns each time that it is deprecated, which
    nobody who imports detectron2 can change."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`torch.jit.script(_method)?` is deprecated")
        yield


@contextlib.contextmanager
def _images_read_whole(detection_utils):
    """``read_image`` asks for EXIF data before it decodes, in which the error of a damaged PNG is lost and half a
    picture is read; it cuts pixels of more than 8 bits off at 255; and its errors do not name the file."""
    yield
    read_image, apply_exif = detection_utils.read_image, detection_utils._apply_exif_orientation

    def decode_and_apply_exif(image):
        image.load()
        return apply_exif(image)

    @functools.wraps(read_image)
    def read_named_image(file_name, format=None):
        try:
            if format is not None:
                _refuse_deep_pixels(file_name, detection_utils)
            return read_image(file_name, format)
        except Exception as error:  # decoders raise anything for a damaged file
            if str(file_name) in str(error):
                raise
            raise OSError(f"{file_name}: {str(error) or type(error).__name__}") from error

    detection_utils._apply_exif_orientation = decode_and_apply_exif
    detection_utils.read_image = read_named_image


def _refuse_deep_pixels(file_name, detection_utils):
    with detection_utils.PathManager.open(file_name, "rb") as file:
        mode = detection_utils.Image.open(file).mode
    if mode.startswith("I") or mode == "F":
        kind = "floating-point pixels" if mode == "F" else "more than 8 bits a pixel"
        raise OSError(f"{file_name} has {kind}, which detectron2 cuts off at 255: convert it to 8 bits")


@contextlib.contextmanager
def _ddp_without_device_ids_on_cpu(defaults):
    """``create_ddp_model`` gives DistributedDataParallel a CUDA device, which it refuses for a CPU model."""
    yield
    create_ddp_model = defaults.create_ddp_model

    @functools.wraps(create_ddp_model)
    def create_cpu_safe_ddp_model(model, *, fp16_compression=False, **kwargs):
        sharded = getattr(sys.modules.get("torch.distributed.fsdp"), "FSDPModule", ())
        if isinstance(model, sharded):  # mrcnn_ext.engine.sharding
            return model
        if all(parameter.device.type == "cpu" for parameter in model.parameters()):
            kwargs["device_ids"] = None
        return create_ddp_model(model, fp16_compression=fp16_compression, **kwargs)

    defaults.create_ddp_model = create_cpu_safe_ddp_model
    # Where it is imported from as a rule, if that was imported before.
    engine = sys.modules.get("detectron2.engine")
    if getattr(engine, "create_ddp_model", None) is create_ddp_model:
        engine.create_ddp_model = create_cpu_safe_ddp_model


@contextlib.contextmanager
def _keypoint_loss_of_any_layout(keypoint_head):
    """``keypoint_rcnn_loss`` views the heatmaps as rows, which channels-last ones are not, and sums their few
    thousand cells in the dtype of autocast. Where several processes share a batch it divides by the visible keypoints
    of each alone; within `layers.loss_normalizers.shared_normalizers` it divides by those of all."""
    yield
    import torch  # which the module has imported

    from .layers.loss_normalizers import are_shared, total_count

    keypoint_rcnn_loss = keypoint_head.keypoint_rcnn_loss

    @functools.wraps(keypoint_rcnn_loss)
    def loss_in_rows(pred_keypoint_logits, instances, normalizer):
        wide = torch.promote_types(pred_keypoint_logits.dtype, torch.float32)
        rows = pred_keypoint_logits.to(wide).contiguous()
        if normalizer is not None or not are_shared():
            return keypoint_rcnn_loss(rows, instances, normalizer)
        side = rows.shape[2]
        visible = rows.new_zeros(())
        for image in instances:
            if len(image) > 0:
                _, valid = image.gt_keypoints.to_heatmap(image.proposal_boxes.tensor, side)
                visible = visible + valid.sum()
        visible = total_count(visible)
        return keypoint_rcnn_loss(rows, instances, 1.0) / torch.where(visible > 0, visible, 1.0)

    keypoint_head.keypoint_rcnn_loss = loss_in_rows


@contextlib.contextmanager
def _mask_loss_of_all_processes(mask_head):
    """``mask_rcnn_loss`` is a mean over the masks of one process; within
    `layers.loss_normalizers.shared_normalizers` it becomes this process's share of the mean over those of all."""
    yield
    from .layers.loss_normalizers import share_of_mean

    mask_rcnn_loss = mask_head.mask_rcnn_loss

    @functools.wraps(mask_rcnn_loss)
    def loss_of_all(pred_mask_logits, instances, vis_period=0):
        share = share_of_mean(len(pred_mask_logits), pred_mask_logits.device)
        return mask_rcnn_loss(pred_mask_logits, instances, vis_period) * share

    mask_head.mask_rcnn_loss = loss_of_all


@contextlib.contextmanager
def _numpy_with_in1d(module):
    """cityscapesscripts calls ``np.in1d``, gone from numpy 2.4: its own ``np`` has it again."""
    yield
    if not hasattr(np, "in1d"):
        module.np = _NumpyWithIn1d("numpy")


class _NumpyWithIn1d(types.ModuleType):
    """numpy's namespace with ``in1d``."""

    @staticmethod
    def in1d(ar1, ar2, assume_unique=False, invert=False):
        return np.isin(np.ravel(ar1), ar2, assume_unique=assume_unique, invert=invert)

    def __getattr__(self, name):
        return getattr(np, name)


class _NumpyForInstances(_NumpyWithIn1d):
    """The same; the precision of no predictions at all, where every one lies on a region that is ignored, is 0: the
    evaluation takes the last of their cumulated sums."""

    @staticmethod
    def cumsum(a, *args, **kwargs):
        return np.cumsum(a, *args, **kwargs) if np.size(a) else np.zeros(1)


@contextlib.contextmanager
def _instance_evaluation(module):
    """The instance evaluation writes every match to ``matches.json`` in the working directory, which nothing
    reads, and fails in it on ``numpy.int64``, which ``numpy.count_nonzero`` returns since numpy 2.3; and it fails where
    every prediction of a class lies on a region that is ignored."""
    yield
    module.np = _NumpyForInstances("numpy")
    write_dict_to_json = module.writeDict2JSON

    def write_dict_to_json_where_asked(dictionary, file_name):
        if file_name != "matches.json":
            # Through JSON once, to turn numpy's numbers into Python's.
            write_dict_to_json(json.loads(json.dumps(dictionary, default=_to_python)), file_name)

    module.writeDict2JSON = write_dict_to_json_where_asked


def _to_python(value):
    return value.item() if isinstance(value, np.generic) else value.__dict__


@contextlib.contextmanager
def _defaults(defaults):
    with _ddp_without_device_ids_on_cpu(defaults), _unheeded_keys_named(defaults):
        yield


@contextlib.contextmanager
def _unheeded_keys_named(defaults):
    """`DefaultTrainer` and `DefaultPredictor` do not heed the keys of ours that are not for components; a config that
    sets some is warned of, once."""
    yield
    _warn_before(defaults.DefaultTrainer, "Trainer", {})
    heeded_by_predictors = ("MODEL.", "DATASETS.COCO_FORMAT", "SOLVER.EMA_DECAY")
    _warn_before(defaults.DefaultPredictor, "Predictor", {"prefixes": heeded_by_predictors})


def _warn_before(stock, ours, options):
    init = stock.__init__
    if hasattr(init, "__wrapped__"):
        return

    @functools.wraps(init)
    def init_with_warning(self, cfg, *args, **kwargs):
        if not getattr(self, "heeds_our_keys", False):
            keys = _unheeded_keys(type(self), stock, cfg, **options)
            if keys:
                warnings.warn(
                    f"detectron2's {stock.__name__} does not heed {', '.join(keys)}: mrcnn_ext.engine.{ours}, which "
                    "takes its place, does",
                    stacklevel=2,
                )
        init(self, cfg, *args, **kwargs)

    stock.__init__ = init_with_warning


# Keys that components read for themselves, or that only leave a check out.
_HEEDED_BY_COMPONENTS = ("MODEL.TIMM.", "MODEL.ROI_", "MODEL.ALLOW_PARTIAL_WEIGHTS", "DATASETS.CHECK")
# key -> the method by which a subclass may heed it.
_BY_METHOD = {
    "SOLVER.OPTIMIZER": "build_optimizer",
    "MODEL.ACCELERATE": "test",
    "MODEL.ACCELERATE_TRAINING": "build_model",
    "MODEL.CHANNELS_LAST": "build_model",
    "TEST.BOUNDARY_AP": "build_evaluator",
    "INPUT.": "build_train_loader",
}


def _unheeded_keys(cls, stock, cfg, prefixes=("",)):
    from detectron2.config import get_cfg

    from .config import add_mrcnn_ext_config

    theirs, defaults = get_cfg(), get_cfg()
    add_mrcnn_ext_config(defaults)
    keys = []
    for key, default in _leaves(defaults):
        value = _leaf(cfg, key)
        if value is None or value == default or _leaf(theirs, key) is not None:
            continue
        if not key.startswith(prefixes) or key.startswith(_HEEDED_BY_COMPONENTS):
            continue
        if key in ("MODEL.ACCELERATE_TRAINING",) and not hasattr(stock, "build_optimizer"):
            continue
        method = next((method for name, method in _BY_METHOD.items() if key.startswith(name)), None)
        if method is not None and getattr(cls, method, None) != getattr(stock, method, None):
            continue
        if key == "DATASETS.COCO_FORMAT" and _are_registered(value):
            continue
        keys.append(key)
    return keys


def _leaves(node, prefix=""):
    for key, value in node.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _leaf(node, key):
    for part in key.split("."):
        node = node.get(part) if isinstance(node, dict) else None
    return node


def _are_registered(datasets):
    from detectron2.data import DatasetCatalog

    return all(dataset[0] in DatasetCatalog.list() for dataset in datasets)


@contextlib.contextmanager
def _poolers_named(poolers):
    """`ROIPooler` refuses the pooler types of our ROI heads, and does not say who has them."""
    yield
    init = poolers.ROIPooler.__init__

    @functools.wraps(init)
    def init_naming_poolers(self, output_size, scales, sampling_ratio, pooler_type, *args, **kwargs):
        try:
            init(self, output_size, scales, sampling_ratio, pooler_type, *args, **kwargs)
        except ValueError as error:
            if pooler_type not in _OUR_POOLERS:
                raise
            raise ValueError(
                f"POOLER_TYPE {pooler_type!r} is for the ROI heads of mrcnn_ext: set MODEL.ROI_HEADS.NAME "
                "FusedROIHeads (or FusedCascadeROIHeads, FusedRes5ROIHeads); in a LazyConfig take FusedROIPooler"
            ) from error

    poolers.ROIPooler.__init__ = init_naming_poolers


_OUR_POOLERS = ("ROIAlignMax", "ROIWarpAvg", "ROIWarpMax", "PrROIPool")

_REPAIRS = {
    "detectron2.model_zoo.model_zoo": _provide_pkg_resources,
    "detectron2.modeling.roi_heads.keypoint_head": _keypoint_loss_of_any_layout,
    "detectron2.modeling.roi_heads.mask_head": _mask_loss_of_all_processes,
    "detectron2.data.detection_utils": _images_read_whole,
    "torchvision.ops.roi_align": _dynamo_when_called,
    "detectron2.layers.wrappers": _disabled_when_called,
    "fvcore.nn.focal_loss": _quiet_scripting,
    "detectron2.modeling.box_regression": _quiet_scripting,
    "detectron2.engine.defaults": _defaults,
    "detectron2.modeling.poolers": _poolers_named,
    "cityscapesscripts.evaluation.evalInstanceLevelSemanticLabeling": _instance_evaluation,
    "cityscapesscripts.evaluation.evalPixelLevelSemanticLabeling": _numpy_with_in1d,
}
