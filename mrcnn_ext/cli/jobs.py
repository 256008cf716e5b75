"""From the words of a command line to what the programs of `mrcnn_ext.engine` take."""

import os

from detectron2.config import get_cfg

from ..config import add_mrcnn_ext_config
from ..engine import lazy, train_net
from ..engine.checks import names_of
from ..engine.described import described_lazy_config
from ..engine.description import config_of, read_description
from ..engine.errors import UserError
from ..engine.setup import merge_config, merge_options
from ..model_zoo import find_config, trained_weights, zoo_name
from .arguments import WEIGHT_SUFFIXES, read_data, yaml_options

__all__ = ["engine_job", "is_weights_file", "weights_of"]


def is_weights_file(name: str) -> bool:
    """Whether a word means a file of weights, there or not, rather than a model of the zoo."""
    return os.path.isfile(name) or "://" in name or name.endswith(WEIGHT_SUFFIXES)


def weights_of(name: str) -> str:
    """The file or URL that ``weights=`` means: itself, or the trained weights of a model of detectron2's zoo.

    Raises:
        ValueError: there is none of that name.
    """
    if os.path.isfile(name) or "://" in name:
        return name
    if is_weights_file(name):
        raise UserError(f"weights file not found: {name}")
    config = zoo_name(find_config(name))
    if url := trained_weights(config):
        return url
    raise UserError(f"there are no trained weights for {config}: it is a config to train")


def engine_job(
    config: str,
    checkpoint: str = "",
    *,
    data: str = "",
    weights: str = "",
    output: str | None = None,
    words=(),
    evaluate: bool = False,
    trust: bool = False,
):
    """What to run, and the arguments to run it with.

    Args:
        config: path of a yaml or LazyConfig; "" for the config in ``checkpoint``.
        checkpoint: that holds its config.
        data: as of `read_data`; "" for the config's.
        weights: to start from, or to evaluate; "" for the config's.
        output: folder; None for the config's.
        words: keys of the config and their values.
        evaluate: evaluate instead of training.
        trust: as of `engine.weight_files.read_weights`.

    Returns:
        a function for `engine.launch`; attributes of the arguments it takes; the folder of the results.

    Raises:
        UserError: the data, the config or a key are wrong.
    """
    if config.endswith(".py"):
        return _lazy_job(config, data, weights, output, list(words), evaluate)
    cfg = get_cfg()
    add_mrcnn_ext_config(cfg)
    if checkpoint:
        about = read_description(checkpoint, trust)
        if about["kind"] == "lazy" and evaluate:
            return _lazy_job("", data, checkpoint, output, list(words), evaluate, trust)
        cfg = config_of(about, checkpoint)
        options = yaml_options(words)
        merge_options(cfg, options)
    else:
        options = yaml_options(words)
        merge_config(cfg, config, options, trust)
    before = []
    if data:
        of_people = cfg.MODEL.KEYPOINT_ON or _are_people(cfg.DATASETS.TRAIN)
        coco_format, train, test = read_data(data, of_people, evaluate)
        before += ["DATASETS.TRAIN", train, "DATASETS.TEST", test]
        if coco_format:
            before += ["DATASETS.COCO_FORMAT", coco_format]
    if weights:
        before += ["MODEL.WEIGHTS", weights]
    if output:
        before += ["OUTPUT_DIR", output]
        cfg.OUTPUT_DIR = output
    values = {"config_file": config, "described_by": checkpoint, "opts": [*before, *options]}
    values |= {"follow_data": bool(data) and not evaluate, "eval_only": evaluate}
    return train_net.main, values, cfg.OUTPUT_DIR


def _are_people(names) -> bool:
    """Whether a config is for COCO's annotations of persons, as those of the paper's table 5 without keypoints are."""
    return any(name.startswith("keypoints_coco_") for name in names)


def _lazy_job(config, data, weights, output, words, evaluate, trust=False):
    for word in words:
        if "=" not in word:
            raise UserError(f"{word!r}: keys of a LazyConfig are given as key=value")
    if config:
        cfg = lazy.load_lazy_config(config, words)
    else:
        cfg = lazy.override(
            described_lazy_config([f"train.init_checkpoint={weights}"], trust), words, follow=False
        )
    before, coco_format, evaluated = [], [], True
    if data:
        has_keypoints = "keypoint_head" in cfg.model.get("roi_heads", {})
        of_people = has_keypoints or _are_people(names_of(cfg.dataloader.get("train")))
        coco_format, train, test = read_data(data, of_people, evaluate)
        if len(test) > 1:
            raise UserError(
                f"data={data}: a LazyConfig evaluates one dataset, and this has {len(test)} for it"
            )
        evaluated = bool(test)
        if not evaluate:
            before.append(f"dataloader.train.dataset.names=[{','.join(map(repr, train))}]")
        before.append(f"dataloader.test.dataset.names={(test or train)[0]!r}")
        if not test:  # how images are resized is of use without a set to evaluate on
            before.append("+train.val_loss.enabled=false")
    if weights:
        before.append(f"train.init_checkpoint={weights!r}")
    if output:
        before.append(f"train.output_dir={output!r}")
    values = {"config_file": config, "opts": [*before, *words], "coco_format": coco_format}
    values |= {"follow_data": bool(data), "eval_only": evaluate, "without_evaluation": not evaluated}
    return lazy.main, values, output or cfg.train.output_dir
