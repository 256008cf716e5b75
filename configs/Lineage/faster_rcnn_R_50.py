# Third step: the region proposal network in place of external proposals, on the map that Fast R-CNN pools from.
from .faster_rcnn_R_50_FPN import dataloader, lr_multiplier, model, optimizer, train

model.backbone = model.backbone.bottom_up
model.backbone.out_features = ["res4"]
model.proposal_generator.in_features = ["res4"]
model.proposal_generator.head.update(in_channels=1024, num_anchors=15)
model.proposal_generator.anchor_generator.update(sizes=[[32, 64, 128, 256, 512]], strides=[16])
model.proposal_generator.update(pre_nms_topk=(12000, 6000), post_nms_topk=(2000, 300))
model.roi_heads.update(batch_size_per_image=64, box_in_features=["res4"])
model.roi_heads.box_pooler.scales = (1 / 16,)
model.roi_heads.box_head.input_shape.channels = 1024
