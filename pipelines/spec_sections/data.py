"""Sections about data: the folder and its splits, who might be a hard negative, what is measured."""

from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from pipelines.spec_sections.base import Name, Positive, Section
from pipelines.spec_sections.models import StudentSpec

__all__ = ["BM25Spec", "CandidatesSpec", "DatasetSpec", "DenseSpec", "DevSpec", "EvaluationSpec", "UnlabelledSpec"]


class UnlabelledSpec(Section):
    """How queries without any judgement take part: those in none of the named splits are the unlabelled pool."""

    use: bool = True
    max_queries: Positive | None = None
    queries_per_round: Positive | None = None
    """So many more of them are scored in each round: at random in the first, later, for a growing part, those that the
    student is expected to find hardest, by what it lost on others (HPM, arXiv 2312.13714). Null: all in every round."""
    positive: Literal["teacher_top", "none"] = "teacher_top"
    """`teacher_top`: the teacher's best candidate is the positive if it is confident enough; `none`: list only."""
    min_confidence: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Softmax probability, over the query's list at temperature 1, that the top candidate must reach."""


class DatasetSpec(Section):
    """A folder in BEIR layout, or a Parquet file of triples."""

    path: Annotated[str, Field(min_length=1, max_length=4096)]
    format: Literal["auto", "beir", "triples"] = "auto"
    train_split: Name | None = "train"
    """Judged training queries; null when there are none and the teacher's word is all there is."""
    dev_split: Name | None = None
    test_split: Name | None = "test"
    unlabelled: UnlabelledSpec = UnlabelledSpec()


class BM25Spec(Section):
    """Lexical candidates (Lucene BM25 variant of bm25s, English stemmer and stop words)."""

    top_k: Positive = 16
    k1: Annotated[float, Field(gt=0, le=10)] = 0.9
    b: Annotated[float, Field(ge=0, le=1)] = 0.4


class DenseSpec(Section):
    """Dense candidates: exact inner-product search with the current student, or with `encoder` when given."""

    top_k: Positive = 16
    encoder: StudentSpec | None = None

    @field_validator("encoder")
    @classmethod
    def _is_never_trained(cls, encoder: StudentSpec | None) -> StudentSpec | None:
        if encoder and (encoder.heads or encoder.projection or encoder.matryoshka):
            raise ValueError("heads, projection and matryoshka are learned in training, and a fixed encoder has none")
        return encoder


class CandidatesSpec(Section):
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


class DevSpec(Section):
    """nDCG@10 on `dataset.dev_split` while the student trains: the weights that did best there are what is exported.

    Its queries are searched in a pool, not in the whole corpus: what BM25 and the untrained student found for any of
    them, and their judged documents. Every measure encodes that pool. Adversarial rounds are measured at their ends,
    the ranker as well, over `evaluation.rerank_depth` candidates a query; `patience` counts rounds then.
    """

    every_steps: Positive | None = None
    """Null: 100; adversarial rounds have none."""
    patience: Positive | None = 5
    """Measures in a row without a better one after which training stops; null never stops it."""
    max_queries: Positive | None = 200
    pool_depth: Annotated[int, Field(ge=1, le=1000)] = 20
    """Candidates per query in the pool."""


class EvaluationSpec(Section):
    """What is measured on `dataset.test_split` before and after, and on `dataset.dev_split` meanwhile."""

    max_queries: Positive | None = None
    rerank_depth: Annotated[int, Field(ge=1, le=1000)] = 20
    """Candidates per test query (BM25 and dense union) that the teacher re-ranks."""
    dev: DevSpec | None = None
    label_only_control: bool = True
    """Also train the same student, same steps, on the labelled queries alone: the honest comparison."""
