"""The honest control: the same student, same steps, trained on labels alone.

Enters: the mined candidates of the labelled queries. Leaves: a student that never saw a teacher's score. What
distillation is worth is the distance to this one, not to the untrained student. Its lists hold one positive each and
negatives of the same mined candidates, drawn without a teacher's word.
"""

from collections.abc import Callable, Iterator

from pipelines.corpus.dataset import Dataset
from pipelines.devices import seed_everything
from pipelines.objective_terms import InfoNCE
from pipelines.ranked.lookup import CandidateRows
from pipelines.ranked.positives import PositiveRule
from pipelines.ranked.tail import StreamPosition
from pipelines.spec import DistillationSpec
from pipelines.student.model import DualEncoder
from pipelines.training.batches import ListBatch, batches
from pipelines.training.labelled import labelled_rows
from pipelines.training.loop import LoopSettings, StepReport, train
from pipelines.training.settings import encoding_settings
from pipelines.training.student_step import StudentStep

__all__ = ["train_label_only"]

_GOLD_ONLY = PositiveRule(use_labels=True, teacher_top=False, min_confidence=1.0)


def train_label_only(
    student: DualEncoder,
    dataset: Dataset,
    labelled: CandidateRows,
    spec: DistillationSpec,
    settings: LoopSettings,
    *,
    on_step: Callable[[StepReport], None] = lambda _: None,
) -> None:
    """Train `student` in place, as many steps as the job: InfoNCE over gold positive, listed and in-batch negatives.

    The temperature is that of the job's own `info_nce` term, or its default. Negatives are drawn `mixed` even where the
    job says `simans`, which weighs by a teacher's scores.
    """
    seed_everything(spec.seed)
    own = next((term for term in spec.training.objective if isinstance(term, InfoNCE)), InfoNCE(name="info_nce"))
    # It may weigh 0 in the job; here it is all there is. No teacher has scored these lists, so none says what to mask.
    objective = [own.model_copy(update={"weight": 1.0, "teacher_margin": None})]

    def open_batches(start: StreamPosition) -> Iterator[tuple[ListBatch, StreamPosition]]:
        return batches(
            labelled_rows(labelled, start=start, seed=spec.seed),
            dataset,
            queries_per_step=spec.training.queries_per_step,
            width=spec.training.candidates_per_query,
            rule=_GOLD_ONLY,
            seed=spec.seed,
        )

    step = StudentStep(student, objective, encoding=encoding_settings(spec.training, device_type=student.device.type))
    train(step, step, open_batches, settings, on_step=on_step)
