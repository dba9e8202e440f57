"""DistillationSpec: everything a distillation job is, in one frozen, typed object.

Enters: a mapping from YAML, the CLI's `--set`, or a REST body; all three go through `parse_spec`.
Leaves: a `DistillationSpec`, or a `SpecError` whose problems name the field's path and the value.
Unknown keys are refused, so that a misspelt setting is never silently the default.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from pipelines.errors import PipelineError
from pipelines.objective_terms import CPRD, InfoNCE, ListKL, MarginMSE, ObjectiveTerm

__all__ = [
    "BM25Spec",
    "CandidatesSpec",
    "DatasetSpec",
    "DenseSpec",
    "DistillationSpec",
    "EvaluationSpec",
    "ModelSpec",
    "RankerTrainingSpec",
    "SpecError",
    "StudentSpec",
    "TeacherSpec",
    "TrainingSpec",
    "UnlabelledSpec",
    "load_spec",
    "parse_spec",
]

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")]
Positive = Annotated[int, Field(ge=1)]
LearningRate = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]
Dtype = Literal["auto", "fp32", "bf16", "fp16"]


class SpecError(PipelineError):
    """A job description was refused. `problems` is a list of (field path, what is wrong and the value)."""

    reason = "invalid_spec"

    def __init__(self, problems: list[tuple[str, str]]) -> None:
        self.problems = problems
        super().__init__("; ".join(f"{path}: {detail}" for path, detail in problems))


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class UnlabelledSpec(_Section):
    """How queries without any judgement take part: those in no split's qrels are the unlabelled pool."""

    use: bool = True
    max_queries: Positive | None = None
    positive: Literal["teacher_top", "none"] = "teacher_top"
    """`teacher_top`: the teacher's best candidate is the positive if it is confident enough; `none`: list only."""
    min_confidence: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Softmax probability, over the query's list at temperature 1, that the top candidate must reach."""


class DatasetSpec(_Section):
    """A folder in BEIR layout, or a Parquet file of triples."""

    path: Annotated[str, Field(min_length=1, max_length=4096)]
    format: Literal["auto", "beir", "triples"] = "auto"
    train_split: Name | None = "train"
    """Judged training queries; null when there are none and the teacher's word is all there is."""
    dev_split: Name | None = None
    test_split: Name | None = "test"
    unlabelled: UnlabelledSpec = UnlabelledSpec()


class ModelSpec(_Section):
    """Where weights come from: a folder, `package:<python package>` that carries them, or a hub id + revision."""

    id: Annotated[str, Field(min_length=1, max_length=512)]
    revision: Annotated[str, Field(max_length=128)] | None = None


class BM25Spec(_Section):
    """Lexical candidates (Lucene BM25 variant of bm25s, English stemmer and stop words)."""

    top_k: Positive = 16
    k1: Annotated[float, Field(gt=0, le=10)] = 0.9
    b: Annotated[float, Field(ge=0, le=1)] = 0.4


class StudentSpec(_Section):
    """The dual encoder that is trained: any Hugging Face encoder, mean or CLS pooling."""

    model: ModelSpec
    num_layers: Positive | None = None
    """Keep only the first layers of the checkpoint; null keeps all."""
    pooling: Literal["mean", "cls"] = "mean"
    normalize: bool = True
    max_length: Annotated[int, Field(ge=8, le=32768)] = 256
    query_prompt: Annotated[str, Field(max_length=2048)] = ""
    document_prompt: Annotated[str, Field(max_length=2048)] = ""


class DenseSpec(_Section):
    """Dense candidates: exact inner-product search with the current student, or with `encoder` when given."""

    top_k: Positive = 16
    encoder: StudentSpec | None = None


