"""UniPose: the pose of the one person in an image, for detectron2."""

import torch
from detectron2.config import configurable
from detectron2.layers import ShapeSpec, move_device_like
from detectron2.modeling import META_ARCH_REGISTRY, build_backbone
from detectron2.modeling.backbone import Backbone
from detectron2.structures import Boxes, ImageList, Instances
from torch import Tensor, nn
from torch.nn import functional as F

from ...config import with_defaults
from ...layers.keypoint_targets import heatmap_loss
from ...layers.waterfall import UniPoseNetwork
from ..keypoint_head import KeypointHead
from ..norms import norm_maker

__all__ = ["UniPose", "UniPoseHead"]


class UniPoseHead(KeypointHead):
    """`UniPoseNetwork`, upsampled to the resolution of the image, with the targets, the loss and the decodings of
    `KeypointHead`: the image is the RoI.

    Args:
        low_shape, high_shape: of the fine and of the coarse feature map, of strides 4 and 8 in the paper; their
            channels and the stride of the first matter.
        num_keypoints: K.
        features: names of the two.
        rates, dim, low_dim: as of `mrcnn_ext.layers.UniPoseNetwork`.
        norm: a name of detectron2's get_norm ("" for none), or a callable that makes the layer from a channel count.
        kwargs: those of `KeypointHead`.
    """

    def __init__(
        self,
        low_shape: ShapeSpec,
        high_shape: ShapeSpec,
        *,
        num_keypoints: int,
        features=("res2", "res3"),
        rates=(6, 12, 18, 24),
        dim: int = 256,
        low_dim: int = 48,
        norm="BN",
        **kwargs,
    ):
        super().__init__(num_keypoints=num_keypoints, **kwargs)
        self.network = UniPoseNetwork(
            low_shape.channels,
            high_shape.channels,
            num_keypoints,
            list(rates),
            dim,
            low_dim,
            norm_maker(norm),
        )
        self.low, self.high = features
        self.stride = low_shape.stride

    def layers(self, x):
        """(N, C, H, W) maps by their names -> (N, K, H_low stride, W_low stride) logits."""
        heatmaps = self.network(x[self.low], x[self.high])
        return F.interpolate(heatmaps, scale_factor=float(self.stride), mode="bilinear", align_corners=False)

    def loss(self, x, instances):
        """As `KeypointHead`'s, whose stock targets are square."""
        heatmaps = self.layers(x)
        places, valid = self.targets(instances, tuple(heatmaps.shape[2:]))
        if len(places) == 0:
            return heatmaps.sum() * 0
        rows = torch.tensor([k for k, image in enumerate(instances) for _ in range(len(image))])
        heatmaps = heatmaps[rows.to(heatmaps.device)]
        total = heatmap_loss(heatmaps[valid], places[valid], self.target_sigma, self.label_smoothing)
        return self.normalized(total, valid, len(instances))


