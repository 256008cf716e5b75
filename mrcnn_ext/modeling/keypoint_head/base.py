"""What our keypoint heads share: targets, loss and decoding, to be chosen each."""

import torch
from detectron2.config import configurable
from detectron2.data import MetadataCatalog
from detectron2.layers import cat
from detectron2.modeling.roi_heads.keypoint_head import (
    BaseKeypointRCNNHead,
    keypoint_rcnn_inference,
    keypoint_rcnn_loss,
)
from detectron2.structures import Instances
from pycocotools.cocoeval import Params

from ...accel import KernelPolicy, fuse_traced
from ...config import with_defaults
from ...layers import heatmaps_to_keypoints
from ...layers.keypoint_targets import heatmap_loss, keypoints_to_cells
from ...layers.loss_normalizers import total_count
from ...ops.keypoint_decoding import without_logits

__all__ = ["KeypointHead"]

_COVERED = 0.53  # part of its box that a person covers, about
_DECODINGS = ("stock", "dark", "quadratic", "oks")


class KeypointHead(BaseKeypointRCNNHead):
    """detectron2's base of keypoint heads with a choice of targets and of decoding. A subclass has ``layers``,
    from (R, C, H, W) pooled features to (R, K, S_h, S_w) heatmap logits.

    At inference the instances get ``pred_keypoints`` (N, K, 3): x, y in pixels and a score, and
    ``pred_keypoint_heatmaps`` (N, K, S_h, S_w), the logits.

    The score of a keypoint says how sure its place is. COCO's evaluation does not read it, and ranks instances by
    one score each. With the decoding "oks" it is the object keypoint similarity (OKS) which COCO would give to the
    place on average over the predicted distribution, in [0, 1]; instances get ``keypoint_scores`` (N,) too, their
    ``scores`` times the mean of it: the OKS of the instance to expect, by which `mrcnn_ext.evaluation.COCOEvaluator`
    ranks keypoints, and boxes and masks as ever. Otherwise it is detectron2's measure: the softmax of the
    heatmap at the place, which may be above 1.

    Args:
        num_keypoints: heatmaps per RoI, K.
        loss_weight: factor of ``loss_keypoint``.
        loss_normalizer: "visible" divides the loss by the visible keypoints of the batch, a number by that
            number times the images.
        target_sigma: standard deviation in heatmap cells of the Gaussian which is the target of a heatmap; 0
            for the paper's one cell.
        label_smoothing: part of the target spread evenly over each axis.
        decoding: from heatmaps to keypoints, the method of `layers.heatmaps_to_keypoints`: "stock" for
            detectron2's result, "dark" and "quadratic" for sub-pixel ones, "oks" for the place of the highest
            expected object keypoint similarity.
        oks_sigmas: (K,) of object keypoint similarity, for "oks". None for COCO's where K is 17.

    Raises:
        ValueError: an unknown ``decoding``, or ``oks_sigmas`` missing or not K, or another argument out of
            range.
    """

    @configurable
    def __init__(
        self,
        *,
        num_keypoints: int,
        loss_weight: float = 1.0,
        loss_normalizer: float | str = 1.0,
        target_sigma: float = 0.0,
        label_smoothing: float = 0.0,
        decoding: str = "stock",
        oks_sigmas=None,
    ):
        super().__init__(
            num_keypoints=num_keypoints, loss_weight=loss_weight, loss_normalizer=loss_normalizer
        )
        if target_sigma < 0:
            raise ValueError(f"target_sigma must be 0 or more cells, got {target_sigma}")
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"label_smoothing must be in [0, 1), got {label_smoothing}")
        if decoding not in _DECODINGS:
            raise ValueError(f"keypoint decoding must be one of {', '.join(_DECODINGS)}; got {decoding!r}")
        self.target_sigma = float(target_sigma)
        self.label_smoothing = float(label_smoothing)
        self.decoding = decoding
        sigmas = _checked_sigmas(oks_sigmas, num_keypoints) if decoding == "oks" else None
        self.register_buffer("oks_sigmas", sigmas, persistent=False)

    @classmethod
    def from_config(cls, cfg, input_shape):
        head = with_defaults(cfg).MODEL.ROI_KEYPOINT_HEAD
        return {
            **super().from_config(cfg, input_shape),
            "target_sigma": head.TARGET_SIGMA,
            "label_smoothing": head.LABEL_SMOOTHING,
            "decoding": head.DECODING,
            "oks_sigmas": _configured_sigmas(cfg),
        }

    def forward(self, x, instances: list[Instances], roi_scale: float = 1.0):
        """As detectron2's: the loss in training, otherwise the instances with their keypoints.

        Args:
            x: (R, C, H, W) pooled features.
            instances: R in all, with ``proposal_boxes`` and ``gt_keypoints`` or with ``pred_boxes``.
            roi_scale: sides of these boxes over those of the objects' boxes.
        """
        if self.training:
            return {"loss_keypoint": self.loss_weight * self.loss(x, instances)}
        if torch.jit.is_scripting():
            assert self.decoding == "stock", "TorchScript has the keypoint decoding 'stock' only"
            keypoint_rcnn_inference(self.layers(x), instances)
        else:
            self.decode(self.heatmaps(x, instances), instances, roi_scale)
        return instances

    @torch.jit.unused
    def heatmaps(self, x: torch.Tensor, instances: list[Instances]) -> torch.Tensor:
        """Heatmaps of the RoIs of images; a subclass may look at whose they are."""
        return self.layers(x)

    @torch.jit.unused
    def fuse(self, policy: KernelPolicy) -> "KeypointHead | None":
        """As a rule of `mrcnn_ext.accel` does: ``layers`` as `torch.fx` follows them."""
        return fuse_traced(self, policy, "layers", float32=True)

    def loss(self, x, instances):
        """The loss of a batch, without its weight."""
        heatmaps = self.heatmaps(x, instances)
        if self.target_sigma == 0 and self.label_smoothing == 0:
            return keypoint_rcnn_loss(heatmaps, instances, self.normalizer(len(instances)))
        places, valid = self.targets(instances, tuple(heatmaps.shape[2:]))
        total = heatmap_loss(heatmaps[valid], places[valid], self.target_sigma, self.label_smoothing)
        return self.normalized(total, valid, len(instances))

    def targets(self, instances, size: tuple[int, int]):
        """Places (R, K, 2) in cells of heatmaps of this (H, W), and which are labelled and in the box (R, K)."""
        targets = [
            keypoints_to_cells(image.gt_keypoints.tensor, image.proposal_boxes.tensor, size)
            for image in instances
            if len(image) > 0  # images without objects may have no gt_keypoints
        ]
        if not targets:
            device = instances[0].proposal_boxes.device
            empty = torch.zeros((0, self.num_keypoints, 2), device=device)
            return empty, empty[..., 0] > 0
        places, valid = zip(*targets, strict=True)
        return cat(list(places)), cat(list(valid))

    def normalizer(self, num_images: int) -> float | None:
        """What the summed loss is divided by; None for the number of visible keypoints."""
        return None if self.loss_normalizer == "visible" else num_images * self.loss_normalizer

    def normalized(self, total, valid, num_images: int):
        """The summed loss of the valid keypoints, divided as `normalizer` says."""
        normalizer = self.normalizer(num_images)
        if normalizer is None:
            visible = total_count(valid.sum())
            normalizer = torch.where(visible > 0, visible, 1.0)
        return total / normalizer

    @torch.jit.unused
    def covered(self, roi_scale: float = 1.0) -> float:
        """Part of the RoI that the object covers, about, which the decoding "oks" needs.

        Args:
            roi_scale: as of `forward`.
        """
        return _COVERED / roi_scale**2

    @torch.jit.unused
    def decode(self, heatmaps, instances: list[Instances], roi_scale: float = 1.0) -> None:
        """Attaches the keypoints of (R, K, S_h, S_w) heatmaps to the instances; ``roi_scale`` as of `forward`."""
        heatmaps = heatmaps.detach()
        boxes = cat([image.pred_boxes.tensor for image in instances])
        keypoints = heatmaps_to_keypoints(
            heatmaps, boxes, self.decoding, self.oks_sigmas, self.covered(roi_scale)
        )
        keypoints = without_logits(keypoints)
        counts = [
            image.pred_boxes.tensor.shape[0] for image in instances
        ]  # tracing follows a shape, not a len
        for image, points, maps in zip(
            instances, keypoints.split(counts), heatmaps.split(counts), strict=True
        ):
            image.pred_keypoints = points
            image.pred_keypoint_heatmaps = maps
            if self.decoding == "oks" and image.has("scores"):
                image.keypoint_scores = image.scores * points[..., 2].mean(dim=1)


