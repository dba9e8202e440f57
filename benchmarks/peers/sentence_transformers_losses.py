"""The losses that dualdistill and sentence-transformers both have, each pair under options that make them one function.

Cross-encoder losses of the peer take a model and texts: `GivenScores` hands over scores in place of a model, and
`pairing_texts` is what they do to the texts first, to be timed apart. Losses over lists of candidates that the peer
computes from embeddings get a similarity function that hands over given columns of scores. InfoNCE and its kin run from
embeddings on both sides, normalisation included.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from sentence_transformers.cross_encoder import losses as ranking
from sentence_transformers.sentence_transformer import losses as embedding
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedTokenizerFast

from pipelines.objectives.registry import OBJECTIVES

__all__ = ["Contest", "Side", "contests"]


@dataclass(frozen=True)
class Side:
    """One way to compute a loss: a forward pass, and the leaves that its backward pass fills."""

    forward: Callable[[], Tensor]
    leaves: Sequence[Tensor]

    def step(self) -> None:
        """Forward and backward."""
        for leaf in self.leaves:
            leaf.grad = None
        self.forward().backward()

    def gradients(self) -> list[Tensor]:
        """Gradients of the last step; many leaves are the columns of one matrix."""
        found = [torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in self.leaves]
        return [torch.stack(found, dim=1)] if len(found) > 2 else found


@dataclass(frozen=True)
class Contest:
    """The same loss twice.

    Attributes:
        peer: class of sentence-transformers.
        ours: with the options under which both are the same function.
        theirs: the peer's loss.
        plumbing: work of theirs that is no part of the loss, to be timed apart and taken off.
    """

    peer: str
    ours: Side
    theirs: Side
    plumbing: Callable[[], object]


class GivenScores(nn.Module):
    """Stands in for a cross-encoder: whatever it is asked, it answers with the scores it was given."""

    num_labels = 1

    def __init__(self, scores: Tensor) -> None:
        super().__init__()
        self.scores = scores
        self.device = scores.device

    def preprocess(self, pairs: Sequence[Any], **_: Any) -> dict[str, Tensor]:  # noqa: ARG002
        """No tokens: the answer is known."""
        return {}

    def forward(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:  # noqa: ARG002
        """All scores at once, query by query."""
        return {"scores": self.scores.flatten()}


def contests(batch: Mapping[str, Tensor], names: Sequence[str]) -> Iterator[tuple[str, Contest]]:
    """`(name of the ratio, contest)` for the objectives in `names` that the peer has.

    Args:
        batch: tensors by the names of the vocabulary.
        names: registered objectives.
    """
    for label, objective, contest in _CONTESTS:
        if objective in names:
            yield label, contest(batch)


def _ranking(
    objective: str, peer: str, options: Mapping[str, Any], *, graded: bool = False, **theirs: Any
) -> Callable[[Mapping[str, Tensor]], Contest]:
    """Lists of scores against a cross-encoder loss; `graded` takes the teacher for labels from 0 to 4."""

    def contest(batch: Mapping[str, Tensor]) -> Contest:
        teacher = batch["teacher_scores"]
        labels = (teacher / 4 + 2).round().clamp(0, 4) if graded else teacher
        mine, given = (batch["student_scores"].clone().requires_grad_() for _ in range(2))
        loss = getattr(ranking, peer)(GivenScores(given), mini_batch_size=-1, **theirs)
        texts = [f"query {i}" for i in range(len(teacher))], [["document"] * teacher.shape[1] for _ in teacher]
        rows = list(labels.unbind(0))
        return Contest(
            peer,
            Side(lambda: OBJECTIVES[objective].function(mine, labels, batch["mask"], **options), [mine]),
            Side(lambda: loss(texts, rows), [given]),
            lambda: [(query, document) for query, listed in zip(*texts, strict=True) for document in listed],
        )

    return contest


def _columns(
    objective: str, peer: str, options: Mapping[str, Any], *, tensors: Sequence[str] = (), **theirs: Any
) -> Callable[[Mapping[str, Tensor]], Contest]:
    """Lists of scores against a dual-encoder loss that compares the query with one column after the other."""

    def contest(batch: Mapping[str, Tensor]) -> Contest:
        teacher, scores = batch["teacher_scores"], batch["student_scores"]
        mine = scores.clone().requires_grad_()
        given = [column.clone().requires_grad_() for column in scores.unbind(1)]
        loss = getattr(embedding, peer)(None, similarity_fct=lambda _, column: column, **theirs)
        more = {name: batch[name] for name in tensors}
        return Contest(
            peer,
            Side(lambda: OBJECTIVES[objective].function(mine, teacher, batch["mask"], **more, **options), [mine]),
            Side(lambda: loss.compute_loss_from_embeddings([scores[:, 0], *given], teacher), given),
            _nothing,
        )

    return contest


def _in_batch(peer: str, options: Mapping[str, Any]) -> Callable[[Mapping[str, Tensor]], Contest]:
    """All documents of the batch, positives first, as one column: the peer copies less than from 64 columns."""

    def contest(batch: Mapping[str, Tensor]) -> Contest:
        embeddings = (batch["query_embeddings"], batch["document_embeddings"])
        mine, given = ([t.clone().requires_grad_() for t in embeddings] for _ in range(2))
        positive = torch.arange(len(given[0]), device=given[0].device)
        loss = getattr(embedding, peer)(None, scale=20.0)
        return Contest(
            peer,
            Side(lambda: _info_nce(mine, positive, options), mine),
            Side(lambda: loss.compute_loss_from_embeddings(given, positive), given),
            _nothing,
        )

    return contest


def _guided(batch: Mapping[str, Tensor]) -> Contest:
    """GISTEmbed: a guide's cosines tell which documents are no negatives; 512 of them, for its memory explodes.

    Our side computes the guide's cosines within the time, as theirs does.
    """
    queries = batch["query_embeddings"]
    count = len(queries)
    documents = batch["document_embeddings"][: 2 * count]
    guide = [batch["previous_query_embeddings"], batch["previous_document_embeddings"][: 2 * count]]
    mine, given = ([t.clone().requires_grad_() for t in (queries, documents)] for _ in range(2))
    positive = torch.arange(count, device=queries.device)
    scored = torch.ones(count, 2 * count, dtype=torch.bool, device=queries.device)

    def ours() -> Tensor:
        cosines = functional.normalize(guide[0], dim=1) @ functional.normalize(guide[1], dim=1).T
        options = {"batch_teacher_scores": cosines, "scored": scored, "teacher_margin": 0.0}
        return _info_nce(mine, positive, options)

    model, teacher = GivenEmbeddings(given, count), GivenEmbeddings(guide, count)
    loss = embedding.GISTEmbedLoss(model, teacher, temperature=0.05, contrast_anchors=False, contrast_positives=False)
    columns = [{"column": torch.tensor(i)} for i in range(3)]
    return Contest("GISTEmbedLoss", Side(ours, mine), Side(lambda: loss(columns, positive), given), _nothing)


class GivenEmbeddings(nn.Module):
    """Stands in for an embedding model and answers with the queries, their positives, or the other documents."""

    max_seq_length = 1

    def __init__(self, embeddings: Sequence[Tensor], count: int) -> None:
        super().__init__()
        self.embeddings, self.count = embeddings, count
        self.tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel({"[UNK]": 0})))

    def forward(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The column that the features name."""
        queries, documents = self.embeddings
        columns = (queries, documents[: self.count], documents[self.count :])
        return {"sentence_embedding": columns[int(features["column"])]}


