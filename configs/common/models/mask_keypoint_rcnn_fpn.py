from .keypoint_rcnn_fpn import model as keypoint_model
from .mask_rcnn_fpn import model

for key in ("num_classes", "keypoint_in_features", "keypoint_pooler", "keypoint_head"):
    model.roi_heads[key] = keypoint_model.roi_heads[key]
model.roi_heads.box_predictor.smooth_l1_beta = keypoint_model.roi_heads.box_predictor.smooth_l1_beta
model.proposal_generator.post_nms_topk = keypoint_model.proposal_generator.post_nms_topk
