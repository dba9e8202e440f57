"""The sections of a job: data, models, candidates, training, evaluation; each frozen, typed and checked by itself.

Enters: parts of a mapping. Leaves: the classes that `pipelines.spec.DistillationSpec` is made of, and that everything
else imports from there. What can only be judged across sections is judged there.
"""

from pipelines.spec_sections.base import ModelSpec, Name, Section
from pipelines.spec_sections.data import (
    BM25Spec,
    CandidatesSpec,
    DatasetSpec,
    DenseSpec,
    EvaluationSpec,
    UnlabelledSpec,
)
from pipelines.spec_sections.export import ExportFormat, ExportPrecision, ExportSpec
from pipelines.spec_sections.filters import FilterSpec, RankWindow
from pipelines.spec_sections.models import (
    AnswersSpec,
    AutoscaleSpec,
    DualHeadSpec,
    MatryoshkaSpec,
    RankerTrainingSpec,
    StudentSpec,
    TeacherSpec,
)
from pipelines.spec_sections.training import NegativeSampling, TrainingSpec

__all__ = [
    "AnswersSpec",
    "AutoscaleSpec",
    "BM25Spec",
    "CandidatesSpec",
    "DatasetSpec",
    "DenseSpec",
    "DualHeadSpec",
    "EvaluationSpec",
    "ExportFormat",
    "ExportPrecision",
    "ExportSpec",
    "FilterSpec",
    "MatryoshkaSpec",
    "ModelSpec",
    "Name",
    "NegativeSampling",
    "RankWindow",
    "RankerTrainingSpec",
    "Section",
    "StudentSpec",
    "TeacherSpec",
    "TrainingSpec",
    "UnlabelledSpec",
]
