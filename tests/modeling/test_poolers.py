"""FusedROIPooler against detectron2's ROIPooler, and where it goes further."""

import pytest
import torch
import torchvision

pytest.importorskip("detectron2")
from detectron2.modeling.poolers import ROIPooler
from detectron2.structures import Boxes, RotatedBoxes

from mrcnn_ext.modeling import FusedROIPooler

pytestmark = pytest.mark.detectron2

SCALES = [1 / 4, 1 / 8, 1 / 16, 1 / 32]


def pyramid(levels=4, images=2, channels=3, size=(128, 192)):
    torch.manual_seed(0)
    return [torch.randn(images, channels, size[0] >> k, size[1] >> k) for k in range(2, 2 + levels)]


def boxes(count, size=(128, 192), seed=0):
    """Of every size from a pixel up, some of them outside the image."""
    generator = torch.Generator().manual_seed(seed)
    centers = (torch.rand(count, 2, generator=generator) * 1.4 - 0.2) * torch.tensor([size[1], size[0]])
    sides = 2 ** (torch.rand(count, 2, generator=generator) * 9)
    return Boxes(torch.cat([centers - sides / 2, centers + sides / 2], dim=1))


@pytest.mark.parametrize("pooler_type", ["ROIAlign", "ROIAlignV2", "ROIPool"])
@pytest.mark.parametrize("levels", [1, 2, 4])
@pytest.mark.parametrize("sampling_ratio", [0, 2])
def test_equals_the_stock_pooler(pooler_type, levels, sampling_ratio):
    arguments = (7, SCALES[:levels], sampling_ratio, pooler_type)
    features, rois = pyramid(levels), [boxes(40), boxes(17, seed=1)]
    outputs, gradients = [], []
    for pooler in (FusedROIPooler(*arguments), ROIPooler(*arguments)):
        inputs = [f.clone().requires_grad_() for f in features]
        outputs.append(pooler(inputs, rois))
        outputs[-1].square().sum().backward()
        gradients.append([x.grad if x.grad is not None else torch.zeros_like(x) for x in inputs])
    torch.testing.assert_close(outputs[0], outputs[1], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-3, atol=1e-3)


def test_equals_the_stock_pooler_with_another_canonical_level():
    arguments = (5, SCALES, 0, "ROIAlignV2", 64, 3)
    features, rois = pyramid(), [boxes(40), boxes(17, seed=1)]
    torch.testing.assert_close(
        FusedROIPooler(*arguments)(features, rois),
        ROIPooler(*arguments)(features, rois),
        rtol=1e-4,
        atol=1e-4,
    )


def test_rotated_boxes_go_to_the_stock_pooler():
    rois = [RotatedBoxes(torch.tensor([[60.0, 60, 50, 30, 20], [90, 40, 100, 60, -45]]))] * 2
    arguments = (7, SCALES, 0, "ROIAlignRotated")
    features = pyramid()
    torch.testing.assert_close(
        FusedROIPooler(*arguments)(features, rois), ROIPooler(*arguments)(features, rois)
    )


