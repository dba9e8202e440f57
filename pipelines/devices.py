"""What the hardware at hand means for numbers: device, dtype, threads, seeds.

Enters: names from the spec (`auto`, `bf16` ...) and the CPUs a process was given. Leaves: torch objects and settings.
One place decides, so that scoring, training and their contracts cannot disagree.
"""

import os
import platform
import random
from pathlib import Path

import numpy as np
import torch

__all__ = [
    "available_cpus",
    "cpu_threads",
    "device_name",
    "resolve_device",
    "resolve_dtype",
    "seed_everything",
    "torch_dtype",
    "use_threads",
]

_DTYPES = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def resolve_device() -> torch.device:
    """CUDA when torch sees a GPU, else CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def resolve_dtype(name: str, *, device_type: str) -> str:
    """Turn `auto` into a concrete dtype name; concrete names pass through.

    bf16 where the hardware multiplies it natively (any CUDA GPU we support; CPUs with AVX512-BF16 or AMX), else fp32:
    emulated bf16 on a CPU is several times slower than fp32.
    """
    if name != "auto":
        return name
    if device_type == "cuda":
        return "bf16"
    return "bf16" if _cpu_multiplies_bf16() else "fp32"


def device_name(device: torch.device) -> str:
    """The product name of a GPU, or of this machine's CPU."""
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.is_file() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def _cpu_multiplies_bf16() -> bool:
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def torch_dtype(name: str) -> torch.dtype:
    """The torch dtype of a concrete name: fp32, tf32 (fp32 weights), bf16 or fp16."""
    return _DTYPES[name]


def available_cpus() -> int:
    """CPUs this process may run on: its affinity mask where the system has one, not the machine's count."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cpu_threads(num_cpus: float) -> int:
    """Threads a process may compute with on `num_cpus` CPUs: their whole number, never less than one.

    More threads than CPUs is worse than slow: OpenMP barriers wait for a thread that is not scheduled.
    """
    return max(1, int(num_cpus))


def use_threads(num_cpus: float) -> int:
    """Limit this process's torch intra-op threads to the CPUs it was given; returns the number."""
    threads = cpu_threads(num_cpus)
    torch.set_num_threads(threads)
    os.environ["RAYON_NUM_THREADS"] = str(threads)  # tokenizers start their threads at first use
    return threads


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and torch (all devices)."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
