from mrcnn_ext.data import build_clip_train_loader
from mrcnn_ext.modeling import ConvLSTMKeypointHead

from ..common.data.coco_keypoint import dataloader
from ..common.models.keypoint_rcnn_fpn import model
from ..common.optim import SGD as optimizer
from ..common.schedule import multi_step
from ..common.train import train

model.roi_heads.keypoint_head._target_ = ConvLSTMKeypointHead

dataloader.train._target_ = build_clip_train_loader
dataloader.train.num_frames = 5
dataloader.train.total_batch_size = 20  # 4 clips
dataloader.train.dataset.update(names="posetrack18_train", filter_empty=False, min_keypoints=0)
dataloader.test.dataset.names = "posetrack18_val"

optimizer.lr = 0.01
lr_multiplier = multi_step(15000, 20000, max_iter=22500)
train.max_iter = 22500
