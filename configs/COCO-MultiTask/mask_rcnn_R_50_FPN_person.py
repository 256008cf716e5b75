# Table 5: boxes and masks of people, with the schedule of the keypoints.
from .mask_keypoint_rcnn_R_50_FPN import dataloader, lr_multiplier, model, optimizer, train

for _key in ("keypoint_in_features", "keypoint_pooler", "keypoint_head"):
    del model.roi_heads[_key]
del dataloader.train.mapper.keypoint_hflip_indices
dataloader.train.mapper.use_keypoint = False
dataloader.train.dataset.min_keypoints = 0
