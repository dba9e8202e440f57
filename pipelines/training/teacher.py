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
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from pipelines.corpus.dataset import Dataset
from pipelines.journal import Journal
from pipelines.model_files import weights_hash
from pipelines.ranked.lookup import CandidateRows
from pipelines.spec import TeacherSpec
from pipelines.training.checkpoints import Checkpoints
from pipelines.training.labelled import blocks
from pipelines.training.loop import StepReport
from pipelines.training.optimizer import LoopSettings
from pipelines.training.ranker import save_ranker
from pipelines.training.ranker_fitting import fit_ranker
from pipelines.training.workers import ALONE, Workers

__all__ = ["learn_teacher", "teacher_key", "train_teacher"]


def teacher_key(base: Path, dataset: Dataset, labelled: CandidateRows, spec: TeacherSpec, *, seed: int) -> str:
    """32 hex digits naming the trained teacher: base weights, texts, lists with their labels, settings, seed."""
    # Who trains together decides nothing but speed.
    settings = spec.train.model_dump(mode="json", exclude={"workers"}) if spec.train else None
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
    together: Callable[[Path], None] | None = None,
) -> Path:
    """Fine-tune the checkpoint in `base` on `labelled` (candidates with judged positives), or find it in `folder`.

    Args:
        base: a model folder.
        dataset: texts.
        labelled: candidates of the labelled queries.
        spec: of the teacher.
        seed: of everything drawn.
        folder: of all trained teachers.
        journal: told what happens.
        together: has workers call `train_teacher` with the `work` that it is given; by default this process trains.

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
        if together:
            together(work)
        else:
            train_teacher(base, dataset, labelled, spec, seed=seed, work=work, journal=journal)
        for left in [path for path in work.iterdir() if path.is_dir() and path != finished]:
            shutil.rmtree(left)
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


def train_teacher(
    base: Path,
    dataset: Dataset,
    labelled: CandidateRows,
    spec: TeacherSpec,
    *,
    seed: int,
    work: Path,
    journal: Journal,
    workers: Workers = ALONE,
) -> None:
    """Fine-tune the checkpoint in `base` and leave it in `work/model`. Errors as `fit_ranker`; all workers call it."""
    ranking = spec.train
    if ranking is None:
        raise ValueError("the spec does not ask for a trained teacher")

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
    model, encoder = fit_ranker(
        base,
        dataset,
        labelled,
        spec,
        settings,
        dropout=ranking.dropout,
        dtype=ranking.dtype,
        lists_per_step=ranking.lists_per_step,
        negatives_per_list=ranking.negatives_per_list,
        stream_seed=seed,
        checkpoints=Checkpoints(work / "checkpoints", run_fingerprint=work.name, keep=1),
        on_step=on_step,
        workers=workers,
    )
    if workers.leads:
        save_ranker(model, encoder.tokenizer, work / "model")
