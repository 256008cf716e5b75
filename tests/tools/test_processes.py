"""The same global batch gives the same training, whatever the number of processes that share it."""

import json

import pytest

pytest.importorskip("detectron2")

import torch
import yaml

pytestmark = pytest.mark.detectron2

DATASET = "keypoints_coco_2017_val_100"
ITERATIONS = 4


@pytest.fixture(scope="module")
def keypoint_datasets(tmp_path_factory, write_datasets):
    """Images with one person each; every other one has no visible keypoint, so that the processes' counts differ."""
    root = write_datasets(tmp_path_factory.mktemp("keypoint_datasets"))
    annotations = root / "coco" / "annotations"
    content = json.loads((annotations / "instances_val2017_100.json").read_text())
    content["categories"] = [dict(id=1, name="person", keypoints=[f"k{i}" for i in range(17)], skeleton=[])]
    for annotation in content["annotations"]:
        x, y, w, h = annotation["bbox"]
        visible = 2 if annotation["image_id"] % 2 else 0
        points = [(x + w * (i % 5 + 0.5) / 5, y + h * (i // 5 + 0.5) / 5, visible) for i in range(17)]
        points = points if visible else [(0, 0, 0)] * 16 + [(x + 1.0, y + 1.0, 2)]
        annotation["keypoints"] = [value for point in points for value in point]
        annotation["num_keypoints"] = sum(point[2] > 0 for point in points)
    (annotations / "person_keypoints_val2017_100.json").write_text(json.dumps(content))
    return root


@pytest.fixture(scope="module")
def keypoint_config(configs, tmp_path_factory):
    """The tiny model with masks and keypoints, without what depends on chance or process: no statistics of a batch, all
    anchors and proposals, as many of these for every image."""
    with open(configs.yaml) as file:
        config = yaml.safe_load(file)
    model = config["MODEL"]
    model["KEYPOINT_ON"] = True
    model["RESNETS"]["NORM"], model["FPN"]["NORM"] = "FrozenBN", ""
    model["RPN"].update(BATCH_SIZE_PER_IMAGE=10000, POSITIVE_FRACTION=1.0, NMS_THRESH=1.0)
    model["ROI_HEADS"].update(NUM_CLASSES=1, BATCH_SIZE_PER_IMAGE=512, POSITIVE_FRACTION=1.0)
    model["ROI_KEYPOINT_HEAD"] = dict(CONV_DIMS=[8], MIN_KEYPOINTS_PER_IMAGE=1, NUM_KEYPOINTS=17)
    config["DATASETS"] = dict(TRAIN=[DATASET], TEST=[DATASET])
    config["DATALOADER"].update(ASPECT_RATIO_GROUPING=False)
    config["INPUT"].update(RANDOM_FLIP="none")
    config["SOLVER"].update(IMS_PER_BATCH=4, MAX_ITER=ITERATIONS, BASE_LR=0.002)
    config["TEST"] = dict(EVAL_PERIOD=ITERATIONS)
    path = tmp_path_factory.mktemp("keypoint_config") / "keypoints.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


@pytest.fixture(scope="module")
def trained_by(start_here, keypoint_datasets, keypoint_config, tmp_path_factory, read_metrics):
    """Trains with a number of processes, once each: losses of each iteration, AP and weights."""
    runs = {}

    def train(processes):
        if processes not in runs:
            folder = tmp_path_factory.mktemp("run")
            share = ("--num-gpus", 0, "--num-processes", processes) if processes > 1 else ()
            arguments = ("--config-file", keypoint_config, *share, "OUTPUT_DIR", folder)
            run = start_here("train_net", *arguments, datasets=keypoint_datasets)
            run.process.join(200)
            assert run.process.exitcode == 0, run.log.read_text()[-3000:]
            checkpoint = torch.load(folder / "model_final.pth")
            scalars = checkpoint["state"]["scalars"]
            losses = {name: values for name, (_, values) in scalars.items() if "loss" in name}
            (row,) = (row for row in read_metrics(folder) if "keypoints/AP" in row)
            ap = {
                name: value
                for name, value in row.items()
                if name.split("/")[0] in ("bbox", "segm", "keypoints")
            }
            runs[processes] = losses, ap, checkpoint["model"]
        return runs[processes]

    return train


@pytest.mark.parametrize("processes", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_losses_and_ap_do_not_depend_on_the_number_of_processes(trained_by, processes):
    losses, ap, weights = trained_by(processes)
    expected_losses, expected_ap, expected_weights = trained_by(1)
    assert losses.keys() == expected_losses.keys() >= {"loss_keypoint", "loss_mask", "total_loss"}
    for name, values in expected_losses.items():
        assert [iteration for _, iteration in losses[name]] == [iteration for _, iteration in values]
        if name.startswith("val/") or len(values) != ITERATIONS:
            continue
        found, wanted = ([value for value, _ in series] for series in (losses[name], values))
        assert found == pytest.approx(wanted, rel=1e-5, abs=1e-7), name
    assert len(expected_losses["loss_keypoint"]) == ITERATIONS and ap.keys() >= {"keypoints/AP", "bbox/AP"}
    assert ap == pytest.approx(expected_ap, nan_ok=True, abs=1e-9)
    print(processes, ap)
    for name, value in expected_weights.items():
        torch.testing.assert_close(weights[name], value, rtol=1e-4, atol=1e-5)


# As of test_train_net: no statistics of a batch, nothing sampled, as many proposals in each image.
WITHOUT_CHANCE = """
MODEL.RESNETS.NORM FrozenBN MODEL.FPN.NORM FrozenBN INPUT.RANDOM_FLIP none VAL_LOSS.ENABLED False
MODEL.RPN.BATCH_SIZE_PER_IMAGE 100000 MODEL.RPN.NMS_THRESH 1.0 DATALOADER.ASPECT_RATIO_GROUPING False
MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE 100 MODEL.ROI_HEADS.POSITIVE_FRACTION 1.0
SOLVER.IMS_PER_BATCH 4 SOLVER.MAX_ITER 6 SOLVER.BASE_LR 0.0005
""".split()


@pytest.mark.slow
def test_ap_of_a_model_that_finds_things(trained, start_here, datasets, configs, tmp_path, read_metrics):
    """A trained model, trained on by 1, 2 and 4 processes with the same global batch."""
    found = {}
    for processes in (1, 2, 4):
        folder = tmp_path / str(processes)
        share = ("--num-gpus", 0, "--num-processes", processes) if processes > 1 else ()
        options = ("MODEL.WEIGHTS", trained.weights, "OUTPUT_DIR", folder, *WITHOUT_CHANCE)
        run = start_here("train_net", "--config-file", configs.yaml, *share, *options, datasets=datasets)
        run.process.join(150)
        assert run.process.exitcode == 0, run.log.read_text()[-3000:]
        scalars = torch.load(folder / "model_final.pth")["state"]["scalars"]
        losses = {
            name: [value for value, _ in values] for name, (_, values) in scalars.items() if "loss" in name
        }
        (row,) = (row for row in read_metrics(folder) if "segm/AP" in row)
        found[processes] = losses, {name: row[name] for name in row if name.split("/")[0] in ("bbox", "segm")}
    expected_losses, expected_ap = found[1]
    assert expected_ap["bbox/AP"] > 1 and expected_ap["segm/AP"] > 1
    for processes in (2, 4):
        losses, ap = found[processes]
        print(processes, ap)
        for name, values in expected_losses.items():
            assert losses[name] == pytest.approx(values, rel=1e-5, abs=1e-7), name
        assert ap == pytest.approx(expected_ap, nan_ok=True, abs=0.01)
