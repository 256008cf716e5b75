"""Under torch.use_deterministic_algorithms(True) detectors with FusedROIPooler train, to the same bits every time."""

import pytest
import torch

pytest.importorskip("detectron2")

from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage

from mrcnn_ext.modeling import FusedROIPooler

pytestmark = pytest.mark.detectron2

OURS = ["MODEL.ROI_HEADS.NAME", "FusedROIHeads"]
MODELS = {
    "Faster R-CNN": [*("MODEL.MASK_ON", "False"), *("MODEL.KEYPOINT_ON", "False")],
    "Mask R-CNN": [
        *("MODEL.MASK_ON", "True", "MODEL.KEYPOINT_ON", "False"),
        *("MODEL.ROI_MASK_HEAD.NAME", "FCNMaskHead"),
    ],
    "Keypoint R-CNN": [
        *("MODEL.MASK_ON", "False", "MODEL.KEYPOINT_ON", "True"),
        *("MODEL.ROI_KEYPOINT_HEAD.NAME", "HeatmapKeypointHead"),
    ],
}


@pytest.fixture(
    params=["cpu", pytest.param("cuda", marks=pytest.mark.cuda)] if torch.cuda.is_available() else ["cpu"]
)
def device(request, monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    return request.param


@pytest.fixture
def deterministic():
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("name", MODELS)
def test_two_runs_end_with_the_same_weights(tiny_cfg, make_batch, deterministic, device, name):
    batch = make_batch([[4, 6, 40, 50], [20, 10, 70, 60]], [[10, 10, 30, 44]])

    def train():
        torch.manual_seed(0)
        model = build_model(tiny_cfg(*OURS, *MODELS[name], "MODEL.DEVICE", device))
        assert any(isinstance(module, FusedROIPooler) for module in model.modules())
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
        for _ in range(2):
            with EventStorage():
                losses = model(batch)
            optimizer.zero_grad()
            sum(losses.values()).backward()
            optimizer.step()
        return {key: value.cpu() for key, value in model.state_dict().items()}, losses

    (first, losses), (second, _) = train(), train()
    assert all(torch.isfinite(loss) for loss in losses.values())
    assert all(torch.equal(first[key], second[key]) for key in first)
