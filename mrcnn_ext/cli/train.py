"""``mrcnn-ext train``."""

import os

import click

from ..engine.errors import UserError
from ..model_zoo import find_config, zoo_name
from .arguments import (
    CONTEXT,
    WEIGHT_SUFFIXES,
    launch_options,
    namespace,
    split_words,
    words_argument,
)
from .jobs import engine_job, weights_of
from .run_folders import new_folder
from .slurm import submit, words_of


@click.command(context_settings=CONTEXT)
@words_argument
@click.option("--config-file", metavar="FILE", help="A yaml or LazyConfig (.py) instead of model=.")
@click.option(
    "--output",
    metavar="DIR",
    help="Folder of the results. Default: output/NAME, after the data or the model; output/NAME-2 and so on where "
    "there are trainings already.",
)
@click.option(
    "--recipe",
    type=click.Choice(["auto"]),
    help="auto: schedule, learning rate, image sizes and anchors by the training data, where you do not set them; "
    "they are told with reasons, and written to the output folder.",
)
@click.option(
    "--overwrite",
    is_flag=True,
    help="Replace a finished training in the output folder; without --output in output/NAME.",
)
@click.option(
    "--resume",
    is_flag=True,
    help="Go on with the training in the output folder; without --output with the last output/NAME.",
)
@click.option(
    "--view/--no-view",
    default=None,
    help="Bars on a terminal, or plain lines. Default: what TERMINAL_VIEW of the config says, bars as a rule.",
)
@click.option(
    "--slurm",
    metavar="KEY=VALUE,...",
    help="Submit a SLURM job that trains: nodes, gpus (of each node), cpus (of each process), memory (GB), minutes, "
    "partition, account, qos, constraint, name.",
)
@launch_options
@click.pass_context
def command(ctx, words, config_file, output, recipe, overwrite, resume, view, slurm, **_):
    """Train a model.

    \b
    WORDS are, in any order:
      data=FILE         yaml file that names annotations and images (see datasets/README.md);
                        or a registered dataset without its _train and _val; coco; cityscapes.
                        Default: what the config names
      model=NAME        a config of the zoo (mrcnn-ext zoo list), a config file, or a
                        checkpoint to go on from
      weights=FILE      weights to start from, or the name of a model of detectron2's zoo
      epochs=N          passes over the training images, instead of SOLVER.MAX_ITER; the
                        schedule keeps its shape
      output=DIR        as --output DIR
      KEY VALUE ...     keys of a yaml config; KEY=VALUE is the same
      key=value ...     keys of a LazyConfig

    \b
    Examples:
      mrcnn-ext train data=skiers.yaml model=mask_rcnn_R_50_FPN --recipe auto
      mrcnn-ext train data=skiers.yaml model=mask_rcnn_R_50_FPN epochs=30
      mrcnn-ext train data=skiers.yaml model=mask_rcnn_R_50_FPN SOLVER.MAX_ITER 5000 --num-gpus 4
      mrcnn-ext train data=skiers.yaml model=keypoint_rcnn_R_50_FPN weights=keypoint_rcnn_R_50_FPN_3x
      mrcnn-ext train model=quickstart.py train.max_iter=500
      mrcnn-ext train data=skiers.yaml model=mask_rcnn_R_50_FPN --output output/skiers --resume
      torchrun --standalone --nproc-per-node 8 --max-restarts 3 -m mrcnn_ext train model=NAME data=coco
      mrcnn-ext train model=NAME data=coco --slurm nodes=2,gpus=8,minutes=1440,partition=gpu
    """
    from ..engine.elastic import is_restart
    from ..engine.epochs import checked_epochs
    from ..engine.launch import run

    own, others = split_words(ctx, words, ("data", "model", "weights", "epochs", "output"))
    if output and "output" in own:
        raise click.UsageError("output=DIR or --output DIR: give one of them", ctx)
    epochs = checked_epochs(own["epochs"]) if "epochs" in own else None
    if resume and overwrite:
        raise click.UsageError(
            "--resume goes on with a training, --overwrite replaces it: give one of them", ctx
        )
    if bool(config_file) == ("model" in own):
        message = "give one of them" if config_file else "there is no model"
        raise click.UsageError(
            f"model=NAME or --config-file FILE: {message}. `mrcnn-ext zoo list` has the names", ctx
        )
    model = config_file or own["model"]
    checkpoint = model if model.endswith(WEIGHT_SUFFIXES) else ""  # a config is a file too
    config = "" if checkpoint else find_config(model)
    weights = weights_of(own["weights"]) if "weights" in own else checkpoint
    main, values, folder = engine_job(  # with --slurm, too: what is wrong is told now
        config,
        checkpoint,
        data=own.get("data", ""),
        weights=weights,
        output=output
        or own.get("output")
        or _own_folder(ctx, own.get("data", ""), config, checkpoint, others),
        words=[*_view(view, config), *others],
        trust=ctx.params["trust_files"],
    )
    if not resume and not is_restart():
        _check_not_overwritten(folder, weights, overwrite)
    if slurm:
        again = words_of(ctx, without="slurm")
        if not (output or own.get("output")):  # its processes are to take the folder that is told here
            again[1:1] = ["--output", folder]
        job = submit(again, slurm)
        return click.echo(f"job {job.job_id}; results: {folder}; log: {job.paths.stdout}")
    is_main = os.environ.get("RANK", "0") == "0"  # torchrun runs the command in each process
    if is_main:
        click.echo(f"model: {zoo_name(config) if config else checkpoint}; results: {folder}")
    run(main, namespace(ctx, resume=resume, recipe=recipe, epochs=epochs, brief=True, **values))
    if is_main:
        click.echo(f"trained: {folder}/model_final.pth")


def _own_folder(ctx, data, config, checkpoint, words) -> str | None:
    """Of a training for which the command line names no folder; None where it or the user's own config does."""
    from ..data.data_file import default_name
    from ..engine.recipe_config import is_shipped

    if any(word.partition("=")[0] in ("OUTPUT_DIR", "train.output_dir") for word in words):
        return None
    if config and not is_shipped(config):
        _, _, folder = engine_job(config, trust=ctx.params["trust_files"])
        if os.path.normpath(folder) != "output":  # detectron2's default
            return None
    is_file = data.endswith((".yaml", ".yml"))
    name = (
        default_name(data) if is_file else data or os.path.splitext(os.path.basename(config or checkpoint))[0]
    )
    # Processes that are started apart would disagree about a number.
    is_alone = ctx.params["num_machines"] == 1 and "RANK" not in os.environ
    return new_folder(name, ctx.params["resume"], numbered=is_alone and not ctx.params["overwrite"])


def _check_not_overwritten(folder, weights, overwrite):
    if weights and os.path.realpath(os.path.dirname(weights)) == os.path.realpath(folder):
        raise UserError(
            f"{weights}: the training would replace the weights that it starts from: give another folder with --output"
        )
    if not overwrite and os.path.isfile(os.path.join(folder, "model_final.pth")):
        raise UserError(
            f"{folder} holds a finished training: give another folder with --output, --resume to go on with it (with "
            "more iterations), or --overwrite to replace it"
        )


def _view(view, config):
    if view is None:
        return []
    return (
        [f"+train.terminal_view={view}".lower()] if config.endswith(".py") else ["TERMINAL_VIEW", str(view)]
    )
