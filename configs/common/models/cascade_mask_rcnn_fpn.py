from mrcnn_ext.model_zoo import detectron2_zoo
from mrcnn_ext.modeling import FCNMaskHead, FusedCascadeROIHeads, FusedROIPooler

model = detectron2_zoo.get_config("common/models/cascade_rcnn.py").model
model.backbone.bottom_up.freeze_at = 2
model.proposal_generator.post_nms_topk = (2000, 1000)  # as in detectron2's zoo
model.roi_heads._target_ = FusedCascadeROIHeads
model.roi_heads.box_pooler._target_ = FusedROIPooler
model.roi_heads.mask_pooler._target_ = FusedROIPooler
model.roi_heads.mask_head._target_ = FCNMaskHead
