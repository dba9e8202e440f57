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
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from pipelines.errors import DataError
from pipelines.model_files import model_config
from pipelines.teacher.backends.protocol import Backend
from pipelines.teacher.batch import PairBatch
from pipelines.teacher.contract import ScoreContract
from pipelines.teacher.layout import PairLayout
from pipelines.teacher.memory import is_out_of_memory
from pipelines.teacher.stages import Stages

__all__ = ["Calibration", "calibrate", "kept_calibration", "read_calibration", "workload"]

_TrialStages: TypeAlias = Stages[PairBatch, PairBatch, npt.NDArray[np.float32]]
_SIZES = (("num_hidden_layers", "n_layers"), ("hidden_size", "dim"), ("intermediate_size", "hidden_dim"))
_SMALLEST_BUDGET = 512
_DOUBLINGS = 11
_BUDGETS_EXPECTED = 6
"""The time for the search is shared among so many; larger ones are tried while there is any left."""
_WORTH = 1.03
"""A larger batch must be this much faster: it costs memory and delays the first result."""


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """What was measured on one device."""

    device: str
    workload: str
    """What was computed: backend, dtype, sizes of the model; a calibration says nothing about another one."""
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


def workload(folder: Path, contract: ScoreContract, *, device_type: str) -> str:
    """What decides the speed of the teacher in `folder` on one kind of device: equal for weights of equal shape."""
    config = model_config(folder)
    sizes = "x".join(str(config.get(name) or config.get(other)) for name, other in _SIZES)
    kind = f"{contract.backend} {contract.dtype} on {device_type}"
    return f"{kind}, {config.get('model_type')} {sizes}, {contract.max_length} tokens"


def calibrate(
    backend: Backend,
    layout: PairLayout,
    *,
    device: str,
    work: str,
    max_length: int,
    seconds: float,
    tokens_per_batch: int | None = None,
) -> Calibration:
    """Measure for about `seconds`: half of it to find a budget, half for the speed at several lengths.

    Budgets double until more brings nothing, memory runs out, or the time is over; a first batch warms up.

    Args:
        backend: what to measure.
        layout: of its pairs.
        device: its name, for whoever reads the result.
        work: see `workload`.
        max_length: tokens of the longest pair.
        seconds: for all of it; the first batch, which may load or compile, comes on top.
        tokens_per_batch: a budget that is given and not searched.
    """

    def batch(pairs: int, length: int) -> PairBatch:
        ids = np.full(pairs * length, layout.pad_id, dtype=np.int64)
        types = np.zeros_like(ids) if layout.has_types else None
        return PairBatch(ids, types, np.full(pairs, length), layout.pad_id)

    stages: _TrialStages = Stages(lambda item: item, backend.start, workers=backend.workers)
    try:
        smallest = max(_SMALLEST_BUDGET, max_length)
        list(stages.run([batch(smallest // max_length, max_length)] * backend.workers))

        def speed_at(budget: int) -> float:
            until = time.perf_counter() + seconds / 2 / _BUDGETS_EXPECTED
            return _speed(stages, [batch(budget // max_length, max_length)] * backend.workers, until=until)

        budget = tokens_per_batch or _best_budget(speed_at, smallest, seconds=seconds / 2)
        backend.free_memory()  # what the largest trials left behind may be wanted by another, a student say
        lengths = tuple(sorted({max(8, max_length >> step) for step in range(4)}))
        per_pair = []
        for length in lengths:
            until = time.perf_counter() + seconds / 2 / len(lengths)
            several = [batch(max(1, budget // length), length)] * (4 * backend.workers)
            per_pair.append(length / _speed(stages, several, until=until))
    finally:
        stages.close()
    return Calibration(
        device=device, workload=work, tokens_per_batch=budget, lengths=lengths, seconds_per_pair=tuple(per_pair)
    )


def _best_budget(speed_at: Callable[[int], float], smallest: int, *, seconds: float) -> int:
    end = time.perf_counter() + seconds
    best, fastest = smallest, 0.0
    for budget in (smallest << step for step in range(_DOUBLINGS)):
        try:
            speed = speed_at(budget)
        except Exception as error:
            if not is_out_of_memory(error) or not fastest:
                raise
            break
        if speed > fastest * _WORTH:
            best, fastest = budget, speed
        elif budget >= 4 * best:
            break
        if time.perf_counter() >= end:
            break
    return best


def _speed(stages: _TrialStages, batches: Sequence[PairBatch], *, until: float) -> float:
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
            workload=str(found["workload"]),
            tokens_per_batch=int(found["tokens_per_batch"]),
            lengths=tuple(int(length) for length in found["lengths"]),
            seconds_per_pair=tuple(float(seconds) for seconds in found["seconds_per_pair"]),
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is no calibration of a teacher: {error!r}") from error
