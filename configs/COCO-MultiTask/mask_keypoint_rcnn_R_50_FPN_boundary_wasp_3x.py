# Our best mask and keypoint heads together.
from ..common.coco_schedule import schedule
from ..common.models.our_heads import with_boundary, with_wasp
from .mask_keypoint_rcnn_R_50_FPN import dataloader, model, optimizer, train

with_boundary(model)
with_wasp(model)
lr_multiplier = schedule("3x", train)