class CandidatesSpec(_Section):
    """Who might be a hard negative: the union of the sources, each source's rank kept."""

    bm25: BM25Spec | None = BM25Spec()
    dense: DenseSpec | None = DenseSpec()
    max_candidates: Annotated[int, Field(ge=2, le=4096)] = 24
    """Per query after the union, best reciprocal-rank sum first."""
    queries_per_chunk: Annotated[int, Field(ge=1, le=65536)] = 16

    @model_validator(mode="after")
    def _has_a_source(self) -> Self:
        if self.bm25 is None and self.dense is None:
            raise ValueError("bm25 and dense are both null; candidates need at least one source")
        return self


class RankerTrainingSpec(_Section):
    """Fine-tune the teacher first, on the labelled queries: listwise cross-entropy, 1 positive + negatives."""

    max_steps: Positive = 150
    lists_per_step: Positive = 4
    negatives_per_list: Positive = 7
    learning_rate: LearningRate = 1e-4
    warmup_ratio: Annotated[float, Field(ge=0, le=1)] = 0.1
    weight_decay: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.01
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    dtype: Dtype = "auto"


class TeacherSpec(_Section):
    """The cross-encoder: scored as it is, or first fine-tuned on the labelled queries when `train` is given."""

    model: ModelSpec
    max_length: Annotated[int, Field(ge=8, le=32768)] = 256
    dtype: Dtype = "auto"
    tokens_per_batch: Annotated[int, Field(ge=64)] = 8192
    train: RankerTrainingSpec | None = None
    replicas: Annotated[int, Field(ge=1, le=1024)] = 1
    cpus_per_replica: Annotated[float, Field(ge=0, le=256)] = 1.0
    gpus_per_replica: Annotated[float, Field(ge=0, le=16)] = 0.0


class TrainingSpec(_Section):
    """How the student learns from the ranked lists. One pass per epoch over every usable query."""

    objective: tuple[ObjectiveTerm, ...] = (
        ListKL(name="list_kl"),
        InfoNCE(name="info_nce"),
    )
    epochs: Annotated[int, Field(ge=1, le=1000)] = 1
    queries_per_step: Positive = 16
    candidates_per_query: Annotated[int, Field(ge=2, le=4096)] = 8
    use_labels: bool = True
    """False: labels teach the teacher only, and the student treats labelled queries as unlabelled ones."""
    learning_rate: LearningRate = 3e-4
    warmup_ratio: Annotated[float, Field(ge=0, le=1)] = 0.1
    weight_decay: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.01
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    dtype: Dtype = "fp32"
    checkpoint_every_steps: Positive = 50
    keep_checkpoints: Positive = 2

    @model_validator(mode="after")
    def _some_weight(self) -> Self:
        names = [term.name for term in self.objective]
        if len(set(names)) != len(names):
            raise ValueError(f"objective names a term twice: {names}; its curve could not be told apart")
        if not any(term.weight > 0 for term in self.objective):
            raise ValueError("objective needs at least one term with a weight above 0")
        return self


class EvaluationSpec(_Section):
    """What is measured on `dataset.test_split` before and after."""

    max_queries: Positive | None = None
    rerank_depth: Annotated[int, Field(ge=1, le=1000)] = 20
    """Candidates per test query (BM25 and dense union) that the teacher re-ranks."""
    label_only_control: bool = True
    """Also train the same student, same steps, on the labelled queries alone: the honest comparison."""


