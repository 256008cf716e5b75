"""mrcnn-ext train and eval, in this process."""

import importlib
import json
import os
import re
import shutil
from pathlib import Path

import pytest

pytest.importorskip("detectron2")

import torch
import yaml
from detectron2.data import DatasetCatalog, MetadataCatalog

from mrcnn_ext.model_zoo import find_config

pytestmark = pytest.mark.detectron2

# The quickstart's model without keypoints, and small.
SMALL = [
    *"MODEL.KEYPOINT_ON False MODEL.TIMM.ARGS.channels [8,8,16,16] MODEL.FPN.OUT_CHANNELS 16".split(),
    *"MODEL.ROI_BOX_HEAD.FC_DIM 16 MODEL.ROI_MASK_HEAD.CONV_DIM 8 INPUT.MASK_FORMAT polygon".split(),
    *"INPUT.MIN_SIZE_TRAIN (64,) INPUT.MIN_SIZE_TEST 64 SOLVER.AMP.ENABLED False".split(),
]


@pytest.fixture(autouse=True)
def clean_catalog():
    before = set(DatasetCatalog.list())
    yield
    for name in set(DatasetCatalog.list()) - before:
        DatasetCatalog.remove(name)
        MetadataCatalog.pop(name, None)


def test_train_needs_data_and_model_and_eval_a_checkpoint(run, data_file, tmp_path, monkeypatch):
    # Folders that no other test has: in a process, detectron2 opens the log file of a name once.
    words = ["train", f"data={data_file}", "model=quickstart", "--num-gpus", 0, *SMALL]
    printed = run(*words, "SOLVER.MAX_ITER=2", "--output", "learnt")
    assert "model: quickstart.yaml; results: learnt" in printed
    assert "trained: learnt/model_final.pth" in printed
    checkpoint = torch.load("learnt/model_final.pth")
    assert checkpoint["iteration"] == 1
    assert checkpoint["about"]["metadata"]["thing_classes"] == ["skier", "sledge"]
    config = yaml.safe_load(checkpoint["about"]["config"])
    assert config["MODEL"]["ROI_HEADS"]["NUM_CLASSES"] == 2, "it does not follow the data"
    # What fills the screen is in the log file alone.
    log = (tmp_path / "learnt" / "log.txt").read_text()
    assert "Running with full config" in log and "Running with full config" not in printed

    resumed = [*words, "SOLVER.MAX_ITER", 3, "--output", "learnt", "--resume"]
    message = "another optimizer than SGD .its groups lack dampening, momentum.*give SOLVER.OPTIMIZER"
    assert re.search(message, run(*resumed, "SOLVER.OPTIMIZER", "SGD", code=2))
    message = "--resume: learnt/model_final.pth is of another model, .*mask_head.*weights="
    assert re.search(message, run(*resumed, "MODEL.ROI_MASK_HEAD.NUM_CONV", 4, code=2))
    run(*resumed)
    assert torch.load("learnt/model_final.pth")["iteration"] == 2

    for name in ("skiers_train", "skiers_val"):
        DatasetCatalog.remove(name)
        MetadataCatalog.pop(name)
    printed = run(
        "eval", "learnt/model_final.pth", f"data={data_file}", "--num-gpus", 0, "--output", "judged"
    )
    assert re.search(r"copypaste: Task: segm\n.*\n.*copypaste: [\d.]+", printed)
    assert (tmp_path / "judged" / "log.txt").is_file()

    # The checkpoint and the folder know their data, from other folders and after a move.
    def forget():
        for name in {"skiers_train", "skiers_val"} & set(DatasetCatalog.list()):
            DatasetCatalog.remove(name)
            MetadataCatalog.pop(name)

    forget()
    (tmp_path / "moved").mkdir()
    for name in ("skis", "learnt"):
        shutil.copytree(name, tmp_path / "moved" / name)
    os.rename("skis", "gone")
    monkeypatch.chdir("/")
    moved = tmp_path / "moved"
    words_of_eval = [moved / "learnt" / "model_final.pth", "--num-gpus", 0, "--output", tmp_path / "judged"]
    assert "copypaste: Task: segm" in run("eval", *words_of_eval)
    forget()
    compared = run("compare", moved / "learnt", tmp_path / "judged", "--samples", 5)
    assert f"| bbox | {moved / 'learnt'} |" in compared
    forget()
    assert run("report", moved / "learnt").strip() == str(moved / "learnt" / "report.html")
    assert "<img" in (moved / "learnt" / "report.html").read_text()
    forget()
    run(
        *("predict", "skiers_val", "--weights", moved / "learnt" / "model_final.pth"),
        *("--output", tmp_path / "found.json", "--no-accelerate"),
    )
    assert len(json.loads((tmp_path / "found.images.json").read_text())["images"]) == 4
    forget()
    message = run("eval", tmp_path / "learnt" / "model_final.pth", "--num-gpus", 0, code=2)
    assert "was trained with the dataset 'skiers_val', of which" in message and "give data=FILE" in message
    monkeypatch.chdir(tmp_path)
    os.rename("gone", "skis")

    # A model to go on from: its config, its weights, the classes of the data.
    run(
        "train",
        f"data={data_file}",
        "model=learnt/model_final.pth",
        "SOLVER.MAX_ITER=1",
        "--num-gpus",
        0,
        "--output",
        "o2",
    )
    before, after = (torch.load(f"{folder}/model_final.pth")["model"] for folder in ("learnt", "o2"))
    assert before.keys() == after.keys()
    torch.testing.assert_close(
        after["backbone.fpn_lateral2.weight"], before["backbone.fpn_lateral2.weight"], atol=0.01, rtol=0
    )


