"""What torchvision's detectors do differently."""

from mrcnn_ext.modeling import TorchvisionAnchorGenerator


def as_torchvision(model, dataloader):
    """Changes a LazyConfig's Mask or Keypoint R-CNN R-50-FPN, and its data, to torchvision's."""
    model.pixel_mean = [123.675, 116.280, 103.530]
    model.pixel_std = [58.395, 57.120, 57.375]
    model.input_format = "RGB"
    model.backbone.bottom_up.stages.stride_in_1x1 = False
    model.proposal_generator.anchor_generator._target_ = TorchvisionAnchorGenerator
    for name, pooler in model.roi_heads.items():
        if name.endswith("_pooler"):
            pooler.pooler_type = "ROIAlign"
            pooler.sampling_ratio = 2
    dataloader.train.mapper.image_format = "RGB"
    dataloader.test.mapper.image_format = "RGB"
