"""The keypoint and mask losses of several processes that share a batch."""

import pytest
import torch

pytest.importorskip("detectron2")

from detectron2.layers import ShapeSpec
from detectron2.modeling.roi_heads.keypoint_head import KRCNNConvDeconvUpsampleHead
from detectron2.modeling.roi_heads.mask_head import MaskRCNNConvUpsampleHead
from detectron2.utils.events import EventStorage

from mrcnn_ext.layers import MaskIoUNetwork, loss_normalizers
from mrcnn_ext.layers.loss_normalizers import shared_normalizers, total_count
from mrcnn_ext.modeling.keypoint_head import HeatmapKeypointHead, SimCCKeypointHead
from mrcnn_ext.modeling.mask_head import BoundaryMaskHead, MaskScoringHead

pytestmark = pytest.mark.detectron2

SHAPE = ShapeSpec(channels=8, height=14, width=14)
HEADS = {
    "stock": lambda: KRCNNConvDeconvUpsampleHead(
        SHAPE, num_keypoints=17, conv_dims=[8], loss_normalizer="visible"
    ),
    "ours": lambda: HeatmapKeypointHead(SHAPE, num_keypoints=17, conv_dims=[8], loss_normalizer="visible"),
    "smoothed": lambda: HeatmapKeypointHead(
        SHAPE, num_keypoints=17, conv_dims=[8], loss_normalizer="visible", target_sigma=1.0
    ),
    "SimCC": lambda: SimCCKeypointHead(SHAPE, num_keypoints=17, conv_dims=[8], loss_normalizer="visible"),
}

MASK_HEADS = {
    "stock": lambda: MaskRCNNConvUpsampleHead(SHAPE, num_classes=3, conv_dims=[8, 8]),
    "scored boundary": lambda: MaskScoringHead(
        mask_head=BoundaryMaskHead(SHAPE, num_classes=3, conv_dims=[8, 8]),
        mask_iou=MaskIoUNetwork((8, 14, 14), 3, [8], [8]),
    ),
}


@pytest.fixture
def counts(monkeypatch):
    """What each of two processes counts, recorded in the first round and added up in the second."""
    recorded, total = [], []

    def all_reduce(count):
        if total:
            count.fill_(total[0])
        else:
            recorded.append(float(count))

    monkeypatch.setattr(loss_normalizers.dist, "all_reduce", all_reduce)
    return recorded, total


def assert_mean_is_of_the_whole(losses, images, counts, channels=8):
    """Of a dict of losses that features and instances give."""
    x = [torch.randn(len(image), channels, 14, 14, requires_grad=True) for image in images]
    with EventStorage():
        whole = losses(torch.cat(x), images)
        recorded, total = counts
        apart = []
        for _ in range(2):
            with shared_normalizers(2):
                apart = [losses(features, [image]) for features, image in zip(x, images, strict=True)]
            total[:] = [sum(recorded)]
        alone = [losses(features, [image]) for features, image in zip(x, images, strict=True)]
    for name, expected in whole.items():
        mean = sum(process[name] for process in apart) / 2
        torch.testing.assert_close(mean, expected, rtol=1e-5, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")
        wanted = torch.autograd.grad(expected, x, retain_graph=True)
        for found, gradient in zip(torch.autograd.grad(mean, x, retain_graph=True), wanted, strict=True):
            torch.testing.assert_close(found, gradient, rtol=1e-5, atol=1e-7)
        without = sum(process[name] for process in alone) / 2
        assert abs(float(without - expected)) > 1e-5, name  # what it was without


@pytest.mark.parametrize("name", HEADS)
def test_the_mean_over_processes_is_the_loss_of_the_whole_batch(name, proposals, counts):
    torch.manual_seed(0)
    head = HEADS[name]().train()
    images = proposals([[4, 4, 40, 60], [9, 9, 30, 30], [1, 1, 60, 60]], [[8, 8, 70, 30]])
    images[1].gt_keypoints.tensor[0, 3:, 2] = 0  # far fewer visible ones than in the other process
    images[1].gt_keypoints.tensor[0, :3, 2] = 2
    assert_mean_is_of_the_whole(head, images, counts)


@pytest.mark.parametrize("name", MASK_HEADS)
def test_the_mask_losses_are_means_over_the_masks_of_all_processes(name, proposals, counts):
    torch.manual_seed(0)
    head = MASK_HEADS[name]().train()
    images = proposals([[4, 4, 40, 60], [9, 9, 30, 30], [1, 1, 60, 60]], [[8, 8, 70, 30]])
    assert_mean_is_of_the_whole(head, images, counts)


def test_a_process_without_masks(proposals, counts):
    """It counts all the same: the others wait for it."""
    head = MASK_HEADS["stock"]().train()
    (image,) = proposals([[4, 4, 40, 60]])
    with EventStorage(), shared_normalizers(2):
        loss = head(torch.randn(0, 8, 14, 14), [image[:0]])["loss_mask"]
    assert float(loss) == 0 and counts[0] == [0.0]


def test_one_process_counts_alone():
    assert total_count(torch.tensor(7)) == 7
