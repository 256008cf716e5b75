"""``mrcnn-ext benchmark formats``."""

import warnings
from pathlib import Path

import click


@click.command("formats")
@click.argument("weights", metavar="CHECKPOINT")
@click.option(
    "--images",
    help="Folder, pattern, list or registered dataset, of which the first are taken [default: those of --data].",
)
@click.option(
    "--data",
    help="For the AP of each form: a data file (.yaml), a registered dataset, coco or cityscapes; its val, all of it.",
)
@click.option("--num-images", type=click.IntRange(1), default=8, show_default=True, help="So many of them.")
@click.option("--config-file", help="For checkpoints that do not hold their config.")
@click.option("--forms", help="With commas between them. Default: all; --help of the command names them.")
@click.option(
    "--runs", type=click.IntRange(1), default=3, show_default=True, help="Timed runs of each image."
)
@click.option(
    "--output", type=click.Path(file_okay=False, path_type=Path), default=Path("output/benchmark_formats"),
    show_default=True, help="Folder of the exported files and formats.csv.",
)  # fmt: skip
@click.option(
    "--trust-files", is_flag=True, help="Run the code that a checkpoint may hold (default: refuse it)."
)
def command(weights, images, data, num_images, config_file, forms, runs, output, trust_files):
    """One checkpoint in every form: as detectron2 runs it, accelerated, and as each exported file.

    Size, time for an image, how many of the model's detections each finds and, with --data, its AP. What is not
    installed is said. --forms: stock, accelerated-float32, accelerated-bfloat16, accelerated-int8, torchscript,
    torch.export, onnx, openvino-float32, openvino-bfloat16, openvino-int8.

    \b
    Examples:
      mrcnn-ext benchmark formats output/skiers/model_final.pth --images photos
      mrcnn-ext benchmark formats output/skiers/model_final.pth --data skiers.yaml
    """
    if not images and not data:
        raise click.UsageError("--images or --data: there are no images to run on")
    warnings.filterwarnings("ignore", message="torch.meshgrid: in an upcoming release")
    from ..benchmark.formats import measure_forms, table
    from ..benchmark.tables import write_csv
    from ..engine.errors import UserError
    from ..inference import load_predictor, open_source

    loaded = load_predictor(config_file, weights, trust=trust_files)
    dataset = _dataset(data, loaded) if data else ""
    source = open_source(images or dataset)
    if not hasattr(source, "record"):
        raise UserError(f"--images {images}: images are wanted, not a video")
    files = [source.record(index)["file_name"] for index in range(min(num_images, len(source)))]
    names = [name.strip() for name in forms.split(",")] if forms else []

    def tell(row):
        click.echo(f"{row['form']}: {row['ms']:.0f} ms" if "ms" in row else f"{row['form']}: {row['note']}")

    rows = measure_forms(loaded, files, output, names, runs, tell, dataset)
    click.echo(f"\n{table(rows)}")
    write_csv(rows, output / "formats.csv")
    click.echo(f"\nwrote {output / 'formats.csv'}")


def _dataset(data, loaded) -> str:
    """The registered dataset that --data means; one that the checkpoint knows, too."""
    from ..engine.setup import register_datasets
    from .arguments import read_data

    register_datasets(loaded.data([data]))
    has_keypoints = getattr(getattr(loaded.model, "roi_heads", None), "keypoint_on", False)
    coco_format, _, names = read_data(data, has_keypoints, evaluate=True)
    register_datasets(coco_format)
    return names[0]
