"""Training of the study's detector: on the annotated people of many frames at once, and on proposals of a few."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, replace

import torch
from detectron2.structures import Boxes, ImageList, Instances, Keypoints
from detectron2.utils.events import EventStorage
from torch import Tensor, nn
from torch.nn import functional as F

from ...engine.trainer import accelerated_for_training
from ...layers.boxes import scaled_boxes
from .people import People, noisy, read_pixels

__all__ = ["train_detector"]

_TOLD = 50  # iterations from one line of the log to the next
# Frames of an iteration: the anchors' and the proposals' share is slow, and less is asked of it.
_WITH_PROPOSALS = 2


def train_detector(
    model: nn.Module, people: list[People], *, iterations: int, batch: int, learning_rate: float, seed: int
) -> None:
    """Trains a detector with a keypoint head of single frames, in bf16 autocast.

    The keypoint head learns from all people of ``batch`` frames, in their annotated boxes with a detector's noise; the
    rest of the detector, with the losses of its config, from the first frames of the batch. Frames differ in colour
    each time, and half of them become smaller, to 0.7 of their sides at least, somewhere in a frame of the same size.

    Args:
        model: built from a config; its images have the size of the frames. On the CPU its convolutions are accelerated
            while it is trained.
        people: of the frames, mirrored ones too.
        iterations: of AdamW, the rate falling to 0 as a cosine.
        batch: frames of an iteration.
        seed: which frames, in which order, and of the noise.
    """
    device = model.device
    generator = torch.Generator().manual_seed(seed)
    frames = _Frames(people, device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / 50) * (1 + math.cos(math.pi * step / iterations)) / 2
    )
    model.train()
    model.to(memory_format=torch.channels_last)
    if device.type == "cpu":
        model = accelerated_for_training(model)
    order: list[int] = []
    for iteration in range(iterations):
        if len(order) < batch:
            order += torch.randperm(len(people), generator=generator).tolist()
        chosen, order = order[:batch], order[batch:]
        frame_batch = frames.batch(model, chosen, generator)  # its places would be coarse in bf16
        optimizer.zero_grad()
        with EventStorage(), torch.autocast(device.type, torch.bfloat16):
            loss = _loss(model, frame_batch, generator)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        optimizer.step()
        schedule.step()
        if iteration % _TOLD == 0:
            logging.getLogger(__name__).info("iteration %d: loss %.3f", iteration, loss.item())


@dataclass
class _Batch:
    images: ImageList
    instances: list[Instances]  # on the images' device
    people: list[People]


class _Frames:
    """The pixels of all frames, on a device: a GPU would wait for what is read and decoded anew."""

    def __init__(self, people: list[People], device: torch.device):
        self.people = people
        self.device = device
        files = list(dict.fromkeys(one.image["file_name"] for one in people))
        self.rows = {name: row for row, name in enumerate(files)}
        self.pixels = torch.stack([read_pixels(name) for name in files]).to(device)

    def batch(self, model: nn.Module, chosen: list[int], generator: torch.Generator) -> _Batch:
        people = [self.people[k] for k in chosen]
        count, (H, W) = len(people), self.pixels.shape[2:]
        rows = torch.tensor([self.rows[one.image["file_name"]] for one in people])
        mirrored = torch.tensor([one.mirrored for one in people])[:, None, None, None]
        gains = 0.7 + 0.6 * torch.rand(count, 1, 1, 1, generator=generator)
        gains = gains * (0.8 + 0.4 * torch.rand(count, 3, 1, 1, generator=generator))
        scales = 1 - 0.3 * (2 * torch.rand(count, 1, generator=generator) - 1).clamp(min=0)
        shifts = (1 - scales) * torch.rand(count, 2, generator=generator) * torch.tensor([W, H])
        pixels = self.pixels[rows.to(self.device)]
        pixels = torch.where(mirrored.to(self.device), pixels.flip(3), pixels) * gains.to(self.device)
        pixels = _smaller(pixels, scales.to(self.device), shifts.to(self.device))
        images = ImageList((pixels - model.pixel_mean) / model.pixel_std, [(H, W)] * count)
        moved = [_moved(*one) for one in zip(people, scales, shifts, strict=True)]
        return _Batch(images, [self._instances(one, (H, W)) for one in moved], moved)

    def _instances(self, one: People, size: tuple[int, int]) -> Instances:
        return Instances(
            size,
            gt_boxes=Boxes(one.boxes.to(self.device)),
            gt_classes=torch.zeros(len(one.boxes), dtype=torch.int64, device=self.device),
            gt_keypoints=Keypoints(one.keypoints.to(self.device)),
        )


def _smaller(pixels: Tensor, scales: Tensor, shifts: Tensor) -> Tensor:
    """(N, 3, H, W) with what was at p at scale * p + shift; scales (N, 1), shifts (N, 2) of x and y in pixels. Colours
    of the border go on beyond it."""
    size = torch.tensor([pixels.shape[3], pixels.shape[2]], device=pixels.device)
    places = (1 - 2 * shifts / size) / scales - 1  # of sampling, in units of half the size from the middle
    matrix = torch.cat([torch.diag_embed((1 / scales).expand(-1, 2)), places[:, :, None]], dim=2)
    grid = F.affine_grid(matrix, list(pixels.shape), align_corners=False)
    return F.grid_sample(pixels, grid, padding_mode="border", align_corners=False)


def _moved(people: People, scale: Tensor, shift: Tensor) -> People:
    keypoints = people.keypoints.clone()
    keypoints[..., :2] = keypoints[..., :2] * scale + shift
    return replace(people, boxes=people.boxes * scale + shift.repeat(2), keypoints=keypoints)


def _loss(model: nn.Module, batch: _Batch, generator: torch.Generator) -> Tensor:
    tensor = batch.images.tensor.contiguous(memory_format=torch.channels_last)
    maps = model.backbone(tensor)
    heads = model.roi_heads
    for one, instances in zip(batch.people, batch.instances, strict=True):
        rois = scaled_boxes(noisy(one.boxes, generator), heads.keypoint_box_scale)
        instances.proposal_boxes = Boxes(rois.to(tensor.device))
    rois = [instances.proposal_boxes for instances in batch.instances]
    pooled = heads.keypoint_pooler([maps[name] for name in heads.keypoint_in_features], rois)
    (total,) = heads.keypoint_head(pooled, batch.instances).values()
    images = ImageList(tensor[:_WITH_PROPOSALS], batch.images.image_sizes[:_WITH_PROPOSALS])
    some = {name: part[:_WITH_PROPOSALS] for name, part in maps.items()}
    people = batch.instances[:_WITH_PROPOSALS]
    for instances in people:
        instances.remove("proposal_boxes")
    proposals, losses = model.proposal_generator(images, some, people)
    _, more = heads(images, some, proposals, people)
    return total + sum(losses.values()) + sum(more.values())
