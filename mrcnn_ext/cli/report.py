"""``mrcnn-ext report``."""

import click

from ..reports import report_of_files

_FILE = click.Path(exists=True, dir_okay=False)


@click.command(context_settings={"show_default": True})
@click.argument("annotations", type=_FILE)
@click.argument("results", type=_FILE)
@click.option(
    "--images", type=click.Path(exists=True, file_okay=False), help="Folder of the images, for pictures."
)
@click.option("--metrics", type=_FILE, help="metrics.json of the training, for its curves.")
@click.option("--dataset", default="", help="What --metrics calls the data, where it has several data sets.")
@click.option(
    "--output", type=click.Path(dir_okay=False), default="report.html", help="The HTML file to write."
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

    ANNOTATIONS is a file in COCO's format, RESULTS one of its results format.

    \b
    Example:
      mrcnn-ext report instances_val2017.json coco_instances_results.json --images val2017
    """
    try:
        sigmas = [float(part) for part in sigmas.split(",")] if sigmas else []
    except ValueError as error:
        message = f"must be numbers with commas between them, got {sigmas!r}"
        raise click.BadParameter(message, param_hint="--sigmas") from error
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