@META_ARCH_REGISTRY.register()
class UniPose(nn.Module):
    """UniPose (Artacho and Savakis, *UniPose: Unified Human Pose Estimation in Single Images and Videos*, CVPR 2020,
    section 3): a dilated backbone, the waterfall of atrous convolutions, a decoder with fine features of the backbone,
    and heatmaps at the resolution of the image. An image is taken to have one person; `mrcnn_ext.data.PersonCropMapper`
    (INPUT.PERSON_CROPS) makes such images of any dataset with boxes of people.

    The loss is `KeypointHead`'s, of the softmax over each heatmap, so that it can be laid beside a RoI head; the
    paper's is the squared error of Gaussian heatmaps.

    Args:
        backbone: gives both features.
        head: from them to keypoints.
        pixel_mean, pixel_std: of each channel.
        input_format: of the channels, for who draws them.
        crop_scale: sides of a crop over those of the person's box, which the decoding "oks" wants to know.
    """

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        head: UniPoseHead,
        pixel_mean,
        pixel_std,
        input_format: str | None = None,
        crop_scale: float = 1.25,
    ):
        super().__init__()
        self.backbone = backbone
        self.keypoint_head = head
        self.input_format = input_format
        self.crop_scale = float(crop_scale)
        self.register_buffer("pixel_mean", torch.tensor(list(pixel_mean)).view(-1, 1, 1), False)
        self.register_buffer("pixel_std", torch.tensor(list(pixel_std)).view(-1, 1, 1), False)

    @classmethod
    def from_config(cls, cfg):
        backbone = build_backbone(cfg)
        cfg = with_defaults(cfg)  # not before: the backbone says what it misses
        return {
            "backbone": backbone,
            "head": _build_head(cfg, backbone.output_shape()),
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            "input_format": cfg.INPUT.FORMAT,
            "crop_scale": cfg.INPUT.PERSON_CROPS.SCALE,
        }

    @property
    def device(self):
        return self.pixel_mean.device

    def forward(self, batched_inputs: list[dict]):
        """
        Args:
            batched_inputs: a dict for each image, of detectron2's format: ``image`` (C, H, W); in training
                ``instances`` with ``gt_keypoints`` of one person at most; ``height`` and ``width`` of the original, in
                whose pixels the results are. Of a crop also ``crop_box`` (4,), where it lies in the original, and
                ``person_box`` (4,), both x0, y0, x1, y1. Without them the image is the crop, and the person's box.

        Returns:
            In training {"loss_keypoint"}; otherwise ``instances`` for each image, one each: ``pred_boxes``, the
            person's box as given, ``scores``, the mean of the keypoints' in [0, 1], ``pred_classes``, 0, and
            ``pred_keypoints`` (1, K, 3) as `KeypointHead` gives them.

        Raises:
            ValueError: an image for training has several people.
        """
        images = self.preprocess_image(batched_inputs)
        features = self.backbone(images.tensor)
        if self.training:
            return self.keypoint_head(features, [self._whole(x, images) for x in batched_inputs])
        return self.inference(batched_inputs, images, features)

    def preprocess_image(self, batched_inputs: list[dict]) -> ImageList:
        """Normalised, and padded to one size."""
        images = [move_device_like(x["image"], self.pixel_mean) for x in batched_inputs]
        images = [(x - self.pixel_mean) / self.pixel_std for x in images]
        return ImageList.from_tensors(
            images, self.backbone.size_divisibility, padding_constraints=self.backbone.padding_constraints
        )

    @torch.no_grad()
    def inference(
        self, batched_inputs: list[dict], images: ImageList, features: dict[str, Tensor]
    ) -> list[dict]:
        """The results of `forward`."""
        heatmaps = self.keypoint_head.layers(features)
        results = []
        for given, maps, (height, width) in zip(batched_inputs, heatmaps, images.image_sizes, strict=True):
            size = given.get("height", height), given.get("width", width)
            whole = (0.0, 0.0, float(size[1]), float(size[0]))
            crop = given.get("crop_box", whole)
            instances = Instances(size)
            instances.pred_boxes = Boxes(torch.as_tensor(crop, dtype=torch.float32, device=maps.device)[None])
            scale = self.crop_scale if "crop_box" in given else 1.0
            self.keypoint_head.decode(maps[None, :, :height, :width], [instances], scale)
            instances.remove("pred_keypoint_heatmaps")  # as large as K images
            box = torch.as_tensor(given.get("person_box", crop), dtype=torch.float32, device=maps.device)
            instances.pred_boxes = Boxes(box[None])
            instances.scores = instances.pred_keypoints[..., 2].mean(dim=1).clamp(max=1)
            instances.pred_classes = torch.zeros(1, dtype=torch.int64, device=maps.device)
            results.append({"instances": instances})
        return results

    def _whole(self, given: dict, images: ImageList) -> Instances:
        """The person with a RoI of the whole image, its padding included."""
        people = given["instances"].to(self.device)
        if len(people) > 1:
            raise ValueError(
                f"UniPose learns one person an image, and {given.get('file_name', 'an image')} has {len(people)}: set "
                "INPUT.PERSON_CROPS.ENABLED True, or in a Python config PersonCropMapper as the mapper"
            )
        roi = Instances(people.image_size, **people.get_fields())
        height, width = images.tensor.shape[-2:]
        box = torch.tensor([[0.0, 0.0, width, height]], device=self.device)
        roi.proposal_boxes = Boxes(box.expand(len(people), 4))
        return roi


def _build_head(cfg, shapes: dict[str, ShapeSpec]) -> UniPoseHead:
    unipose = cfg.MODEL.UNIPOSE
    features = unipose.LOW_FEATURE, unipose.HIGH_FEATURE
    for key, name in zip(("LOW_FEATURE", "HIGH_FEATURE"), features, strict=True):
        if name not in shapes:
            raise ValueError(f"MODEL.UNIPOSE.{key} is {name!r}, and the backbone gives {', '.join(shapes)}")
    return UniPoseHead(
        *(shapes[name] for name in features),
        features=features,
        rates=unipose.RATES,
        dim=unipose.DIM,
        low_dim=unipose.LOW_DIM,
        norm=unipose.NORM,
        **KeypointHead.from_config(cfg, None),
    )
