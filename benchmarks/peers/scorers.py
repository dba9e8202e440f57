"""One scorer in a process of its own: it loads a model, and scores the same pairs each time it is told to.

A process each, so that peak memory is its own, and so that threads, allocators and caches of one do not help or hurt
another. Takes turns with the others over its standard input: "go" scores and answers with the seconds, "end" answers
with peak memory and where the scores are.

    python benchmarks/peers/scorers.py '{"system": "ours", "folder": ..., "pairs": ..., "dtype": ..., ...}'
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

Score = Callable[[list[str], list[str]], np.ndarray]


def ours(settings: dict[str, Any], device: torch.device) -> Score:
    """The teacher engine, texts in: tokenising is in the time, as it is in the peer's."""
    from pipelines.teacher.contract import contract_of
    from pipelines.teacher.engine import load_engine

    contract = contract_of(
        Path(settings["folder"]),
        model_id="benchmark",
        revision=None,
        max_length=settings["max_length"],
        dtype=settings["dtype"],
        backend=settings["backend"],
    )
    engine = load_engine(Path(settings["folder"]), contract, device=device, threads=settings["threads"])
    print(f"  {settings['backend']} {settings['dtype']}: {engine.tokens_per_batch} tokens a batch", file=sys.stderr)
    return engine.score


def sentence_transformers(settings: dict[str, Any], device: torch.device) -> Score:
    """`CrossEncoder.predict`, raw logits."""
    from sentence_transformers import CrossEncoder

    model = CrossEncoder(
        settings["folder"],
        max_length=settings["max_length"],
        device=device.type,
        model_kwargs={"dtype": {"fp32": torch.float32, "bf16": torch.bfloat16}[settings["dtype"]]},
        local_files_only=True,
    )

    def score(queries: list[str], passages: list[str]) -> np.ndarray:
        return model.predict(  # type: ignore[no-any-return]
            list(zip(queries, passages, strict=True)),
            batch_size=settings["batch_size"],
            activation_fn=torch.nn.Identity(),
            show_progress_bar=False,
            convert_to_numpy=True,
        )

    return score


def matmul(settings: dict[str, Any], device: torch.device) -> Score:
    """No model: matrix products as many as the settings say, and no scores."""
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[settings["dtype"]]
    rows, inner, columns = settings["matmul_shape"]
    left = torch.randn(rows, inner, device=device, dtype=dtype)
    right = torch.randn(inner, columns, device=device, dtype=dtype)

    def score(*_: list[str]) -> np.ndarray:
        for _ in range(settings["matmul_count"]):
            left @ right
        if device.type == "cuda":
            torch.cuda.synchronize()
        return np.empty(0)

    return score


SYSTEMS: dict[str, Callable[[dict[str, Any], torch.device], Score]] = {
    "ours": ours,
    "sentence_transformers": sentence_transformers,
    "matmul": matmul,
}


def main() -> None:
    """Load, warm up, take turns."""
    settings = json.loads(sys.argv[1])
    device = torch.device(settings["device"])
    if device.type == "cpu":
        torch.set_num_threads(settings["threads"])
    pairs = json.loads(Path(settings["pairs"]).read_text(encoding="utf-8"))
    score = SYSTEMS[settings["system"]](settings, device)
    few = slice(0, len(pairs["queries"]) // 4)
    with torch.inference_mode():
        score(pairs["queries"][few], pairs["passages"][few])
        print("ready", flush=True)
        scores = np.empty(0)
        for line in sys.stdin:
            if line.strip() == "end":
                break
            started = time.perf_counter()
            scores = np.asarray(score(pairs["queries"], pairs["passages"]), dtype=np.float64)
            print(json.dumps(time.perf_counter() - started), flush=True)
    np.save(settings["scores"], scores)
    on_device = torch.cuda.max_memory_allocated() / 2**20 if device.type == "cuda" else 0.0
    # Not getrusage: its peak is inherited from the process that started this one.
    status = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    peak = next(int(line.split()[1]) / 1024 for line in status if line.startswith("VmHWM"))
    print(json.dumps({"peak_rss_mib": peak, "peak_gpu_mib": on_device}), flush=True)


if __name__ == "__main__":
    main()
