"""The terminal view on a console in memory."""

import io
import logging
import re
import sys

import pytest

pytest.importorskip("detectron2")

from detectron2.engine import TrainerBase
from detectron2.utils.events import get_event_storage
from rich.console import Console

from mrcnn_ext.engine.events import ProgressPrinter
from mrcnn_ext.engine.terminal import TerminalView, build_terminal_view


class Training(TrainerBase):
    def run_step(self):
        storage = get_event_storage()
        storage.put_scalars(total_loss=4.0 - self.iter, loss_cls=1.5, time=2.0, data_time=0.25, lr=0.02)
        if self.iter == 1:
            storage.put_scalars(smoothing_hint=False, **{"val/loss_cls": 1.75, "scenes/bbox/AP": 12.34})
            logging.getLogger("shown").info("a line of the log")
            logging.getLogger("detectron2.evaluation").info("Inference done 5/8. Inference: 0.1 s / iter")
            ProgressPrinter(3).write()


@pytest.fixture
def terminal(monkeypatch):
    """What stands on a terminal after a training of three iterations, the log's handler, and another's stream."""
    screen, file = io.StringIO(), io.StringIO()
    monkeypatch.setattr(sys, "stdout", screen)
    handlers = [logging.StreamHandler(screen), logging.StreamHandler(file)]
    for name in ("shown", "detectron2.evaluation", ProgressPrinter.LOGGER):
        monkeypatch.setattr(logging.getLogger(name), "handlers", handlers)
        monkeypatch.setattr(logging.getLogger(name), "propagate", False)
        logging.getLogger(name).setLevel(logging.INFO)
    trainer = Training()
    console = Console(file=screen, force_terminal=True, width=110, height=30)
    trainer.register_hooks([TerminalView(console, interval=0)])
    trainer.train(0, 3)
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", screen.getvalue()), handlers, file.getvalue(), screen


def test_losses_bars_and_time_left(terminal):
    shown = terminal[0]
    last = shown[shown.rindex("validation") :]
    assert "3/3" in last and "evaluation" not in last
    assert re.search(r"cls +1.5 +1.75", last) and re.search(r"total +3", last)
    for text in ("2 s (0.25 s for data)", "0.02", "MiB at most", "scenes/bbox", "AP 12.3 at iteration 1"):
        assert text in last
    assert "1/3" in shown and "0:00:04 left" in shown and "0:00:00 left" in last
    assert re.search(r"evaluation +\S+ 5/8", shown)


def test_the_log_stands_above_and_what_the_view_shows_is_left_out_there_alone(terminal):
    shown, _, file, _ = terminal
    assert "a line of the log" in shown and "Inference done" not in shown and "iter 2/3" not in shown
    assert "a line of the log" in file and "Inference done 5/8" in file and "iter 2/3" in file


def test_handlers_are_as_before_afterwards(terminal):
    on_screen, elsewhere = terminal[1][:2]
    assert on_screen.stream is terminal[3] and not on_screen.filters and not elsewhere.filters


def test_a_training_that_fails_gives_the_terminal_back(monkeypatch):
    screen = io.StringIO()
    monkeypatch.setattr(sys, "stdout", screen)
    handler = logging.StreamHandler(screen)
    monkeypatch.setattr(logging.getLogger("shown"), "handlers", [handler])
    trainer = Training()
    monkeypatch.setattr(trainer, "run_step", lambda: 1 / 0)
    trainer.register_hooks([TerminalView(Console(file=screen, force_terminal=True))])
    with pytest.raises(ZeroDivisionError):
        trainer.train(0, 3)
    assert handler.stream is screen is sys.stdout and not handler.filters
    assert screen.getvalue().rstrip().endswith("\x1b[?25h")  # the cursor is back


def test_only_on_a_terminal_and_where_wanted(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    assert build_terminal_view(True) == []  # pytest's output is none
    monkeypatch.setattr(sys, "stdout", Terminal())
    monkeypatch.setenv("TERM", "xterm")
    assert len(build_terminal_view(True)) == 1 and build_terminal_view(False) == []
    monkeypatch.setenv("TERM", "dumb")
    assert build_terminal_view(True) == []
