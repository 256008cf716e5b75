"""``mrcnn-ext export``."""

import shutil
import warnings
from pathlib import Path

import click

from ..engine.errors import UserError
from .arguments import WEIGHT_SUFFIXES

RUNTIME = "mrcnn_runtime.py"  # name of the copy


@click.command()
@click.argument("opts", nargs=-1, metavar="[CHECKPOINT] [KEY VALUE]...")
@click.option(
    "--weights",
    default="",
    help="The same as CHECKPOINT: a file, or name of detectron2's zoo [default: the config's].",
)
@click.option(
    "--config-file",
    help="yaml or LazyConfig (.py), or the name of one of ours [default: the one in --weights].",
)
@click.option(
    "--output",
    required=True,
    help="File: .onnx, .xml (OpenVINO), .ts (TorchScript) or .pt2 (torch.export); .safetensors for the weights alone.",
)
@click.option("--image", help="One in which the model finds something, to check the file with.")
@click.option(
    "--precision",
    type=click.Choice(["float32", "bfloat16", "int8"]),
    default="float32",
    show_default=True,
    help="Of an .onnx (float32, int8) or .xml file; int8 needs --calibrate.",
)
@click.option(
    "--calibrate",
    help="Images for int8: a folder, pattern, list or registered dataset, of which 300 are used. Or the .json file of "
    "accelerate's calibration.",
)
@click.option("--with-runtime", is_flag=True, help=f"Put {RUNTIME} beside an .onnx or .xml file.")
@click.option(
    "--write-anyway", is_flag=True, help="Write the file although its answers differ from the model's."
)
@click.option(
    "--trust-files",
    is_flag=True,
    help="Run the code that a checkpoint or yaml config may hold, and read damaged archives [default: refuse them].",
)
@click.option("--device", default="cpu", show_default=True, help="Of .ts and .pt2 files.")
def command(
    opts,
    weights,
    config_file,
    output,
    image,
    precision,
    calibrate,
    with_runtime,
    write_anyway,
    trust_files,
    device,
):
    """Write a model to one file, after checking that it gives the model's answers.

    KEY VALUE (LazyConfig: key=value) changes the config. A .safetensors file holds the weights of a checkpoint, with
    its config and the names of its classes, and stands for it wherever weights are asked for.

    \b
    Examples:
      mrcnn-ext export model_final.pth --output model.onnx --with-runtime
      mrcnn-ext export --weights model_final.pth --output model.ts --image photo.jpg
      mrcnn-ext export --weights model_final.pth --output model.xml --precision int8 --calibrate photos
      mrcnn-ext export --config-file CONFIG --output model.onnx MODEL.ROI_HEADS.SCORE_THRESH_TEST 0.5
      mrcnn-ext export --weights model_final.pth --output model_final.safetensors
    """
    if opts and opts[0].endswith(WEIGHT_SUFFIXES):
        if weights:
            raise UserError(f"{opts[0]} and --weights {weights}: give one checkpoint")
        weights, *opts = opts
    if output.endswith(".safetensors"):
        given = {"KEY VALUE": opts, "--config-file": config_file, "--image": image, "--calibrate": calibrate}
        _export_weights(weights, output, trust_files, [name for name, value in given.items() if value])
        return
    # detectron2's anchors cause it; who exports can do nothing about it.
    warnings.filterwarnings("ignore", message="torch.meshgrid: in an upcoming release")
    from ..export import WrongAnswersError, export_model, standalone
    from ..inference import load_predictor

    if with_runtime and Path(output).suffix not in (".onnx", ".xml"):
        raise UserError(f"--with-runtime: {output} needs PyTorch; it is for .onnx and .xml files")
    predictor = load_predictor(config_file, weights, device, opts, trust=trust_files)
    picture = predictor.read(image) if image else None
    options = {"mapper": predictor.mapper, "metadata": predictor.metadata, "precision": precision}
    if calibrate:
        options["calibration"] = (
            calibrate if calibrate.endswith(".json") else _calibration(predictor, calibrate)
        )
    try:
        exported = export_model(predictor.model, output, picture, write_anyway=write_anyway, **options)
    except (WrongAnswersError, NotImplementedError, ImportError) as error:
        raise click.ClickException(str(error)) from error
    click.echo(f"{output}: gives {', '.join(exported.metadata['outputs'])}, as the model does")
    if with_runtime:
        copy = Path(output).with_name(RUNTIME)
        shutil.copyfile(standalone.__file__, copy)
        needs = "onnxruntime" if output.endswith(".onnx") else "openvino"
        click.echo(f"{copy}: runs it with numpy and {needs} alone")


def _export_weights(weights, output, trust, given):
    from detectron2.utils.file_io import PathManager

    from ..engine.weight_files import export_weights
    from .jobs import weights_of

    if given:
        raise UserError(
            f"{', '.join(given)}: a .safetensors file holds the weights as they are, and the config of the checkpoint"
        )
    if not weights:
        raise UserError(f"{output}: give the checkpoint whose weights it is to hold with --weights")
    count = export_weights(PathManager.get_local_path(weights_of(weights)), output, trust)
    click.echo(f"{output}: the {count} tensors of {weights}")


def _calibration(predictor, source):
    from ..inference import open_source
    from ..inference.models import resized

    readers = open_source(source).readers(predictor.mapper.image_format, set())
    pictures = []
    for (_, _, read), _ in zip(readers, range(300), strict=False):
        pixels = read()
        if pixels is None:
            break
        pictures.append(resized(pixels, predictor.mapper))
    return pictures
