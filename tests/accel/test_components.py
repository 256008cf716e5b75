"""Our components, timm's backbones and a user's own head through accelerate: what they give without it."""

import copy
import io
import pickle
import threading

import pytest
import torch

pytest.importorskip("detectron2")
from detectron2.layers import Conv2d, get_norm
from detectron2.modeling import build_model
from detectron2.modeling.roi_heads.keypoint_head import ROI_KEYPOINT_HEAD_REGISTRY, BaseKeypointRCNNHead
from detectron2.modeling.roi_heads.mask_head import ROI_MASK_HEAD_REGISTRY, BaseMaskRCNNHead
from detectron2.structures import Instances
from torch import nn
from torch.nn import functional as F

from mrcnn_ext import accelerate
from mrcnn_ext.accel import FusedConv2d, FusedModule, FusedNetwork
from mrcnn_ext.accel.cpu_features import int8_kernels_are_available
from mrcnn_ext.benchmark.model import calibrate

pytestmark = pytest.mark.detectron2

MASK, KEYPOINT = "MODEL.ROI_MASK_HEAD.", "MODEL.ROI_KEYPOINT_HEAD."
HEADS = {
    "fcn": (MASK + "NAME", "FCNMaskHead"),
    "fcn, softmax": (MASK + "NAME", "FCNMaskHead", MASK + "ACTIVATION", "softmax"),
    "fcn, 56": (MASK + "NAME", "FCNMaskHead", MASK + "NUM_DECONV", "2", MASK + "NORM", "BN"),
    "mlp": (MASK + "NAME", "MLPMaskHead", MASK + "FC_DIM", "32"),
    "boundary": (MASK + "NAME", "BoundaryMaskHead", MASK + "POOLER_RESOLUTION", "28"),
    "boundary, 112": (
        MASK + "NAME",
        "BoundaryMaskHead",
        MASK + "POOLER_RESOLUTION",
        "28",
        MASK + "NUM_DECONV",
        "3",
    ),
    "scoring": (
        MASK + "NAME",
        "MaskScoringHead",
        MASK + "MASK_IOU.CONV_DIM",
        "16",
        MASK + "MASK_IOU.FC_DIM",
        "32",
    ),
    "heatmap": (KEYPOINT + "NAME", "HeatmapKeypointHead", KEYPOINT + "NORM", "BN"),
    "heatmap, wasp, oks": (KEYPOINT + "NAME", "HeatmapKeypointHead", KEYPOINT + "WASP_RATES", "[1, 2, 4, 6]")
    + (KEYPOINT + "DECODING", "oks", KEYPOINT + "NORM", "GN", KEYPOINT + "CONV_DIMS", "(32, 32)"),
    "simcc": (KEYPOINT + "NAME", "SimCCKeypointHead", KEYPOINT + "NORM", "BN"),
    "ConvLSTM": (
        KEYPOINT + "NAME",
        "ConvLSTMKeypointHead",
        KEYPOINT + "LSTM_DIM",
        "8",
        KEYPOINT + "NORM",
        "BN",
    ),
    "UniPose-LSTM": (KEYPOINT + "NAME", "UniPoseLSTMKeypointHead", KEYPOINT + "WASP_RATES", "[1, 2]")
    + (KEYPOINT + "LSTM_DIM", "8", KEYPOINT + "LSTM_CONVS", "1"),
    "cascade": (
        "MODEL.ROI_HEADS.NAME",
        "FusedCascadeROIHeads",
        "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG",
        "True",
    ),
}
TIMM = {
    "resnet18": ("MODEL.TIMM.NAME", "resnet18", "MODEL.TIMM.ARGS.channels", "[16, 32, 32, 64]"),
    "regnet": ("MODEL.TIMM.NAME", "regnety_002"),
    "efficientnet": ("MODEL.TIMM.NAME", "test_efficientnet"),
    "convnext": ("MODEL.TIMM.NAME", "test_convnext"),
    "swin": ("MODEL.TIMM.NAME", "swin_tiny_patch4_window7_224"),
}
BOXES = ([4, 4, 40, 60], [30, 10, 76, 50])


