"""``mrcnn-ext zoo``."""

import os
import re

import click

from ..config_files import list_configs
from .zoo_cost import cost_command


@click.group()
def command():
    """List, show and fetch the configs and weights of the model zoo.

    The configs of this package have no trained weights yet; those of detectron2 have, and they load into ours.
    """


command.add_command(cost_command)


@command.command("list")
@click.argument("words", nargs=-1)
@click.option(
    "--detectron2", "theirs", is_flag=True, help="The models of detectron2's zoo with trained weights."
)
def list_command(words, theirs):
    """The configs whose names hold all WORDS.

    \b
    Examples:
      mrcnn-ext zoo list keypoint
      mrcnn-ext zoo list --detectron2 mask R_50
    """
    names = list_configs()
    if theirs:
        from ..model_zoo import list_detectron2_configs

        names = list_detectron2_configs()
    found = [name for name in names if all(word.lower() in name.lower() for word in words)]
    if not found:
        raise ValueError(f"no name holds {' and '.join(words)}; without words all are listed")
    click.echo("\n".join(found))


@command.command()
@click.argument("name")
@click.option("--all", "everything", is_flag=True, help="Every key, with its default.")
def show(name, everything):
    """Describe the config NAME and print what it changes of the defaults.

    \b
    Example:
      mrcnn-ext zoo show mask_rcnn_R_50_FPN
    """
    from ..model_zoo import find_config, trained_weights, zoo_name

    file = find_config(name)
    read = _read_lazily if file.endswith(".py") else _read_yaml
    about, content = read(file, everything)
    about = {"file": file, **about, "trained weights": trained_weights(zoo_name(file)) or "none"}
    for key, value in about.items():
        click.echo(f"# {key}: {value}")
    click.echo(content)


@command.command()
@click.argument("name")
@click.option("--output", metavar="FILE", help="Default: the name of the config, in the working directory.")
def fetch(name, output):
    """Download the trained weights of the model NAME of detectron2's zoo.

    For a config without trained weights, the ImageNet weights that its training starts from.

    \b
    Examples:
      mrcnn-ext zoo fetch mask_rcnn_R_50_FPN_3x
      mrcnn-ext train data=skiers.yaml model=mask_rcnn_R_50_FPN weights=mask_rcnn_R_50_FPN_3x.pkl
    """
    from ..model_zoo import fetch_weights, find_config, get_config, trained_weights, zoo_name

    config = zoo_name(find_config(name))
    url, kind = trained_weights(config), "trained weights"
    if not url:
        kind = "ImageNet weights to start from, as there are no trained ones"
        cfg = get_config(config)
        url = cfg.train.init_checkpoint if config.endswith(".py") else cfg.MODEL.WEIGHTS
        if not url:
            raise ValueError(f"{config} has neither trained weights nor a file that it starts from")
    output = output or re.sub(r"\.(yaml|py)$", "", os.path.basename(config)) + (
        os.path.splitext(url)[1] or ".pkl"
    )
    fetch_weights(url, output)
    click.echo(f"{output}: {kind} of {config}, from {url}")


def _read_yaml(file, everything):
    from ..engine.setup import load_config

    cfg = load_config(file)
    model, solver = cfg.MODEL, cfg.SOLVER
    backbone = model.BACKBONE.NAME + (f" ({model.TIMM.NAME})" if "timm" in model.BACKBONE.NAME else "")
    heads = [model.ROI_HEADS.NAME]
    heads += [model.ROI_MASK_HEAD.NAME] if model.MASK_ON else []
    heads += [model.ROI_KEYPOINT_HEAD.NAME] if model.KEYPOINT_ON else []
    about = {
        "model": model.META_ARCHITECTURE,
        "backbone": backbone,
        "heads": ", ".join(heads),
        "data": f"{', '.join(cfg.DATASETS.TRAIN)} -> {', '.join(cfg.DATASETS.TEST)}",
        "training": f"{solver.MAX_ITER} iterations of {solver.IMS_PER_BATCH} images, {solver.OPTIMIZER}, "
        f"learning rate {solver.BASE_LR:g}",
        "starts from": model.WEIGHTS or ("timm's weights" if model.TIMM.PRETRAINED else "random weights"),
    }
    return about, (cfg if everything else _changes(cfg)).dump()


def _changes(cfg):
    from detectron2.config import CfgNode, get_cfg

    from ..config import add_mrcnn_ext_config

    defaults = get_cfg()
    add_mrcnn_ext_config(defaults)

    def differences(node, default):
        result = CfgNode()
        for key, value in node.items():
            if isinstance(value, CfgNode):
                value = differences(value, default.get(key, CfgNode()))
                if value:
                    result[key] = value
            elif key not in default or value != default[key]:
                result[key] = value
        return result

    return differences(cfg, defaults)


def _read_lazily(file, everything):
    from detectron2.config import LazyConfig
    from omegaconf import OmegaConf

    from ..engine.lazy import load_lazy_config

    cfg = load_lazy_config(file)
    train = cfg.train
    about = {
        "data": f"{cfg.dataloader.train.dataset.get('names')} -> {cfg.dataloader.test.dataset.get('names')}",
        "training": f"{train.max_iter} iterations of {cfg.dataloader.train.total_batch_size} images",
        "starts from": train.init_checkpoint or "random weights, or the backbone's",
    }
    if not everything:
        cfg = OmegaConf.create({"model": cfg.model}, flags={"allow_objects": True})
    return about, LazyConfig.to_py(cfg)
