# Table 2d.
from .mask_rcnn_R_50_C5 import dataloader, lr_multiplier, model, optimizer, train

model.roi_heads.box_pooler.pooler_type = "ROIPool"
model.roi_heads.mask_pooler.pooler_type = "ROIPool"
