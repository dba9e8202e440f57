"""MoCHi, mixing of contrastive hard negatives: InfoNCE with harder negatives made in embedding space.

    type 1:  h  ~ a n_i + (1 - a) n_j ,  a in U(0, 1),  n_i and n_j among the N hardest negatives of q
    type 2:  h' ~ b q + (1 - b) n_j ,    b in U(0, max_query_share)
    L = mean_i - log( exp(q.d+ / T) / ( exp(q.d+ / T) + sum over n, h and h' of exp(q. / T) ) )

T is `temperature`; n are the batch's documents that are safe negatives of q: not known to be relevant, and not called
relevant by the teacher, which does so from its score of the positive minus `teacher_margin` on, and from the
probability `teacher_threshold` on. A document that it calls relevant is neither mixed nor pushed away. Nobody has asked
it about other queries' documents: where teacher scores are given, pairs without one stay ordinary negatives and are
never mixed. A teacher trained listwise has no zero, so that its sigmoid is no probability (this project's own
`teacher.train` is one): set `teacher_threshold: null` for it.

Mixtures are drawn anew in each step, belong to one query, and are constants: no gradient flows through h, nor through
the q inside h'. The paper mixes unit vectors and normalises; here directions are mixed, and a mixture is as long as its
negatives are (type 1: interpolated), which is the same for cosine students and makes sense for dot products. A large
b could make a negative closer to q than its positive is; b is capped where they would be equally close (dualdistill's
addition), and a negative that is already closer than the positive is not mixed with q.

Source: arXiv 2010.01028 (NeurIPS 2020). From general knowledge, the paper's text could not be read. There N is 1024 of
a queue of 65536, with 1024 mixtures of type 1 and 128 of type 2 per query, from about the 10th epoch on; the defaults
here are our own, for batches of mined lists.

Use when: mined negatives have become easy (the loss is low and stays there); in a later round of a job rather than the
first, as mixtures of a student that knows nothing are noise. It contains InfoNCE: do not add `info_nce` to it.

Reported: no number of the paper could be read.

Edges: a query without a positive is left out; a batch of those is 0 with zero gradient. A query without a safe negative
adds 0; with one it has no mixture of type 1; a negative that may not be mixed
is still in the denominator. Draws come from torch's CPU generator, which checkpoints save.
"""

import torch
from torch import Tensor
from torch.nn import functional

from pipelines.errors import ObjectiveError
from pipelines.objectives.checks import require_positive_number
from pipelines.objectives.embedding_batch import embedding_batch, similarities
from pipelines.objectives.masked import zero_probability_logit
from pipelines.objectives.mixtures import (
    Mixing,
    draw_mixing,
    hardest_negatives,
    mixtures_of_negatives,
    mixtures_with_queries,
)
from pipelines.objectives.safe_negatives import safe_negatives

__all__ = ["mochi_loss"]


def mochi_loss(
    query_embeddings: Tensor,
    document_embeddings: Tensor,
    positive_document: Tensor,
    *,
    relevant: Tensor | None = None,
    batch_teacher_scores: Tensor | None = None,
    scored: Tensor | None = None,
    mixing: Mixing | None = None,
    temperature: float = 0.05,
    hardest: int = 32,
    negative_mixtures: int = 32,
    query_mixtures: int = 4,
    max_query_share: float = 0.5,
    teacher_margin: float | None = 0.0,
    teacher_threshold: float | None = 0.5,
) -> Tensor:
    """Softmax cross-entropy over the batch's documents and each query's mixtures, over queries with a positive.

    Args:
        query_embeddings: [queries, dimensions]; used as given, so normalise them for cosine similarity.
        document_embeddings: [documents, dimensions], in any order.
        positive_document: [queries] int64, row of each query's positive in `document_embeddings`; -1 = none, skip it.
        relevant: [queries, documents] bool, documents that must not count as negatives of that query; None = only
            its positive.
        batch_teacher_scores: [queries, documents] raw teacher logits, constants; None = no teacher to ask.
        scored: [queries, documents] bool, pairs the teacher scored; only those are mixed. None = all negatives are.
        mixing: the random choices; None = `draw_mixing`. Library only: no step of a job offers it.
        temperature: divides the dot products.
        hardest: how many of a query's nearest negatives are mixed.
        negative_mixtures: mixtures of two negatives per query.
        query_mixtures: mixtures of the query and a negative per query.
        max_query_share: largest share of the query in those.
        teacher_margin: logits below the positive from which on the teacher calls a document relevant; None = off.
        teacher_threshold: probability, the sigmoid of a logit, from which on it does so wherever the positive is;
            None = off, for teachers whose logits have no zero.

    Returns:
        Scalar >= 0.

    Raises:
        ObjectiveError: shapes or dtypes disagree, fewer than two documents, NaN or infinite embeddings or teacher
            scores, a positive out of range, an impossible parameter.
    """
    batch = embedding_batch("mochi", query_embeddings, document_embeddings, positive_document, relevant)
    require_positive_number("mochi", "temperature", temperature)
    _require_counts(hardest, negative_mixtures, query_mixtures, max_query_share)
    safe = safe_negatives(
        batch, batch_teacher_scores, scored, teacher_margin, objective="mochi", teacher_threshold=teacher_threshold
    )
    mixable = safe if scored is None else safe & scored

    positives = batch.documents.index_select(0, batch.positive_column.squeeze(1))
    positive_scores = (batch.queries * positives).sum(dim=1, keepdim=True)
    logits = similarities(batch.queries / temperature, batch.documents)
    with torch.no_grad():
        nearest = hardest_negatives(logits, mixable, hardest)
        available = mixable.sum(dim=1, keepdim=True).clamp(max=nearest.shape[1])
        if mixing is None:
            mixing = draw_mixing(available.squeeze(1), negative_mixtures, query_mixtures, max_query_share)
        negatives = batch.documents[nearest]
        with_query, not_closer = mixtures_with_queries(batch.queries, positive_scores.detach(), negatives, mixing)
        points = torch.cat([mixtures_of_negatives(negatives, mixing), with_query], dim=1)
        two_negatives = (torch.maximum(mixing.first, mixing.second) < available) & (mixing.first != mixing.second)
        is_point = torch.cat([two_negatives, not_closer & (mixing.partner < available)], dim=1)
    with torch.autocast(points.device.type, enabled=False):
        synthetic = torch.bmm(points, batch.queries.unsqueeze(2)).squeeze(2) / temperature

    nothing = zero_probability_logit(logits.dtype)
    logits = logits.masked_fill(~(safe | batch.is_positive), nothing)
    losses = functional.cross_entropy(logits, batch.positive, ignore_index=-1, reduction="none")
    if synthetic.shape[1]:
        # log(sum over real and synthetic) - target, without joining the two matrices
        made = synthetic.masked_fill(~is_point, nothing).logsumexp(dim=1)
        losses = losses - functional.logsigmoid(losses + positive_scores.squeeze(1) / temperature - made)
    return torch.where(batch.has_positive, losses, 0).sum() / batch.has_positive.sum().clamp(min=1)


def _require_counts(hardest: int, negative_mixtures: int, query_mixtures: int, max_query_share: float) -> None:
    if hardest < 1:
        raise ObjectiveError(f"mochi: hardest must be at least 1, got {hardest}")
    for label, count in (("negative_mixtures", negative_mixtures), ("query_mixtures", query_mixtures)):
        if count < 0:
            raise ObjectiveError(f"mochi: {label} must be at least 0, got {count}")
    if not 0 <= max_query_share <= 1:
        raise ObjectiveError(f"mochi: max_query_share must be between 0 and 1, got {max_query_share}")
