# UniPose: the pose of one person an image, people cut out by their boxes. A ResNet of stride 8, from timm's weights.
from detectron2.config import LazyCall as L
from detectron2.data import transforms as T
from detectron2.layers import ShapeSpec

from mrcnn_ext.data import CropToBox, PersonCropMapper, get_person_crops
from mrcnn_ext.modeling import TimmBackbone, UniPose, UniPoseHead, timm_input

from ..common.data.coco_keypoint import dataloader
from ..common.optim import AdamW as optimizer
from ..common.schedule import multi_step
from ..common.train import train

model = L(UniPose)(
    backbone=L(TimmBackbone)(
        model_name="resnet50",
        out_features=["res2", "res3"],  # of strides 4 and 8, the second one the last stage's
        pretrained=True,
        model_args=dict(output_stride=8),
    ),
    head=L(UniPoseHead)(
        low_shape=ShapeSpec(channels=256, stride=4),
        high_shape=ShapeSpec(channels=2048, stride=8),
        num_keypoints=17,
        loss_normalizer="visible",
        target_sigma=3.0,  # pixels of the crop
        decoding="dark",
    ),
    **timm_input("resnet50"),
)

for _loader in (dataloader.train, dataloader.test):
    _loader.dataset._target_ = get_person_crops
    _loader.mapper._target_ = PersonCropMapper
    _loader.mapper.image_format = "RGB"
dataloader.train.total_batch_size = 64
dataloader.train.mapper.augmentations = [
    L(CropToBox)(size=(256, 192), jitter=0.25),
    L(T.RandomFlip)(horizontal=True),
]
dataloader.test.dataset.filter_empty = True
dataloader.test.mapper.augmentations = [L(CropToBox)(size=(256, 192))]

optimizer.update(lr=0.0005, weight_decay=0.01)
lr_multiplier = multi_step(60000, 80000, max_iter=90000)
train.max_iter = 90000
train.init_checkpoint = ""
