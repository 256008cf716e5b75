from ..common.models.torchvision import as_torchvision
from .keypoint_rcnn_R_50_FPN import dataloader, lr_multiplier, model, optimizer, train

as_torchvision(model, dataloader)
train.init_checkpoint = "https://download.pytorch.org/models/keypointrcnn_resnet50_fpn_coco-fc266e95.pth"