def _started(monkeypatch, run, *words):
    """The arguments that the engine would be started with."""
    started = []
    launch = importlib.import_module("mrcnn_ext.engine.launch")
    monkeypatch.setattr(launch, "run", lambda main, args: started.append(args))
    printed = run("train", *words)
    return started[0], re.search(r"; results: (\S+)", printed)[1]


def test_trainings_without_a_folder_are_numbered(run, data_file, monkeypatch):
    words = [f"data={data_file}", "model=quickstart"]

    def folder(*more):
        return _started(monkeypatch, run, *words, *more)[1]

    assert folder() == "output/skiers"
    Path("output/skiers").mkdir(parents=True)
    Path("output/skiers/log.txt").touch()  # of one that has learnt nothing yet
    assert folder() == "output/skiers"
    for taken, following in (("skiers", "skiers-2"), ("skiers-2", "skiers-3")):
        Path("output", taken).mkdir(exist_ok=True)
        Path("output", taken, "metrics.json").touch()
        assert folder() == f"output/{following}"
    assert folder("--resume") == "output/skiers-2"
    assert folder("--overwrite") == "output/skiers"
    assert folder("output=here") == folder("--output", "here") == folder("OUTPUT_DIR", "here") == "here"
    assert folder("--num-machines", 2, "--dist-url", "tcp://a:1") == "output/skiers"
    assert _started(monkeypatch, run, "model=quickstart.py")[1] == "output/quickstart"
    assert _started(monkeypatch, run, "model=quickstart.py", "train.output_dir=x")[1] == "x"
    # A config of one's own says where.
    Path("mine.yaml").write_text("_BASE_: quickstart.yaml\nOUTPUT_DIR: results\n")
    assert _started(monkeypatch, run, "--config-file", "mine.yaml")[1] == "results"
    Path("mine.yaml").write_text("_BASE_: COCO-InstanceSegmentation/mask_rcnn_R_50_FPN.yaml\n")
    assert _started(monkeypatch, run, "--config-file", "mine.yaml")[1] == "output/mine"
    assert "give one of them" in run("train", *words, "output=a", "--output", "b", code=2)
    assert "--overwrite replaces it" in run("train", *words, "--resume", "--overwrite", code=2)


