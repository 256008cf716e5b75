# Mask R-CNN, appendix A: fine annotations only, from ImageNet.
from detectron2.config import LazyCall as L

from mrcnn_ext.evaluation import CityscapesInstanceEvaluator

from ..common.data.coco import dataloader
from ..common.models.mask_rcnn_fpn import model
from ..common.optim import SGD as optimizer
from ..common.schedule import multi_step
from ..common.train import train

model.roi_heads.num_classes = 8

dataloader.train.dataset.names = "cityscapes_fine_instance_seg_train"
dataloader.train.total_batch_size = 8
dataloader.train.mapper.augmentations[0].update(
    short_edge_length=(800, 1024), sample_style="range", max_size=2048
)
dataloader.test.dataset.names = "cityscapes_fine_instance_seg_val"
dataloader.test.mapper.augmentations[0].update(short_edge_length=1024, max_size=2048)
dataloader.evaluator = L(CityscapesInstanceEvaluator)(dataset_name="${..test.dataset.names}")

optimizer.lr = 0.01
lr_multiplier = multi_step(18000, max_iter=24000)
train.max_iter = 24000
