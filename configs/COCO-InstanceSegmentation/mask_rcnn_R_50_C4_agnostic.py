# Section 4.2: one mask for all classes.
from .mask_rcnn_R_50_C4 import dataloader, lr_multiplier, model, optimizer, train

model.roi_heads.mask_head.num_classes = 1
