"""Our heads that are ahead of stock's in tools/ablations.py."""

from mrcnn_ext.modeling import BoundaryMaskHead


def with_boundary(model):
    """`BoundaryMaskHead` with batch normalisation, on RoIs of 28x28."""
    heads = model.roi_heads
    heads.mask_pooler.output_size = 28
    heads.mask_head._target_ = BoundaryMaskHead
    heads.mask_head.input_shape.height = heads.mask_head.input_shape.width = 28
    heads.mask_head.conv_norm = "BN"


def with_wasp(model):
    """`HeatmapKeypointHead` with batch normalisation and a waterfall of atrous convolutions, on RoIs 1.4 times as large
    as the boxes, decoded by expected OKS."""
    heads = model.roi_heads
    heads.keypoint_box_scale = 1.4
    heads.keypoint_head.update(conv_norm="BN", decoding="oks", wasp_rates=[1, 2, 4, 6])
