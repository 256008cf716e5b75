"""Test-time augmentation of keypoints, by hand for one mirrored copy."""

import pytest
import torch

pytest.importorskip("detectron2")
from detectron2.data import MetadataCatalog
from detectron2.data.transforms import HFlipTransform, NoOpTransform, TransformList
from detectron2.modeling import GeneralizedRCNNWithTTA as StockTTA
from detectron2.modeling import build_model
from detectron2.structures import Instances

from mrcnn_ext import accelerate
from mrcnn_ext.modeling import GeneralizedRCNNWithTTA

pytestmark = pytest.mark.detectron2

PAIRS = [1, 0, *range(2, 17)]  # the first two change places in a mirror
TTA = ["TEST.AUG.MIN_SIZES", "(64, 96)", "TEST.AUG.MAX_SIZE", "160"]
BOXES = [[4, 4, 40, 60], [30, 10, 76, 50]]
HEADS = {
    "stock": [],
    "ours": ["ROI_HEADS.NAME", "FusedROIHeads", "ROI_KEYPOINT_HEAD.NAME", "HeatmapKeypointHead"],
    "SimCC, enlarged, by OKS": [
        *["ROI_HEADS.NAME", "FusedROIHeads", "ROI_KEYPOINT_HEAD.NAME", "SimCCKeypointHead"],
        *["ROI_KEYPOINT_HEAD.BOX_SCALE", "1.25", "ROI_KEYPOINT_HEAD.DECODING", "oks"],
    ],
}


@pytest.fixture
def make(tiny_cfg):
    def make(heads="ours", *opts):
        keys = [f"MODEL.{x}" if i % 2 == 0 else x for i, x in enumerate(HEADS[heads])]
        cfg = tiny_cfg(*keys, *TTA, *opts)
        torch.manual_seed(0)
        return cfg, build_model(cfg).eval()

    return make


def infer(model, batch):
    with torch.no_grad():
        return model([{k: v for k, v in item.items() if k != "instances"} for item in batch])


@pytest.mark.parametrize("fast", [False, True], ids=["", "accelerated"])
@pytest.mark.parametrize("heads", HEADS)
def test_boxes_masks_and_keypoints(make, make_batch, heads, fast):
    cfg, model = make(heads)
    model = accelerate(model, bf16=False) if fast else model
    batch = make_batch(BOXES)
    batch[0].update(height=128, width=160)  # of the original image
    (result,) = infer(GeneralizedRCNNWithTTA(cfg, model, keypoint_flip_indices=PAIRS), batch)
    instances = result["instances"]
    N = len(instances)
    assert N > 0 and instances.pred_masks.shape == (N, 128, 160)
    keypoints, boxes = instances.pred_keypoints, instances.pred_boxes.tensor[:, None]
    assert keypoints.shape == (N, 17, 3) and keypoints.isfinite().all()
    margin = 0.125 * (boxes[..., 2:] - boxes[..., :2]) + 2 if "enlarged" in heads else 1
    assert (keypoints[..., :2] > boxes[..., :2] - margin).all()
    assert (keypoints[..., :2] < boxes[..., 2:] + margin).all()
    assert instances.has("keypoint_scores") == ("OKS" in heads)

    cfg.MODEL.KEYPOINT_ON = False
    ours = infer(GeneralizedRCNNWithTTA(cfg, model), batch)[0]["instances"]
    assert torch.equal(ours.pred_masks, instances.pred_masks) and not ours.has("pred_keypoints")
    without = infer(StockTTA(cfg, model), batch)[0]["instances"]  # boxes and masks are detectron2's
    torch.testing.assert_close(without.pred_boxes.tensor, instances.pred_boxes.tensor)
    assert torch.equal(without.pred_masks, instances.pred_masks)


