"""Which RoIs the keypoint head is trained on."""

import torch
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.proposal_generator.proposal_utils import add_ground_truth_to_proposals
from detectron2.structures import Boxes, Instances, pairwise_iou
from torch import Tensor

from ...layers.boxes import scaled_boxes

__all__ = ["enlarge_boxes", "keypoints_in_boxes", "put_back_boxes", "sample_keypoint_rois"]


# As detectron2, TorchScript reads these annotations.
def enlarge_boxes(instances: list[Instances], scale: float) -> list[Boxes]:
    """Makes the RoIs of the keypoint head of ``pred_boxes``, in place.

    Args:
        instances: per image, with ``pred_boxes``.
        scale: sides of the RoIs over those of the boxes.

    Returns:
        The boxes as they were, for `put_back_boxes`.
    """
    boxes = [image.pred_boxes for image in instances]
    if scale != 1.0:
        for i, image in enumerate(instances):
            image.pred_boxes = Boxes(scaled_boxes(boxes[i].tensor, scale))
    return boxes


def put_back_boxes(instances: list[Instances], boxes: list[Boxes]) -> None:
    """Ends what `enlarge_boxes` began."""
    for i, image in enumerate(instances):
        image.pred_boxes = boxes[i]


def keypoints_in_boxes(keypoints: Tensor, boxes: Tensor) -> Tensor:
    """Which of N objects have a labelled keypoint in their box, (N,), as detectron2 asks of a RoI to train on.

    Args:
        keypoints: (N, K, 3): x, y, visibility.
        boxes: (N, 4), of RoIs.
    """
    places = keypoints[..., :2]
    inside = (places >= boxes[:, None, :2]) & (places <= boxes[:, None, 2:])
    return (inside.all(dim=2) & (keypoints[..., 2] >= 1)).any(dim=1)


@torch.no_grad()
def sample_keypoint_rois(
    proposals: list[Instances],
    targets: list[Instances],
    matcher: Matcher,
    samples_per_image: int,
    append_gt: bool = True,
) -> list[Instances]:
    """A random sample of all proposals that fit an object with keypoints, whatever the box head is trained on.

    The box head's positives are shared by all classes; where few have keypoints, few are left for them.

    Args:
        proposals: per image, with ``proposal_boxes``.
        targets: per image, with ``gt_boxes``, ``gt_classes`` and, unless empty, ``gt_keypoints``.
        matcher: of proposals and ground truth.
        samples_per_image: at most so many.
        append_gt: the ground truth boxes are proposals too.

    Returns:
        Per image, the sampled RoIs: ``proposal_boxes`` and every ``gt_*`` of their objects.
    """
    if append_gt:
        proposals = add_ground_truth_to_proposals(targets, proposals)
    sampled = []
    for image, objects in zip(proposals, targets, strict=True):
        rows = index = torch.zeros(0, dtype=torch.long, device=image.proposal_boxes.device)
        if len(objects) > 0 and objects.has("gt_keypoints"):
            index, label = matcher(pairwise_iou(objects.gt_boxes, image.proposal_boxes))
            keypoints = objects.gt_keypoints.tensor[index]
            fits = (label == 1) & keypoints_in_boxes(keypoints, image.proposal_boxes.tensor)
            rows = fits.nonzero()[:, 0]
            rows = rows[torch.randperm(len(rows), device=rows.device)[:samples_per_image]]
        rois = Instances(image.image_size, proposal_boxes=image.proposal_boxes[rows])
        for name, value in objects.get_fields().items():
            if name.startswith("gt_"):
                rois.set(name, value[index[rows]])
        sampled.append(rois)
    return sampled
