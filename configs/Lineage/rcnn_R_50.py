# First step: R-CNN. Every external proposal is warped to a fixed size and put through the whole network by itself.
# Crops of 112 pixels give the map of 7x7 that the later models pool, and so the head has the same parameters as theirs.
from detectron2.config import LazyCall as L

from mrcnn_ext.modeling import CNNBoxHead, CropPooler, PixelBackbone, RCNNROIHeads

from .fast_rcnn_R_50 import dataloader, lr_multiplier, model, optimizer, train

_heads = model.roi_heads
_heads._target_ = RCNNROIHeads
_heads.update(box_in_features=["pixels"], batch_size_per_image=8)  # 128 crops of 16 images
_heads.box_pooler = L(CropPooler)(output_size=112, context=8)
_heads.box_head = L(CNNBoxHead)(backbone=model.backbone, head=_heads.box_head, feature="res4")
model.backbone = L(PixelBackbone)()
