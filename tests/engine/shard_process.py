"""One of two processes that train a Vision Transformer by DistributedDataParallel and by FSDP."""

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.nn.parallel import DistributedDataParallel

from mrcnn_ext.engine.sharding import shard, whole
from mrcnn_ext.modeling import TimmBackbone

DEPTH, STEPS = 3, 3


class Detector(nn.Module):
    """A backbone with a head."""

    def __init__(self):
        super().__init__()
        self.backbone = TimmBackbone(
            model_name="vit_tiny_patch16_224",
            out_features=["res4"],
            model_args={"depth": DEPTH, "embed_dim": 48},
        )
        self.head = nn.Conv2d(48, 2, 1)

    def forward(self, images):
        return self.head(self.backbone(images)["res4"]).square().mean()


def train_both(rank, store, queue):
    """Puts {"ddp", "fsdp": (losses of this process, the whole weights afterwards)} into a queue, with the rank and what
    is sharded on its own."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    found = {}
    for kind in ("ddp", "fsdp"):
        torch.manual_seed(rank)  # the first process's weights are everybody's
        model = Detector().train()
        parallel = DistributedDataParallel(model) if kind == "ddp" else shard(model, {})
        optimizer = torch.optim.AdamW(parallel.parameters(), 1e-3)
        images, losses = torch.Generator().manual_seed(10 + rank), []
        for _ in range(STEPS):
            loss = parallel(torch.randn(1, 3, 64, 96, generator=images))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(float(loss))
        weights = {name: value.numpy() for name, value in whole(model.state_dict()).items()}
        found[kind] = losses, weights
    units = [name for name, module in model.named_modules() if isinstance(module, FSDPModule)]
    queue.put((rank, found, units))
    dist.destroy_process_group()