def test_epochs(run, data_file, monkeypatch, caplog):
    from mrcnn_ext.engine.lazy import _set_up
    from mrcnn_ext.engine.setup import setup

    words = [f"data={data_file}", "model=mask_rcnn_R_50_FPN", "--num-gpus", 0, "output=out"]
    keys = ["SOLVER.IMS_PER_BATCH", 3, "TEST.EVAL_PERIOD", 5]
    args, _ = _started(monkeypatch, run, *words, *keys, "epochs=50")
    args.num_gpus = 0
    solver = setup(args).SOLVER
    # 4 images in batches of 3 are 2 iterations.
    assert (solver.MAX_ITER, solver.STEPS, solver.WARMUP_ITERS) == (100, (75,), 10)
    assert solver.CHECKPOINT_PERIOD == 3
    message = r"epochs=50 of 4 images in batches of 3: SOLVER.MAX_ITER 100, SOLVER.STEPS \(75,\)"
    assert re.search(message, caplog.text)
    args, _ = _started(monkeypatch, run, *words, "epochs=2", "--recipe", "auto")
    assert setup(args).SOLVER.MAX_ITER == 2, "the recipe has changed what was said"

    lazy = [f"data={data_file}", "model=mask_rcnn_R_50_FPN.py", "--num-gpus", 0, "output=out"]
    args, _ = _started(monkeypatch, run, *lazy, "dataloader.train.total_batch_size=2", "epochs=2.5")
    from mrcnn_ext.engine.setup import register_datasets

    register_datasets(args.coco_format)
    assert _set_up(args).train.max_iter == 5
    for epochs in ("0", "x", "inf"):
        assert "epochs= must be a number above 0" in run("train", *words, f"epochs={epochs}", code=2)
    args, _ = _started(monkeypatch, run, *words, "epochs=2", "SOLVER.MAX_ITER", 3)
    with pytest.raises(ValueError, match="epochs= and SOLVER.MAX_ITER both say how long"):
        setup(args)


def test_a_lazy_config_takes_the_data_too(run, data_file):
    words = ["train", f"data={data_file}", "model=quickstart.py", "--num-gpus", 0, "--output", "out"]
    keys = [
        *"train.max_iter=1 train.amp.enabled=false dataloader.train.total_batch_size=1".split(),
        *"model.roi_heads.keypoint_head=null model.roi_heads.keypoint_in_features=null".split(),
        *"dataloader.train.mapper.use_keypoint=false dataloader.train.dataset.min_keypoints=0".split(),
        *"model.backbone.bottom_up.model_args.channels=[8,8,16,16]".split(),
        *"dataloader.train.mapper.instance_mask_format=polygon".split(),
    ]
    printed = run(*words, *keys)
    weights = torch.load("out/model_final.pth")["model"]
    assert weights["roi_heads.box_predictor.cls_score.weight"].shape[0] == 3, "it does not follow the data"
    assert "Average Precision" in printed

    for name in ("skiers_train", "skiers_val"):
        DatasetCatalog.remove(name)
        MetadataCatalog.pop(name)
    # Its checkpoint holds what is needed, too, and where the data are; so does its folder.
    printed = run("eval", "out/model_final.pth", "--num-gpus", 0, "--output", "evaluated")
    assert "Average Precision" in printed
    DatasetCatalog.remove("skiers_val")
    MetadataCatalog.pop("skiers_val")
    assert "| bbox | out |" in run("compare", "out", "evaluated", "--samples", 5)

    assert Path("out/config.yaml").read_text().count("max_iter: 1\n") == 1
    assert not list(Path("out").glob("*.pkl")), "the config was written with what was built from it"

    # Data in which the classes have each other's names.
    annotations = Path("skis/annotations.json")
    content = json.loads(annotations.read_text())
    content["categories"][0]["name"], content["categories"][1]["name"] = "sledge", "skier"
    Path("skis/swapped.json").write_text(json.dumps(content))
    Path("skis/swapped.yaml").write_text("val: [swapped.json, .]\n")
    words_of_eval = ["eval", "out/model_final.pth", "data=skis/swapped.yaml", "--num-gpus", 0]
    assert "the classes in another order" in run(*words_of_eval, code=2)

    # Without a set to evaluate on; off a terminal, where there is nothing to view.
    Path(data_file).write_text("name: alone\ntrain: [annotations.json, .]\n")
    assert "Average Precision" not in run(*words[:-1], "alone", "--no-view", *keys)
    assert torch.load("alone/model_final.pth")["iteration"] == 0


