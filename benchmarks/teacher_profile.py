"""Where a teacher's forward pass spends its time on this CPU: by kind of operation, one core, one batch.

OpenVINO's own counters, and torch's profiler for the eager backend; beside them the speed of the linear layers and of a
bare matrix product of the same size, so that one sees what is left to win.

    python benchmarks/teacher_profile.py --quick --json out.json      # seconds; --rows and --length choose the batch
"""

import argparse
import json
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peers.scoring_task import flop_per_token, minilm
from torch.profiler import ProfilerActivity, profile

from pipelines.devices import device_name
from pipelines.openvino_runtime import openvino_runtime
from pipelines.teacher.backends.openvino_backend import traced
from pipelines.teacher.contract import ONE_LABEL
from pipelines.teacher.loading import load_cross_encoder
from pipelines.teacher.model import PairModel, pair_model

KINDS = {
    "linear": ("FullyConnected", "addmm", "mm"),
    "attention": ("Subgraph", "ScaledDotProductAttention", "_scaled_dot_product"),
    "GELU": ("gelu", "Gelu"),
    "normalisation": ("MVN", "native_layer_norm"),
    "embedding": ("Gather", "embedding", "index_select"),
}


def kind_of(name: str) -> str:
    """Kind of an operation; `other` is transposes, additions, copies."""
    name = name.removeprefix("aten::")
    return next((kind for kind, starts in KINDS.items() if name.startswith(starts)), "other")


def openvino_times(model: PairModel, inputs: dict[str, np.ndarray], repeats: int) -> tuple[float, Counter[str]]:
    """Milliseconds of a batch, and of each kind."""
    compiled = (
        openvino_runtime()
        .Core()
        .compile_model(
            traced(model, has_types="token_type_ids" in inputs),
            "CPU",
            {
                "NUM_STREAMS": 1,
                "INFERENCE_NUM_THREADS": 1,
                "INFERENCE_PRECISION_HINT": "f32",
                "PERF_COUNT": True,
            },
        )
    )
    request = compiled.create_infer_request()
    whole = _milliseconds(lambda: request.infer(inputs), repeats)
    kinds: Counter[str] = Counter()
    for entry in request.profiling_info:
        kinds[kind_of(entry.node_type)] += entry.real_time.total_seconds() * 1e3
    return whole, kinds


def torch_times(model: PairModel, inputs: dict[str, np.ndarray], repeats: int) -> tuple[float, Counter[str]]:
    """Milliseconds of a batch, and of each kind."""
    tensors = {name: torch.from_numpy(value) for name, value in inputs.items()}
    with torch.inference_mode():
        whole = _milliseconds(lambda: model(**tensors), repeats)
        with profile(activities=[ProfilerActivity.CPU]) as profiled:
            model(**tensors)
    kinds: Counter[str] = Counter()
    for event in profiled.key_averages():
        kinds[kind_of(event.key)] += event.self_cpu_time_total / 1e3
    return whole, kinds


def _milliseconds(run: Any, repeats: int) -> float:
    for _ in range(3):
        run()
    started = time.perf_counter()
    for _ in range(repeats):
        run()
    return (time.perf_counter() - started) / repeats * 1e3


def main() -> None:
    """Profile, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer repeats")
    parser.add_argument("--json", type=Path, help="write device, figures and ratios here")
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--length", type=int, default=186)
    options = parser.parse_args()
    repeats = 5 if options.quick else 30
    torch.set_num_threads(1)
    shape = options.rows, options.length
    inputs = {
        "input_ids": np.random.default_rng(0).integers(1000, 20000, size=shape),
        "attention_mask": np.ones(shape, dtype=np.int64),
        "token_type_ids": np.zeros(shape, dtype=np.int64),
    }
    left, right = torch.randn(shape[0] * shape[1], 384), torch.randn(384, 1536)
    product = _milliseconds(lambda: left @ right, 10 * repeats)
    limit = 2 * left.numel() * right.shape[1] / product / 1e6
    figures: dict[str, Any] = {"batch": list(shape), "matrix product, GFLOP/s on one core": round(limit, 1)}
    ratios: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = minilm(Path(scratch) / "model", max_length=256)
        loaded, tokenizer = load_cross_encoder(folder, dtype=torch.float32, device=torch.device("cpu"))
        model = pair_model(loaded, tokenizer, head=ONE_LABEL)
        for name, times in (("torch", torch_times), ("openvino", openvino_times)):
            whole, kinds = times(model, inputs, repeats)
            figures[name] = {"ms": round(whole, 1)} | {kind: round(ms, 1) for kind, ms in kinds.most_common()}
            gflops = flop_per_token(folder) * left.shape[0] / whole / 1e6
            ratios[f"{name}_vs_matrix_product"] = round(gflops / limit, 3)
            ratios[f"{name}_linear_share"] = round(kinds["linear"] / sum(kinds.values()), 3)
    report = {"device": device_name(torch.device("cpu")), "figures": figures, "ratios": ratios}
    print(json.dumps(report, indent=1))
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
