# Mask R-CNN, appendix A: from a model trained on COCO, detectron2's 3x one here.
from ..common.schedule import multi_step
from .mask_rcnn_R_50_FPN import dataloader, model, optimizer, train

lr_multiplier = multi_step(3000, max_iter=4000)
train.max_iter = 4000
train.init_checkpoint = (
    "detectron2://COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x/137849600/model_final_f10217.pkl"
)
train.map_classes = dict(enabled=True, pairs=[["rider", "person"]])
