"""What several processes train together, and what one of them does: scenarios, mistakes, a run that is resumed.

Apart from the tests, so that a process starts by importing this and no more.
"""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from steps_for_tests import batch_of, hard_batch, ranked_row, spec_of, student_of
from tiny import tiny_dataset
from torch import Tensor

from pipelines.corpus.dataset import Dataset
from pipelines.ranked.tail import StreamPosition
from pipelines.spec import MomentumSpec
from pipelines.training import encoding
from pipelines.training.batches import ListBatch
from pipelines.training.checkpoints import Checkpoints
from pipelines.training.encoding import EncodingSettings
from pipelines.training.held_out import HeldOutCheck
from pipelines.training.loop import StepReport, train
from pipelines.training.optimizer import LoopSettings
from pipelines.training.student_step import StudentStep
from pipelines.training.workers import Workers, average_gradients

STEPS = 3
LOOP = LoopSettings(
    total_steps=STEPS, learning_rate=1e-3, warmup_ratio=0, weight_decay=0.01, max_grad_norm=1, checkpoint_every_steps=9
)
PLAIN = EncodingSettings(tokens_per_micro_batch=150)


@dataclass(frozen=True)
class Scenario:
    """What is trained."""

    objective: list[dict[str, Any]]
    student: dict[str, Any] = field(default_factory=dict)
    encoding: EncodingSettings = PLAIN
    slow: dict[str, Any] = field(default_factory=dict)
    batches: Callable[[Dataset], list[ListBatch]] = lambda dataset: [hard_batch(dataset, n) for n in range(STEPS)]
    dropout: float = 0.0


def few_texts(dataset: Dataset) -> list[ListBatch]:
    """One query, one document under two ids: the third worker has nothing to encode."""
    return [batch_of(dataset, [ranked_row(f"train{n}", ["d0", "d59"], gold=("d0",), seed=n)]) for n in range(STEPS)]


QUEUE = {"momentum": MomentumSpec(queue_size=13, decay=0.5), "ema_decay": 0.6}
SCENARIOS = {
    "hard negatives": Scenario([{"name": "list_kl"}, {"name": "info_nce"}]),
    "gradient cache": Scenario(
        [{"name": "cprd", "easy_negatives": True, "max_valid": 2}, {"name": "info_nce", "temperature": 0.1}],
        encoding=EncodingSettings(tokens_per_micro_batch=60, gradient_cache=True),
    ),
    "queue and average": Scenario([{"name": "list_kl"}, {"name": "info_nce"}], slow=QUEUE),
    "heads, learned temperature": Scenario(
        [{"name": "list_kl"}, {"name": "info_nce", "learn": ["temperature"]}], {"heads": {"serve": "interpolated"}}
    ),
    "drawn prefixes, drawn negatives": Scenario(
        [{"name": "list_kl"}, {"name": "mochi"}],
        {"matryoshka": {"dimensions": [24, 20, 16, 12, 8, 4], "dimensions_per_step": 2, "invariance_weight": 0.5}},
    ),
    "more workers than texts": Scenario([{"name": "binary_kl"}, {"name": "siglip"}], batches=few_texts),
    "dropout": Scenario([{"name": "list_kl"}, {"name": "info_nce"}], dropout=0.3),
}
WORLDS = {
    3: ["hard negatives", "queue and average", "more workers than texts", "dropout"],
    2: [name for name in SCENARIOS if name != "more workers than texts"],
}
"""What is tried with how many workers."""


class Killed(Exception):  # noqa: N818
    """Stands for the end of the process."""


def new_step(root: Path, scenario: Scenario, workers: Workers) -> StudentStep:
    spec = spec_of(scenario.objective, **scenario.student)
    student = student_of(root / "encoder", spec, dropout=scenario.dropout)
    return StudentStep(
        student, spec.training.objective, encoding=scenario.encoding, workers=workers, **scenario.slow
    ).train()


def open_batches(batches: list[ListBatch]) -> Callable[[StreamPosition], Iterator[tuple[ListBatch, StreamPosition]]]:
    return lambda start: ((batches[i], StreamPosition(0, i + 1)) for i in range(start.ordinal, len(batches)))


