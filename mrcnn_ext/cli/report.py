"""``mrcnn-ext report``."""

from pathlib import Path

import click

from ..reports import report_of_files
from .run_folders import dataset_of, results_of

_FILE = click.Path(exists=True, dir_okay=False)


@click.command(context_settings={"show_default": True})
@click.argument("annotations", type=click.Path(exists=True), metavar="RUN|ANNOTATIONS")
@click.argument("results", type=_FILE, required=False)
@click.option(
    "--images", type=click.Path(exists=True, file_okay=False), help="Folder of the images, for pictures."
)
@click.option("--metrics", type=_FILE, help="metrics.json of the training, for its curves.")
@click.option("--dataset", default="", help="What --metrics calls the data, where it has several data sets.")
@click.option(
    "--output",
    type=click.Path(dir_okay=False),
    help="The HTML file to write.  [default: report.html, in RUN or here]",
)
@click.option(
    "--score", type=click.FloatRange(0, 1), default=0.5, help="Least score of boxes that count as shown."
)
@click.option(
    "--pictures", type=click.IntRange(min=0), default=12, help="Pictures of each kind of error, at most."
)
@click.option(
    "--sigmas", default="", help="Sigmas of the keypoints with commas, where they are not COCO's 17."
)
@click.option("--title", default="", help="Over the page.")
def command(annotations, results, images, metrics, dataset, output, score, pictures, sigmas, title):
    """Write one HTML file about predictions: AP by class, precision and recall, confusion, calibration, the worst
    misses and false alarms as pictures, the error of each keypoint.

    RUN is the output folder of a training or evaluation, which says what it was evaluated on. Or ANNOTATIONS is a
    file in COCO's format, and RESULTS one of its results format.

    \b
    Examples:
      mrcnn-ext report output/skiers
      mrcnn-ext report instances_val2017.json coco_instances_results.json --images val2017
    """
    try:
        sigmas = [float(part) for part in sigmas.split(",")] if sigmas else []
    except ValueError as error:
        message = f"must be numbers with commas between them, got {sigmas!r}"
        raise click.BadParameter(message, param_hint="--sigmas") from error
    if Path(annotations).is_dir():
        run = Path(annotations)
        annotations, results, found = _of_run(run, results)
        images, metrics = images or found["images"], metrics or found["metrics"]
        dataset, output = dataset or found["dataset"], output or str(run / "report.html")
        sigmas = sigmas or found["sigmas"]
    elif results is None:
        raise click.UsageError("RESULTS, the file of predictions, is missing (or give the folder of a run)")
    output = output or "report.html"
    report_of_files(
        annotations,
        results,
        output,
        image_root=images or "",
        metrics=metrics or "",
        dataset=dataset,
        sigmas=sigmas,
        score_threshold=score,
        num_pictures=pictures,
        title=title,
    )
    click.echo(output)


def _of_run(run: Path, results):
    """Annotations, results, and what else the folder of a run has."""
    from detectron2.data import MetadataCatalog

    name = dataset_of(run, "ANNOTATIONS and RESULTS")
    metadata = MetadataCatalog.get(name)
    if not metadata.get("json_file"):
        raise ValueError(
            f"{run} was evaluated on {name!r}, which is not in COCO's format: give ANNOTATIONS and RESULTS, files"
        )
    metrics = run / "metrics.json"
    return (
        metadata.json_file,
        results or str(results_of(run, name)),
        {
            "images": metadata.get("image_root", ""),
            "metrics": str(metrics) if metrics.is_file() else "",
            "dataset": name,
            "sigmas": list(metadata.get("keypoint_oks_sigmas", ())),
        },
    )
