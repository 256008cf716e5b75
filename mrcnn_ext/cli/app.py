"""``mrcnn-ext app``."""

from importlib.util import find_spec
from pathlib import Path

import click

QUICKSTART = Path("output/quickstart/model_final.pth")


@click.command()
@click.argument("checkpoint", required=False)
@click.option("--compare", metavar="CHECKPOINT", help="A second checkpoint, shown beside the first.")
@click.option(
    "--config-file", default="", metavar="CONFIG", help="Config of checkpoints that do not hold theirs."
)
@click.option(
    "--port", type=click.IntRange(0, 65535), default=0, help="Default: the first free one from 8501 on."
)
@click.option(
    "--host", default="localhost", show_default=True, help="Address to listen at: 0.0.0.0 for a network."
)
@click.option("--device", default="", metavar="DEVICE", help="cpu or cuda; default: the checkpoint's.")
def command(checkpoint, compare, config_file, port, host, device):
    """Look at a model's predictions, heads and RoI layers in the browser.

    Checkpoints of this package's trainings hold their config; others need --config-file. Without a CHECKPOINT the
    quickstart's is taken, output/quickstart/model_final.pth.

    \b
    Examples:
      mrcnn-ext app
      mrcnn-ext app output/skiers/model_final.pth --compare output/quickstart/model_final.pth
    """
    from ..engine.errors import UserError

    for package, how in (
        ("streamlit", "pip install 'mrcnn_ext[app]' (Streamlit is for Python 3.11 and later)"),
        ("detectron2", "see the README's Installation"),
    ):
        if find_spec(package) is None:
            raise UserError(f"the app needs {package}, which is not installed: {how}")
    if checkpoint is None:
        checkpoint = _quickstart(UserError)

    from ..app.inputs import sample_scene
    from ..app.models import ShownModel, holds_config
    from ..app.serve import free_port, serve

    port = free_port(host, port)  # before the models, which take seconds
    models = []
    for path in (checkpoint, compare):
        if path is not None:
            click.echo(f"loading {path} ...")
            models.append(ShownModel(path, device, "" if holds_config(path) else config_file))
            models[-1].predict(sample_scene(0))  # the first takes longer, and what fails does so here
    serve(models, host, port)


def _quickstart(error) -> str:
    if QUICKSTART.is_file():
        return str(QUICKSTART)
    raise error(
        f"no CHECKPOINT is given and {QUICKSTART} is not there: give a checkpoint of yours (model_final.pth of a "
        "training), or make that one with `make quickstart`, which takes some minutes"
    )
