"""What MFU is made of: the FLOPs that training on a step's texts needs, and those that the GPU reaches.

Enters: an encoder's config, lengths of texts; a device. Leaves: FLOPs, and FLOPs a second.
"""

import statistics
import time
from typing import Any

import torch

__all__ = ["flop_per_step", "matmul_flop_per_s"]


def flop_per_step(config: Any, *, tokens: float, squared_lengths: float) -> float:
    """Of training on a step's texts: a backward pass costs two forward passes.

    Args:
        config: of the encoder; its linear layers cost 2 FLOPs a weight and token.
        tokens: of all texts, without padding.
        squared_lengths: sum of the squares of their lengths: attention's two products cost 4 x length^2 x hidden.
    """
    hidden, inner, layers = config.hidden_size, config.intermediate_size, config.num_hidden_layers
    linear = 2.0 * layers * (4 * hidden * hidden + 2 * hidden * inner) * tokens
    return 3 * (linear + 4.0 * layers * hidden * squared_lengths)


def matmul_flop_per_s(device: torch.device, dtype: str) -> float:
    """What a matrix product of [16384, 4096] x [4096, 4096] reaches."""
    kind = {"fp32": torch.float32, "bf16": torch.bfloat16}[dtype]
    left, right = (torch.randn(n, 4096, device=device, dtype=kind) for n in (16384, 4096))
    seconds = []
    for _ in range(20):
        torch.cuda.synchronize()
        begin = time.perf_counter()
        left @ right
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - begin)
    return 2.0 * 16384 * 4096 * 4096 / statistics.median(seconds)
