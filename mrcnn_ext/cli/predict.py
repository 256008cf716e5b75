"""``mrcnn-ext predict``."""

import os
import re
import warnings
from pathlib import Path

import click

from ..engine.errors import UserError

# A key of detectron2's configs, MODEL.WEIGHTS or SEED, and one of a LazyConfig with its value, model.backbone.x=1
_KEY = re.compile(
    r"(MODEL|INPUT|DATASETS|DATALOADER|SOLVER|TEST|CHECKPOINT|GLOBAL)(\.[A-Z0-9_]+)+"
    r"|(VERSION|SEED|VIS_PERIOD|OUTPUT_DIR|CUDNN_BENCHMARK|FLOAT32_PRECISION)"
)
_ASSIGNMENT = re.compile(r"[A-Za-z_]\w*(\.\w+)*=.*")


@click.command()
@click.argument("arguments", nargs=-1, required=True, metavar="SOURCE... [KEY VALUE]...")
@click.option(
    "--weights",
    "--model",
    default="",
    help="Checkpoint, exported file (.onnx, .ts, .pt2, .xml) or name of detectron2's zoo [default: the config's].",
)
@click.option(
    "--config-file",
    help="yaml or LazyConfig (.py), or the name of one of ours [default: the one in --weights].",
)
@click.option(
    "--output",
    help="Results: .json (COCO), .jsonl, .csv or .parquet [default: named after the first output below].",
)
@click.option("--pictures", help="Folder for a picture of each image with its predictions.")
@click.option("--video", help="Annotated video: .mp4, .avi, .mkv, .webm.")
@click.option("--cutouts", help="Folder for each object without its background, RGBA PNG.")
@click.option("--masks", help="Folder for each object's mask, PNG.")
@click.option("--labelme", help="Folder for LabelMe files, to correct by hand.")
@click.option(
    "--only", multiple=True, help="Classes that are kept, by name or id: person,car. May be repeated."
)
@click.option("--min-score", type=float, default=0.0, help="Predictions below are left out.")
@click.option("--top-k", type=int, default=0, help="Predictions of an image that are kept, the likeliest.")
@click.option(
    "--picture-score",
    type=float,
    default=0.5,
    show_default=True,
    help="Predictions below are not drawn, cut out or tracked.",
)
@click.option(
    "--color-by",
    type=click.Choice(["auto", "class", "instance"]),
    default="auto",
    help="What has a colour of its own [default: the class, in videos the track].",
)
@click.option(
    "--picture-scale",
    type=int,
    default=0,
    help="Enlarge pictures so many times [default: small ones to 480 pixels].",
)
@click.option("--no-boxes", is_flag=True, help="Draw no boxes.")
@click.option("--no-labels", is_flag=True, help="Draw no labels.")
@click.option(
    "--fps", type=float, default=0.0, help="Frames a second of --video [default: the source's, or 10]."
)
@click.option("--track", is_flag=True, help="Write the objects' track_id to the results of a video.")
@click.option(
    "--classes",
    help="Registered dataset whose classes the model predicts [default: the source's, or config's].",
)
@click.option("--batch-size", type=int, default=0, help="[default: 1 on the CPU, 8 on a GPU]")
@click.option("--workers", type=int, default=0, help="Threads that read images.")
@click.option("--limit", type=int, default=0, help="Stop after so many images or frames.")
@click.option("--device", default="", help="cpu, cuda, ... [default: the config's]")
@click.option("--no-accelerate", is_flag=True, help="Run the model as detectron2 does.")
@click.option("--skip-unreadable", is_flag=True, help="Leave out images that cannot be read.")
@click.option(
    "--trust-files",
    is_flag=True,
    help="Run the code that a checkpoint or yaml config may hold, and read damaged archives [default: refuse them].",
)
@click.option("--ray", is_flag=True, help="Predict by actors of Ray, on this machine or a cluster.")
@click.option(
    "--ray-address", default="", help="Of the cluster [default: RAY_ADDRESS, or this machine alone]."
)
@click.option(
    "--actors",
    type=int,
    default=0,
    help="Copies of the model on Ray [default: one a GPU, or for each 4 CPUs without].",
)
@click.option(
    "--gpus-per-actor", type=float, help="May be a fraction [default: 1 where Ray has GPUs, else 0]."
)
@click.option("--cpus-per-actor", type=float, default=0, help="[default: 1 with a GPU, else all, shared out]")
@click.option("--overwrite", is_flag=True, help="Begin anew, whatever --output holds.")
def command(arguments, weights, config_file, output, overwrite, trust_files, **options):
    """Predict for images, videos and datasets; write results, pictures, videos, masks.

    SOURCE is a folder, image, pattern ('photos/**/*.jpg'), list of files (.txt), - (an image or a list on standard
    input), http(s) address, video, webcam:0, registered dataset or data=FILE.yaml (its val); s3://, gs://, abfs:// or
    hdfs:// with images; Parquet with images. Several images, folders, patterns and lists may be
    given. KEY VALUE (LazyConfig: key=value) changes the config.

    The same command continues an interrupted run. A webcam is recorded until Ctrl-C.

    \b
    Examples:
      mrcnn-ext predict photos --weights model_final.pth --output photos.json --pictures drawn
      mrcnn-ext predict street.mp4 --weights model.onnx --video street_drawn.mp4 --only person,car
      mrcnn-ext predict coco_2017_val --weights model_final.pth --output val.json
      mrcnn-ext predict s3://bucket/photos --weights model_final.pth --output photos.parquet --ray --actors 8
      mrcnn-ext predict photos --config-file CONFIG --output photos.json INPUT.MIN_SIZE_TEST 640
    """
    # detectron2's anchors cause it; who predicts can do nothing about it.
    warnings.filterwarnings("ignore", message="torch.meshgrid: in an upcoming release")
    from ..inference import load_predictor, predict
    from ..inference.drawing import Style

    sources, opts = _split(arguments)
    output = output or _default_output(options)
    only = {name: options.pop(name) for name in ("device", "no_accelerate", "classes")}
    style = Style(
        color_by=options.pop("color_by"),
        scale=options.pop("picture_scale"),
        boxes=not options.pop("no_boxes"),
        labels=not options.pop("no_labels"),
    )
    ray = _ray_options(options, only["device"])
    # Only Ray's actors run the model.
    device = "cpu" if ray is not None and only["device"].startswith("cuda") else only["device"]
    predictor = load_predictor(config_file, weights, device, opts, trust=trust_files)
    options.update(style=style, metadata=only["classes"], accelerate=not only["no_accelerate"])
    try:
        source = sources[0] if len(sources) == 1 else sources
        done = predict(predictor, source, output, overwrite=overwrite, ray=ray, **options)
    except KeyboardInterrupt:
        click.echo("the same command goes on with what is missing", err=True)
        raise
    _report(output, done, options)


