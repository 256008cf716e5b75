# Our best keypoint head.
from ..common.models.our_heads import with_wasp
from .keypoint_rcnn_R_50_FPN import dataloader, lr_multiplier, model, optimizer, train

with_wasp(model)
