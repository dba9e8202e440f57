"""The ranker's part of an adversarial round: it learns from the negatives that the student has just found.

Enters: the ranker before all rounds, the round's candidates. Leaves: the next version of its weights, a folder that
`teacher.loading` and `CrossEncoder` load. Optimizer and schedule go on from round to round: the schedule spans the
ranker's own steps of all rounds, as in AR2's code. It learns in this process or, by the same loop, in workers of its
own.
"""

from dataclasses import dataclass
from pathlib import Path

from pipelines.candidates.file import CandidatesFile
from pipelines.corpus.dataset import Dataset, load_dataset
from pipelines.devices import resolve_device
from pipelines.journal import Journal
from pipelines.rounds.one_round import RoundInputs
from pipelines.spec import DistillationSpec, RankerStepsSpec, WorkersSpec
from pipelines.training.checkpoints import Checkpoints
from pipelines.training.loop import StepReport
from pipelines.training.optimizer import LoopSettings
from pipelines.training.ranker import save_ranker
from pipelines.training.ranker_fitting import fit_ranker
from pipelines.training.worker_channel import WorkerSide
from pipelines.training.worker_group import train_with_workers
from pipelines.training.workers import ALONE, Workers

__all__ = ["RankerTask", "learn_ranker_round", "ranker_version"]


@dataclass(frozen=True, kw_only=True)
class RankerTask:
    """One round of a ranker. See `GroupTask`."""

    job_id: str
    spec: DistillationSpec
    base: Path
    """The ranker before all rounds."""
    dataset_folder: Path
    candidates: Path
    """Of the round, with judgements."""
    work: Path
    number: int
    """Of the round; it makes version `number + 1`."""

    @property
    def name(self) -> str:
        """See `GroupTask`."""
        return f"{self.spec.name}-{self.job_id}-ranker-{self.number}"

    @property
    def channel(self) -> Path:
        """See `GroupTask`."""
        return self.work / "workers" / f"ranker-{self.number}"

    @property
    def workers(self) -> WorkersSpec:
        """See `GroupTask`."""
        workers = _settings(self.spec).workers
        if workers is None:
            raise ValueError("the spec names no rounds.adversarial.ranker.workers")
        return workers

    def train(self, channel: WorkerSide, workers: Workers) -> None:
        """See `GroupTask`."""
        _train(self, load_dataset(self.spec.dataset, self.dataset_folder), channel, workers)


def ranker_version(work: Path, version: int) -> Path:
    """Where a version of the ranker's weights is kept; version 0 is the job's teacher and lies elsewhere."""
    return work / "ranker" / f"version-{version}"


def learn_ranker_round(inputs: RoundInputs, base: Path, candidates: CandidatesFile, number: int) -> Path:
    """Train the ranker for round `number`, or find that done; returns the folder of the new version.

    Args:
        inputs: of all rounds.
        base: the ranker before all rounds.
        candidates: of the round, with judgements.
        number: of the round.
    """
    folder, ranker, journal = ranker_version(inputs.work, number + 1), _settings(inputs.spec), inputs.journal
    if folder.is_dir():
        return folder
    message = f"round {number}: the ranker learns for {ranker.steps_per_round} steps"
    journal.event("ranker.training.started", message, round=number)
    task = RankerTask(
        job_id=inputs.job_id,
        spec=inputs.spec,
        base=base,
        dataset_folder=inputs.dataset_folder,
        candidates=candidates.path,
        work=inputs.work,
        number=number,
    )
    if ranker.workers:
        train_with_workers(task, inputs.launcher, journal=journal, sinks=inputs.sinks, watch=journal.check_cancelled)
        return folder
    if inputs.spec.teacher.gpus_per_replica and resolve_device().type == "cpu":
        where = (
            "the ranker learns on the job's CPU while its replicas have GPUs; name rounds.adversarial.ranker.workers"
        )
        journal.event("ranker.training.on_cpu", where, round=number)
    _train(task, inputs.dataset, journal, ALONE)
    return folder


def _settings(spec: DistillationSpec) -> RankerStepsSpec:
    if spec.rounds.adversarial is None:
        raise ValueError("the spec's rounds are not adversarial")
    return spec.rounds.adversarial.ranker


def _train(task: RankerTask, dataset: Dataset, journal: Journal, workers: Workers) -> None:
    spec, number, ranker = task.spec, task.number, _settings(task.spec)
    steps = ranker.steps_per_round
    settings = LoopSettings(
        total_steps=spec.rounds.count * steps,
        begins_at=number * steps,
        stops_after=(number + 1) * steps,
        learning_rate=ranker.learning_rate,
        warmup_ratio=ranker.warmup_ratio,
        weight_decay=ranker.weight_decay,
        max_grad_norm=ranker.max_grad_norm,
        checkpoint_every_steps=ranker.checkpoint_every_steps,
        seed=spec.seed,
    )
    losses: list[float] = []

    def on_step(report: StepReport) -> None:
        journal.check_cancelled()
        losses.append(report.losses["loss"])
        journal.progress(
            round=number,
            ranker_step=report.step,
            ranker_total_steps=report.total_steps,
            ranker_loss=report.losses["loss"],
        )

    model, encoder = fit_ranker(
        task.base,
        dataset,
        CandidatesFile(task.candidates),
        spec.teacher,
        settings,
        dropout=ranker.dropout,
        dtype=ranker.dtype,
        lists_per_step=ranker.queries_per_step,
        negatives_per_list=spec.training.candidates_per_query - 1,
        stream_seed=spec.seed + number,
        checkpoints=Checkpoints(task.work / "checkpoints" / "ranker", run_fingerprint=f"{task.job_id}/ranker", keep=1),
        on_step=on_step,
        workers=workers,
    )
    if not workers.leads:
        return
    version = number + 1
    folder = ranker_version(task.work, version)
    save_ranker(model, encoder.tokenizer, folder, same_tokens_as=task.base)
    message = f"round {number}: the ranker has version {version} of its weights"
    data = {"first_loss": losses[0], "last_loss": losses[-1]} if losses else {}
    journal.event("ranker.training.finished", message, round=number, weights_version=version, **data)