def _configured_sigmas(cfg):
    """Sigmas of the config or else of the metadata of its datasets; None where they have none."""
    if len(cfg.TEST.KEYPOINT_OKS_SIGMAS):
        return list(cfg.TEST.KEYPOINT_OKS_SIGMAS)
    for name in (*cfg.DATASETS.TEST, *cfg.DATASETS.TRAIN):
        # Asking for the metadata of a dataset that is not registered would make some.
        sigmas = (
            MetadataCatalog.get(name).get("keypoint_oks_sigmas") if name in MetadataCatalog.list() else None
        )
        if sigmas is not None and len(sigmas):
            return list(sigmas)
    return None


def _checked_sigmas(sigmas, num_keypoints: int) -> torch.Tensor:
    coco = Params("keypoints").kpt_oks_sigmas
    if sigmas is None and num_keypoints == len(coco):
        sigmas = coco
    if sigmas is None or len(sigmas) != num_keypoints or min(sigmas) <= 0:
        given = "none" if sigmas is None else list(sigmas)
        raise ValueError(
            f"keypoint decoding 'oks' needs a positive sigma for each of the {num_keypoints} keypoints, got "
            f"{given}: give them as oks_sigmas, in TEST.KEYPOINT_OKS_SIGMAS or in the dataset's metadata "
            "keypoint_oks_sigmas"
        )
    return torch.as_tensor(list(sigmas), dtype=torch.float32)
