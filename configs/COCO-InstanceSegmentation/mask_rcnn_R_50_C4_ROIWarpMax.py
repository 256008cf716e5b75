# Table 2c.
from .mask_rcnn_R_50_C4 import dataloader, lr_multiplier, model, optimizer, train

model.roi_heads.pooler.pooler_type = "ROIWarpMax"