def _ray_options(options, device: str):
    """Takes Ray's options out of the others; None without --ray."""
    wanted = options.pop("ray")
    own = {name: options.pop(name) for name in ("ray_address", "actors", "gpus_per_actor", "cpus_per_actor")}
    if not wanted:
        if given := [
            f"--{name.replace('_', '-')}" for name, value in own.items() if value not in ("", 0, None)
        ]:
            raise UserError(f"{' and '.join(given)}: only with --ray")
        return None
    from ..inference import RayOptions

    gpus = own["gpus_per_actor"]
    if device and not device.startswith("cuda"):
        if gpus:
            raise UserError(f"--gpus-per-actor {gpus:g}: --device {device} uses none")
        gpus = 0
    return RayOptions(own["actors"], gpus, own["cpus_per_actor"], own["ray_address"])


def _split(arguments: tuple[str, ...]) -> tuple[list[str], list[str]]:
    """Sources, and the config options from the first one on."""
    for place, argument in enumerate(arguments):
        if argument.startswith("data="):
            continue
        is_option = _KEY.fullmatch(argument) or _ASSIGNMENT.fullmatch(argument)
        if is_option and not os.path.exists(argument):
            if place == 0:
                raise UserError(
                    f"no source before {argument}: give a folder, image, video or registered dataset"
                )
            return list(arguments[:place]), list(arguments[place:])
    return list(arguments), []


def _default_output(options) -> str:
    for kind in ("pictures", "video", "cutouts", "masks", "labelme"):
        if options[kind]:
            path = Path(options[kind])
            return str(path.with_suffix(".json") if kind == "video" else path.with_name(f"{path.name}.json"))
    raise UserError("nothing to write: give --output, --pictures, --video, --cutouts, --masks or --labelme")


def _report(output, done, options):
    continued = f", {done['continued']} of them by an earlier run" if done["continued"] else ""
    click.echo(f"{output}: {done['results']} results of {done['images']} images{continued}")
    places = [options[kind] for kind in ("pictures", "video", "cutouts", "masks", "labelme") if options[kind]]
    if places:
        again = f" ({done['drawn']} images from results that were there)" if done["drawn"] else ""
        click.echo(f"drawn: {', '.join(places)}{again}")
    for image in done["skipped"]:
        click.echo(f"skipped, cannot be read: {image['file_name']}: {image['error']}")
