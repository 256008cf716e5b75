# Table 2e: masks by an MLP of three hidden layers.
from detectron2.config import LazyCall as L
from detectron2.layers import ShapeSpec

from mrcnn_ext.modeling import MLPMaskHead

from .mask_rcnn_R_50_FPN import dataloader, lr_multiplier, model, optimizer, train

model.roi_heads.mask_head = L(MLPMaskHead)(
    input_shape=ShapeSpec(channels=256, width=14, height=14),
    num_classes="${..num_classes}",
    fc_dims=[1024] * 3,
)
