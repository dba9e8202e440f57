"""The processes that train one model together, and the three things they do together.

Enters: torch's process group, if there is one (Ray Train or torchrun made it). Leaves: vectors of all workers with
gradient, gradients averaged over workers, one worker's word for all. Without a group everything is as if there were no
such thing, at no cost.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pipelines.objectives.gather_rows import gather_padded

__all__ = ["ALONE", "Workers", "average_gradients", "gather_from", "the_first_says"]


@dataclass(frozen=True)
class Workers:
    """This process's place among those that train together."""

    rank: int = 0
    world: int = 1

    @classmethod
    def here(cls) -> "Workers":
        """Those of torch's default process group."""
        if not (dist.is_available() and dist.is_initialized()):
            return ALONE
        return cls(dist.get_rank(), dist.get_world_size())

    @property
    def leads(self) -> bool:
        """Whether this one writes what is written once: checkpoints, metrics."""
        return self.rank == 0

    @contextmanager
    def own_draws(self) -> Iterator[None]:
        """Within it each worker draws numbers of its own (dropout); before and after, all draw the same.

        All enter it with the same state of torch's generator, which goes on as if nothing had been drawn but one seed,
        however many they are.
        """
        seed = int(torch.randint(2**62, ()))
        if self.world == 1:
            yield
            return
        devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(seed + self.rank)
            yield


ALONE = Workers()


def gather_from(rows: Tensor, counts: Sequence[int], workers: Workers) -> Tensor:
    """Rows of all workers, worker 0's first, with gradient to the one each came from.

    Args:
        rows: [own rows, ...] of this worker.
        counts: how many each worker has.
        workers: who they are.
    """
    return rows if workers.world == 1 else gather_padded(rows, counts, None)


def average_gradients(model: nn.Module, workers: Workers) -> None:
    """Every parameter's gradient becomes its mean over the workers, in one collective per dtype.

    A parameter without a gradient here but with one elsewhere counts as zero here; one without any keeps none, so that
    the optimizer leaves it alone as it does in one process.
    """
    if workers.world == 1:
        return
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    has_one = torch.tensor([p.grad is not None for p in trainable], dtype=torch.uint8, device=trainable[0].device)
    dist.all_reduce(has_one, op=dist.ReduceOp.MAX)
    learning = [parameter for parameter, has in zip(trainable, has_one.tolist(), strict=True) if has]
    for dtype in dict.fromkeys(parameter.dtype for parameter in learning):
        group = [parameter for parameter in learning if parameter.dtype == dtype]
        parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in group]
        flat = torch.cat([part.reshape(-1) for part in parts])
        dist.all_reduce(flat)
        flat /= workers.world
        means = torch.split(flat, [part.numel() for part in parts])
        for parameter, mean in zip(group, means, strict=True):
            parameter.grad = mean.view_as(parameter)


def the_first_says(value: Any, workers: Workers) -> Any:
    """Worker 0's `value`, anything that pickles, on every worker."""
    if workers.world == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]
