"""Checkpoints and configs are data: what code they hold is neither run nor passed over in silence."""

import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

pytest.importorskip("detectron2")

from detectron2.config import get_cfg
from torch import nn

from mrcnn_ext import add_mrcnn_ext_config
from mrcnn_ext.engine import Checkpointer, UserError, load_config
from mrcnn_ext.engine.lazy import load_lazy_config
from mrcnn_ext.engine.yaml_files import merge_from_file
from mrcnn_ext.model_zoo import detectron2_zoo

pytestmark = pytest.mark.detectron2


class Payload:
    """Makes a file when it is unpickled."""

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return os.mkdir, (str(self.file),)


def model():
    return nn.Linear(2, 2)


@pytest.fixture
def planted(tmp_path):
    """The file that a payload makes."""
    return tmp_path / "PLANTED"


def write_pickle(path, content, **kwargs):
    path.write_bytes(pickle.dumps(content, **kwargs))


FORMS = {
    "x.pkl": write_pickle,
    "protocol2.pkl": lambda path, content: write_pickle(path, content, protocol=2),
    "plain.pth": write_pickle,
    "x.pth": lambda path, content: torch.save(content, path),
    "old.pth": lambda path, content: torch.save(content, path, _use_new_zipfile_serialization=False),
    "x.pyth": lambda path, content: torch.save(content, path),
    "no_suffix": lambda path, content: torch.save(content, path),
}


@pytest.mark.parametrize("name", FORMS)
def test_a_payload_is_refused_and_runs_where_the_file_is_trusted(tmp_path, planted, name):
    weights = arrays() if FORMS[name] is write_pickle or "protocol" in name else model().state_dict()
    content = {"model": weights, "model_state": weights, "__author__": "x", "extra": Payload(planted)}
    FORMS[name](tmp_path / name, content)
    with pytest.raises(UserError, match=rf"{name} holds code \(posix.mkdir\).*not read.*--trust-files"):
        Checkpointer(model()).load(str(tmp_path / name))
    assert not planted.exists()
    Checkpointer(model(), trust=True, allow_partial=True).load(str(tmp_path / name))
    assert planted.exists()


def test_the_environment_does_not_undo_it(tmp_path, planted, monkeypatch):
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    torch.save({"model": model().state_dict(), "extra": Payload(planted)}, tmp_path / "x.pth")
    with pytest.raises(UserError, match="holds code"):
        Checkpointer(model()).load(str(tmp_path / "x.pth"))
    assert not planted.exists()


@pytest.mark.parametrize(
    "call",
    [(getattr, (np.ndarray, "tofile")), (bytes.decode, (b"", "rot13")), (eval, ("1",)), (np.load, ("x",))],
)
def test_pickles_name_nothing_but_data(tmp_path, call):
    class Calling:
        def __reduce__(self):
            return call

    write_pickle(tmp_path / "x.pkl", {"model": {"weight": Calling()}, "__author__": ""})
    with pytest.raises(UserError, match="holds code"):
        Checkpointer(model()).load(str(tmp_path / "x.pkl"))


def arrays():
    return {key: value.numpy() for key, value in model().state_dict().items()}


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickles_of_detectron2s_zoo_load(tmp_path, protocol):
    content = {"model": arrays(), "__author__": "detectron2", "count": np.float32(3), "bytes": b"\xff"}
    write_pickle(tmp_path / "x.pkl", content, protocol=protocol)
    loaded = model()
    Checkpointer(loaded).load(str(tmp_path / "x.pkl"))
    np.testing.assert_array_equal(loaded.weight.detach(), content["model"]["weight"])


def test_pickles_of_python_2_load(tmp_path):
    """Detectron's zoo: written by Python 2 and an old numpy, by hand here, since no Python 3 writes one."""
    array = (
        "cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR(I1\n(I2\ntcnumpy\ndtype\n(S'f4'\nI0\n"
        "I1\ntR(I3\nS'<'\nNNNI-1\nI-1\nI0\ntbI00\nS'\\x00\\x00\\x80?\\x00\\x00\\x00@'\ntb"
    )
    text = f"(dS'blobs'\n(dS'bias'\n{array}sS'bias_momentum'\n{array}ssS'cfg'\nS'MODEL: x'\ns."
    (tmp_path / "x.pkl").write_bytes(text.encode("latin1"))
    from mrcnn_ext.engine.weight_files import read_weights

    assert read_weights(tmp_path / "x.pkl")["blobs"]["bias"].tolist() == [1, 2]
    loaded = nn.Module()
    loaded.bias = nn.Parameter(torch.zeros(2))
    Checkpointer(loaded, allow_partial=True).load(str(tmp_path / "x.pkl"))
    assert loaded.bias.tolist() == [1, 2]


def test_safetensors_load(tmp_path):
    from safetensors.torch import save_file

    source, loaded = model(), model()
    save_file(source.state_dict(), tmp_path / "x.safetensors")
    Checkpointer(loaded).load(str(tmp_path / "x.safetensors"))
    assert torch.equal(loaded.weight, source.weight)


def flip_bytes(path, name="data/0"):
    """Changes bytes of a member in the middle of an archive, and nothing else."""
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        info = next(info for info in archive.infolist() if info.filename.endswith(name))
        value = archive.read(info)
    start = content.index(value)
    for i in range(start, start + 4):
        content[i] ^= 0x55
    path.write_bytes(content)


