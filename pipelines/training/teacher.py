"""Get the teacher that a job asks for: as it is, or fine-tuned on the labelled queries, trained once and kept.

Enters: a `TeacherSpec`, labelled candidates. Leaves: a folder with a usable cross-encoder and its score contract.
A trained teacher is filed under the hash of everything that decided it, so a second job with the same data and
settings finds it, and with it every score made under its contract.
"""

import fcntl
import hashlib
import json
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipelines.corpus.dataset import Dataset
from pipelines.devices import resolve_device, resolve_dtype, seed_everything
from pipelines.journal import Journal
from pipelines.model_files import weights_hash
from pipelines.ranked.lookup import CandidateRows
from pipelines.ranked.positives import PositiveRule
from pipelines.ranked.tail import StreamPosition
from pipelines.spec import RankerTrainingSpec, TeacherSpec
from pipelines.training.batches import ListBatch, batches
from pipelines.training.checkpoints import Checkpoints
from pipelines.training.labelled import blocks, labelled_rows
from pipelines.training.loop import LoopSettings, StepReport, train
from pipelines.training.ranker import new_ranker, ranker_losses, save_ranker

__all__ = ["learn_teacher", "teacher_key"]

_GOLD_ONLY = PositiveRule(use_labels=True, teacher_top=False, min_confidence=1.0)


def teacher_key(base: Path, dataset: Dataset, labelled: CandidateRows, spec: TeacherSpec, *, seed: int) -> str:
    """32 hex digits naming the trained teacher: base weights, texts, lists with their labels, settings, seed."""
    settings = spec.train.model_dump(mode="json") if spec.train else None
    before, after = [weights_hash(base), dataset.fingerprint], [settings, spec.max_length, spec.truncation, seed]
    # One JSON array [*before, lists, *after], without all lists in memory.
    digest = hashlib.sha256(f"{json.dumps(before)[:-1]}, [".encode())
    separator = ""
    for block in blocks(labelled):
        for query_id, items in zip(block["query_id"].to_pylist(), block["candidates"].to_pylist(), strict=True):
            entry = (query_id, [(item["doc_id"], item["relevance"]) for item in items])
            digest.update(f"{separator}{json.dumps(entry)}".encode())
            separator = ", "
    digest.update(f"], {json.dumps(after)[1:]}".encode())
    return digest.hexdigest()[:32]


def learn_teacher(
    base: Path,
    dataset: Dataset,
    labelled: CandidateRows,
    spec: TeacherSpec,
    *,
    seed: int,
    folder: Path,
    journal: Journal,
) -> Path:
    """Fine-tune the checkpoint in `base` on `labelled` (candidates with judged positives), or find it in `folder`.

    Returns:
        The folder of the finished teacher: `folder/<key>/model`.
    """
    if spec.train is None:
        raise ValueError("the spec does not ask for a trained teacher")
    key = teacher_key(base, dataset, labelled, spec, seed=seed)
    work = folder / key
    finished = work / "model"
    with _only_one(work / ".lock", journal):
        if finished.is_dir():
            journal.event("teacher.reused", f"the teacher {key[:12]} was already trained", key=key)
            return finished
        message = f"fine-tuning the teacher on {len(labelled)} labelled queries"
        journal.event("teacher.training.started", message, key=key)
        _train(base, dataset, labelled, spec, spec.train, seed=seed, work=work, journal=journal)
        shutil.rmtree(work / "checkpoints")
    journal.event("teacher.training.finished", f"the teacher {key[:12]} is trained", key=key)
    return finished


@contextmanager
def _only_one(path: Path, journal: Journal) -> Iterator[None]:
    """Hold the lock file at `path`: of two jobs that want the same teacher one trains it and the other waits for it.

    The kernel frees the lock of a process that dies.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as lock:
        while True:
            journal.check_cancelled()
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(0.5)
        yield


def _train(
    base: Path,
    dataset: Dataset,
    labelled: CandidateRows,
    spec: TeacherSpec,
    ranking: RankerTrainingSpec,
    *,
    seed: int,
    work: Path,
    journal: Journal,
) -> None:
    device = resolve_device()
    seed_everything(seed)
    model, encoder = new_ranker(
        base,
        max_length=spec.max_length,
        truncation=spec.truncation,
        dropout=ranking.dropout,
        device=device,
    )
    dtype = resolve_dtype(ranking.dtype, device_type=device.type)

    def open_batches(start: StreamPosition) -> Iterator[tuple[ListBatch, StreamPosition]]:
        return batches(
            labelled_rows(labelled, start=start, seed=seed),
            dataset,
            queries_per_step=ranking.lists_per_step,
            width=ranking.negatives_per_list + 1,
            rule=_GOLD_ONLY,
            seed=seed,
        )

    def on_step(report: StepReport) -> None:
        journal.check_cancelled()
        journal.progress(
            teacher_step=report.step,
            teacher_total_steps=report.total_steps,
            teacher_loss=report.losses["loss"],
        )

    settings = LoopSettings(
        total_steps=ranking.max_steps,
        learning_rate=ranking.learning_rate,
        warmup_ratio=ranking.warmup_ratio,
        weight_decay=ranking.weight_decay,
        max_grad_norm=1.0,
        checkpoint_every_steps=50,
        seed=seed,
    )
    checkpoints = Checkpoints(work / "checkpoints", run_fingerprint=work.name, keep=1)
    train(
        model,
        lambda batch: ranker_losses(model, encoder, batch, dtype=dtype),
        open_batches,
        settings,
        on_step=on_step,
        checkpoints=checkpoints,
    )
    save_ranker(model, encoder.tokenizer, work / "model")
