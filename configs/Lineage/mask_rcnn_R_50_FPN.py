# Sixth step: RoIAlign, with which masks become exact. The same as COCO-InstanceSegmentation/mask_rcnn_R_50_FPN.py.
from ..common.data.coco import dataloader
from ..common.models.mask_rcnn_fpn import model
from ..common.optim import SGD as optimizer
from ..common.schedule import multi_step
from ..common.train import train

lr_multiplier = multi_step(120000, max_iter=160000)
