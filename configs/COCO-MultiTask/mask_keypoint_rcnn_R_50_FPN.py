# Boxes, masks and keypoints of people together (Mask R-CNN, table 5).
from ..common.data.coco_keypoint import dataloader
from ..common.models.mask_keypoint_rcnn_fpn import model
from ..common.optim import SGD as optimizer
from ..common.schedule import multi_step
from ..common.train import train

dataloader.train.mapper.use_instance_mask = True

lr_multiplier = multi_step(60000, 80000, max_iter=90000)
train.max_iter = 90000