def results_of(root: Path, scenario: Scenario, workers: Workers) -> dict[str, Any]:
    """The first batch's gradients; then losses and weights of three optimizer steps."""
    batches = scenario.batches(tiny_dataset(root / "data"))
    step = new_step(root, scenario, workers)
    torch.manual_seed(1)
    step(batches[0])["loss"].backward()
    average_gradients(step, workers)
    gradients = {n: p.grad.clone() for n, p in step.named_parameters() if p.grad is not None}
    step = new_step(root, scenario, workers)
    reports: list[StepReport] = []
    after = step.follow_weights
    train(step, step, open_batches(batches), LOOP, on_step=reports.append, after_update=after, workers=workers)
    return {"losses": [dict(r.losses) for r in reports], "gradients": gradients, "weights": step.state_dict()}


def wrong_variants(rank: int) -> dict[str, tuple[str, Any, str, Any]]:
    """What a worker may get wrong: the scenario that must notice, and the attribute to put a wrong one in place of."""
    gather, seed = encoding.gather_from, torch.manual_seed

    def without_gradient(rows: Tensor, counts: list[int], workers: Workers) -> Tensor:
        whole, start = gather(rows.detach(), counts, workers), sum(counts[: workers.rank])
        return torch.cat([whole[:start], rows, whole[start + len(rows) :]])

    return {
        "gathers without gradient": ("hard negatives", encoding, "gather_from", without_gradient),
        "draws prefixes alone": (
            "drawn prefixes, drawn negatives",
            torch,
            "manual_seed",
            lambda number: seed(number + rank),
        ),
    }


RESUMED = Scenario([{"name": "list_kl"}, {"name": "info_nce", "learn": ["temperature"]}], slow=QUEUE)
LONG = LoopSettings(
    total_steps=6, learning_rate=1e-3, warmup_ratio=0.2, weight_decay=0.01, max_grad_norm=1, checkpoint_every_steps=2
)


def resumed(root: Path, folder: Path, workers: Workers, *, kill_at: int = 0) -> dict[str, Any]:
    """Six steps with a measure on held-out queries, killed at a step or gone on with."""
    dataset = tiny_dataset(root / "data")
    step = new_step(root, RESUMED, workers)
    losses: dict[int, dict[str, float]] = {}

    def on_step(report: StepReport) -> None:
        losses[report.step] = dict(report.losses)
        if report.step == kill_at:
            raise Killed

    def measure() -> float:
        with torch.no_grad():
            return float(step.outcome.embed(["heart", "lung"], "query").prod(dim=0).sum())

    best = None
    with suppress(Killed):
        best = train(
            step,
            step,
            open_batches([hard_batch(dataset, n) for n in range(6)]),
            LONG,
            on_step=on_step,
            checkpoints=Checkpoints(folder, run_fingerprint="run", keep=1),
            after_update=step.follow_weights,
            held_out=HeldOutCheck(measure=measure, every_steps=2, patience=None),
            workers=workers,
        ).best
    return {"losses": losses, "weights": step.state_dict(), "best": best and (best.step, best.value)}


def on_a_worker(rank: int, root: Path, folder: Path) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    for world, names in WORLDS.items():
        if rank >= world:
            continue
        meeting = f"file://{folder}/meeting-{world}"
        dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=world)
        workers = Workers.here()
        results: dict[str, Any] = {name: results_of(root, SCENARIOS[name], workers) for name in names}
        if world == 2:
            for mistake, (scenario, *place) in wrong_variants(rank).items():
                with pytest.MonkeyPatch.context() as patch:
                    patch.setattr(*place)
                    results[mistake] = results_of(root, SCENARIOS[scenario], workers)
            results["whole"] = resumed(root, folder / "whole", workers)
            resumed(root, folder / "killed", workers, kill_at=5)
            dist.barrier()
            if workers.leads:
                shutil.copytree(folder / "killed", folder / "for one")
            dist.barrier()
            results["resumed"] = resumed(root, folder / "killed", workers)
        torch.save(results, folder / f"{world}-{rank}.pt")
        dist.destroy_process_group()