def _info_nce(leaves: Sequence[Tensor], positive: Tensor, options: Mapping[str, Any]) -> Tensor:
    unit = [functional.normalize(leaf, dim=1) for leaf in leaves]
    return OBJECTIVES["info_nce"].function(*unit, positive, temperature=0.05, **options)


def _nothing() -> None:
    pass


_BOTH = {"directions": ("query_to_document", "document_to_query"), "partition": "per_direction"}
_GRADED = {"temperature": 1.0, "grades": "as_given", "reduction": "mean_over_pairs"}
_CPRD = {"temperature": 1.0, "reduction": "sum_over_positions_mean_over_queries"}
_KL = {"temperature": 0.05, "scale_by_temperature_squared": True}

_CONTESTS: list[tuple[str, str, Callable[[Mapping[str, Tensor]], Contest]]] = [
    ("cprd", "cprd", _ranking("cprd", "ListMLELoss", _CPRD, respect_input_order=False)),
    ("list_mle", "list_mle", _ranking("list_mle", "ListMLELoss", {"temperature": 1.0}, respect_input_order=False)),
    (
        "p_list_mle",
        "p_list_mle",
        _ranking("p_list_mle", "PListMLELoss", {"temperature": 1.0}, respect_input_order=False),
    ),
    ("list_net", "list_net", _ranking("list_net", "ListNetLoss", {"temperature": 1.0})),
    ("ranknet", "ranknet", _ranking("ranknet", "RankNetLoss", {"temperature": 1.0, "log_base": "binary"})),
    ("lambda_loss", "lambda_loss", _ranking("lambda_loss", "LambdaLoss", _GRADED, graded=True)),
    ("adr_mse", "adr_mse", _ranking("adr_mse", "ADRMSELoss", {"temperature": 1.0})),
    ("margin_mse", "margin_mse", _columns("margin_mse", "MarginMSELoss", {}, tensors=["positive"])),
    ("list_kl", "list_kl", _columns("list_kl", "DistillKLDivLoss", _KL, student_temperature=0.05)),
    ("info_nce", "info_nce", _in_batch("MultipleNegativesRankingLoss", {})),
    ("info_nce_both_directions", "info_nce", _in_batch("MultipleNegativesSymmetricRankingLoss", _BOTH)),
    ("info_nce_teacher_margin", "info_nce", _guided),
]
