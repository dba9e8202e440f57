"""Pacing while batches are read ahead.

Why: how far the reader has come when the losses are looked at is a matter of threads; what is learned must not be.
"""

import threading
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch

from pipelines.ranked.read_ahead import Stopped, read_ahead
from pipelines.ranked.tail import RankedRow, StreamPosition
from pipelines.spec_sections.curriculum import PacingSpec
from pipelines.training.paced_rows import PacedRows
from pipelines.training.pacing import Pacing
from pipelines.training.query_losses import QueryLosses

NUM, EPOCHS, SIZE = 23, 4, 4
START = StreamPosition()
HALF = Pacing(PacingSpec(start=0.4, full_at=1.0, loss_weight=0.8))
Batch = tuple[list[RankedRow], StreamPosition]


def row_at(place: StreamPosition) -> RankedRow:
    query = int(np.random.default_rng(place.epoch).permutation(NUM)[place.ordinal])
    logits = np.random.default_rng(100 + query).normal(0, 2, 5).astype(np.float32)
    return RankedRow(
        query_id=f"q{query}",
        doc_ids=np.array(list("abcde"), dtype=object),
        teacher_logits=np.sort(logits)[::-1],
        relevance=np.full(5, -1, dtype=np.int16),
        place=place,
    )


def cut(
    paced: PacedRows, start: StreamPosition, check: Callable[[], None], arrived: Callable[[int], None]
) -> Iterator[Batch]:
    """Batches of SIZE rows that take part; one may reach from an epoch into the next, as the trainer's do."""
    batch: list[RankedRow] = []
    following = start
    for place in (StreamPosition(epoch, ordinal) for epoch in range(EPOCHS) for ordinal in range(NUM)):
        if place >= start:
            row = row_at(place)
            arrived(place.epoch)
            batch += [row] if paced.takes_part(row, check) else []
            last = place.ordinal + 1 == NUM
            following = StreamPosition(place.epoch + 1) if last else StreamPosition(place.epoch, place.ordinal + 1)
            if len(batch) == SIZE:
                yield batch, following
                batch = []
    if batch:
        yield batch, following


def run(
    losses: QueryLosses,
    *,
    depth: int | None,
    start: StreamPosition = START,
    arrived: Callable[[int], None] = lambda epoch: None,
    before_update: Callable[[int], None] = lambda epoch: None,
    stop_after: int | None = None,
) -> tuple[list[list[str]], StreamPosition]:
    """Query ids of each step and where it stopped. Losses depend on the query and on how often it was learned."""
    paced = PacedRows(HALF, losses, {f"q{i}": i for i in range(NUM)}, num_rows=NUM, epochs=EPOCHS)

    def made(check: Callable[[], None]) -> Iterator[Batch]:
        return paced.made(cut(paced, start, check, arrived))

    stream = made(lambda: None) if depth is None else read_ahead(made, depth=depth)
    steps: list[list[str]] = []
    following = start
    for batch, position in paced.learned(stream):
        following = position
        before_update(following.epoch)
        rows = torch.tensor([int(row.query_id[1:]) for row in batch])
        losses.update(rows, (rows * 7919 % 13).float() / (1 + losses.average[rows]))
        steps.append([row.query_id for row in batch])
        if len(steps) == stop_after:
            break
    return steps, following


def test_what_is_read_ahead_changes_nothing() -> None:
    alone, _ = run(QueryLosses(NUM), depth=None)
    for depth in (1, 3):
        assert run(QueryLosses(NUM), depth=depth)[0] == alone
    reached = [threading.Event() for _ in range(EPOCHS)]

    def the_reader_is_an_epoch_ahead(epoch: int) -> None:
        if epoch + 1 < EPOCHS:
            assert reached[epoch + 1].wait(60)

    ahead, _ = run(
        QueryLosses(NUM),
        depth=50,
        arrived=lambda epoch: reached[epoch].set(),
        before_update=the_reader_is_an_epoch_ahead,
    )
    assert ahead == alone
    assert sum(map(len, alone)) < NUM * EPOCHS, "some lists were too hard at first"
    assert {query for step in alone for query in step} == {f"q{i}" for i in range(NUM)}


def test_the_losses_have_a_say() -> None:
    """Else the other tests would hold for a pace that never looks at them."""
    losses = QueryLosses(NUM)
    seen, _ = run(losses, depth=None)
    losses = QueryLosses(NUM)
    losses.quantiles_of = lambda epoch: np.full(NUM, -1, dtype=np.float32)  # type: ignore[method-assign]
    blind, _ = run(losses, depth=None)
    assert seen != blind


def test_a_run_stopped_after_any_step_goes_on_as_the_whole_one() -> None:
    """Steps that reach into a new epoch included."""
    whole, _ = run(QueryLosses(NUM), depth=None)
    for count in range(1, len(whole)):
        first = QueryLosses(NUM)
        before, following = run(first, depth=3, stop_after=count)
        resumed = QueryLosses(NUM)
        resumed.load_state_dict(first.state_dict())
        after, _ = run(resumed, depth=3, start=following)
        assert before + after == whole


def test_a_reader_that_nobody_listens_to_gives_up() -> None:
    def gone() -> None:
        raise Stopped

    paced = PacedRows(HALF, QueryLosses(NUM), {f"q{i}": i for i in range(NUM)}, num_rows=NUM, epochs=1)
    next(iter(paced.made([0])))
    with pytest.raises(Stopped):
        paced.takes_part(row_at(START), gone)


def test_earlier_rounds_count_as_epochs_that_are_over() -> None:
    """A job of several rounds has one rising limit, and knows its losses from the second round's first epoch on."""
    easy_at_last = Pacing(PacingSpec(start=0.0, full_at=0.5, loss_weight=0.0))
    names = {f"q{i}": i for i in range(NUM)}
    row = row_at(StreamPosition())
    first, second = (
        PacedRows(easy_at_last, QueryLosses(NUM), names, num_rows=NUM, epochs=2, first_epoch=round_number)
        for round_number in (0, 1)
    )
    assert not first.takes_part(row)
    assert second.takes_part(row)
