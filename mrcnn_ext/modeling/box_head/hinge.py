"""Linear classifiers of one class against the rest, as R-CNN has them, for detectron2."""

import torch
from detectron2.config import configurable
from detectron2.layers import cat
from detectron2.modeling.roi_heads.fast_rcnn import FastRCNNOutputLayers, _log_classification_stats
from detectron2.structures import Instances
from torch import Tensor

__all__ = ["HingeOutputLayers"]


class HingeOutputLayers(FastRCNNOutputLayers):
    """FastRCNNOutputLayers with one linear support vector machine per class in place of the softmax (R-CNN, section
    2.3): ``loss_cls`` is the sum of their hinge losses, a RoI's mean.

    R-CNN fits them after the network, on features that do not change any more, and mines hard negatives; here they are
    trained with it. The score of a detection is the logistic function of four times its margin, so that what lies
    beyond the margin on the wrong side is below detectron2's threshold of 0.05.

    Args:
        kwargs: those of FastRCNNOutputLayers.

    Raises:
        ValueError: one of them asks for another loss of classes.
    """

    @configurable
    def __init__(self, input_shape, **kwargs):
        if kwargs.get("use_sigmoid_ce") or kwargs.get("use_fed_loss"):
            raise ValueError(
                'MODEL.ROI_BOX_HEAD.CLASSIFIER "hinge" has a loss of its own: set USE_SIGMOID_CE and USE_FED_LOSS '
                "(use_sigmoid_ce, use_fed_loss) to False"
            )
        super().__init__(input_shape, **kwargs)

    def losses(self, predictions: tuple[Tensor, Tensor], proposals: list[Instances]) -> dict[str, Tensor]:
        """As detectron2's."""
        scores, deltas = predictions
        classes = cat([image.gt_classes for image in proposals])
        _log_classification_stats(scores, classes)
        boxes = cat([image.proposal_boxes.tensor for image in proposals])
        # Images without objects have no gt_boxes, and no RoI whose box is regressed.
        targets = cat(
            [
                (image.gt_boxes if image.has("gt_boxes") else image.proposal_boxes).tensor
                for image in proposals
            ]
        )
        losses = {
            "loss_cls": self.hinge_loss(scores, classes),
            "loss_box_reg": self.box_reg_loss(boxes, targets, deltas, classes),
        }
        return {name: loss * self.loss_weight.get(name, 1.0) for name, loss in losses.items()}

    def hinge_loss(self, scores: Tensor, classes: Tensor) -> Tensor:
        """
        Args:
            scores: (R, K + 1); the background's, the last, have no part in it.
            classes: (R,) from 0 to K, K for the background.
        """
        margins = scores[:, : self.num_classes]
        signs = torch.full_like(margins, -1.0)
        foreground = (classes >= 0) & (classes < self.num_classes)
        signs[foreground.nonzero()[:, 0], classes[foreground]] = 1.0
        return (1 - signs * margins).clamp(min=0).sum() / max(len(classes), 1)

    def predict_probs(
        self, predictions: tuple[Tensor, Tensor], proposals: list[Instances]
    ) -> tuple[Tensor, ...]:
        """Scores in (0, 1) per image, (R_i, K + 1)."""
        scores, _ = predictions
        return (4 * scores).sigmoid().split([len(image) for image in proposals])
