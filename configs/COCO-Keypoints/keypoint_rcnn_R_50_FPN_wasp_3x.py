# Our best keypoint head, trained for longer.
from ..common.coco_schedule import schedule
from .keypoint_rcnn_R_50_FPN_wasp import dataloader, model, optimizer, train

lr_multiplier = schedule("3x", train)
