"""Atomic saves, and the check of a checkpoint against the model."""

import multiprocessing
import os
import signal

import pytest

pytest.importorskip("detectron2")

import torch
from detectron2.layers import FrozenBatchNorm2d
from torch import nn

from mrcnn_ext.engine import Checkpointer, UserError

pytestmark = pytest.mark.detectron2


class Detector(nn.Module):
    """Parameter names and proportions of an R-CNN: a deep backbone, a neck, a box and a mask head."""

    def __init__(self, depth=20, num_classes=3, mask=True, neck=True):
        super().__init__()
        self.backbone = nn.Module()
        self.backbone.bottom_up = nn.ModuleList(nn.Linear(2, 2) for _ in range(depth))
        if neck:
            self.backbone.neck = nn.Linear(2, 2)
        self.roi_heads = nn.Module()
        self.roi_heads.box = nn.Linear(2, 2)
        self.roi_heads.predictor = nn.Linear(2, num_classes)
        if mask:
            self.roi_heads.mask = nn.Linear(2, 2)


def saved(tmp_path, model, name="weights"):
    Checkpointer(model, str(tmp_path)).save(name)
    return str(tmp_path / f"{name}.pth")


def test_round_trip_with_extra_state(tmp_path):
    model, state = Detector(), nn.Linear(1, 1)
    Checkpointer(model, str(tmp_path), state=state).save("model_0000009", iteration=9)
    assert sorted(os.listdir(tmp_path)) == ["last_checkpoint", "model_0000009.pth"]

    other, other_state = Detector(), nn.Linear(1, 1)
    checkpointer = Checkpointer(other, str(tmp_path), state=other_state)
    assert checkpointer.has_checkpoint()
    assert checkpointer.resume_or_load("", resume=True) == {"iteration": 9}
    for mine, theirs in ((model, other), (state, other_state)):
        for key, value in mine.state_dict().items():
            assert torch.equal(theirs.state_dict()[key], value), key


def test_counters_of_batch_norms_that_are_frozen_are_no_news(tmp_path, caplog):
    trained, frozen = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)), nn.Sequential(nn.Linear(2, 2))
    frozen.append(FrozenBatchNorm2d(2))
    trained[1].running_mean.fill_(3.0)
    path = saved(tmp_path, trained)
    Checkpointer(frozen).load(path)
    assert torch.equal(frozen[1].running_mean, trained[1].running_mean)
    assert "num_batches_tracked" not in caplog.text and "not used by the model" not in caplog.text


def _save_and_be_killed(directory, at):
    checkpointer = Checkpointer(Detector(), directory)

    def kill(*_):
        os.kill(os.getpid(), signal.SIGKILL)

    if at == "writing":
        save = torch.save

        def save_half(data, file):
            save(data, file)
            file.truncate(file.tell() // 2)
            kill()

        torch.save = save_half
    else:
        os.replace = kill
    checkpointer.save("second")


@pytest.mark.parametrize("at", ["writing", "moving"])
def test_kill_while_saving_leaves_the_previous_checkpoint(tmp_path, at):
    model = Detector()
    saved(tmp_path, model, "first")
    process = multiprocessing.get_context("fork").Process(
        target=_save_and_be_killed, args=(str(tmp_path), at)
    )
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL

    other = Detector()
    checkpointer = Checkpointer(other, str(tmp_path))
    assert checkpointer.get_checkpoint_file() == str(tmp_path / "first.pth")
    checkpointer.resume_or_load("", resume=True)
    assert torch.equal(other.roi_heads.box.weight, model.roi_heads.box.weight)
    assert all("second" not in path for path in checkpointer.get_all_checkpoint_files())
    # The next save goes over what the kill left behind.
    checkpointer.save("second")
    assert sorted(os.listdir(tmp_path)) == ["first.pth", "last_checkpoint", "second.pth"]


def test_failed_save_leaves_nothing_behind(tmp_path):
    model = Detector()
    checkpointer = Checkpointer(model, str(tmp_path))
    checkpointer.save("first")
    with pytest.raises(Exception, match="pickle"):
        checkpointer.save("second", not_to_be_pickled=lambda: None)
    assert sorted(os.listdir(tmp_path)) == ["first.pth", "last_checkpoint"]


FITTING = {
    "other number of classes": (Detector(num_classes=5), Detector()),
    "backbone alone": (Detector().backbone, Detector()),
    "mask head added": (Detector(mask=False), Detector()),
    "mask head dropped": (Detector(), Detector(mask=False)),
}


@pytest.mark.parametrize("case", FITTING)
def test_fine_tuning_loads_what_fits(tmp_path, case):
    source, target = FITTING[case]
    if case == "backbone alone":
        wrapper = nn.Module()
        wrapper.backbone = source
        source = wrapper
    Checkpointer(target).load(saved(tmp_path, source))
    assert torch.equal(target.backbone.bottom_up[0].weight, source.backbone.bottom_up[0].weight)


MISFITS = {
    "deeper": (
        Detector(40),
        "40 of its 88 tensors have no place in the model .*backbone.bottom_up.20.weight is not",
    ),
    "shallower": (Detector(10), "it lacks 20 of the 40 tensors of the model's backbone"),
    "other names": (nn.Sequential(nn.Linear(2, 2)), "2 of its 2 tensors have no place in the model"),
}


@pytest.mark.parametrize("case", MISFITS)
def test_other_architecture_is_an_error_unless_asked_for(tmp_path, case):
    source, reason = MISFITS[case]
    path = saved(tmp_path, source)
    with pytest.raises(
        UserError, match=f"weights.pth is a checkpoint of another architecture: {reason}"
    ) as error:
        Checkpointer(Detector()).load(path)
    assert "ALLOW_PARTIAL_WEIGHTS" in str(error.value)
    assert len(str(error.value)) < 600 and "\n" not in str(error.value)
    Checkpointer(Detector(), allow_partial=True).load(path)


def test_shapes_are_told(tmp_path):
    wide = Detector()
    wide.backbone.bottom_up = nn.ModuleList(nn.Linear(3, 3) for _ in range(20))
    with pytest.raises(UserError, match=r"bottom_up.0.weight is \(3, 3\) in the file, \(2, 2\) in the model"):
        Checkpointer(Detector()).load(saved(tmp_path, wide))


def test_missing_file(tmp_path):
    with pytest.raises(UserError, match=f"weights file not found: {tmp_path}/none.pth"):
        Checkpointer(Detector()).load(str(tmp_path / "none.pth"))


@pytest.mark.parametrize("name", ["text.pth", "text.pkl", "empty.pth", "cut.pth"])
def test_not_a_checkpoint(tmp_path, name):
    whole = open(saved(tmp_path, Detector()), "rb").read()
    content = {"text": b"not a checkpoint", "empty": b"", "cut": whole[: len(whole) // 2]}[
        name.partition(".")[0]
    ]
    path = tmp_path / name
    path.write_bytes(content)
    checkpointer = Checkpointer(Detector())
    with pytest.raises(UserError, match=f"{name}: (not a checkpoint, or|cut.pth is) damaged"):
        checkpointer.load(str(path))
    checkpointer.load(str(tmp_path / "weights.pth"))


class Extra:
    pass


def test_python_objects_in_a_checkpoint(tmp_path):
    path = tmp_path / "objects.pth"
    torch.save({"model": Detector().state_dict(), "args": Extra()}, path)
    with pytest.raises(UserError, match=r"objects.pth holds code \(.*Extra\) besides weights"):
        Checkpointer(Detector()).load(str(path))
