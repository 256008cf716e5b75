"""Training a detector of torchvision."""

import json
import logging
import math
import os
import time

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, RandomSampler

from ...files import replacing

__all__ = ["train"]

logger = logging.getLogger(__name__)


def train(
    model: nn.Module,
    dataset: Dataset,
    output_dir: str,
    *,
    iterations: int,
    batch_size: int = 8,
    base_lr: float = 1e-3,
    warmup_iterations: int = 100,
    weight_decay: float = 0.05,
    loss_weights: dict[str, float] | None = None,
    channels_last: bool = False,
    num_workers: int = 1,
    log_period: int = 20,
) -> float:
    """AdamW with a linear warm-up and a cosine down to zero.

    Writes to ``output_dir``: ``metrics.json``, a line of JSON every ``log_period`` iterations (iteration, lr,
    total_loss and each loss, averaged over the period), and ``model_final.pth``, a state_dict. Random numbers
    are those of torch's global generator.

    Args:
        model: in training mode (images, targets) -> a dict of losses; data goes to the device it is on.
        dataset: gives (image, target) pairs, as :class:`.CocoInstances`.
        iterations: optimiser steps, of ``batch_size`` images each.
        base_lr: the learning rate after the warm-up.
        weight_decay: of all parameters but those of normalisations.
        loss_weights: factors of the model's losses, by their names; 1 for those left out.
        channels_last: convolutions run channels-last, which is faster on most processors.
        num_workers: processes that load images; 0 for none.

    Returns:
        Seconds of training.

    Raises:
        FloatingPointError: the loss became infinite or NaN.
    """
    sampler = RandomSampler(dataset, num_samples=iterations * batch_size)
    loader = DataLoader(dataset, batch_size, sampler=sampler, num_workers=num_workers, collate_fn=_collate)
    norms, others = _split_parameters(model)
    groups = [{"params": norms, "weight_decay": 0.0}, {"params": others, "weight_decay": weight_decay}]
    optimizer = torch.optim.AdamW(groups, lr=base_lr, fused=True)

    def factor(iteration):
        warmup = min(1.0, 0.001 + iteration / max(warmup_iterations, 1))
        return warmup * 0.5 * (1 + math.cos(math.pi * iteration / iterations))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    weights = loss_weights or {}
    device = next(model.parameters()).device
    os.makedirs(output_dir, exist_ok=True)
    model.train()
    if channels_last:
        model.to(memory_format=torch.channels_last)
    start = time.perf_counter()
    with open(os.path.join(output_dir, "metrics.json"), "w") as metrics:
        sums: dict[str, float] = {}
        for iteration, (images, targets) in enumerate(loader, 1):
            images = [image.to(device) for image in images]
            targets = [{key: value.to(device) for key, value in target.items()} for target in targets]
            losses = model(images, targets)
            losses = {name: loss * weights.get(name, 1.0) for name, loss in losses.items()}
            total = sum(losses.values())
            if not torch.isfinite(total):
                shown = ", ".join(f"{name} {loss.item():.3g}" for name, loss in losses.items())
                raise FloatingPointError(f"the loss is {total.item()} at iteration {iteration} ({shown})")
            optimizer.zero_grad()
            total.backward()
            optimizer.step()
            lr = schedule.get_last_lr()[0]
            schedule.step()

            for name, loss in {"total_loss": total, **losses}.items():
                sums[name] = sums.get(name, 0.0) + loss.item()
            if iteration % log_period == 0 or iteration == iterations:
                period = (iteration - 1) % log_period + 1
                means = {name: value / period for name, value in sums.items()}
                sums = {}
                print(json.dumps({"iteration": iteration, "lr": lr, **means}), file=metrics, flush=True)
                left = (time.perf_counter() - start) / iteration * (iterations - iteration)
                shown = "  ".join(f"{name} {value:.3f}" for name, value in means.items())
                logger.info(
                    "iteration %d/%d  %.0f s left  %s  lr %.4f", iteration, iterations, left, shown, lr
                )
    seconds = time.perf_counter() - start
    with replacing(os.path.join(output_dir, "model_final.pth")) as file:
        torch.save(model.state_dict(), file)
    return seconds


def _split_parameters(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Those of normalisations, which do not decay, and the others."""
    kinds = (
        nn.BatchNorm1d,
        nn.BatchNorm2d,
        nn.BatchNorm3d,
        nn.SyncBatchNorm,
        nn.InstanceNorm2d,
        nn.LayerNorm,
        nn.GroupNorm,
    )
    norms = {p: None for module in model.modules() if isinstance(module, kinds) for p in module.parameters()}
    trained = [p for p in model.parameters() if p.requires_grad]
    return [p for p in trained if p in norms], [p for p in trained if p not in norms]


def _collate(items):
    return tuple(zip(*items, strict=True))
