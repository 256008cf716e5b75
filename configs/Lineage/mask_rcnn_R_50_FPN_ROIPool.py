# Fifth step: a mask for every RoI, over Faster R-CNN's RoIPool as it is.
from .mask_rcnn_R_50_FPN import dataloader, lr_multiplier, model, optimizer, train

model.roi_heads.box_pooler.pooler_type = "ROIPool"
model.roi_heads.mask_pooler.pooler_type = "ROIPool"
