"""Pacing beside a reader that runs ahead: an epoch's quantiles are frozen when all before it is learned, never earlier.

Enters: rows in the reader's thread, word of batches made and learned. Leaves: which rows take part, the same whatever
the depth of the read-ahead. Batches are made while earlier ones are learned from, so a reader that came to a new epoch
and looked at the losses at once would find those of one or of three steps ago, as threads happen to run.

    reader    first row of an epoch: wait until as many batches are learned as were made, then freeze
    trainer   a batch is learned when the next one is asked for: its losses are in, its checkpoint is written

So the trainer stands still while the losses are frozen, and no checkpoint of a step before the epoch holds the epoch's
quantiles. The price is one batch per epoch that is not made ahead.
"""

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TypeVar

import numpy as np

from pipelines.ranked.tail import RankedRow, StreamPosition
from pipelines.training.pacing import Pacing, list_entropy, progress_at
from pipelines.training.query_losses import QueryLosses

__all__ = ["PacedRows"]

Item = TypeVar("Item")


class PacedRows:
    """The pace of one training stream; a new one for each `open_batches`.

    Args:
        pacing: the rule.
        losses: averages per query; the trainer updates them in every step.
        row_of: the row in `losses` of every query id of the stream.
        num_rows: rows of an epoch.
        epochs: of the whole run, over which the limit rises.
        first_epoch: how many of them lie before this stream (earlier rounds).
    """

    def __init__(
        self,
        pacing: Pacing,
        losses: QueryLosses,
        row_of: Mapping[str, int],
        *,
        num_rows: int,
        epochs: int,
        first_epoch: int = 0,
    ) -> None:
        self._pacing = pacing
        self._losses = losses
        self._row_of = row_of
        self._num_rows = num_rows
        self._epochs = epochs
        self._first_epoch = first_epoch
        self._changed = threading.Condition()
        self._open = 0
        self._epoch = -1
        self._quantiles = np.empty(0, dtype=np.float32)

    def takes_part(self, row: RankedRow, check: Callable[[], None] = lambda: None) -> bool:
        """Whether the row is learned from; called in stream order, in the reader's thread.

        `check` is called while waiting, and raises if nobody wants the rest (`read_ahead`).
        """
        epoch = self._first_epoch + row.place.epoch
        if self._epoch != epoch:
            self._wait_until_all_is_learned(check)
            self._quantiles, self._epoch = self._losses.quantiles_of(epoch), epoch
        quantile = float(self._quantiles[self._row_of[row.query_id]])
        place = StreamPosition(epoch, row.place.ordinal)
        progress = progress_at(place, num_rows=self._num_rows, epochs=self._epochs)
        return self._pacing.takes_part(list_entropy(row.teacher_logits), quantile, progress)

    def made(self, batches: Iterable[Item]) -> Iterator[Item]:
        """The same batches, counted as they leave the reader."""
        for batch in batches:
            with self._changed:
                self._open += 1
            yield batch

    def learned(self, batches: Iterable[Item]) -> Iterator[Item]:
        """The same batches; each counts as learned when the next one is asked for."""
        for batch in batches:
            yield batch
            with self._changed:
                self._open -= 1
                self._changed.notify_all()

    def _wait_until_all_is_learned(self, check: Callable[[], None]) -> None:
        with self._changed:
            while not self._changed.wait_for(lambda: self._open == 0, timeout=0.1):
                check()
