"""A short calibration: how many tokens make a good batch here, and how fast pairs of each length go.

Enters: a backend and the lengths to try. Leaves: a frozen `Calibration`, kept in a file beside the job's other work
where a folder for it is given. All replicas on one kind of device read the same file: batches are cut alike everywhere,
so that a pool of three gives the bits that a pool of one gives.
"""

import contextlib
import dataclasses
import json
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pipelines.errors import DataError
from pipelines.teacher.backends.protocol import Backend
from pipelines.teacher.batch import PairBatch
from pipelines.teacher.layout import PairLayout
from pipelines.teacher.memory import is_out_of_memory
from pipelines.teacher.stages import Stages

__all__ = ["Calibration", "calibrate", "kept_calibration", "read_calibration"]

_BUDGETS = tuple(512 << step for step in range(11))
_BUDGETS_EXPECTED = 6
"""The time for the search is shared among so many; larger ones are tried while there is any left."""
_WORTH = 1.03
"""A larger batch must be this much faster: it costs memory and delays the first result."""


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """What was measured on one device."""

    device: str
    tokens_per_batch: int
    lengths: tuple[int, ...]
    """Tokens of a pair, ascending."""
    seconds_per_pair: tuple[float, ...]
    """At each of `lengths`, in batches of `tokens_per_batch`, all workers busy."""

    def seconds(self, lengths: npt.NDArray[np.int64]) -> float:
        """Time to score pairs of these lengths, interpolated between those measured (and drawn on beyond them)."""
        per_token = np.array(self.seconds_per_pair) / np.array(self.lengths)
        return float((np.interp(lengths, self.lengths, per_token) * lengths).sum())

    @property
    def tokens_per_second(self) -> float:
        """At the longest length."""
        return self.lengths[-1] / self.seconds_per_pair[-1]


def calibrate(backend: Backend, layout: PairLayout, *, device: str, max_length: int, seconds: float) -> Calibration:
    """Measure for about `seconds`: half of it to find a budget, half for the speed at several lengths.

    Budgets double until more brings nothing, memory runs out, or the time is over; a first batch warms up.
    """

    def batch(pairs: int, length: int) -> PairBatch:
        ids = np.full(pairs * length, layout.pad_id, dtype=np.int64)
        types = np.zeros_like(ids) if layout.has_types else None
        return PairBatch(ids, types, np.full(pairs, length), layout.pad_id)

    stages: Stages[PairBatch, PairBatch, npt.NDArray[np.float32]] = Stages(
        lambda item: item, backend.start, workers=backend.workers
    )
    try:
        end = time.perf_counter() + seconds / 2
        best, fastest = _BUDGETS[0], 0.0
        for budget in _BUDGETS:
            pairs = max(1, budget // max_length)
            until = time.perf_counter() + seconds / 2 / _BUDGETS_EXPECTED
            try:
                speed = _speed(stages, [batch(pairs, max_length)] * backend.workers, until=until)
            except Exception as error:
                if not is_out_of_memory(error) or not fastest:
                    raise
                backend.free_memory()
                break
            if speed > fastest * _WORTH:
                best, fastest = budget, speed
            elif budget >= 4 * best:
                break
            if time.perf_counter() >= end:
                break
        lengths = tuple(sorted({max(8, max_length >> step) for step in range(4)}))
        per_pair = []
        for length in lengths:
            pairs = max(1, best // length)
            until = time.perf_counter() + seconds / 2 / len(lengths)
            speed = _speed(stages, [batch(pairs, length)] * (2 * backend.workers), until=until)
            per_pair.append(length / speed)
    finally:
        stages.close()
    return Calibration(device=device, tokens_per_batch=best, lengths=lengths, seconds_per_pair=tuple(per_pair))


def _speed(
    stages: Stages[PairBatch, PairBatch, npt.NDArray[np.float32]], batches: Sequence[PairBatch], *, until: float
) -> float:
    """Tokens per second; the first pass over the batches warms up and does not count."""
    tokens = sum(int(batch.lengths.sum()) for batch in batches)
    list(stages.run(batches))
    speeds: list[float] = []
    while not speeds or (time.perf_counter() < until and len(speeds) < 50):
        started = time.perf_counter()
        list(stages.run(batches))
        speeds.append(tokens / (time.perf_counter() - started))
    return float(np.median(speeds))


def kept_calibration(path: Path, measure: Callable[[], Calibration]) -> Calibration:
    """The calibration in the file at `path`, measured and filed there when it is the first.

    Of several processes that measure at once, the first to finish decides for all.
    """
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
        scratch.write_text(json.dumps(dataclasses.asdict(measure())), encoding="utf-8")
        with contextlib.suppress(FileExistsError):
            path.hardlink_to(scratch)
        scratch.unlink()
    return read_calibration(path)


def read_calibration(path: Path) -> Calibration:
    """The calibration in a file that `kept_calibration` wrote.

    Raises:
        DataError: the file is missing or is none.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return Calibration(
            device=str(found["device"]),
            tokens_per_batch=int(found["tokens_per_batch"]),
            lengths=tuple(int(length) for length in found["lengths"]),
            seconds_per_pair=tuple(float(seconds) for seconds in found["seconds_per_pair"]),
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is no calibration of a teacher: {error!r}") from error
