# Table 6.
from .keypoint_rcnn_R_50_FPN import dataloader, lr_multiplier, model, optimizer, train

model.roi_heads.box_pooler.pooler_type = "ROIPool"
model.roi_heads.keypoint_pooler.pooler_type = "ROIPool"
