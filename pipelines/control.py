"""The label-only control as one self-contained task, so that another process can run it while the teacher trains.

Enters: paths and the spec, nothing that does not pickle. Leaves: per-query metrics of the label-only student.
"""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import load_file

from pipelines.candidates.file import CandidatesFile
from pipelines.candidates.miner import embed_corpus
from pipelines.comparison import student_run
from pipelines.corpus.dataset import load_dataset
from pipelines.devices import resolve_device, use_threads
from pipelines.evaluation.metrics import PerQuery, evaluate
from pipelines.pretrained import quiet_loading
from pipelines.queries import num_round_queries
from pipelines.spec import DistillationSpec, StudentSpec
from pipelines.student.model import load_student
from pipelines.training.label_only import train_label_only
from pipelines.training.settings import loop_settings, steps_of_round
from pipelines.whole_files import write_json

__all__ = ["ControlTask", "run_control"]


@dataclass(frozen=True, kw_only=True)
class ControlTask:
    """What the control needs. Folders must be readable where it runs."""

    spec: DistillationSpec
    dataset_folder: Path
    student_folder: Path
    labelled_candidates: Path
    """Parquet of the candidates table of the labelled queries."""
    test_queries: tuple[str, ...]
    warm_start: Path | None
    """What the job's warm start made of the backbone; None: the checkpoint as it is."""
    num_cpus: float
    output: Path
    """Where the outcome is kept: a job that starts again after a crash does not train its control again."""


def run_control(task: ControlTask) -> PerQuery:
    """Train the label-only student, as many steps as the job, and measure it on the test queries; or find that done."""
    if task.output.is_file():
        found: PerQuery = json.loads(task.output.read_text(encoding="utf-8"))
        return found
    quiet_loading()
    use_threads(task.num_cpus)
    spec = task.spec
    dataset = load_dataset(spec.dataset, task.dataset_folder)
    kind = _of_labels(spec)
    student = load_student(task.student_folder, kind, dropout=spec.training.dropout, device=resolve_device())
    if task.warm_start:
        student.backbone.load_state_dict(load_file(task.warm_start))
    steps = spec.rounds.count * steps_of_round(spec, num_round_queries(spec, dataset))
    settings = dataclasses.replace(loop_settings(spec, 1), total_steps=steps, begins_at=0, stops_after=None)
    train_label_only(student, dataset, CandidatesFile(task.labelled_candidates), spec, settings)
    judged = dataset.judged(spec.dataset.test_split or "")
    qrels = {query_id: judged[query_id] for query_id in task.test_queries}
    # Of another attempt's student, should one have died here: training on CPU threads is not the same bit for bit.
    embeddings = task.output.with_name("control.npy")
    embeddings.unlink(missing_ok=True)
    corpus = embed_corpus(student, dataset, path=embeddings)
    embeddings.unlink()  # the map stays
    outcome = evaluate(qrels, student_run(corpus, dataset, task.test_queries))
    write_json(task.output, outcome)
    return outcome


def _of_labels(spec: DistillationSpec) -> StudentSpec:
    """The student without dual heads: nothing but a teacher would train the distillation head."""
    return spec.student.model_copy(update={"heads": None, "matryoshka": None}) if spec.student.heads else spec.student