@pytest.mark.parametrize(
    "words, expected",
    [
        (["train"], "there is no model. `mrcnn-ext zoo list` has the names"),
        (["train", "model=quickstart", "--config-file", "a.yaml"], "give one of them"),
        (["train", "model=mask_rcn_R50_FPN"], "did you mean mask_rcnn_R_50_FPN"),
        (["train", "model=quickstart", "--resum"], r"No such option '--resum'. Did you mean '--resume'\?"),
        (["train", "model=quickstart", "data=a.yaml", "data=b.yaml"], "data= is given twice"),
        (["train", "model=quickstart", "data=scenes_easi"], "data=scenes_easi: .* did you mean scenes_easy"),
        (["train", "model=quickstart", "data=none.yaml"], "data file none.yaml: there is no such file"),
        (["train", "model=quickstart", "data="], "data= has no value"),
        (["train", "model=quickstart", "dat=scenes"], "'dat=scenes' is neither .*did you mean data"),
        (["train", "model=quickstart", "SOLVER.MAX_ITER"], "'SOLVER.MAX_ITER' at the end .* has no value"),
        (["train", "model=quickstart", "SOLVER.MAX_ITR", "3"], "did you mean SOLVER.MAX_ITER"),
        (["train", "model=quickstart.py", "SOLVER.MAX_ITER", "3"], "of a LazyConfig are given as key=value"),
        (["train", "model=quickstart", "weights=none.pth"], "weights file not found: none.pth"),
        (["train", "model=quickstart", "weights=quickstart"], "no trained weights for quickstart.yaml"),
        (["eval", "none.pth", "data=scenes"], "weights file not found: none.pth"),
        (
            ["eval", "mask_rcnn_R_50_FPN"],
            "no trained weights for COCO-InstanceSegmentation/mask_rcnn_R_50_FPN",
        ),
    ],
)
def test_what_is_wrong_is_one_message_and_exit_code_2(run, words, expected):
    assert re.search(expected, run(*words, code=2), re.DOTALL)


def test_words():
    import click

    from mrcnn_ext.cli.arguments import read_data, split_words, yaml_options
    from mrcnn_ext.cli.train import command

    context = click.Context(command)
    typed = ["SOLVER.GAMMA", "-0.1", "data=a=b", "MODEL.WEIGHTS", "data=x", "A.B=c=d", "MODEL.DEVICE=cpu"]
    own, others = split_words(context, typed, ("data", "model"))
    assert own == {"data": "a=b"}
    expected = ["SOLVER.GAMMA", "-0.1", "MODEL.WEIGHTS", "data=x", "A.B", "c=d", "MODEL.DEVICE", "cpu"]
    assert yaml_options(others) == expected
    assert read_data("coco", of_people=False) == ([], ("coco_2017_train",), ("coco_2017_val",))
    assert read_data("COCO", of_people=True)[1:] == (
        ("keypoints_coco_2017_train",),
        ("keypoints_coco_2017_val",),
    )
    assert read_data("cityscapes", False)[2] == ("cityscapes_fine_instance_seg_val",)
    assert read_data("scenes_person_val", False, evaluate=True) == ([], (), ("scenes_person_val",))


def _described(path, classes):
    """A small checkpoint that has not been trained, of a model with these classes; returns its config."""
    from mrcnn_ext.engine import Trainer, load_config
    from mrcnn_ext.engine.description import describe

    name = f"described_{'_'.join(classes)}"
    MetadataCatalog.get(name).set(thing_classes=classes)
    opts = ["DATASETS.TRAIN", (name,), "DATASETS.TEST", (), "MODEL.DEVICE", "cpu"]
    opts += ["OUTPUT_DIR", str(path.parent), "MODEL.ROI_HEADS.NUM_CLASSES", len(classes), *SMALL]
    cfg = load_config(find_config("quickstart"), opts)
    about = describe(cfg)
    model = Trainer.build_model(cfg)
    path.parent.mkdir(exist_ok=True)
    torch.save({"model": model.state_dict(), "about": about}, path)
    MetadataCatalog.pop(name)
    return cfg


