"""``mrcnn-ext app`` refuses in one line what it cannot show."""

import socket

import pytest
import torch

pytest.importorskip("detectron2")
pytest.importorskip("streamlit")

from click.testing import CliRunner

from mrcnn_ext.app.serve import free_port
from mrcnn_ext.cli import app
from mrcnn_ext.engine.errors import UserError

pytestmark = pytest.mark.detectron2


def refused(*arguments):
    result = CliRunner().invoke(app.command, arguments)
    assert isinstance(result.exception, UserError), result.output
    return str(result.exception)


def test_without_a_quickstart_it_says_how_to_make_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    message = refused()
    assert "model_final.pth is not there" in message and "make quickstart" in message


def test_a_missing_checkpoint_is_named():
    assert "no_such.pth" in refused("no_such.pth")


def test_without_streamlit_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(app, "find_spec", lambda name: None if name == "streamlit" else object())
    assert "pip install 'mrcnn_ext[app]'" in refused("model.pth")


def test_the_quickstarts_model_is_the_default(tmp_path, monkeypatch, checkpoints):
    monkeypatch.chdir(tmp_path)
    (tmp_path / app.QUICKSTART).parent.mkdir(parents=True)
    (tmp_path / app.QUICKSTART).write_bytes(checkpoints[0].read_bytes())
    served = []
    monkeypatch.setattr("mrcnn_ext.app.serve.serve", lambda models, host, port: served.append((models, host)))
    result = CliRunner().invoke(app.command, ["--compare", str(checkpoints[1])])
    assert result.exit_code == 0, result.exception
    [(models, host)] = served
    assert [model.path for model in models] == [str(app.QUICKSTART), str(checkpoints[1])]
    assert host == "localhost"


def test_a_checkpoint_without_config_takes_one(tmp_path, monkeypatch, checkpoints):
    content = torch.load(checkpoints[0])
    torch.save({"model": content["model"]}, tmp_path / "bare.pth")
    config = tmp_path / "config.yaml"
    config.write_text(content["about"]["config"])
    assert "give --config-file" in refused(str(tmp_path / "bare.pth"))
    served = []
    monkeypatch.setattr("mrcnn_ext.app.serve.serve", lambda models, *_: served.extend(models))
    arguments = [str(tmp_path / "bare.pth"), "--config-file", str(config), "--compare", str(checkpoints[1])]
    result = CliRunner().invoke(app.command, arguments)
    assert result.exit_code == 0, result.exception
    bare, own = served
    assert bare.classes[0] == "class 0" and own.classes[0] == "person"  # which needs no config file


def test_a_taken_port_is_named():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"--port {port}.*in use"):
            free_port("127.0.0.1", port)
    assert free_port("127.0.0.1", port) == port
    for host in (
        "nowhere.invalid",
        "192.0.2.1",
    ):  # of the last, which is kept for documentation, no machine is
        with pytest.raises(UserError, match=f"--host {host}: this machine has no such address"):
            free_port(host, 0)