def test_a_damaged_archive_is_refused(tmp_path):
    path = tmp_path / "x.pth"
    torch.save({"model": model().state_dict()}, path)
    flip_bytes(path)
    torch.load(path)  # which does not see it
    with pytest.raises(UserError, match="x.pth is damaged: .*data/0 in it does not match its checksum"):
        Checkpointer(model()).load(str(path))
    Checkpointer(model(), trust=True).load(str(path))


@pytest.mark.parametrize("content", [[1, 2], {"model": 3}, 3, {"model": {}}, {"model": {"weight": "text"}}])
@pytest.mark.parametrize("name", ["x.pth", "x.pkl"])
def test_something_else_is_no_checkpoint(tmp_path, name, content):
    FORMS[name](tmp_path / name, content)
    with pytest.raises(UserError, match=f"{name}: not a checkpoint"):
        Checkpointer(model()).load(str(tmp_path / name))


def test_text_is_no_checkpoint(tmp_path):
    (tmp_path / "x.pth").write_text("hello\n")
    with pytest.raises(UserError, match="x.pth: not a checkpoint, or damaged"):
        Checkpointer(model()).load(str(tmp_path / "x.pth"))


# --- Yaml


def apply_touch(planted):
    return f'!!python/object/apply:os.mkdir ["{planted}"]'


def test_yaml_tags_are_refused_and_run_where_the_file_is_trusted(tmp_path, planted):
    file = tmp_path / "x.yaml"
    file.write_text(f"VERSION: 2\nOUTPUT_DIR: {apply_touch(planted)}\n")
    over = tmp_path / "over.yaml"
    over.write_text("_BASE_: x.yaml\n")
    for config in (file, over):
        with pytest.raises(
            UserError, match=r"x.yaml, line 2: the tag !!python/object/apply:os.mkdir holds code"
        ):
            load_config(str(config))
    assert not planted.exists()
    load_config(str(file), trust=True)
    assert planted.exists()


@pytest.mark.parametrize(
    "tag", ["name:os.system", "module:os", "object/new:os.system []", "object:os.system {}"]
)
def test_other_tags_of_yaml(tmp_path, tag):
    (tmp_path / "x.yaml").write_text(f"OUTPUT_DIR: !!python/{tag}\n")
    with pytest.raises(UserError, match="holds code"):
        load_config(str(tmp_path / "x.yaml"))


@pytest.mark.parametrize(
    "formula", ["__import__('os')", "[].append", "(lambda: 1)()", "2**64**64", "[x for x in y]"]
)
def test_formulas_are_of_numbers_and_lists(tmp_path, formula):
    (tmp_path / "x.yaml").write_text(f'OUTPUT_DIR: !!python/object/apply:eval ["{formula}"]\n')
    with pytest.raises(UserError, match="x.yaml, line 1: .* not a formula of numbers and lists"):
        load_config(str(tmp_path / "x.yaml"))


ZOO = Path(detectron2_zoo.get_config_file("COCO-Detection/retinanet_R_50_FPN_1x.yaml")).parents[1]


def test_all_of_detectron2s_configs_load_as_they_do_there():
    files = sorted(ZOO.rglob("*.yaml"))
    assert len(files) > 80
    tagged = 0
    for file in files:
        stock = get_cfg()
        add_mrcnn_ext_config(stock)
        stock.merge_from_file(str(file))
        cfg = get_cfg()
        add_mrcnn_ext_config(cfg)
        merge_from_file(cfg, str(file), trust=False)
        assert cfg == stock, file
        tagged += isinstance(stock.MODEL.ANCHOR_GENERATOR.SIZES[0][-1], float)
    assert tagged >= 6  # the RetinaNets, by the one tag


def test_base_that_leads_back(tmp_path):
    (tmp_path / "a.yaml").write_text("_BASE_: b.yaml\n")
    (tmp_path / "b.yaml").write_text("_BASE_: a.yaml\n")
    with pytest.raises(UserError, match="a.yaml: its _BASE_ leads back to itself, through .*b.yaml"):
        load_config(str(tmp_path / "a.yaml"))


def test_a_lazy_config_from_elsewhere_is_said_to_be_code(tmp_path, caplog):
    content = "model = dataloader = optimizer = lr_multiplier = train = dict()\n"
    (tmp_path / "x.py").write_text(content)
    for _ in range(2):
        load_lazy_config(str(tmp_path / "x.py"))
    assert caplog.text.count("x.py is Python code and runs with your rights") == 1
    caplog.clear()
    from mrcnn_ext.config_files import get_config_file

    load_lazy_config(get_config_file("COCO-InstanceSegmentation/mask_rcnn_R_50_FPN.py"))
    assert "runs with your rights" not in caplog.text


def test_the_safe_loader_reads_plain_yaml_as_ever(tmp_path):
    content = {"VERSION": 2, "MODEL": {"PIXEL_MEAN": [1.0, 2.0, 3.0]}, "SOLVER": {"STEPS": [1, 2]}}
    (tmp_path / "x.yaml").write_text(yaml.safe_dump(content) + "OUTPUT_DIR: !!python/tuple [a]\n")
    with pytest.raises(UserError, match="OUTPUT_DIR must be of type str"):
        load_config(str(tmp_path / "x.yaml"))
    (tmp_path / "x.yaml").write_text(yaml.safe_dump(content))
    assert load_config(str(tmp_path / "x.yaml")).SOLVER.STEPS == (1, 2)
