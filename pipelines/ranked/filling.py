"""Turn mined candidates into committed ranked lists: reuse every known logit, ask the teacher for the rest.

Enters: the candidates of one round, the tokens of its texts, a `PairScorer`. Leaves: every chunk of the round
committed exactly once. Chunks that an earlier, killed run committed are left alone; pairs that any job scored under the
same contract are joined in; only new pairs reach the teacher. In memory is one window of the round, not the round.
"""

import logging
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipelines.errors import RankedListsError
from pipelines.ranked.lookup import AskedChunk, CandidateRows, ChunkLookup, list_lengths, round_shape
from pipelines.ranked.reader import RoundReader
from pipelines.ranked.schema import rank_candidates
from pipelines.ranked.table import RankedLists
from pipelines.ranked.upkeep import compact
from pipelines.teacher.scorer import PairScorer, ScoreAnswer, ScoreRequest
from pipelines.tokens import TokenPairs

__all__ = ["ChunkDone", "PairSource", "chunk_count", "fill_round"]

log = logging.getLogger(__name__)
_COMPACT_EVERY = 256
"""Commits of a round after which its small files are joined: a log of many files is slow to follow."""


class PairSource(Protocol):
    """Where the texts of pairs come from, as token ids."""

    def pairs(self, ids: Sequence[tuple[str, str]]) -> TokenPairs:
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
    candidates: CandidateRows,
    tokens: PairSource,
    lists: RankedLists,
    scorer: PairScorer,
    *,
    job_id: str,
    round_number: int,
    rows_per_chunk: int,
    scratch: Path,
    miner: str | None = None,
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
        scratch: a folder for what is known about the round's pairs; gone at the end.
        miner: which state of the student mined the candidates; kept with every list.
        before_request: called before each request is sent; may raise to stop (cancellation).

    Raises:
        RankedListsError: the scorer ended before it had answered every request.
    """
    query_ids, lengths = round_shape(candidates, rows_per_chunk)
    total = chunk_count(len(query_ids), rows_per_chunk)
    committed = RoundReader(lists, job_id, round_number).chunk_ids()
    for chunk_id in sorted(committed):
        of_chunk = lengths[chunk_id * rows_per_chunk :][:rows_per_chunk]
        yield ChunkDone(chunk_id, len(of_chunk), 0, int(of_chunk.sum()))
    missing = [chunk_id for chunk_id in range(total) if chunk_id not in committed]
    expected = sum(int(lengths[chunk_id * rows_per_chunk :][:rows_per_chunk].sum()) for chunk_id in missing)
    pending: dict[int, AskedChunk] = {}
    lookup = ChunkLookup(
        candidates, query_ids, lists, own=(job_id, round_number), rows_per_chunk=rows_per_chunk, scratch=scratch
    )

    def requests() -> Iterator[ScoreRequest]:
        for chunk_id in missing:
            before_request()
            pending[chunk_id] = asked = lookup.chunk(chunk_id, scorer.weights_version)
            yield ScoreRequest(chunk_id, tokens.pairs(asked.new_pairs()))

    with closing(lookup):
        for number, first_answer in enumerate(scorer.score_all(requests(), expected_pairs=expected), start=1):
            answer, asked = first_answer, pending.pop(first_answer.key)
            if answer.weights_version != asked.weights_version and not np.isnan(asked.logits).all():
                # The teacher got new weights after the lookup: a list has the scores of one version only.
                asked = asked.without_known(answer.weights_version)
                request = ScoreRequest(answer.key, tokens.pairs(asked.new_pairs()))
                (answer,) = scorer.score_all([request], expected_pairs=len(request.pairs))
            done, ranked = _ranked(asked, answer, job_id=job_id, round_number=round_number, miner=miner)
            lists.commit_chunk(ranked, job_id=job_id, round_number=round_number, chunk_id=answer.key)
            if number % _COMPACT_EVERY == 0:
                _tidy(lists, job_id, round_number, at_least=_COMPACT_EVERY // 4)
            committed.add(answer.key)
            yield done
    if unanswered := sorted(set(range(total)) - committed):
        raise RankedListsError(
            f"round {round_number}: the scorer finished without an answer for {len(unanswered)} of {total} chunks, "
            f"first {unanswered[0]}"
        )
    _tidy(lists, job_id, round_number, at_least=2)
    shutil.rmtree(scratch, ignore_errors=True)  # what killed attempts left in it


def _tidy(lists: RankedLists, job_id: str, round_number: int, *, at_least: int) -> None:
    """Join small files; lists that stay in many files are slower to follow, and no reason to fail a job."""
    try:
        compact(lists, job_id, round_number, at_least=at_least)
    except RankedListsError as error:
        log.warning("round %d of %s is not compacted: %s", round_number, job_id, error)


def _ranked(
    asked: AskedChunk, answer: ScoreAnswer, *, job_id: str, round_number: int, miner: str | None
) -> tuple[ChunkDone, pa.Table]:
    """The chunk's ranked lists, without the pairs that nothing can score."""
    new = np.isnan(asked.logits)
    ids = asked.new_pairs()
    if len(answer.logits) != len(ids):
        raise RankedListsError(f"chunk {answer.key} asked for {len(ids)} logits and got {len(answer.logits)}")
    logits = asked.logits.copy()
    logits[new] = answer.logits
    kept = np.ones(len(logits), dtype=np.bool_)
    kept[np.flatnonzero(new)[sorted(answer.quarantined)]] = False
    table = rank_candidates(
        _keep(asked.candidates, kept),
        logits[kept],
        job_id=job_id,
        round_number=round_number,
        chunk_id=answer.key,
        weights_version=answer.weights_version,
        miner=miner,
    )
    done = ChunkDone(
        answer.key,
        len(table),
        int(new.sum()) - len(answer.quarantined),
        int((~new).sum()),
        tuple((*ids[row], why) for row, why in answer.quarantined.items()),
    )
    return done, table


def _keep(chunk: pa.Table, kept: npt.NDArray[np.bool_]) -> pa.Table:
    """The chunk with only some of its candidates."""
    if kept.all():
        return chunk
    lengths = list_lengths(chunk)
    ends = np.concatenate([[0], np.cumsum(kept)])[np.concatenate([[0], np.cumsum(lengths)])]
    items = chunk["candidates"].combine_chunks().flatten().filter(pa.array(kept))
    lists = pa.ListArray.from_arrays(pa.array(ends, pa.int32()), items)
    place = chunk.schema.get_field_index("candidates")
    return chunk.set_column(place, chunk.schema.field(place), lists)
