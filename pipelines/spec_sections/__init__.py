"""The sections of a job: data, models, candidates, training and so on; each frozen, typed, checked by itself.

Enters: parts of a mapping. Leaves: the classes that `pipelines.spec.DistillationSpec` is made of, and that everything
else imports from there. What can only be judged across sections is judged there.
"""

from pipelines.spec_sections.base import ModelSpec, Name, Section
from pipelines.spec_sections.curriculum import PacingSpec, WarmStartSpec
from pipelines.spec_sections.data import (
    BM25Spec,
    CandidatesSpec,
    DatasetSpec,
    DenseSpec,
    DevSpec,
    EvaluationSpec,
    UnlabelledSpec,
)
from pipelines.spec_sections.export import ExportFormat, ExportPrecision, ExportSpec
from pipelines.spec_sections.filters import FilterSpec, RankWindow
from pipelines.spec_sections.metrics import MetricsSpec
from pipelines.spec_sections.models import (
    AnswersSpec,
    AutoscaleSpec,
    DualHeadSpec,
    MatryoshkaSpec,
    RankerTrainingSpec,
    StudentSpec,
    TeacherSpec,
)
from pipelines.spec_sections.rounds import AdversarialSpec, RankerStepsSpec, RoundsSpec
from pipelines.spec_sections.training import MomentumSpec, NegativeSampling, TrainingSpec
from pipelines.spec_sections.workers import WorkersSpec

__all__ = [
    "AdversarialSpec",
    "AnswersSpec",
    "AutoscaleSpec",
    "BM25Spec",
    "CandidatesSpec",
    "DatasetSpec",
    "DenseSpec",
    "DevSpec",
    "DualHeadSpec",
    "EvaluationSpec",
    "ExportFormat",
    "ExportPrecision",
    "ExportSpec",
    "FilterSpec",
    "MatryoshkaSpec",
    "MetricsSpec",
    "ModelSpec",
    "MomentumSpec",
    "Name",
    "NegativeSampling",
    "PacingSpec",
    "RankWindow",
    "RankerStepsSpec",
    "RankerTrainingSpec",
    "RoundsSpec",
    "Section",
    "StudentSpec",
    "TeacherSpec",
    "TrainingSpec",
    "UnlabelledSpec",
    "WarmStartSpec",
    "WorkersSpec",
]
