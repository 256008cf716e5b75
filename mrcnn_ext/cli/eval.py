"""``mrcnn-ext eval``."""

import click

from ..model_zoo import find_config, zoo_name
from .arguments import CONTEXT, launch_options, namespace, split_words, words_argument
from .jobs import engine_job, is_weights_file, weights_of


@click.command(context_settings=CONTEXT)
@click.argument("weights", metavar="CHECKPOINT")
@words_argument
@click.option(
    "--config-file", metavar="FILE", help="A yaml or LazyConfig, for checkpoints that do not hold theirs."
)
@click.option("--output", metavar="DIR", help="Folder of the results. Default: the config's.")
@launch_options
@click.pass_context
def command(ctx, weights, words, config_file, output, **_):
    """Evaluate a checkpoint: AP of boxes, masks and keypoints.

    \b
    CHECKPOINT is a file; checkpoints of mrcnn-ext train hold their config. Or the name
    of a model of detectron2's zoo with trained weights.
    WORDS are, in any order:
      data=FILE       data to evaluate on: the val, or test, of a data file; or a registered
                      dataset; coco; cityscapes. Default: what the checkpoint was evaluated on
                      in its training, or the config names
      model=NAME      a config of the zoo, for checkpoints that do not hold theirs
      KEY VALUE ...   keys of a yaml config; key=value those of a LazyConfig

    \b
    Examples:
      mrcnn-ext eval output/skiers/model_final.pth
      mrcnn-ext eval output/skiers/model_final.pth data=others.yaml MODEL.ACCELERATE True
      mrcnn-ext eval mask_rcnn_R_50_FPN_3x data=coco --num-gpus 1
      mrcnn-ext eval model_final.pkl model=mask_rcnn_R_50_FPN data=coco_2017_val_100
    """
    from ..engine.launch import run

    own, others = split_words(ctx, words, ("data", "model", "output"))
    if output and "output" in own:
        raise click.UsageError("output=DIR or --output DIR: give one of them", ctx)
    output = output or own.get("output")
    if config_file and "model" in own:
        raise click.UsageError("model=NAME or --config-file FILE: give one of them", ctx)
    config = config_file or own.get("model", "")
    if not config and not is_weights_file(weights):
        config = weights
    config = find_config(config) if config else ""
    weights = weights_of(weights)
    main, values, folder = engine_job(
        config,
        "" if config else weights,
        data=own.get("data", ""),
        weights=weights,
        output=output,
        words=others,
        evaluate=True,
        trust=ctx.params["trust_files"],
    )
    click.echo(f"model: {zoo_name(config) if config else weights}; results: {folder}")
    run(main, namespace(ctx, brief=True, **values))
