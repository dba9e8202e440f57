"""Encode a step's texts: each distinct one once, sorted by length, in micro-batches of bounded size, on all workers.

Enters: a `ListBatch`'s texts. Leaves: pooled vectors of its queries and documents, with gradient, the same on every
worker.

    distinct texts -> longest first -> each worker its share -> micro-batches within a token budget -> gather

Sorting costs nothing and saves most padding, small micro-batches the rest; what they would cost, a gradient of the
whole vocabulary for each, is spared by looking words up once a step. The texts, not the queries, are what workers share
out: every worker then holds all vectors and computes the one loss of the whole batch, so that no objective knows of
workers, no text is encoded twice anywhere, and N processes compute what one would have (`docs/architecture.md`).

With `gradient_cache` no activation outlives its micro-batch: the forward pass keeps vectors only, and backward computes
each micro-batch again, its dropout included (GradCache, arXiv 2101.06983; here torch's own activation checkpoints, one
per micro-batch). The batch of a contrastive loss is then as large as wanted, for a third more computation.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from pipelines.devices import torch_dtype
from pipelines.packing import pack_by_tokens
from pipelines.student.model import DualEncoder
from pipelines.tokens import Tokens
from pipelines.training.batches import ListBatch
from pipelines.training.workers import Workers, gather_from

__all__ = ["EncodingSettings", "StepTexts", "encode_texts"]

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class EncodingSettings:
    """How the texts of a step go through the encoder.

    Attributes:
        dtype: concrete dtype of the forward pass (autocast); vectors leave it as float32.
        tokens_per_micro_batch: padded tokens of one forward pass.
        gradient_cache: whether activations are computed again in backward instead of kept.
    """

    dtype: str = "fp32"
    tokens_per_micro_batch: int = 16384
    gradient_cache: bool = False


@dataclass(frozen=True, eq=False)
class StepTexts:
    """The distinct texts of a step, and which of them each query and document is."""

    tokens: Tokens
    query: Ints
    """[Q], rows of `tokens`."""
    document: Ints
    """[N], rows of `tokens`."""

    @classmethod
    def of(cls, student: DualEncoder, batch: ListBatch) -> "StepTexts":
        """Tokenise a batch; a query and a document that read the same are two texts, for their prompts may differ."""
        queries, query = _distinct(batch.query_texts)
        documents, document = _distinct(batch.document_texts)
        of_queries, of_documents = student.tokenize(queries, "query"), student.tokenize(documents, "document")
        rows = [part[row] for part in (of_queries, of_documents) for row in range(len(part))]
        return cls(Tokens.of(rows), query, document + len(of_queries))

    def __len__(self) -> int:
        return len(self.tokens)

    def documents(self) -> "StepTexts":
        """The documents alone."""
        rows, document = np.unique(self.document, return_inverse=True)
        return StepTexts(self.tokens.take(rows), np.empty(0, dtype=np.int64), document)


def encode_texts(
    student: DualEncoder, texts: StepTexts, settings: EncodingSettings, workers: Workers
) -> tuple[Tensor, Tensor]:
    """Pooled vectors float32 of the queries [Q, hidden] and the documents [N, hidden].

    With several workers every one of them calls it with the same texts; gradients of all their losses add up at whoever
    encoded a text, so that the average of parameter gradients over workers is the gradient of one process.
    """
    order = np.argsort(-texts.tokens.lengths, kind="stable").astype(np.int64)
    mine = order[workers.rank :: workers.world]
    with workers.own_draws():
        pooled = _encode(student, texts.tokens.take(mine), settings) if len(mine) else _nothing(student)
    everybody = gather_from(pooled, [len(order[rank :: workers.world]) for rank in range(workers.world)], workers)
    place = np.empty(len(order), dtype=np.int64)
    place[np.concatenate([order[rank :: workers.world] for rank in range(workers.world)])] = np.arange(len(order))
    rows = torch.from_numpy(np.concatenate([place[texts.query], place[texts.document]])).to(everybody.device)
    found = everybody[rows]
    return found[: len(texts.query)], found[len(texts.query) :]


def _encode(student: DualEncoder, tokens: Tokens, settings: EncodingSettings) -> Tensor:
    """Pooled vectors of texts that come longest first, which packing leaves in order."""
    packed = pack_by_tokens(tokens.lengths, settings.tokens_per_micro_batch)
    again = settings.gradient_cache and torch.is_grad_enabled()
    words = None if again else student.word_vectors(tokens)
    with torch.autocast(student.device.type, dtype=torch_dtype(settings.dtype), enabled=settings.dtype != "fp32"):
        if again:
            return torch.cat([checkpoint(student.pooled, tokens, rows, use_reentrant=False) for rows in packed])
        if words is None:
            return torch.cat([student.pooled(tokens, rows) for rows in packed])
        parts = torch.split(words, [int(tokens.lengths[rows].sum()) for rows in packed])
        return torch.cat(
            [student.pooled_words(part, tokens.lengths[rows]) for part, rows in zip(parts, packed, strict=True)]
        )


def _nothing(student: DualEncoder) -> Tensor:
    """A worker without a text takes part in what all workers do together, backward included."""
    empty = torch.zeros((0, student.hidden_size), device=student.device)
    return empty.requires_grad_(torch.is_grad_enabled())


def _distinct(texts: Sequence[str]) -> tuple[list[str], Ints]:
    place = {text: row for row, text in enumerate(dict.fromkeys(texts))}
    return list(place), np.array([place[text] for text in texts], dtype=np.int64)
