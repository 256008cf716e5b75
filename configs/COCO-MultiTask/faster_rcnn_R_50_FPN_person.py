# Table 5: boxes of people alone, with the schedule of the keypoints.
from .mask_rcnn_R_50_FPN_person import dataloader, lr_multiplier, model, optimizer, train

for _key in ("mask_in_features", "mask_pooler", "mask_head"):
    del model.roi_heads[_key]
dataloader.train.mapper.use_instance_mask = False
