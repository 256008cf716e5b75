"""The keypoint loss of several processes that share a batch."""

import pytest
import torch

pytest.importorskip("detectron2")

from detectron2.layers import ShapeSpec
from detectron2.modeling.roi_heads.keypoint_head import KRCNNConvDeconvUpsampleHead
from detectron2.utils.events import EventStorage

from mrcnn_ext.layers import loss_normalizers
from mrcnn_ext.layers.loss_normalizers import shared_normalizers, total_count
from mrcnn_ext.modeling.keypoint_head import HeatmapKeypointHead, SimCCKeypointHead

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


@pytest.mark.parametrize("name", HEADS)
def test_the_mean_over_processes_is_the_loss_of_the_whole_batch(name, proposals, counts):
    torch.manual_seed(0)
    head = HEADS[name]().train()
    images = proposals([[4, 4, 40, 60], [9, 9, 30, 30], [1, 1, 60, 60]], [[8, 8, 70, 30]])
    images[1].gt_keypoints.tensor[0, 3:, 2] = 0  # far fewer visible ones than in the other process
    images[1].gt_keypoints.tensor[0, :3, 2] = 2
    x = [torch.randn(len(image), 8, 14, 14, requires_grad=True) for image in images]

    def losses(features, instances):
        return head(features, instances)["loss_keypoint"]

    with EventStorage():
        whole = losses(torch.cat(x), images)
        expected = torch.autograd.grad(whole, x)
        recorded, total = counts
        apart = []
        for _ in range(2):
            with shared_normalizers(2):
                apart = [losses(features, [image]) for features, image in zip(x, images, strict=True)]
            total[:] = [sum(recorded)]
        alone = sum(losses(features, [image]) for features, image in zip(x, images, strict=True)) / 2
    mean = sum(apart) / 2
    torch.testing.assert_close(mean, whole, rtol=1e-5, atol=1e-5)
    for found, wanted in zip(torch.autograd.grad(mean, x), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-7)
    assert abs(float(alone - whole)) > 1e-3  # what it was without


def test_one_process_counts_alone():
    assert total_count(torch.tensor(7)) == 7
