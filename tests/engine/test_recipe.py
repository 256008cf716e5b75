"""Schedule, learning rate, image sizes and anchors by the data."""

import dataclasses
import sys
from argparse import Namespace

import numpy as np
import pytest
import yaml

pytest.importorskip("detectron2")

import torch
from detectron2.config import LazyConfig, instantiate
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.structures import Boxes, BoxMode, pairwise_iou
from omegaconf import OmegaConf

from mrcnn_ext.config_files import get_config_file
from mrcnn_ext.data.box_statistics import anchor_overlaps, box_statistics, common_ratios
from mrcnn_ext.engine.errors import UserError
from mrcnn_ext.engine.lazy import load_lazy_config
from mrcnn_ext.engine.recipe import Settings, choose
from mrcnn_ext.engine.recipe_config import apply_recipe
from mrcnn_ext.engine.recipe_lazy import apply_lazy_recipe
from mrcnn_ext.engine.setup import load_config, setup

pytestmark = pytest.mark.detectron2

NAME = "recipe_test"
FPN = "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN"
USUAL = Settings(
    batch_size=16,
    max_iter=160000,
    warmup=1000,
    steps=(120000,),
    learning_rate=0.02,
    sqrt_scaling=False,
    train_sizes=(640, 800),
    max_train_size=1333,
    test_size=800,
    max_test_size=1333,
    anchor_sizes=[[32], [64], [128], [256], [512]],
    anchor_ratios=[[0.5, 1.0, 2.0]],
    strides=[4, 8, 16, 32, 64],
)


def records(number=300, size=(480, 640), side=100.0, ratio=1.0, seed=0, crowds=0):
    """Images with four objects of about the given root of the area and height over width."""
    rng = np.random.default_rng(seed)
    found = []
    for image in range(number):
        annotations = []
        for k in range(4 + crowds):
            scale = side * 2 ** rng.uniform(-1, 1)
            own = (ratio * 2 ** rng.uniform(-1, 1)) ** 0.5
            w, h = scale / own, scale * own
            w, h = min(w, size[1] - 2.0), min(h, size[0] - 2.0)
            x, y = (float(rng.uniform(0, 1) * (size[i] - v)) for i, v in ((1, w), (0, h)))
            box = [x, y, w, h] if k < 4 else [0, 0, 1, 1]
            annotations.append(
                {"bbox": box, "bbox_mode": BoxMode.XYWH_ABS, "category_id": 0, "iscrowd": int(k >= 4)}
            )
        found.append(
            {
                "file_name": f"{image}.png",
                "image_id": image,
                "height": size[0],
                "width": size[1],
                "annotations": annotations,
            }
        )
    return found


def statistics(**options):
    return box_statistics(records(**options), lambda annotation: annotation["bbox"])


def chosen(set_by_user=None, usual=USUAL, **options):
    choices = choose(statistics(**options), usual, {"batch_size": 16, **(set_by_user or {})})
    return {choice.name: choice for choice in choices}


