# Cascade Mask R-CNN (Cai and Vasconcelos, CVPR 2018), under the paper's schedule for Mask R-CNN.
from ..common.data.coco import dataloader
from ..common.models.cascade_mask_rcnn_fpn import model
from ..common.optim import SGD as optimizer
from ..common.schedule import multi_step
from ..common.train import train

lr_multiplier = multi_step(120000, max_iter=160000)
