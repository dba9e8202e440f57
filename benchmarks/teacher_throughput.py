"""How fast teachers score, beside sentence-transformers' `CrossEncoder.predict` and the machine's own limit.

Every scorer is a process of its own that has all cores (`peers/scorers.py`); they take turns, round after round, on the
same pairs, and a ratio is the median over rounds of one round's times: a busy neighbour slows both. The peer runs with
several batch sizes; `*_vs_sentence_transformers` is against its best, `default_*` against its default of 32. The limit
is what torch's matrix products of [2048, 384] x [384, 1536] reach in the same rounds, divided by the FLOPs of a token
in the linear layers of the whole model: a scorer that leaves out work nobody reads may exceed it.

On CUDA, also a model of XLM-R large's size, and MFU: FLOPs of linear layers and attention against the dense bf16 peak.

    python benchmarks/teacher_throughput.py --quick --json out.json      # 128 pairs, 3 rounds: some minutes on 2 cores
"""

import argparse
import json
import math
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from peers.scoring_task import MODELS, PER_LIST, attention_flop, flop_per_token, real_pairs, tokens_of
from scipy import stats

from pipelines.devices import available_cpus, device_name, resolve_device
from pipelines.openvino_runtime import openvino_precisions

PEAK_BF16 = {"H100": 989e12, "H200": 989e12, "A100": 312e12}
MAX_LENGTH = 256
DEFAULT_BATCH = 32
MATMUL_CPU, MATMUL_CUDA = (2048, 384, 1536), (16384, 4096, 4096)


class Flop(NamedTuple):
    """Of the linear layers for one token, and of attention for all pairs."""

    per_token: float
    attention: float


