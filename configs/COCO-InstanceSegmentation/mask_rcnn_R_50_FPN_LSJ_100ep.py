# detectron2's "new baseline", from random weights with large-scale jitter: 64 images an iteration, 100 epochs of COCO.
from ..common.data.large_scale_jitter import jitter_scale
from ..common.schedule import multi_step
from .mask_rcnn_R_50_FPN import dataloader, model, optimizer, train

model.backbone.bottom_up.freeze_at = 0
model.backbone.bottom_up.stem.norm = model.backbone.bottom_up.stages.norm = model.backbone.norm = "SyncBN"
model.proposal_generator.head.conv_dims = [-1, -1]
model.roi_heads.box_head.update(conv_dims=[256] * 4, fc_dims=[1024])
# Which takes processes without RoIs.
model.roi_heads.box_head.conv_norm = model.roi_heads.mask_head.conv_norm = "naiveSyncBN_N"

jitter_scale(dataloader)
dataloader.train.total_batch_size = 64
optimizer.update(lr=0.1, weight_decay=4e-5)
train.init_checkpoint = ""
train.amp.enabled = True
train.max_iter = 184375
lr_multiplier = multi_step(163889, 177546, max_iter=184375)
lr_multiplier.update(warmup_length=500 / 184375, warmup_factor=0.067)
