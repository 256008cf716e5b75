"""FSDP on two gloo processes against DistributedDataParallel: losses, checkpoints, what is resumed."""

import pytest

pytest.importorskip("detectron2")

import torch

# Without what a rounding error may change at once: samples, proposals that suppress each other, statistics of a batch.
OPTIONS = """
MODEL.RESNETS.NORM FrozenBN MODEL.FPN.NORM '' INPUT.RANDOM_FLIP none VAL_LOSS.ENABLED False
MODEL.RPN.BATCH_SIZE_PER_IMAGE 100000 MODEL.RPN.NMS_THRESH 1.0
MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE 100 MODEL.ROI_HEADS.POSITIVE_FRACTION 1.0
SOLVER.CHECKPOINT_PERIOD 2 TEST.EVAL_PERIOD 0 SOLVER.MAX_ITER
""".split()
SHARE = ("--num-gpus", 0, "--num-processes", 2)


@pytest.mark.slow
def test_sharded_training_is_that_of_ddp(start_here, datasets, configs, tmp_path, read_metrics):
    def train(folder, *options, config=("--config-file", configs.yaml)):
        run = start_here("train_net", *config, *SHARE, *options, "OUTPUT_DIR", folder, datasets=datasets)
        run.process.join(150)
        return run

    def done(folder, *options):
        run = train(folder, *options)
        assert run.process.exitcode == 0, run.log.read_text()[-3000:]
        return torch.load(folder / "model_final.pth")

    wanted = done(tmp_path / "ddp", *OPTIONS, 4)
    found = done(tmp_path / "sharded", *OPTIONS, 4, "SOLVER.SHARDED", True)
    losses, expected = (c["state"]["scalars"] for c in (found, wanted))
    for name in (name for name in expected if "loss" in name):
        ours, theirs = ([value for value, _ in scalars[name][1]] for scalars in (losses, expected))
        assert len(ours) == 4 and ours == pytest.approx(theirs, rel=1e-5, abs=1e-7), name
    assert found["model"].keys() == wanted["model"].keys()
    for name, value in wanted["model"].items():
        assert type(found["model"][name]) is torch.Tensor
        torch.testing.assert_close(
            found["model"][name], value, rtol=1e-4, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}"
        )
    assert any("segm/AP" in row for row in read_metrics(tmp_path / "sharded"))

    # A checkpoint in the midst of each is gone on from by the other.
    for kind, options in (("ddp", ("SOLVER.SHARDED", True)), ("sharded", ())):
        (tmp_path / kind / "last_checkpoint").write_text("model_0000001.pth")
        again = done(tmp_path / kind, "--resume", *OPTIONS, 4, *options)
        for name, value in wanted["model"].items():
            torch.testing.assert_close(again["model"][name], value, rtol=1e-4, atol=1e-6)

    run = train(tmp_path / "unfit", *OPTIONS, 4, "SOLVER.SHARDED", True, "SOLVER.EMA_DECAY", 0.9)
    assert run.process.exitcode == 2
    assert (
        "SOLVER.SHARDED (train.sharded) does not work together with SOLVER.EMA_DECAY" in run.log.read_text()
    )
