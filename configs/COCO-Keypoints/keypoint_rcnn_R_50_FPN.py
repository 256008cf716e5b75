from ..common.data.coco_keypoint import dataloader
from ..common.models.keypoint_rcnn_fpn import model
from ..common.optim import SGD as optimizer
from ..common.schedule import multi_step
from ..common.train import train

lr_multiplier = multi_step(60000, 80000, max_iter=90000)
train.max_iter = 90000