@pytest.mark.parametrize(
    "classes, expected",
    [
        (
            ["sledge", "skier"],
            "the classes in another order than .*: 2 .skier, sledge.; .* 2 .sledge, skier.",
        ),
        (["skier"], "other classes than the checkpoint .*: 2 .skier, sledge.; the checkpoint 1 .skier."),
        (["boat", "sledge"], "other classes than the checkpoint"),
    ],
)
def test_a_checkpoint_is_evaluated_on_its_own_classes(run, data_file, tmp_path, classes, expected):
    _described(tmp_path / "out" / "model_0.pth", classes)
    words = ["eval", "out/model_0.pth", f"data={data_file}", "--num-gpus", 0]
    assert re.search(expected, run(*words, code=2))
    assert not (tmp_path / "out" / "config.yaml").exists(), "a refused evaluation has left its config"


def test_names_are_compared_with_a_config_file_too(run, data_file, tmp_path):
    cfg = _described(tmp_path / "out" / "model_0.pth", ["sledge", "skier"])
    (tmp_path / "model.yaml").write_text(cfg.dump())
    words = ["eval", "out/model_0.pth", "--config-file", "model.yaml", f"data={data_file}", "--num-gpus", 0]
    assert "the classes in another order" in run(*words, code=2)


def test_random_heads_do_not_predict(tmp_path):
    from mrcnn_ext.engine import Predictor
    from mrcnn_ext.engine.errors import UserError

    cfg = _described(tmp_path / "out" / "model_0.pth", ["a", "b"])
    cfg.MODEL.WEIGHTS = str(tmp_path / "out" / "model_0.pth")
    cfg.DATASETS.TRAIN = ()
    Predictor(cfg)
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 3
    with pytest.raises(
        UserError, match=r"with 6 random tensors \(.*cls_score.weight is \(3, .* \(4, .*in the model"
    ):
        Predictor(cfg)
    cfg.MODEL.ALLOW_PARTIAL_WEIGHTS = True
    Predictor(cfg)


def test_what_a_training_has_written_stays(run, data_file, tmp_path):
    _described(tmp_path / "out" / "model_final.pth", ["skier", "sledge"])
    config = tmp_path / "out" / "config.yaml"
    config.write_text("of the training")
    run("eval", "out/model_final.pth", f"data={data_file}", "--num-gpus", 0, "TEST.REPORT", "True")
    assert config.read_text() == "of the training"
    assert [path.name for path in config.parent.glob("*.html")] == ["report_skiers_val_eval.html"]

    words = ["train", f"data={data_file}", "--num-gpus", 0, "SOLVER.MAX_ITER", 1]
    assert "would replace the weights that it starts from" in run(
        *words, "model=out/model_final.pth", "output=out", code=2
    )
    others = [*words, "model=quickstart", *SMALL, "--output", "out"]
    assert "out holds a finished training: give another" in run(*others, code=2)
    refused = [*others, "--overwrite", "MODEL.ROI_HEADS.NUM_CLASSES", 5]
    assert "has 2 classes" in run(*refused, code=2)
    assert config.read_text() == "of the training"
    run(*others, "--overwrite")
    assert "MAX_ITER: 1\n" in config.read_text()


def test_a_keypoint_model_is_evaluated_on_keypoints(run, data_file, tmp_path):
    words = ["eval", "out/model_0.pth", f"data={data_file}", "--num-gpus", 0, "MODEL.KEYPOINT_ON", "True"]
    _described(tmp_path / "out" / "model_0.pth", ["skier", "sledge"])
    assert "a model with keypoints needs keypoint_names" in run(*words, code=2)
