"""Steps that are known to be finite, accumulated gradients, weights' averages and what checkpoints keep."""

import json
import math

import pytest

pytest.importorskip("detectron2")

import torch
from detectron2.engine import HookBase, hooks
from detectron2.utils.events import EventStorage
from torch import nn

from mrcnn_ext.engine import Checkpointer, UserError
from mrcnn_ext.engine.averaging import AveragingHook, WeightAverage
from mrcnn_ext.engine.errors import NonFiniteError
from mrcnn_ext.engine.events import MetricsWriter
from mrcnn_ext.engine.saving import BestHook, CheckpointHook, ResumeHook, TrainingState
from mrcnn_ext.engine.steps import StepTrainer

pytestmark = pytest.mark.detectron2


class Model(nn.Module):
    """The loss of a batch of numbers; NaN among them spoils what it is to spoil."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(1)
        self.layer = nn.Linear(1, 1)

    def forward(self, batch):
        x = torch.tensor([[item["x"]] for item in batch])
        y = self.layer(self.norm(x))
        if any(item.get("spoils") == "forward" for item in batch):
            raise FloatingPointError("Predicted boxes contain Inf/NaN")
        if any(item.get("spoils") == "gradient" for item in batch):
            y = y + (self.layer.weight * 0).sqrt().sum()  # 0, with an infinite gradient
        return {"loss_a": (y**2).mean(), "loss_b": y.mean()}


def batches(*special):
    """Endless batches of two numbers; ``special`` are (iteration, item) to put in."""
    special = dict(special)
    i = 0
    while True:
        batch = [{"x": math.sin(i + k), "file_name": f"image_{i}_{k}.jpg"} for k in range(4)]
        batch[1].update(special.get(i, {}))
        yield batch
        i += 1


def make_trainer(*special, model=None, lr=0.1, **options):
    torch.manual_seed(0)
    model = model or Model()
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    return StepTrainer(model, batches(*special), optimizer, **options)


@pytest.mark.parametrize("item", [{"x": math.nan}, {"spoils": "gradient"}])
def test_what_is_not_finite_ends_the_training(item, caplog):
    trainer = make_trainer((2, item))
    before = []

    class Keep(HookBase):
        def before_step(self):
            before.append({name: value.clone() for name, value in self.trainer.model.named_parameters()})

    trainer.register_hooks([Keep()])
    with pytest.raises(NonFiniteError) as error:
        trainer.train(0, 5)
    what = "a loss" if "x" in item else "a gradient"
    message = str(error.value)
    assert message.startswith(f"iteration 3: {what} is not finite (loss_a ")
    assert "loss_b" in message and "for image_2_0.jpg, image_2_1.jpg" in message
    assert "lower learning rate" in message and "SKIP_NONFINITE" in message
    assert "Traceback" not in caplog.text
    for name, value in trainer.model.named_parameters():
        assert torch.equal(value, before[-1][name])


def test_some_are_skipped_and_leave_no_trace():
    clean = make_trainer(lr=0.0)
    clean.train(0, 2)
    trainer = make_trainer((1, {"x": math.nan}), (2, {"spoils": "gradient"}), lr=0.0, skip_nonfinite=3)
    trainer.train(0, 3)
    # The statistics of the batch norm are those of the one iteration that counted.
    assert (
        trainer.model.norm.num_batches_tracked == 1 and torch.isfinite(trainer.model.norm.running_mean).all()
    )
    assert trainer.state_dict()["skipped"] == 2
    resumed = make_trainer((0, {"x": math.nan}), (1, {"spoils": "forward"}), skip_nonfinite=3)
    resumed.load_state_dict(trainer.state_dict())
    with pytest.raises(
        NonFiniteError, match="iteration 2: .*contain Inf/NaN .for image_1_0.jpg, image_1_1.jpg"
    ):
        resumed.train(0, 2)


def test_accumulated_gradients_are_those_of_the_whole_batch():
    class Plain(Model):
        def forward(self, batch):
            y = self.layer(torch.tensor([[item["x"]] for item in batch]))
            return {"loss": (y**2).mean()}

    weights = []
    for accumulate in (1, 2, 4):
        trainer = make_trainer(model=(torch.manual_seed(0), Plain())[1], accumulate=accumulate)
        trainer.train(0, 5)
        weights.append(trainer.model.layer.weight.item())
        assert trainer.model.training
    assert weights[1:] == pytest.approx(weights[:1] * 2, rel=1e-6)


def full_trainer(folder, *, period=1, keep=0, metrics=None, patience=0, decay=0.0, max_iter=6):
    """With the hooks of the engine's trainers; ``metrics`` is evaluated every iteration."""
    trainer = make_trainer()
    average = WeightAverage(trainer.model, decay) if decay else None
    state = TrainingState(lambda: trainer)
    checkpointer = Checkpointer(trainer.model, str(folder), averaged=average, trainer=trainer, state=state)
    checkpoints = CheckpointHook(checkpointer, state, lambda: trainer, period, keep)
    iterator = iter(metrics or ())
    trainer.register_hooks(
        [
            AveragingHook(average) if average else None,
            checkpoints,
            hooks.EvalHook(1, lambda: {"segm": {"AP": next(iterator)}}) if metrics else None,
            BestHook("segm/AP", checkpoints, 1, patience) if metrics else None,
            ResumeHook(state, lambda: trainer._hooks),
        ]
    )
    trainer.average, trainer.checkpointer = average, checkpointer
    return trainer


