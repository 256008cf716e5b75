from mrcnn_ext.model_zoo import detectron2_zoo
from mrcnn_ext.modeling import FCNMaskHead, FusedRes5ROIHeads, FusedROIPooler

model = detectron2_zoo.get_config("common/models/mask_rcnn_c4.py").model
model.backbone.freeze_at = 2
model.proposal_generator.post_nms_topk = (2000, 300)
model.roi_heads._target_ = FusedRes5ROIHeads
model.roi_heads.batch_size_per_image = 64
model.roi_heads.pooler._target_ = FusedROIPooler
model.roi_heads.mask_head._target_ = FCNMaskHead
