"""timm's backbones in a LazyConfig."""

from detectron2.config import LazyCall as L

from mrcnn_ext.modeling import SimpleFeaturePyramid, TimmBackbone, timm_input


def from_timm(name, model, dataloader, train, out_features=("res2", "res3", "res4", "res5"), **model_args):
    """Puts a timm model, with its pretrained weights and its input, in the place of an FPN model's ResNet.

    Args:
        name: of ``timm.list_models()``.
        model, dataloader, train: of the LazyConfig.
        out_features, model_args: of `TimmBackbone`.
    """
    model.backbone.bottom_up = L(TimmBackbone)(
        model_name=name, out_features=list(out_features), pretrained=True, model_args=model_args
    )
    model.update(timm_input(name))
    dataloader.train.mapper.image_format = model.input_format
    train.init_checkpoint = ""  # the backbone's weights come from timm


def simple_pyramid(model):
    """`SimpleFeaturePyramid` in the place of the FPN over one feature of stride 16."""
    fpn = model.backbone
    model.backbone = L(SimpleFeaturePyramid)(
        net=fpn.bottom_up,
        in_feature="res4",
        out_channels=fpn.out_channels,
        scale_factors=(4.0, 2.0, 1.0, 0.5),
        top_block=fpn.top_block,
        norm="LN",
    )