@pytest.fixture
def make_model(tiny_cfg, make_batch):
    def make(*opts):
        torch.manual_seed(0)
        cfg = tiny_cfg("MODEL.RPN.POST_NMS_TOPK_TEST", "8")
        if "MODEL.TIMM.NAME" in opts:
            cfg.MODEL.BACKBONE.NAME = "build_timm_fpn_backbone"
            cfg.MODEL.TIMM.ARGS.pop("channels")
        cfg.merge_from_list(list(opts)) if "MODEL.TIMM.ARGS.channels" not in opts else None
        if "MODEL.TIMM.ARGS.channels" in opts:
            cfg.MODEL.TIMM.NAME, cfg.MODEL.TIMM.ARGS.channels = "resnet18", [16, 32, 32, 64]
        if any("swin" in str(opt) for opt in opts):
            for name, value in (("embed_dim", 16), ("depths", (1, 1, 2, 1)), ("strict_img_size", False)):
                cfg.MODEL.TIMM.ARGS[name] = value
        model = build_model(cfg).eval()
        calibrate(model, make_batch(BOXES, size=(128, 128)))
        with torch.no_grad():  # so that masks and scores differ from each other
            for name, value in model.named_parameters():
                if "predictor" in name and value.dim() > 1:
                    value.normal_(std=0.05)
                if name.endswith("mask_iou.predictor.bias"):
                    value.fill_(0.5)
        return model

    return make


def within_boxes(model, batch):
    """What the mask and keypoint heads give for the ground truth boxes."""
    known = Instances((64, 96), pred_boxes=batch[0]["instances"].gt_boxes)
    known.pred_classes = batch[0]["instances"].gt_classes
    known.scores = torch.ones(len(known))
    with torch.no_grad():
        (result,) = model.inference(batch, [copy.deepcopy(known)], do_postprocess=False)
    fields = result.get_fields()
    return {
        name: fields[name]
        for name in ("pred_masks", "mask_scores", "pred_keypoint_heatmaps")
        if name in fields
    }


def assert_close(result, expected, tolerance):
    assert result.keys() == expected.keys() and len(expected) >= 2
    for name, value in expected.items():
        assert result[name].dtype == torch.float32, name
        error = (result[name] - value).abs().max() / value.abs().max()
        assert error < tolerance, (name, error)


@pytest.mark.parametrize("opts", HEADS.values(), ids=HEADS)
def test_heads(make_model, make_batch, opts):
    model, batch = make_model(*opts), make_batch(BOXES, size=(64, 96))
    expected = within_boxes(model, batch)
    exact = accelerate(model, bf16=False)
    assert_close(within_boxes(exact, batch), expected, 1e-4)
    rounded = accelerate(model, bf16=True)
    assert_close(within_boxes(rounded, batch), expected, 0.1)
    for fast in (exact, rounded):
        assert "autocast" not in str(fast.acceleration)
        assert list(fast.state_dict()) == list(model.state_dict())
        assert_everything_is_fused(fast.roi_heads)
    model.load_state_dict(exact.state_dict())


def assert_everything_is_fused(network):
    left = [
        name
        for name, module in network.named_modules()
        if isinstance(module, (nn.Conv2d, nn.Linear, nn.ConvTranspose2d))
        and not isinstance(module, FusedModule)
        and "predictor" not in name
        and "boundary_up"
        not in name  # of boxes in float32, of masks for the predicted class alone; of boundaries only in training
    ]
    assert not left


@pytest.mark.parametrize("opts", TIMM.values(), ids=TIMM)
def test_timm_backbones(make_model, make_batch, opts):
    model, batch = make_model(*opts), make_batch(BOXES, size=(128, 128))
    exact, rounded = accelerate(model, bf16=False), accelerate(model, bf16=True)
    with torch.no_grad():
        images = model.preprocess_image(batch).tensor
        expected = model.backbone(images)
        for fast, tolerance in ((exact, 1e-3), (rounded, 0.1)):
            for name, value in fast.backbone(images).items():
                error = (value.float() - expected[name]).std() / expected[name].std()
                assert error < tolerance, (name, error)
            assert isinstance(fast.backbone.bottom_up, FusedNetwork)
            assert_everything_is_fused(fast.backbone)
    assert list(exact.state_dict()) == list(model.state_dict())


# --- as a user would write them ------------------------------------------------------------------------------


@ROI_MASK_HEAD_REGISTRY.register()
class ResidualMaskHead(BaseMaskRCNNHead):
    """A mask head of somebody else's project: residual units with group normalisation."""

    def __init__(self, cfg, input_shape):
        super().__init__()
        self.units = nn.ModuleList(
            nn.ModuleDict(
                {
                    "first": Conv2d(32, 32, 3, padding=1, norm=nn.BatchNorm2d(32), activation=F.relu),
                    "second": Conv2d(32, 32, 3, padding=1, norm=get_norm("GN", 32)),
                }
            )
            for _ in range(2)
        )
        self.up = nn.ConvTranspose2d(32, 32, 2, stride=2)
        self.masks = nn.Conv2d(32, cfg.MODEL.ROI_HEADS.NUM_CLASSES, 1)

    def layers(self, x):
        for unit in self.units:
            x = F.relu(x + unit["second"](unit["first"](x)))
        return self.masks(F.relu(self.up(x)))


