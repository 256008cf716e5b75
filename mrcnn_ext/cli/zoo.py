"""``mrcnn-ext zoo``."""

import click

from ..config_files import list_configs


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def command():
    """List, show and fetch the configs and weights of the model zoo."""


@command.command("list")
@click.argument("words", nargs=-1)
def list_command(words):
    """The configs whose names hold all WORDS.

    \b
    Example:
      mrcnn-ext zoo list keypoint C4
    """
    for name in list_configs():
        if all(word.lower() in name.lower() for word in words):
            click.echo(name)
