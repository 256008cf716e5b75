# A path from the finest level of the pyramid back up (Liu et al., CVPR 2018).
from mrcnn_ext.modeling import PAFPN

from ..common.coco_schedule import schedule
from .mask_rcnn_R_50_FPN import dataloader, model, optimizer, train

model.backbone._target_ = PAFPN
lr_multiplier = schedule("1x", train, dataloader)
