"""Turn mined candidates into committed ranked lists: reuse every known logit, ask the teacher for the rest.

Enters: a candidates table of one round, the tokens of its texts, a `PairScorer`. Leaves: every chunk of the round
committed exactly once. Chunks that an earlier, killed run committed are left alone; pairs that any job scored under the
same contract are joined in; only new pairs reach the teacher.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipelines.corpus.tokens import TokenPairs
from pipelines.errors import RankedListsError
from pipelines.ranked.schema import rank_candidates
from pipelines.ranked.table import RankedLists
from pipelines.teacher.scorer import PairScorer, ScoreRequest

__all__ = ["ChunkDone", "PairSource", "chunk_count", "fill_round"]

Pair = tuple[str, str]
_LOOKUP_CHUNKS = 64
"""Known logits are looked up for this many chunks at once: a lookup reads the statistics of every file of the table."""


class PairSource(Protocol):
    """Where the texts of pairs come from, as token ids."""

    def pairs(self, ids: Sequence[Pair]) -> TokenPairs:
        """The pairs (query_id, doc_id), in order."""
        ...


@dataclass(frozen=True)
class ChunkDone:
    """One chunk is committed: how many pairs the teacher scored for it, and how many were known."""

    chunk_id: int
    num_queries: int
    num_new_pairs: int
    num_reused_pairs: int
    quarantined: tuple[tuple[str, str, str], ...] = ()
    """(query_id, doc_id, why) of pairs that no replica can score; their lists are committed without them."""


def chunk_count(num_rows: int, rows_per_chunk: int) -> int:
    """Chunks that `num_rows` queries make."""
    return -(-num_rows // rows_per_chunk)


def fill_round(
    candidates: pa.Table,
    tokens: PairSource,
    lists: RankedLists,
    scorer: PairScorer,
    *,
    job_id: str,
    round_number: int,
    rows_per_chunk: int,
    before_request: Callable[[], None] = lambda: None,
) -> Iterator[ChunkDone]:
    """Score and commit the round's missing chunks; yields one `ChunkDone` per chunk, committed ones first.

    Args:
        candidates: the whole round, in the order that defines chunks.
        tokens: makes pairs of ids.
        lists: where to commit.
        scorer: the teacher.
        job_id: filed under.
        round_number: filed under.
        rows_per_chunk: queries in a chunk.
        before_request: called before each request is sent; may raise to stop (cancellation).

    Raises:
        RankedListsError: the scorer ended before it had answered every request.
    """
    total = chunk_count(len(candidates), rows_per_chunk)
    committed = lists.chunk_files(job_id, round_number)
    chunks = {i: candidates.slice(i * rows_per_chunk, rows_per_chunk) for i in range(total)}
    for chunk_id in sorted(committed):
        yield ChunkDone(chunk_id, len(chunks[chunk_id]), 0, _pair_count(chunks[chunk_id]))

    answered = set(committed)
    pending: dict[int, tuple[list[Pair], dict[Pair, float], int]] = {}

    def requests() -> Iterator[ScoreRequest]:
        missing = [i for i in range(total) if i not in committed]
        for window in (missing[i : i + _LOOKUP_CHUNKS] for i in range(0, len(missing), _LOOKUP_CHUNKS)):
            query_ids = [query_id for chunk_id in window for query_id in chunks[chunk_id]["query_id"].to_pylist()]
            version = scorer.weights_version
            known = lists.known_logits(query_ids, weights_version=version)
            for chunk_id in window:
                before_request()
                pairs = _pairs(chunks[chunk_id])
                fresh = [pair for pair in dict.fromkeys(pairs) if pair not in known]
                pending[chunk_id] = (fresh, {pair: known[pair] for pair in pairs if pair in known}, version)
                yield ScoreRequest(chunk_id, tokens.pairs(fresh))

    expected_pairs = sum(_pair_count(chunk) for chunk_id, chunk in chunks.items() if chunk_id not in committed)
    for first in scorer.score_all(requests(), expected_pairs=expected_pairs):
        answer, chunk_id = first, first.key
        fresh, known, version = pending.pop(chunk_id)
        answered.add(chunk_id)
        if known and answer.weights_version != version:
            # The teacher got new weights after the lookup: a list has the scores of one version only.
            fresh, known = list(dict.fromkeys(_pairs(chunks[chunk_id]))), {}
            (answer,) = scorer.score_all([ScoreRequest(chunk_id, tokens.pairs(fresh))], expected_pairs=len(fresh))
        poison = {fresh[row]: why for row, why in answer.quarantined.items()}
        chunk = _without(chunks[chunk_id], poison.keys())
        by_pair = known | dict(zip(fresh, answer.logits.tolist(), strict=True))
        pairs = _pairs(chunk)
        lists.commit_chunk(
            rank_candidates(
                chunk,
                _gather(by_pair, pairs),
                job_id=job_id,
                round_number=round_number,
                chunk_id=chunk_id,
                weights_version=answer.weights_version,
            ),
            job_id=job_id,
            round_number=round_number,
            chunk_id=chunk_id,
        )
        new = len(fresh) - len(poison)
        yield ChunkDone(
            chunk_id, len(chunk), new, len(pairs) - new, tuple((*pair, why) for pair, why in poison.items())
        )
    if unanswered := sorted(set(range(total)) - answered):
        raise RankedListsError(
            f"round {round_number}: the scorer finished without an answer for {len(unanswered)} of {total} chunks, "
            f"first {unanswered[0]}"
        )


def _pairs(chunk: pa.Table) -> list[Pair]:
    return [
        (query_id, item["doc_id"])
        for query_id, items in zip(chunk["query_id"].to_pylist(), chunk["candidates"].to_pylist(), strict=True)
        for item in items
    ]


def _without(chunk: pa.Table, poison: Collection[Pair]) -> pa.Table:
    if not poison:
        return chunk
    kept = [
        [item for item in items if (query_id, item["doc_id"]) not in poison]
        for query_id, items in zip(chunk["query_id"].to_pylist(), chunk["candidates"].to_pylist(), strict=True)
    ]
    place = chunk.schema.get_field_index("candidates")
    return chunk.set_column(place, chunk.schema.field(place), pa.array(kept, type=chunk.schema.field(place).type))


def _pair_count(chunk: pa.Table) -> int:
    return sum(len(items) for items in chunk["candidates"].to_pylist())


def _gather(by_pair: dict[Pair, float], pairs: list[Pair]) -> npt.NDArray[np.float32]:
    return np.array([by_pair[pair] for pair in pairs], dtype=np.float32)