@pytest.mark.parametrize("levels", [1, 4])
def test_output_need_not_be_square(levels):
    features, rois = pyramid(levels), [Boxes(torch.tensor([[10.0, 20, 60, 50]])), Boxes(torch.zeros(0, 4))]
    pooled = FusedROIPooler((3, 9), SCALES[:levels], 2, "ROIAlignV2")(features, rois)
    expected = torchvision.ops.roi_align(features[0], [b.tensor for b in rois], (3, 9), 1 / 4, 2, True)
    assert pooled.shape == (1, 3, 3, 9)
    torch.testing.assert_close(pooled, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("levels", [1, 4])
def test_no_boxes_and_no_images(levels):
    pooler = FusedROIPooler((7, 5), SCALES[:levels], 0, "ROIAlignV2")
    features = [f.requires_grad_() for f in pyramid(levels)]
    pooled = pooler(features, [Boxes(torch.zeros(0, 4))] * 2)
    assert pooled.shape == (0, 3, 7, 5)
    pooled.sum().backward()
    assert pooler(pyramid(levels, images=0), []).shape == (0, 3, 7, 5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rois_stay_float32_with_half_features(dtype):
    ramp = torch.arange(128.0).expand(1, 1, 128, 128).contiguous() / 128
    pooler = FusedROIPooler(1, [1 / 4], 2, "ROIAlignV2")
    # In bfloat16 301.3 is 302; the mean of a ramp over a narrow box tells the two apart.
    rois = [Boxes(torch.tensor([[297.3, 20, 301.3, 60]]))]
    pooled = pooler([ramp.to(dtype)], rois)
    assert pooled.dtype == dtype
    assert pooled.item() == pytest.approx(pooler([ramp], rois).item(), abs=2**-8)
    assert pooler([ramp * 1000], rois).item() == pytest.approx((299.3 / 4 - 0.5) / 128 * 1000, rel=1e-4)


@pytest.mark.parametrize(
    "pooler_type, expected",
    [
        ("ROIAlignMax", 1.875 / 4),  # [0.75, 2.25] with half-pixel centres: samples at 1.125 and 1.875
        ("ROIWarpAvg", 2.5 / 4),  # rounded to the cells 1 to 3, [1, 4]: samples at 1.75 and 3.25
        ("ROIWarpMax", 3.25 / 4),
        ("PrROIPool", 1.5 / 4),  # mean over [0.75, 2.25]
    ],
)
def test_new_types_differ_as_their_definitions_say(pooler_type, expected):
    """One bin with two samples per axis, a ramp that is x / 4 at cell x, a RoI over [1.25, 2.75] cells."""
    ramp = (torch.arange(8.0) / 4).expand(1, 1, 8, 8).contiguous()
    rois = [Boxes(torch.tensor([[1.25, 1.25, 2.75, 2.75]]))]
    assert FusedROIPooler(1, [1.0], 2, pooler_type)([ramp], rois).item() == pytest.approx(expected)


def test_scripts_and_traces():
    pooler = FusedROIPooler((7, 5), SCALES, 0, "ROIAlignV2")
    features, rois = pyramid(), [boxes(5), boxes(3)]
    expected = pooler(features, rois)
    torch.testing.assert_close(torch.jit.script(pooler)(features, rois), expected)

    class Traced(torch.nn.Module):
        def forward(self, features, first, second):
            return pooler(features, [Boxes(first), Boxes(second)])

    traced = torch.jit.trace(Traced(), (features, rois[0].tensor, rois[1].tensor), check_trace=False)
    more = [boxes(9, seed=2), boxes(4, seed=3)]
    torch.testing.assert_close(traced(features, more[0].tensor, more[1].tensor), pooler(features, more))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"pooler_type": "ROIAlignV3"}, "unknown pooler type 'ROIAlignV3'; there are ROIAlign, ROIAlignV2"),
        ({"scales": [1 / 4, 1 / 16]}, "consecutive powers of two"),
        ({"scales": [1 / 8, 1 / 4]}, "consecutive powers of two"),
        ({"scales": []}, "consecutive powers of two"),
        ({"output_size": (7, 0)}, "output_size must be one or two positive integers"),
        ({"output_size": (7, 7, 7)}, "output_size must be one or two positive integers"),
        ({"canonical_box_size": 0}, "canonical_box_size must be positive"),
    ],
)
def test_bad_arguments(changes, message):
    arguments = {
        "output_size": 7,
        "scales": SCALES,
        "sampling_ratio": 0,
        "pooler_type": "ROIAlignV2",
        **changes,
    }
    with pytest.raises(ValueError, match=message):
        FusedROIPooler(**arguments)


def test_wrong_number_of_maps_or_images():
    pooler = FusedROIPooler(7, SCALES, 0, "ROIAlignV2")
    with pytest.raises(AssertionError, match="one feature map for each of its scales"):
        pooler(pyramid(2), [boxes(1), boxes(1)])
    with pytest.raises(AssertionError, match="one Boxes for each image"):
        pooler(pyramid(4), [boxes(1)])
