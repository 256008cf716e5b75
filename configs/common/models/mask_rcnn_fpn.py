from mrcnn_ext.model_zoo import detectron2_zoo
from mrcnn_ext.modeling import FCNMaskHead, FusedROIHeads, FusedROIPooler

model = detectron2_zoo.get_config("common/models/mask_rcnn_fpn.py").model
model.backbone.bottom_up.freeze_at = 2
model.roi_heads._target_ = FusedROIHeads
model.roi_heads.box_pooler._target_ = FusedROIPooler
model.roi_heads.mask_pooler._target_ = FusedROIPooler
model.roi_heads.mask_head._target_ = FCNMaskHead