def names(folder):
    return sorted(path.name for path in folder.glob("*.pth"))


def test_the_last_checkpoints_are_kept(tmp_path):
    (tmp_path / "model_0000099.pth").write_text("of another run, later than all of this one")
    full_trainer(tmp_path, keep=2).train(0, 6)
    expected = ["model_0000004.pth", "model_0000005.pth", "model_0000099.pth", "model_final.pth"]
    assert names(tmp_path) == expected
    assert (tmp_path / "last_checkpoint").read_text() == "model_final.pth"


def test_a_training_that_was_killed_before_its_final_checkpoint_gets_it(tmp_path):
    full_trainer(tmp_path, period=3).train(0, 6)
    expected = torch.load(tmp_path / "model_final.pth")
    (tmp_path / "model_final.pth").unlink()
    (tmp_path / "last_checkpoint").write_text("model_0000005.pth")
    trainer = full_trainer(tmp_path, period=3)
    start = trainer.checkpointer.resume_or_load("", resume=True)["iteration"] + 1
    assert start == 6
    trainer.train(start, 6)
    found = torch.load(tmp_path / "model_final.pth")
    assert found["iteration"] == expected["iteration"] == 5
    for name, value in expected["model"].items():
        assert torch.equal(found["model"][name], value)
    assert (tmp_path / "last_checkpoint").read_text() == "model_final.pth"


def test_metrics_that_a_kill_kept_from_the_file_come_with_the_checkpoint(tmp_path):
    path = tmp_path / "metrics.json"
    path.write_text('{"a": 1.0, "iteration": 1}\n{"a": 5.0, "iteration": 4}\n{"itera')
    with EventStorage(3) as storage:
        writer = MetricsWriter(str(path))
        writer.resume_at(3)
        storage.put_scalar("b", 2.0, cur_iter=2)  # as the checkpoint has it
        storage.put_scalar("a", 3.0, cur_iter=3)
        writer.write()
        writer.close()
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert rows == [{"a": 1.0, "iteration": 1}, {"b": 2.0, "iteration": 2}, {"a": 3.0, "iteration": 3}]


def test_the_best_is_kept_and_the_training_ends_when_it_stays_the_best(tmp_path):
    trainer = full_trainer(tmp_path, period=100, metrics=[1.0, 3.0, 2.0, math.nan, 2.9, 4.0], patience=3)
    trainer.train(0, 6)
    assert trainer.iter == 4
    assert torch.load(tmp_path / "model_best.pth")["iteration"] == 1
    final = torch.load(tmp_path / "model_final.pth")
    assert final["iteration"] == 4
    assert final["trainer"]["hooks"]["BestHook"] == {"best": 3.0, "iteration": 1, "without": 3}
    assert (tmp_path / "last_checkpoint").read_text() == "model_final.pth"


