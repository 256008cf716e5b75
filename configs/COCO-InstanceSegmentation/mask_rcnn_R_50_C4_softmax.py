# Table 2b.
from .mask_rcnn_R_50_C4 import dataloader, lr_multiplier, model, optimizer, train

model.roi_heads.mask_head.activation = "softmax"
