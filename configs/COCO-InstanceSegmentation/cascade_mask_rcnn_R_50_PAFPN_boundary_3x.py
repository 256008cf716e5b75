# Cascade, path aggregation and our best mask head together.
from mrcnn_ext.modeling import PAFPN

from ..common.coco_schedule import schedule
from ..common.models.our_heads import with_boundary
from .cascade_mask_rcnn_R_50_FPN import dataloader, model, optimizer, train

model.backbone._target_ = PAFPN
with_boundary(model)
lr_multiplier = schedule("3x", train, dataloader)