def test_heatmaps_of_a_mirrored_copy_are_mirrored_back(make):
    cfg, model = make()
    augmented = GeneralizedRCNNWithTTA(cfg, model, keypoint_flip_indices=PAIRS)
    heatmaps = torch.randn(2, 17, 56, 56)
    mirrored = heatmaps.flip(dims=[3])[:, PAIRS] + 3  # a constant changes no softmax
    outputs = []
    for maps in (heatmaps, mirrored):
        outputs.append(Instances((64, 80), pred_keypoint_heatmaps=maps))
    merged = augmented._merge_heatmaps(
        outputs, [TransformList([NoOpTransform()]), TransformList([NoOpTransform(), HFlipTransform(80)])]
    )
    expected = heatmaps.flatten(2).softmax(2)
    torch.testing.assert_close(merged.flatten(2).softmax(2), expected)


def test_one_copy_gives_the_models_own_keypoints(make, make_batch):
    cfg, model = make("ours", "TEST.AUG.FLIP", "False", "TEST.AUG.MIN_SIZES", "(64,)")
    batch = make_batch(BOXES)
    (result,) = infer(GeneralizedRCNNWithTTA(cfg, model), batch)  # needs no flip map
    instances = result["instances"]
    given = Instances((64, 80), pred_boxes=instances.pred_boxes, pred_classes=instances.pred_classes)
    with torch.no_grad():
        expected = model.inference(batch, [given], do_postprocess=False)[0]
    torch.testing.assert_close(
        instances.pred_keypoints[..., :2], expected.pred_keypoints[..., :2], rtol=0, atol=1
    )


@pytest.mark.parametrize("keypoints", [True, False])
def test_mask_scores_are_the_mean_over_the_copies(make, make_batch, monkeypatch, keypoints):
    opts = ["MODEL.ROI_MASK_HEAD.NAME", "MaskScoringHead", "MODEL.KEYPOINT_ON", str(keypoints)]
    cfg, model = make("ours", *opts)
    augmented = GeneralizedRCNNWithTTA(cfg, model, keypoint_flip_indices=PAIRS)
    kept = []

    def keep(copies, instances=None, stock=augmented._batch_inference):
        kept.append(stock(copies, instances))
        return kept[-1]

    monkeypatch.setattr(augmented, "_batch_inference", keep)
    instances = infer(augmented, make_batch(BOXES))[0]["instances"]
    copies = kept[-1]
    assert len(copies) == 4 and len(instances) > 0 and instances.has("pred_keypoints") == keypoints
    expected = sum(copy.mask_scores for copy in copies) / 4
    torch.testing.assert_close(instances.mask_scores, expected)


def test_no_detections(make, make_batch):
    cfg, model = make("ours", "MODEL.ROI_HEADS.SCORE_THRESH_TEST", "1.1")
    augmented = GeneralizedRCNNWithTTA(cfg, model, keypoint_flip_indices=PAIRS)
    instances = infer(augmented, make_batch(BOXES))[0]["instances"]
    assert len(instances) == 0 and instances.pred_keypoints.shape == (0, 17, 3)


def test_keypoints_without_masks(make, make_batch):
    cfg, model = make("ours", "MODEL.MASK_ON", "False")
    augmented = GeneralizedRCNNWithTTA(cfg, model, keypoint_flip_indices=PAIRS)
    instances = infer(augmented, make_batch(BOXES))[0]["instances"]
    assert instances.has("pred_keypoints") and not instances.has("pred_masks")


def test_the_flip_map_is_the_datasets(make):
    names = [f"k{i}" for i in range(17)]
    MetadataCatalog.get("flip_test").set(keypoint_names=names, keypoint_flip_map=[("k0", "k1")])
    try:
        cfg, model = make("ours", "DATASETS.TEST", "('flip_test',)")
        assert GeneralizedRCNNWithTTA(cfg, model).flip_indices == PAIRS
    finally:
        MetadataCatalog.pop("flip_test")


@pytest.mark.parametrize(
    ("indices", "message"),
    [(None, "no dataset of DATASETS.TEST or TRAIN has a keypoint_flip_map"), ([0, 1, 2], "the 17 keypoints")],
)
def test_a_missing_flip_map_is_told(make, indices, message):
    cfg, model = make()
    with pytest.raises(ValueError, match=message):
        GeneralizedRCNNWithTTA(cfg, model, keypoint_flip_indices=indices)