def test_overlap_with_anchors_is_that_of_detectron2s_anchors():
    sizes, ratios, strides = [[20, 30], [50, 70]], [[0.5, 1.3]], [8, 16]
    anchors = DefaultAnchorGenerator(sizes=sizes, aspect_ratios=ratios, strides=strides, offset=0.0)
    anchors = Boxes.cat(anchors([torch.zeros(1, 1, 400 // stride, 400 // stride) for stride in strides]))
    rng = np.random.default_rng(0)
    boxes = np.concatenate([rng.uniform(100, 200, (50, 2)), rng.uniform(10, 90, (50, 2))], 1)
    corners = Boxes(torch.from_numpy(np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], 1)).float())
    expected = pairwise_iou(corners, anchors).max(1).values.numpy()
    assert anchor_overlaps(boxes, sizes, ratios, strides) == pytest.approx(expected, abs=1e-4)


def test_common_ratios():
    rng = np.random.default_rng(0)
    ratios = np.concatenate([center * np.exp(rng.normal(0, 0.05, 100)) for center in (0.2, 1, 4)])
    boxes = np.stack([ratios * 0, ratios * 0, 10 / ratios**0.5, 10 * ratios**0.5], 1)
    assert common_ratios(boxes, 3) == pytest.approx([0.2, 1, 4], rel=0.05)
    assert common_ratios(boxes[:1], 3) == [pytest.approx(ratios[0], rel=0.05)]


def test_statistics_count_what_is_trained_on():
    data = statistics(number=5, crowds=2)
    assert (data.num_images, data.num_boxes, data.most_per_image) == (5, 20, 4)
    empty = [*records(number=5), {"height": 9, "width": 9, "annotations": []}]
    assert box_statistics(empty, lambda a: a["bbox"]).num_images == 5
    assert box_statistics(empty, lambda a: a["bbox"], with_empty=True).num_images == 6
    many = box_statistics(records(number=50), lambda a: a["bbox"], max_boxes=30)
    assert len(many.boxes) == len(many.sizes) == 30 and many.num_boxes == 200


def test_usual_data_keep_usual_anchors_and_sizes():
    choices = chosen()
    for name in ("anchor_sizes", "anchor_ratios", "train_sizes", "max_train_size", "test_size"):
        assert not choices[name].changed, choices[name]
        assert choices[name].value == getattr(USUAL, name)


def test_small_objects_in_large_images_get_larger_images_and_smaller_anchors():
    choices = chosen(size=(1500, 2000), side=12)
    assert choices["train_sizes"].value == (1280, 1600) and choices["max_train_size"].value == 2666
    assert choices["test_size"].value == 1600
    assert "a tenth of the objects would be under 4 px" in choices["train_sizes"].why
    assert "not more than 2 times" in choices["train_sizes"].why
    assert max(choices["anchor_sizes"].value)[0] < 512 and min(choices["anchor_sizes"].value)[0] < 24
    data = statistics(size=(1500, 2000), side=12)
    boxes = data.boxes * 1600 / 1500
    fit = [
        anchor_overlaps(boxes, sizes, USUAL.anchor_ratios, USUAL.strides).mean()
        for sizes in (USUAL.anchor_sizes, choices["anchor_sizes"].value)
    ]
    assert fit[1] > fit[0] + 0.02
    assert f"is {fit[1]:.2f} ({fit[0]:.2f} with the config's)" in choices["anchor_sizes"].why


def test_images_are_not_enlarged_without_end():
    choices = chosen(size=(400, 400), side=5)
    assert choices["train_sizes"].value == USUAL.train_sizes, "they are enlarged twice already"
    assert chosen(size=(100, 100), side=60)["train_sizes"].value == (160, 192), "eight times, for nothing"


def test_elongated_objects_get_their_ratios():
    choices = chosen(ratio=0.1, size=(480, 900))
    ratios = choices["anchor_ratios"].value
    assert len(ratios) == 1 and len(ratios[0]) == 3 and max(ratios[0]) < 0.4
    mixed = records(ratio=0.1, size=(800, 800), side=80) + records(ratio=10, size=(800, 800), side=80)
    mixed += records(size=(800, 800), side=80)
    data = box_statistics(mixed, lambda annotation: annotation["bbox"])
    (ratios,) = next(c for c in choose(data, USUAL, {"batch_size": 16}) if c.name == "anchor_ratios").value
    assert ratios[0] < 0.2 and ratios[-1] > 5


def test_schedule_and_rate_follow_images_and_batch():
    choices = chosen({"batch_size": 4}, number=1000)
    assert choices["learning_rate"].value == 0.005
    assert choices["max_iter"].value == 25000 and choices["steps"].value == (18750,)
    assert choices["warmup"].value == 1000
    assert "100 passes over 1000 images in batches of 4" in choices["max_iter"].why
    few = chosen({"batch_size": 2}, number=8)
    assert few["max_iter"].value == 500 and few["warmup"].value == 50
    assert few["learning_rate"].value == 0.0025
    adam = chosen({"batch_size": 4}, dataclasses.replace(USUAL, learning_rate=1e-4, sqrt_scaling=True))
    assert adam["learning_rate"].value == 5e-5
    coco = dataclasses.replace(statistics(), num_images=117266)
    assert next(c.value for c in choose(coco, USUAL, {"batch_size": 16}) if c.name == "max_iter") == 88000


def test_what_the_user_has_set_stays_and_is_told():
    choices = chosen(
        {"max_iter": 900, "anchor_sizes": [[7], [14], [28], [56], [112]]}, size=(1500, 2000), side=12
    )
    assert choices["max_iter"].said and choices["max_iter"].value == 900 and choices["steps"].value == (675,)
    assert "as you have set it; the data say 1900: " in choices["max_iter"].why
    assert choices["anchor_sizes"].value == [[7], [14], [28], [56], [112]]


def test_without_objects_there_is_no_recipe():
    with pytest.raises(ValueError, match="no recipe for data without objects"):
        choose(box_statistics([], None), USUAL, {})


@pytest.fixture
def tiny_objects():
    DatasetCatalog.register(NAME, lambda: records(size=(1500, 2000), side=12))
    MetadataCatalog.get(NAME).set(thing_classes=["seed"])
    yield
    DatasetCatalog.remove(NAME)
    MetadataCatalog.remove(NAME)


@pytest.fixture
def user_file(tmp_path, tiny_objects):
    path = tmp_path / "mine.yaml"
    content = {
        "_BASE_": get_config_file(f"{FPN}.yaml"),
        "DATASETS": {"TRAIN": [NAME], "TEST": [NAME]},
        "MODEL": {"DEVICE": "cpu"},
        "INPUT": {"MAX_SIZE_TRAIN": 2000},
        "OUTPUT_DIR": str(tmp_path / "out"),
    }
    path.write_text(yaml.safe_dump(content))
    return str(path)


def test_yaml(user_file, tmp_path):
    opts = ["SOLVER.IMS_PER_BATCH", "2", "SOLVER.WARMUP_ITERS", "1000"]
    args = Namespace(
        config_file=user_file, opts=opts, recipe="auto", num_gpus=0, eval_only=False, resume=False
    )
    cfg = setup(args)
    told = (tmp_path / "out" / "log.txt").read_text()
    assert cfg.SOLVER.BASE_LR == 0.0025 and cfg.INPUT.MIN_SIZE_TRAIN == (1600,)
    assert cfg.SOLVER.MAX_ITER == 15000 and cfg.SOLVER.STEPS == (11250,)
    assert cfg.INPUT.MAX_SIZE_TRAIN == 2000 and cfg.SOLVER.WARMUP_ITERS == 1000
    for line in (
        "SOLVER.MAX_ITER 15000 (was 160000): 100 passes over 300 images in batches of 2",
        "SOLVER.BASE_LR 0.0025 (was 0.02): 0.02 is for batches of 16, in proportion to the batch size",
        "SOLVER.WARMUP_ITERS 1000: as you have set it",
        "INPUT.MAX_SIZE_TRAIN 2000: as you have set it; the data say 2666",
    ):
        assert line in told
    written = tmp_path / "out" / "recipe.yaml"
    assert "# SOLVER.MAX_ITER 15000 (was 160000): 100 passes" in written.read_text()
    again = load_config(str(written), ["DATASETS.TRAIN", (NAME,)])
    for key in ("SOLVER", "INPUT"):
        ours, expected = again[key].clone(), cfg[key]
        ours.IMS_PER_BATCH = expected.get("IMS_PER_BATCH") if key == "SOLVER" else None
        if key == "INPUT":
            del ours["IMS_PER_BATCH"]
        assert ours == expected
    assert again.MODEL.ANCHOR_GENERATOR == cfg.MODEL.ANCHOR_GENERATOR


def test_yaml_without_a_rate_takes_the_published_one(tiny_objects):
    opts = ["DATASETS.TRAIN", (NAME,), "SOLVER.IMS_PER_BATCH", 8]
    cfg = load_config("", opts)
    apply_recipe(cfg, "", opts)
    assert cfg.SOLVER.BASE_LR == 0.01
    cfg = load_config("", [*opts, "SOLVER.OPTIMIZER", "AdamW", "INPUT.LSJ.ENABLED", True])
    recipe = apply_recipe(cfg, "", [*opts, "INPUT.LSJ.ENABLED", True])
    assert cfg.SOLVER.BASE_LR == pytest.approx(7.07e-5)
    assert "INPUT.MIN_SIZE_TRAIN" not in str(recipe), "large-scale jitter has its own"


def test_errors_name_the_option(tiny_objects):
    with pytest.raises(UserError, match="--recipe needs training data"):
        apply_recipe(load_config(""), "")
    with pytest.raises(UserError, match="'nowhere' is not registered"):
        apply_recipe(load_config("", ["DATASETS.TRAIN", ("nowhere",)]), "")
    args = Namespace(config_file="", opts=["MODEL.WEIGHTS", "x.pth"], recipe="auto", eval_only=True)
    with pytest.raises(UserError, match="--recipe is for a config file"):
        setup(args)


def test_lazy_config(tiny_objects, tmp_path):
    file = get_config_file(f"{FPN}.py")
    overrides = [f"dataloader.train.dataset.names={NAME}", "dataloader.train.total_batch_size=2"]
    overrides += ["dataloader.train.mapper.augmentations.0.max_size=2000"]
    cfg = load_lazy_config(file, overrides)
    recipe = apply_lazy_recipe(cfg, file, overrides)
    assert cfg.train.max_iter == 15000 and cfg.optimizer.lr == 0.0025
    assert cfg.lr_multiplier.warmup_length == pytest.approx(1000 / 15000)
    resize = cfg.dataloader.train.mapper.augmentations[0]
    assert resize.short_edge_length == (1600,) and resize.max_size == 2000
    assert cfg.dataloader.test.mapper.augmentations[0].short_edge_length == 1600
    anchors = cfg.model.proposal_generator.anchor_generator
    assert anchors.sizes[0][0] < 24
    assert "max_size 2000: as you have set it; the data say 2666" in str(recipe)
    assert "optimizer.lr 0.0025 (was 0.02): 0.02 is for batches of 16" in str(recipe)
    recipe.tell_and_write(str(tmp_path))
    again = LazyConfig.load(str(tmp_path / "recipe.py"))
    assert again.train.max_iter == 15000 and set(again) == set(LazyConfig.load(file))
    assert OmegaConf.to_container(again.dataloader.train.mapper.augmentations[0])["short_edge_length"] == [
        1600
    ]
    assert again.model.proposal_generator.anchor_generator.sizes == anchors.sizes
    assert instantiate(anchors).num_anchors == [3] * 5


def test_a_lazy_config_of_the_users_keeps_what_is_not_usual(tiny_objects, tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "from mrcnn_ext.model_zoo import get_config\n"
        f"_cfg = get_config({FPN!r} + '.py')\n"
        "dataloader, lr_multiplier, model = _cfg.dataloader, _cfg.lr_multiplier, _cfg.model\n"
        "optimizer, train = _cfg.optimizer, _cfg.train\n"
        "optimizer.lr = 0.003\n"
        "dataloader.train.total_batch_size = 4\n"
        f"dataloader.train.dataset.names = {NAME!r}\n"
    )
    cfg = load_lazy_config(str(file))
    recipe = str(apply_lazy_recipe(cfg, str(file)))
    assert "optimizer.lr 0.003: as you have set it; the data say 0.005" in recipe
    assert cfg.optimizer.lr == 0.003 and cfg.train.max_iter == 7500


def test_the_train_command_hands_it_on(user_file, monkeypatch):
    from click.testing import CliRunner

    from mrcnn_ext.cli.train import command

    given = []
    launch = sys.modules["mrcnn_ext.engine.launch"]  # the package has a function of that name
    monkeypatch.setattr(launch, "run", lambda main, args: given.append(args))
    done = CliRunner().invoke(command, ["--config-file", user_file, "--recipe", "auto", "--num-gpus", "0"])
    assert done.exit_code == 0, done.output
    assert given[0].recipe == "auto"
    assert setup(given[0]).SOLVER.MAX_ITER == 1900


def test_few_objects_change_neither_sizes_nor_anchors():
    few, enough = (chosen(number=images, side=8) for images in (10, 30))  # of 4 objects each
    for name in ("train_sizes", "test_size", "anchor_sizes", "anchor_ratios"):
        assert not few[name].changed and few[name].why == (
            "40 objects are too few to choose by, of which there should be 50"
        )
    assert enough["train_sizes"].changed or enough["anchor_sizes"].changed
