"""The command ``mrcnn-ext``: its subcommands are named here, and imported when one is called.

It stands beside the package, because importing that takes seconds (PyTorch, detectron2): help and completion of the
command itself come at once.
"""

import importlib
import sys

import click
import click.shell_completion

__all__ = ["COMMANDS", "command", "main"]

# name -> one line for the list; the subcommand is `command` of mrcnn_ext.cli.<name>
COMMANDS = {
    "train": "Train a model.",
    "eval": "Evaluate a checkpoint.",
    "compare": "Lay the APs of several runs side by side, with intervals.",
    "predict": "Predict for images, videos and datasets; write results and pictures.",
    "export": "Write a model to one file: ONNX, TorchScript, torch.export or OpenVINO.",
    "benchmark": "Benchmark models and operators.",
    "report": "Write a page of curves, errors and pictures about predictions.",
    "datasets": "Check, convert and prepare datasets; draw synthetic scenes.",
    "app": "Look at a model's predictions in the browser.",
    "zoo": "List, show and fetch the configs and weights of the model zoo.",
}
INTERRUPTED = 130


class _Commands(click.Group):
    """Imports a subcommand when it is called, not when it is listed."""

    def list_commands(self, ctx):
        return list(COMMANDS)

    def get_command(self, ctx, name):
        if name not in COMMANDS:
            return None
        return importlib.import_module(f"mrcnn_ext.cli.{name}").command

    def shell_complete(self, ctx, incomplete):
        found = [
            click.shell_completion.CompletionItem(name, help=line)
            for name, line in COMMANDS.items()
            if name.startswith(incomplete)
        ]
        return [*found, *click.Command.shell_complete(self, ctx, incomplete)]

    def resolve_command(self, ctx, args):
        name = click.utils.make_str(args[0])
        if name not in COMMANDS and not name.startswith("-"):
            import difflib

            close = difflib.get_close_matches(name, COMMANDS, n=1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            ctx.fail(f"No such command {name!r}.{hint}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx, formatter):
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="mrcnn_ext")
def command():
    """Mask R-CNN for detectron2: train, evaluate, predict, export, and look at the results.

    `mrcnn-ext COMMAND --help` gives the options of a command with examples.
    """


def main(arguments: list[str] | None = None, program: str = "mrcnn-ext") -> None:
    """Runs the command and exits: 0 done, 1 failed, 2 the command line or an input is wrong, 130 interrupted."""
    try:
        command.main(arguments, prog_name=program, standalone_mode=False)
    except click.exceptions.Exit as stop:
        sys.exit(stop.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted", err=True)
        sys.exit(INTERRUPTED)
    except ValueError as error:  # UserError among them: the message says what is wrong and what is right
        click.echo(f"error: {error}", err=True)
        sys.exit(2)
    except (OSError, FloatingPointError) as error:  # full disks; losses or weights that are not finite
        click.echo(f"error: {error}", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
