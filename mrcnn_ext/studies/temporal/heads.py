"""Training and trying a keypoint head on pooled tracks."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

import torch
from detectron2.structures import Boxes, Instances, Keypoints
from detectron2.utils.events import EventStorage
from torch import Tensor, nn

from ...modeling import TemporalKeypointHead
from .features import Tracks

__all__ = ["heatmaps_of", "train_head"]


def train_head(
    head: nn.Module,
    data: Tracks,
    *,
    in_time: bool,
    updates: int,
    people: int,
    num_frames: int,
    learning_rate: float,
    seed: int,
) -> float:
    """Trains a head: each update on all frames of a few people, in bf16 autocast.

    Args:
        head: any keypoint head of ours.
        in_time: whether a person's frames follow each other for the head, or are single images.
        updates: of AdamW, the rate falling to 0 as a cosine.
        people: of an update.
        num_frames: of each person, at most.
        seed: which people, in which order.

    It runs on the device of the data, where the head must be too.

    Returns:
        Seconds of an update.
    """
    generator = torch.Generator().manual_seed(seed)
    rows = data.by_track()
    optimizer = torch.optim.AdamW(head.parameters(), lr=learning_rate, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / 20) * (1 + math.cos(math.pi * step / updates)) / 2
    )
    order: list[int] = []
    start = time.perf_counter()
    head.train()
    for _ in range(updates):
        if len(order) < people:
            order += torch.randperm(len(rows), generator=generator).tolist()
        chosen, order = [rows[i][:num_frames] for i in order[:people]], order[people:]
        features, frames = _clips(data, chosen, in_time)
        optimizer.zero_grad()
        with EventStorage(), torch.autocast(features.device.type, torch.bfloat16):
            (loss,) = head(features, frames).values()
        loss.backward()
        nn.utils.clip_grad_norm_(head.parameters(), 5.0)
        optimizer.step()
        schedule.step()
    return (time.perf_counter() - start) / updates


def _clips(data: Tracks, people: Sequence[list[int]], in_time: bool) -> tuple[Tensor, list[Instances]]:
    """RoI features and instances, frame by frame, as ROI heads hand them to the keypoint head in training."""
    order, frames = [], []
    for number in range(max(map(len, people))):
        there = [(who, person[number]) for who, person in enumerate(people) if number < len(person)]
        rows = [row for _, row in there]
        order += rows
        frame = Instances((1, 1), proposal_boxes=Boxes(data.boxes[rows]))
        frame.gt_keypoints = Keypoints(data.keypoints[rows])
        if in_time:
            frame.gt_track_ids = torch.tensor([who for who, _ in there])
        frames.append(frame)
    return data.features[order].float(), frames


@torch.no_grad()
def heatmaps_of(head: nn.Module, data: Tracks, history: int = 0, last: Sequence[int] | None = None) -> Tensor:
    """Heatmaps of every frame of every person, (N, K, S, S).

    Args:
        head: in evaluation mode afterwards.
        history: frames that a head with a state sees, the frame itself and those before it; 0 for all there are.
        last: rows that are wanted; of the others the result is zero. None for all.
    """
    head.eval()
    if not isinstance(head, TemporalKeypointHead) or history == 1:
        return torch.cat([head.layers(part.float()) for part in data.features.split(256)])
    results: list[Tensor | None] = [None] * len(data)
    features = torch.cat([head.network.features(part.float()) for part in data.features.split(256)])
    wanted = None if last is None else set(last)
    chains = []  # rows, of which the last, or with the whole history all, are wanted
    for rows in data.by_track():
        if not history:
            chains.append(rows)
        else:
            ends = [k for k, row in enumerate(rows) if wanted is None or row in wanted]
            chains += [rows[max(0, k + 1 - history) : k + 1] for k in ends]
    for length in range(1, max(map(len, chains)) + 1):
        same = [chain for chain in chains if len(chain) == length]
        state = None
        for step in range(length if same else 0):
            rows = [chain[step] for chain in same]
            frame = features[rows], data.boxes[rows]
            state = head.first_state(*frame) if state is None else state
            heatmaps, state = head.next_step(*frame, state)
            if not history or step == length - 1:
                for row, maps in zip(rows, heatmaps, strict=True):
                    results[row] = maps
    shape = next(maps for maps in results if maps is not None)
    return torch.stack([torch.zeros_like(shape) if maps is None else maps for maps in results])
