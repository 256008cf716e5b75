# Table 2d: one map of stride 32.
from .mask_rcnn_R_50_FPN import dataloader, lr_multiplier, model, optimizer, train

model.backbone = model.backbone.bottom_up
model.backbone.out_features = ["res5"]
model.proposal_generator.in_features = ["res5"]
model.proposal_generator.head.update(in_channels=2048, num_anchors=15)
model.proposal_generator.anchor_generator.update(sizes=[[32, 64, 128, 256, 512]], strides=[32])
model.proposal_generator.pre_nms_topk = (12000, 6000)
model.proposal_generator.post_nms_topk = (2000, 300)
model.roi_heads.batch_size_per_image = 64
for _part in ("box", "mask"):
    model.roi_heads[f"{_part}_in_features"] = ["res5"]
    model.roi_heads[f"{_part}_pooler"].scales = (1 / 32,)
    model.roi_heads[f"{_part}_head"].input_shape.channels = 2048