class DistillationSpec(_Section):
    """A distillation job. The same object for REST, YAML and CLI."""

    name: Name
    seed: Annotated[int, Field(ge=0, le=2**31 - 1)] = 17
    rounds: Annotated[int, Field(ge=1, le=100)] = 1
    dataset: DatasetSpec
    teacher: TeacherSpec
    student: StudentSpec
    candidates: CandidatesSpec = CandidatesSpec()
    training: TrainingSpec = TrainingSpec()
    evaluation: EvaluationSpec = EvaluationSpec()

    @model_validator(mode="after")
    def _combinations(self) -> Self:
        problems: list[str] = []
        width = self.training.candidates_per_query
        if width > self.candidates.max_candidates:
            problems.append(
                f"training.candidates_per_query: {width} is more than candidates.max_candidates "
                f"({self.candidates.max_candidates})"
            )
        for position, term in enumerate(self.training.objective):
            if isinstance(term, MarginMSE) and term.weight > 0 and self.student.normalize and term.scale == 1:
                problems.append(
                    f"training.objective.{position}: margin_mse compares raw teacher margins (often 5 to 15) "
                    "with cosines, whose margins never pass 2; set its scale, or student.normalize: false"
                )
        from_lists = any(
            isinstance(term, CPRD | ListKL | MarginMSE) and term.weight > 0 for term in self.training.objective
        )
        some_unlabelled = self.dataset.unlabelled.use or not self.training.use_labels
        if some_unlabelled and self.dataset.unlabelled.positive == "none" and not from_lists:
            problems.append(
                "dataset.unlabelled.positive: 'none' leaves unlabelled queries without a positive, and no "
                "objective term learns from the list alone (cprd, list_kl, margin_mse)"
            )
        if self.dataset.train_split is None:
            if self.teacher.train is not None:
                problems.append("teacher.train: a teacher learns from labels, but dataset.train_split is null")
            if not self.dataset.unlabelled.use:
                problems.append("dataset.train_split: null, and dataset.unlabelled.use is false: no queries at all")
        splits = [s for s in (self.dataset.train_split, self.dataset.dev_split, self.dataset.test_split) if s]
        if len(set(splits)) != len(splits):
            problems.append(f"dataset: train, dev and test splits must differ, got {splits}")
        if problems:
            raise ValueError("\n".join(problems))
        return self


def parse_spec(data: Any) -> DistillationSpec:
    """Validate a mapping into a spec.

    Raises:
        SpecError: with one (dotted field path, message with the offending value) per problem.
    """
    try:
        return DistillationSpec.model_validate(data)
    except ValidationError as error:
        raise SpecError(_problems(error, data)) from error


def _problems(error: ValidationError, data: Any) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    for item in error.errors(include_url=False):
        path = ".".join(_located(item["loc"], data))
        if item["type"] == "value_error":
            for message in str(item["ctx"]["error"]).splitlines():
                field, _, detail = message.partition(": ")
                known = detail and " " not in field
                found.append((field, detail) if known else (path or "spec", message))
            continue
        detail = item["msg"]
        if item["type"] == "extra_forbidden":
            detail = "unknown field"
        elif item["type"] != "missing":
            detail = f"{detail}, got {_short(item['input'])}"
        found.append((path or "spec", detail))
    return found


def _located(loc: tuple[str | int, ...], data: Any) -> list[str]:
    """The parts of an error's place that exist in the document: a union's tag (an objective's name) does not."""
    parts: list[str] = []
    node = data
    for part in loc:
        if isinstance(node, dict) and part not in node and node.get("name") == part:
            continue
        parts.append(str(part))
        if isinstance(node, dict):
            node = node.get(part)
        else:
            node = node[part] if isinstance(node, list) and isinstance(part, int) and part < len(node) else None
    return parts


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def load_spec(path: Path, overrides: Mapping[str, str] | None = None) -> DistillationSpec:
    """Read a YAML job file and apply `a.b.c -> YAML value` overrides (the CLI's `--set`).

    Raises:
        SpecError: the file is missing, is not YAML, or does not describe a valid job.
    """
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise SpecError([("spec", f"there is no file {str(path)!r}")]) from error
    except OSError as error:
        raise SpecError([("spec", f"{str(path)!r} cannot be read: {error.strerror}")]) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SpecError([("spec", f"{str(path)!r} is not YAML: {error}")]) from error
    if not isinstance(data, dict):
        raise SpecError([("spec", f"{str(path)!r} must hold a mapping, got {_short(data)}")])
    for dotted, value in (overrides or {}).items():
        _assign(data, dotted, _yaml_value(dotted, value))
    return parse_spec(data)


def _yaml_value(dotted: str, text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise SpecError([(dotted, f"{_short(text)} is not a YAML value")]) from error


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
