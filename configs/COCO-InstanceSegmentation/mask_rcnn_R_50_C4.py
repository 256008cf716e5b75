from ..common.data.coco import dataloader
from ..common.models.mask_rcnn_c4 import model
from ..common.optim import SGD as optimizer
from ..common.schedule import multi_step
from ..common.train import train

lr_multiplier = multi_step(120000, max_iter=160000)