def test_the_evaluation_after_the_last_iteration_counts_too(tmp_path):
    full_trainer(tmp_path, metrics=[1.0, 2.0, 3.0]).train(0, 3)
    assert torch.load(tmp_path / "model_best.pth")["iteration"] == 2


def test_a_metric_that_there_is_not(tmp_path):
    trainer = full_trainer(tmp_path, metrics=[1.0])
    trainer._hooks[-2]._metric = "segm/ap"
    with pytest.raises(UserError, match="gives no 'segm/ap'; did you mean segm/AP"):
        trainer.train(0, 3)


def test_the_average_is_saved_loaded_and_evaluated(tmp_path):
    trainer = full_trainer(tmp_path, decay=0.5)
    trainer.train(0, 3)
    # By hand: 1/10, 2/11 and 3/12 of the average before are kept.
    saved = [torch.load(tmp_path / f"model_{i:07d}.pth")["model"]["layer.weight"] for i in range(3)]
    average = saved[0]
    average = average * (2 / 11) + saved[1] * (9 / 11)
    average = average * (3 / 12) + saved[2] * (9 / 12)
    final = torch.load(tmp_path / "model_final.pth")
    torch.testing.assert_close(final["averaged_model"]["layer.weight"], average)
    assert not torch.equal(final["model"]["layer.weight"], average)

    own = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    with trainer.average.in_place():
        torch.testing.assert_close(trainer.model.layer.weight, average)
    for name, value in trainer.model.state_dict().items():
        assert torch.equal(value, own[name])

    other = Model()
    Checkpointer(other).load(str(tmp_path / "model_final.pth"))
    torch.testing.assert_close(other.layer.weight.detach(), average)
    resumed = full_trainer(tmp_path, decay=0.5)
    resumed.checkpointer.resume_or_load("", resume=True)
    assert torch.equal(resumed.model.layer.weight, own["layer.weight"])
    torch.testing.assert_close(resumed.average.state_dict()["layer.weight"], average)


@pytest.mark.parametrize("part", ["layer.weight", "norm.running_var"])
def test_weights_that_are_not_finite_are_neither_saved_nor_loaded(tmp_path, part):
    model = Model()
    checkpointer = Checkpointer(model, str(tmp_path))
    checkpointer.save("good")
    model.state_dict()[part].fill_(math.inf)
    with pytest.raises(
        NonFiniteError, match=rf"bad.pth was not saved: 1 of .*\({part}.*last good .*good.pth"
    ):
        checkpointer.save("bad")
    assert names(tmp_path) == ["good.pth"] and (tmp_path / "last_checkpoint").read_text() == "good.pth"
    torch.save({"model": model.state_dict()}, tmp_path / "bad.pth")
    with pytest.raises(UserError, match=rf"bad.pth: 1 of its 7 tensors are not finite \({part}"):
        Checkpointer(Model()).load(str(tmp_path / "bad.pth"))


def test_resuming_names_an_older_whole_checkpoint(tmp_path):
    checkpointer = Checkpointer(Model(), str(tmp_path))
    for name in ("a", "b", "c"):
        checkpointer.save(name)
    (tmp_path / "c.pth").write_bytes((tmp_path / "c.pth").read_bytes()[:-100])
    with pytest.raises(UserError, match="c.pth is damaged.*the newest whole checkpoint is b.pth: to resume"):
        checkpointer.resume_or_load("", resume=True)
    (tmp_path / "c.pth").unlink()
    with pytest.raises(
        UserError, match="weights file not found: .*c.pth; the newest whole checkpoint is b.pth"
    ):
        checkpointer.resume_or_load("", resume=True)
    (tmp_path / "last_checkpoint").unlink()
    with pytest.raises(UserError, match="there is no .*last_checkpoint.*whole checkpoint is b.pth"):
        checkpointer.require_checkpoint()
    with pytest.raises(UserError, match="to begin a training, leave --resume out"):
        Checkpointer(Model(), str(tmp_path / "none")).require_checkpoint()