@ROI_KEYPOINT_HEAD_REGISTRY.register()
class ConfidentKeypointHead(BaseKeypointRCNNHead):
    """A keypoint head whose layers torch.fx cannot follow."""

    def __init__(self, cfg, input_shape):
        super().__init__(num_keypoints=17)
        self.conv, self.up = (
            nn.Conv2d(32, 32, 3, padding=1),
            nn.ConvTranspose2d(32, 17, 4, stride=2, padding=1),
        )

    def layers(self, x):
        if len(x) == 0:
            return x.new_zeros(0, 17, 28, 28)
        return self.up(F.relu(self.conv(x)))


def test_heads_of_a_user_are_fused(make_model, make_batch):
    opts = (MASK + "NAME", "ResidualMaskHead", KEYPOINT + "NAME", "ConfidentKeypointHead")
    model, batch = make_model(*opts), make_batch(BOXES, size=(64, 96))
    expected = within_boxes(model, batch)
    fast = accelerate(model, bf16=False)
    assert_close(within_boxes(fast, batch), expected, 1e-4)
    assert_close(within_boxes(accelerate(model, bf16=True), batch), expected, 0.1)
    assert "roi_heads.mask_head" in fast.acceleration.steps["convolutions"]
    assert "2 layers of roi_heads.keypoint_head" in fast.acceleration.steps["convolutions"]
    bf16 = accelerate(model, bf16=True).acceleration.steps["bf16"]
    assert bf16.endswith("by autocast: roi_heads.keypoint_head (2 layers fused)")
    text = str(fast)
    for line in ("(first): FusedConv2d(", "(second): FusedConv2d(", "(up): FusedConvTranspose2d("):
        assert line in text
    # Residual units: the sum is written by the convolution, or after a normalisation that cannot be folded.
    assert isinstance(fast.roi_heads.mask_head.units[0]["second"], FusedConv2d)
    assert list(fast.state_dict()) == list(model.state_dict())


@pytest.mark.skipif(not int8_kernels_are_available(), reason="the compiled operators are not built")
def test_linear_layers_of_timm_transformers_in_int8(make_model, make_batch):
    model, inputs = make_model(*TIMM["swin"]), [make_batch(BOXES, size=(96, 128))]
    fast = accelerate(model, bf16=False, int8=inputs)
    of_body = [name for name in fast.acceleration.int8.layers if name.startswith("backbone.bottom_up.")]
    for part in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"):
        found = [name for name in of_body if name.endswith(part)]
        assert found, part
        assert all("int8 by int8_pointwise_conv" in str(fast.get_submodule(name)) for name in found)
    with torch.no_grad():
        image = model.preprocess_image(inputs[0]).tensor
        expected, found = model.backbone(image), fast.backbone(image)
    for name, value in expected.items():
        error = (found[name] - value).square().mean().sqrt() / value.std()
        assert 1e-4 < error < 0.2, (name, error)


def test_what_is_printed_tells_layers_and_kernels(make_model):
    text = str(accelerate(make_model("MODEL.RESNETS.DEPTH", "18"), bf16=False, winograd="float32"))
    assert (
        "FusedBasicBlock(" in text
        and "FusedStem(" in text
        and "FusedFPN(" in text
        and "FusedRPNHead(" in text
    )
    assert "float32 by winograd_conv3x3, float32" in text and "ResNet(" in text


@pytest.mark.parametrize("bf16", [False, True])
def test_threads_copies_and_pickles(make_model, make_batch, bf16):
    model, batch = (
        make_model(*HEADS["scoring"], *HEADS["heatmap, wasp, oks"]),
        make_batch(BOXES, size=(64, 96)),
    )
    fast = accelerate(model, bf16=bf16)
    expected = within_boxes(fast, batch)
    file = io.BytesIO()
    torch.save(fast, file)
    file.seek(0)
    for other in (
        copy.deepcopy(fast),
        pickle.loads(pickle.dumps(fast)),
        torch.load(file, weights_only=False),
    ):
        results = [None] * 3

        def run(index, other=other, results=results):
            results[index] = within_boxes(other, batch)

        threads = [threading.Thread(target=run, args=(index,)) for index in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for result in results:
            for name, value in expected.items():
                assert torch.equal(result[name], value), name
