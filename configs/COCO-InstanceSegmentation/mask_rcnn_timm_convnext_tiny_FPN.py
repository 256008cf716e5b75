from detectron2.config import LazyCall as L

from mrcnn_ext.engine.optim import clipped_sgd
from mrcnn_ext.modeling import TimmBackbone

from .mask_rcnn_R_50_FPN import dataloader, lr_multiplier, model, optimizer, train

model.backbone.bottom_up = L(TimmBackbone)(
    model_name="convnext_tiny",
    out_features=["res2", "res3", "res4", "res5"],
    pretrained=True,
    model_args=dict(drop_path_rate=0.1),
)
model.pixel_mean = [123.675, 116.280, 103.530]
model.pixel_std = [58.395, 57.120, 57.375]
model.input_format = "RGB"
dataloader.train.mapper.image_format = "RGB"
optimizer.update(_target_=clipped_sgd, clip_type="norm", clip_value=1.0)
train.init_checkpoint = ""  # the backbone's weights come from timm
