"""Score the lists of a round, and of the test queries with the last one: candidates in, committed lists and events out.

Enters: candidates of one or two rounds, everything that `fill_round` needs, a journal. Leaves: every chunk committed;
progress after each, an event for each pair that cannot be scored, and one with the counts of reused and new pairs.
"""

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipelines.errors import Cancelled
from pipelines.journal import Journal
from pipelines.ranked.filling import PairSource, fill_round
from pipelines.ranked.lookup import CandidateRows
from pipelines.ranked.schema import round_name
from pipelines.ranked.table import RankedLists
from pipelines.teacher.scorer import PairScorer

__all__ = ["ScoringInputs", "ToScore", "score_rounds"]


@dataclass(frozen=True, kw_only=True)
class ScoringInputs:
    """Who scores what for whom."""

    job_id: str
    tokens: PairSource
    scorer: PairScorer
    lists: RankedLists
    work: Path
    journal: Journal
    rows_per_chunk: int


@dataclass(frozen=True, eq=False)
class ToScore:
    """The candidates of a round."""

    round_number: int
    candidates: CandidateRows
    num_pairs: int
    miner: str
    """Which state of the student mined them."""


def score_rounds(inputs: ScoringInputs, rounds: Sequence[ToScore], stop: threading.Event) -> None:
    """Score and commit whatever of the rounds is missing.

    Args:
        inputs: who scores what for whom.
        rounds: in order; the first is the one whose student is being trained meanwhile.
        stop: set when that training has failed.

    Raises:
        Cancelled: the job was cancelled, or `stop` was set.
        RankedListsError: the scorer ended before it had answered every request, or a commit failed.
    """

    def before_request() -> None:
        inputs.journal.check_cancelled()
        if stop.is_set():
            raise Cancelled("the student's training failed; scoring stops with it")

    new = reused = committed = 0
    total = sum(each.num_pairs for each in rounds)
    number = rounds[0].round_number
    inputs.journal.event("scoring.started", f"{round_name(number)}: scoring {total} pairs", round=number, pairs=total)
    for each in rounds:
        new_before, reused_before = new, reused
        for done in fill_round(
            each.candidates,
            inputs.tokens,
            inputs.lists,
            inputs.scorer,
            job_id=inputs.job_id,
            round_number=each.round_number,
            rows_per_chunk=inputs.rows_per_chunk,
            scratch=inputs.work / f"known-{each.round_number}",
            miner=each.miner,
            before_request=before_request,
        ):
            new, reused = new + done.num_new_pairs, reused + done.num_reused_pairs
            committed += done.num_queries
            for query_id, doc_id, why in done.quarantined:
                message = f"query {query_id!r} with document {doc_id!r} cannot be scored and is left out: {why}"
                inputs.journal.event("scoring.quarantined", message, query_id=query_id, doc_id=doc_id, reason=why)
            inputs.journal.progress(
                pairs_scored=new,
                pairs_reused=reused,
                pairs_total=total,
                lists_committed=committed,
                lists_total=sum(len(table.candidates) for table in rounds),
            )
        inputs.journal.event(
            "scoring.finished",
            f"{round_name(each.round_number)}: every list is committed",
            round=each.round_number,
            pairs_scored=new - new_before,
            pairs_reused=reused - reused_before,
        )
