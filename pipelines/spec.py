"""DistillationSpec: everything a distillation job is, in one frozen, typed object.

Enters: a mapping from YAML, the CLI's `--set`, or a REST body; all three go through `parse_spec`.
Leaves: a `DistillationSpec`, or a `SpecError` whose problems name the field's path and the value.
Unknown keys are refused, so that a misspelt setting is never silently the default.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Self

import yaml
from pydantic import Field, ValidationError, model_validator

from pipelines.errors import PipelineError
from pipelines.objective_terms import AMCL, NSPT, MarginMSE
from pipelines.spec_sections import (
    AdversarialSpec,
    AutoscaleSpec,
    BM25Spec,
    CandidatesSpec,
    DatasetSpec,
    DenseSpec,
    DevSpec,
    DualHeadSpec,
    EvaluationSpec,
    ExportFormat,
    ExportPrecision,
    ExportSpec,
    FilterSpec,
    MatryoshkaSpec,
    MetricsSpec,
    ModelSpec,
    MomentumSpec,
    Name,
    NegativeSampling,
    PacingSpec,
    RankerStepsSpec,
    RankerTrainingSpec,
    RankWindow,
    RoundsSpec,
    Section,
    StudentSpec,
    TeacherSpec,
    TrainingSpec,
    UnlabelledSpec,
    WarmStartSpec,
    WorkersSpec,
)
from pipelines.spec_sections.wording import problems_of, short

__all__ = [
    "AdversarialSpec",
    "AutoscaleSpec",
    "BM25Spec",
    "CandidatesSpec",
    "DatasetSpec",
    "DenseSpec",
    "DevSpec",
    "DistillationSpec",
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
    "NegativeSampling",
    "PacingSpec",
    "RankWindow",
    "RankerStepsSpec",
    "RankerTrainingSpec",
    "RoundsSpec",
    "SpecError",
    "StudentSpec",
    "TeacherSpec",
    "TrainingSpec",
    "UnlabelledSpec",
    "WarmStartSpec",
    "WorkersSpec",
    "load_filters",
    "load_spec",
    "parse_spec",
]


class SpecError(PipelineError):
    """A job description was refused. `problems` is a list of (field path, what is wrong and the value)."""

    reason = "invalid_spec"

    def __init__(self, problems: list[tuple[str, str]]) -> None:
        self.problems = problems
        super().__init__("; ".join(f"{path}: {detail}" for path, detail in problems))


class DistillationSpec(Section):
    """A distillation job. The same object for REST, YAML and CLI."""

    name: Name
    seed: Annotated[int, Field(ge=0, le=2**31 - 1)] = 17
    rounds: RoundsSpec = RoundsSpec()
    dataset: DatasetSpec
    teacher: TeacherSpec
    student: StudentSpec
    candidates: CandidatesSpec = CandidatesSpec()
    training: TrainingSpec = TrainingSpec()
    evaluation: EvaluationSpec = EvaluationSpec()
    export: ExportSpec = ExportSpec()

    @model_validator(mode="after")
    def _combinations(self) -> Self:
        problems: list[str] = []
        width = self.training.candidates_per_query
        if width > self.candidates.max_candidates:
            problems.append(
                f"training.candidates_per_query: {width} is more than candidates.max_candidates "
                f"({self.candidates.max_candidates})"
            )
        problems += _student_and_objective(self.student, self.training)
        if self.rounds.mode == "adversarial":
            problems += _adversarial(self)
        from_lists = any(term.LEARNS_FROM == "lists" and term.weight > 0 for term in self.training.objective)
        some_unlabelled = self.dataset.unlabelled.use or not self.training.use_labels
        if some_unlabelled and self.dataset.unlabelled.positive == "none" and not from_lists:
            problems.append(
                "dataset.unlabelled.positive: 'none' leaves unlabelled queries without a positive, and no "
                "objective term learns from the list alone (cprd, list_kl and the like do)"
            )
        if self.dataset.train_split is None:
            if self.teacher.train is not None:
                problems.append("teacher.train: a teacher learns from labels, but dataset.train_split is null")
            if not self.dataset.unlabelled.use:
                problems.append("dataset.train_split: null, and dataset.unlabelled.use is false: no queries at all")
        if self.evaluation.dev and self.dataset.dev_split is None:
            problems.append("evaluation.dev: is measured on dataset.dev_split, which is null")
        if self.dataset.unlabelled.queries_per_round and self.rounds.count == 1:
            problems.append(
                f"dataset.unlabelled.queries_per_round: {self.dataset.unlabelled.queries_per_round}, but there is one "
                "round; use max_queries, or more rounds"
            )
        if self.training.find_learning_rate and self.training.workers:
            problems.append(
                "training.find_learning_rate: runs in one process, and training.workers is given; find it in a job "
                "without, and write it as training.learning_rate"
            )
        splits = [s for s in (self.dataset.train_split, self.dataset.dev_split, self.dataset.test_split) if s]
        if len(set(splits)) != len(splits):
            problems.append(f"dataset: train, dev and test splits must differ, got {splits}")
        if problems:
            raise ValueError("\n".join(problems))
        return self


def _student_and_objective(student: StudentSpec, training: TrainingSpec) -> list[str]:
    """Terms that this student cannot learn from, and heads that no term would train."""
    problems: list[str] = []
    weighed = [(place, term) for place, term in enumerate(training.objective) if term.weight > 0]
    for place, term in weighed:
        path = f"training.objective.{place}"
        if isinstance(term, MarginMSE) and student.normalize and term.scale <= 1:
            problems.append(
                f"{path}: margin_mse compares raw teacher margins (often 5 to 15) with cosines, whose margins never "
                f"pass 2; its scale is {term.scale:g}: set it to the margins over 2, or student.normalize: false"
            )
        remade = next((name for name in ("heads", "projection", "num_layers") if getattr(student, name)), None)
        if isinstance(term, NSPT) and remade:
            problems.append(
                f"{path}: nspt keeps the student compatible with the index its own checkpoint built, and "
                f"student.{remade} makes another student of that checkpoint"
            )
        if isinstance(term, AMCL) and student.matryoshka:
            problems.append(
                f"{path}: amcl cuts a vector into heads, and the heads of a prefix (student.matryoshka) are other ones"
            )
    if student.heads:
        seen = {term.VIEW for _, term in weighed}
        served = {"contrastive"} if student.heads.serve == "contrastive" else {"contrastive", "distillation"}
        for head in sorted(served - seen):
            what = "a term over positives (info_nce)" if head == "contrastive" else "a term of the teacher (list_kl)"
            problems.append(
                f"training.objective: the {head} head is served (student.heads.serve: {student.heads.serve}), and no "
                f"term with a weight trains it; add {what}"
            )
    return problems


def _adversarial(spec: DistillationSpec) -> list[str]:
    """What cannot be had in adversarial rounds."""
    dense, training = spec.candidates.dense, spec.training
    teacher = spec.teacher
    found = [
        ("dataset.train_split", spec.dataset.train_split is None, "is null, and a ranker learns from labels"),
        (
            "candidates.dense",
            dense is None or dense.encoder is not None,
            "must be the student itself: in adversarial rounds the ranker learns from what the student finds",
        ),
        ("teacher.answers", teacher.answers is not None, "a ranker that learns is a sequence classifier"),
        ("teacher.template", teacher.template != "pair", f"{teacher.template[:40]!r}: a ranker learns on plain pairs"),
        ("training.use_labels", not training.use_labels, "is false, and adversarial rounds need each query's positive"),
        (
            "training.objective",
            not {"ar2", "ar2_code_compat"} & {term.name for term in training.objective},
            "names neither ar2 nor ar2_code_compat; give one, with weight 0 for refreshed negatives alone",
        ),
        (
            "training.negatives",
            training.negatives != NegativeSampling(),
            "has no choice: a list holds the negatives that rounds.adversarial.sampling drew",
        ),
        ("training.pacing", training.pacing is not None, "has no meaning where every round has new negatives"),
        ("training.find_learning_rate", training.find_learning_rate, "one schedule spans all adversarial rounds"),
        (
            "evaluation.dev.every_steps",
            spec.evaluation.dev is not None and spec.evaluation.dev.every_steps is not None,
            "adversarial rounds are measured at their ends; leave it out, and patience counts rounds",
        ),
        (
            "dataset.unlabelled.queries_per_round",
            spec.dataset.unlabelled.queries_per_round is not None,
            "use rounds.adversarial.queries_per_round",
        ),
    ]
    return [f"{path}: {why} (rounds.mode is 'adversarial')" for path, refused, why in found if refused]


def parse_spec(data: Any) -> DistillationSpec:
    """Validate a mapping into a spec.

    Raises:
        SpecError: with one (dotted field path, message with the offending value) per problem.
    """
    try:
        return DistillationSpec.model_validate(data)
    except ValidationError as error:
        raise SpecError(problems_of(error, data)) from error


def load_spec(path: Path, overrides: Mapping[str, str] | None = None) -> DistillationSpec:
    """Read a YAML job file and apply `a.b.c -> YAML value` overrides (the CLI's `--set`).

    Raises:
        SpecError: the file is missing, is not YAML, or does not describe a valid job.
    """
    return parse_spec(_overridden(_mapping(path), overrides or {}))


def load_filters(path: Path | None, overrides: Mapping[str, str] | None = None) -> FilterSpec:
    """Read filters from a YAML file (their fields, or a `filters` section, or a job file), then override some.

    Args:
        path: the file; None: no filters.
        overrides: setting -> YAML value, as in `load_spec`.

    Raises:
        SpecError: the file is missing, is not YAML, or does not describe filters.
    """
    data = _filters_of(_mapping(path)) if path else {}
    try:
        return FilterSpec.model_validate(_overridden(data, overrides or {}))
    except ValidationError as error:
        raise SpecError(problems_of(error, data)) from error


def _filters_of(data: dict[str, Any]) -> dict[str, Any]:
    """The part of a file that is about filters; a job file without any has none."""
    training = data.get("training")
    filters = training.get("filters", {}) if isinstance(training, dict) else data.get("filters", data)
    if not isinstance(filters, dict):
        raise SpecError([("filters", f"should be a mapping, got {short(filters)}")])
    return filters


def _mapping(path: Path) -> dict[str, Any]:
    """What a YAML file holds."""
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise SpecError([("spec", f"there is no file {str(path)!r}")]) from error
    except OSError as error:
        raise SpecError([("spec", f"{str(path)!r} cannot be read: {error.strerror}")]) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SpecError([("spec", f"{str(path)!r} is not YAML: {error}")]) from error
    if not isinstance(data, dict):
        raise SpecError([("spec", f"{str(path)!r} must hold a mapping, got {short(data)}")])
    return data


def _overridden(data: dict[str, Any], overrides: Mapping[str, str]) -> dict[str, Any]:
    for dotted, value in overrides.items():
        _assign(data, dotted, _yaml_value(dotted, value))
    return data


def _yaml_value(dotted: str, text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise SpecError([(dotted, f"{short(text)} is not a YAML value")]) from error


def _assign(data: dict[str, Any], dotted: str, value: Any) -> None:
    *parents, leaf = dotted.split(".")
    node: Any = data
    for part in parents:
        if isinstance(node, list):
            if not part.isdecimal() or int(part) >= len(node):
                raise SpecError([(dotted, f"{part!r} is not a position of a list of {len(node)}")])
            node = node[int(part)]
        else:
            node = node.setdefault(part, {})
        if not isinstance(node, dict | list):
            raise SpecError([(dotted, f"{part!r} is not a section that has fields")])
    if isinstance(node, list):
        if not leaf.isdecimal() or int(leaf) >= len(node):
            raise SpecError([(dotted, f"{leaf!r} is not a position of a list of {len(node)}")])
        node[int(leaf)] = value
    else:
        node[leaf] = value