class Scorer:
    """One child process; `turn` lets it score all pairs once."""

    def __init__(self, name: str, settings: dict[str, Any]) -> None:
        self.name, self.dtype, self.seconds = name, settings["dtype"], list[float]()
        self.scores = Path(settings["scores"])
        self.flop = 2.0 * math.prod(settings.get("matmul_shape", ())) * settings.get("matmul_count", 0)
        self.memory: dict[str, float] = {}
        program = Path(__file__).with_name("peers") / "scorers.py"
        self._child = subprocess.Popen(
            [sys.executable, "-W", "ignore", str(program), json.dumps(settings)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._answer("ready")

    def turn(self) -> None:
        """Score once."""
        self._say("go")
        self.seconds.append(float(self._answer()))

    def end(self) -> np.ndarray:
        """Stop; returns the scores."""
        self._say("end")
        self.memory = json.loads(self._answer())
        self._child.wait(60)
        return np.load(self.scores)

    @property
    def median(self) -> float:
        """Seconds of a turn."""
        return statistics.median(self.seconds)

    def _say(self, word: str) -> None:
        assert self._child.stdin is not None  # noqa: S101 - it was asked for above
        print(word, file=self._child.stdin, flush=True)

    def _answer(self, wanted: str = "") -> str:
        assert self._child.stdout is not None  # noqa: S101
        for line in self._child.stdout:
            if not wanted or line.strip() == wanted:
                return line
        raise SystemExit(f"{self.name} ended: {self._child.wait()}")


def plan(device: torch.device, *, quick: bool) -> list[tuple[str, dict[str, Any]]]:
    """(name, settings) of every scorer."""
    batches = (8, 32, 128, 256) if device.type == "cuda" else (8, 16, 32)
    chosen: list[tuple[str, dict[str, Any]]] = []
    for dtype in ("fp32", "bf16"):
        native = device.type == "cpu" and dtype in openvino_precisions()
        backends = ["openvino", "torch"] if native else ["torch"]
        chosen += [(f"{backend} {dtype}", {"system": "ours", "backend": backend}) for backend in backends]
        few = dtype == "bf16" and device.type == "cpu" and not native and quick
        for size in (8, DEFAULT_BATCH) if few else batches:
            chosen.append((f"peer {dtype} {size}", {"system": "sentence_transformers", "batch_size": size}))
        count = 1000 if device.type == "cuda" else 100 if dtype == "fp32" else 30
        shape = MATMUL_CUDA if device.type == "cuda" else MATMUL_CPU
        chosen.append((f"limit {dtype}", {"system": "matmul", "matmul_shape": shape, "matmul_count": count}))
        for _, settings in chosen:
            settings.setdefault("dtype", dtype)
    return chosen


def measure(model: str, device: torch.device, options: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Figures and ratios of one model."""
    folder = MODELS[model](work / model, max_length=MAX_LENGTH)
    queries, passages = real_pairs(options.pairs // PER_LIST)
    pairs = work / "pairs.json"
    pairs.write_text(json.dumps({"queries": queries, "passages": passages}), encoding="utf-8")
    lengths = tokens_of(folder, queries, passages, max_length=MAX_LENGTH)
    common = {"folder": str(folder), "pairs": str(pairs), "device": device.type, "max_length": MAX_LENGTH}
    scorers: list[Scorer] = []
    for number, (name, settings) in enumerate(plan(device, quick=options.quick)):
        print(f"loading {name}", flush=True)
        more = {"threads": available_cpus(), "scores": str(work / f"{model}-{number}.npy")}
        scorers.append(Scorer(name, common | more | settings))
    for number in range(options.rounds):
        for scorer in scorers:
            scorer.turn()
        print(f"round {number + 1}: " + ", ".join(f"{s.name} {s.seconds[-1]:.2f} s" for s in scorers), flush=True)
    scores = {scorer.name: scorer.end() for scorer in scorers}
    return report(
        {s.name: s for s in scorers},
        scores,
        lengths,
        Flop(flop_per_token(folder), attention_flop(folder, lengths)),
        device,
    )


def report(
    scorers: dict[str, Scorer], scores: dict[str, np.ndarray], lengths: np.ndarray, flop: Flop, device: torch.device
) -> dict[str, Any]:
    """What was measured, as plain JSON."""
    figures: dict[str, Any] = {
        "pairs": len(lengths),
        "tokens": int(lengths.sum()),
        "MFLOP per token": flop.per_token / 1e6,
    }
    ratios: dict[str, float] = {}
    for name, scorer in scorers.items():
        if name.startswith("limit"):
            figures[f"{name}, GFLOP/s"] = scorer.flop / scorer.median / 1e9
            continue
        figures[name] = {
            "pairs/s": len(lengths) / scorer.median,
            "tokens/s": lengths.sum() / scorer.median,
            "peak RSS, MiB": scorer.memory["peak_rss_mib"],
        }
        if device.type == "cuda":
            figures[name]["peak GPU, MiB"] = scorer.memory["peak_gpu_mib"]
            peak = next((value for card, value in PEAK_BF16.items() if card in device_name(device)), None)
            whole = lengths.sum() * flop.per_token + flop.attention
            figures[name]["MFU"] = whole / scorer.median / peak if peak else None
    for dtype in ("fp32", "bf16"):
        mine = min((s for n, s in scorers.items() if n.endswith(dtype) and not n.startswith("limit")), key=_median)
        peers = {name: s for name, s in scorers.items() if name.startswith(f"peer {dtype}")}
        best = min(peers.values(), key=_median)
        ratios[f"{dtype}_vs_sentence_transformers"] = _times(best, mine)
        limit = scorers[f"limit {dtype}"]
        ratios[f"{dtype}_vs_matmul_limit"] = _times(limit, mine) * flop.per_token * float(lengths.sum()) / limit.flop
        figures[f"best of ours in {dtype}"], figures[f"best of the peer in {dtype}"] = mine.name, best.name
        if dtype == "fp32":
            ratios["default_vs_sentence_transformers"] = _times(peers[f"peer fp32 {DEFAULT_BATCH}"], mine)
            ratios["memory_vs_sentence_transformers"] = mine.memory["peak_rss_mib"] / best.memory["peak_rss_mib"]
        figures[f"agreement of {mine.name}"] = agreement(scores[mine.name], scores[f"peer fp32 {DEFAULT_BATCH}"])
    return {"figures": figures, "ratios": ratios}


def agreement(found: np.ndarray, exact: np.ndarray) -> dict[str, float]:
    """With the peer's fp32 scores: largest difference, lowest rank correlation of a list, ties that are new."""
    lists = [slice(start, start + PER_LIST) for start in range(0, len(found), PER_LIST)]
    ties = [len(np.unique(exact[rows])) - len(np.unique(found[rows])) for rows in lists]
    return {
        "largest difference": float(np.abs(found - exact).max()),
        "standard deviation of the logits": float(exact.std()),
        "lowest Spearman of a list": float(min(stats.spearmanr(found[rows], exact[rows]).statistic for rows in lists)),
        "rate of ties": sum(ties) / len(found),
    }


def _median(scorer: Scorer) -> float:
    return scorer.median


def _times(slow: Scorer, fast: Scorer) -> float:
    return statistics.median(s / f for s, f in zip(slow.seconds, fast.seconds, strict=True))


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return float(f"{value:.4g}") if isinstance(value, float) else value


def main() -> None:
    """Measure every model, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="128 pairs, 3 rounds")
    parser.add_argument("--json", type=Path, help="write device, figures and ratios here")
    parser.add_argument("--pairs", type=int, help="a multiple of 32; default 512 (CUDA 16384), a quarter if quick")
    parser.add_argument("--rounds", type=int, help="default 7")
    options = parser.parse_args()
    device = resolve_device()
    options.pairs = options.pairs or (4096 if device.type == "cuda" else 128) * (1 if options.quick else 4)
    options.rounds = options.rounds or (3 if options.quick else 7)
    models = list(MODELS) if device.type == "cuda" else ["minilm-l6"]
    found: dict[str, Any] = {"device": device_name(device), "figures": {}, "ratios": {}}
    with tempfile.TemporaryDirectory() as scratch:
        for model in models:
            one = measure(model, device, options, Path(scratch))
            found["figures"][model] = _rounded(one["figures"])
            prefix = "" if len(models) == 1 else f"{model}_"
            found["ratios"] |= {f"{prefix}{name}": round(value, 3) for name, value in one["ratios"].items()}
    print(json.dumps(found, indent=1))
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
