# Fourth step: a feature pyramid in place of the one map, with a level for each scale of RoIs.
from .mask_rcnn_R_50_FPN_ROIPool import dataloader, lr_multiplier, model, optimizer, train

for _key in ("mask_in_features", "mask_pooler", "mask_head"):
    del model.roi_heads[_key]
dataloader.train.mapper.use_instance_mask = False
