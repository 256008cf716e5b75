from ..common.models.torchvision import as_torchvision
from .mask_rcnn_R_50_FPN import dataloader, lr_multiplier, model, optimizer, train

as_torchvision(model, dataloader)
train.init_checkpoint = "https://download.pytorch.org/models/maskrcnn_resnet50_fpn_coco-bf2d0c1e.pth"
