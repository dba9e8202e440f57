"""A calibration finds the fastest budget, stops where memory ends, and is the same for all who share a folder."""

import dataclasses
import json
import shutil
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import save_cross_encoder

from pipelines.errors import DataError
from pipelines.teacher.backends.protocol import Logits
from pipelines.teacher.batch import PairBatch
from pipelines.teacher.calibration import Calibration, calibrate, kept_calibration, read_calibration, workload
from pipelines.teacher.contract import contract_of
from pipelines.teacher.engine import load_engine
from pipelines.teacher.layout import PairLayout, Segment

NOTHING = Segment((), ())
LAYOUT = PairLayout(NOTHING, NOTHING, NOTHING, 0, 0, False, ("", ""), ("", ""), NOTHING, NOTHING, NOTHING, 0)
FOUND = Calibration(
    device="here", workload="w", tokens_per_batch=2048, lengths=(8, 64), seconds_per_pair=(0.001, 0.016)
)


class Machine:
    """Takes `per_call` seconds for a batch and `per_token` for each token; holds `room` padded tokens."""

    workers = 1

    def __init__(self, *, per_call: float, per_token: float, room: int = 1 << 30, first: float = 0.0) -> None:
        self.per_call, self.per_token, self.room, self.first = per_call, per_token, room, first
        self.sizes: list[int] = []
        self.freed = 0

    def start(self, batch: PairBatch) -> Callable[[], Logits]:
        if batch.padded_tokens > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory")
        time.sleep(self.first + self.per_call + self.per_token * batch.padded_tokens)
        self.first = 0.0
        self.sizes.append(len(batch))
        return lambda: np.zeros(len(batch), dtype=np.float32)

    def free_memory(self) -> None:
        self.freed += 1


def measured(machine: Machine, *, seconds: float = 1.0, max_length: int = 64, **given: int) -> Calibration:
    return calibrate(machine, LAYOUT, device="here", work="w", max_length=max_length, seconds=seconds, **given)


def test_a_budget_is_as_large_as_pays() -> None:
    # A call costs as much as 2,000 tokens: batches must be much larger than that.
    assert measured(Machine(per_call=0.004, per_token=2e-6)).tokens_per_batch >= 4096
    # Calls cost nothing: larger batches only cost memory.
    assert measured(Machine(per_call=0.0, per_token=4e-5)).tokens_per_batch <= 2048


def test_a_first_batch_that_loads_or_compiles_does_not_eat_the_time() -> None:
    assert measured(Machine(per_call=0.004, per_token=2e-6, first=1.5)).tokens_per_batch >= 4096


def test_pairs_longer_than_the_smallest_budget_are_batched_too() -> None:
    # With 2,048 tokens a pair, budgets below that are all one pair: they must not end the search.
    assert measured(Machine(per_call=0.02, per_token=1e-6), max_length=2048).tokens_per_batch >= 8192


def test_a_given_budget_is_measured_and_not_searched() -> None:
    machine = Machine(per_call=0.001, per_token=1e-6)
    assert measured(machine, tokens_per_batch=640).tokens_per_batch == 640
    assert max(machine.sizes) == 640 // 8


def test_what_the_trials_took_is_given_back() -> None:
    machine = Machine(per_call=0.001, per_token=1e-6)
    measured(machine)
    assert machine.freed


def test_a_workload_is_the_shape_of_the_work_and_not_the_weights(teacher_folder: Path, tmp_path: Path) -> None:
    def of(folder: Path, **fields: object) -> str:
        settings = {"max_length": 48, "dtype": "fp32", "backend": "torch"} | fields
        contract = contract_of(folder, model_id="t", revision=None, **settings)
        return workload(folder, contract, device_type="cpu")

    here = of(teacher_folder)
    assert of(save_cross_encoder(tmp_path / "other", seed=5)) == here
    others = [
        of(save_cross_encoder(tmp_path / "wide", hidden_size=64)),
        of(teacher_folder, max_length=40),
        of(teacher_folder, dtype="bf16"),
        of(teacher_folder, backend="openvino"),
    ]
    assert here not in others


def test_a_budget_stays_within_memory() -> None:
    assert measured(Machine(per_call=0.004, per_token=2e-6, room=2048)).tokens_per_batch <= 2048


def test_too_little_memory_for_the_smallest_batch_is_an_error() -> None:
    with pytest.raises(torch.OutOfMemoryError):
        measured(Machine(per_call=0.0, per_token=0.0, room=64))


def test_seconds_follow_the_lengths() -> None:
    assert FOUND.seconds(np.array([8, 8, 64])) == pytest.approx(0.018)
    halfway = FOUND.seconds(np.array([36]))
    assert 0.001 < halfway < 0.016
    assert halfway == pytest.approx(36 * (0.001 / 8 + 0.016 / 64) / 2)
    assert FOUND.tokens_per_second == pytest.approx(4000)


def test_the_first_to_finish_decides_for_all(tmp_path: Path) -> None:
    # Replicas that cut batches differently would give other bits: a pool of three must be as a pool of one.
    path = tmp_path / "calibrations" / "x.json"
    ready = threading.Barrier(4, timeout=10)

    def one(number: int) -> Calibration:
        def measure() -> Calibration:
            ready.wait()
            return dataclasses.replace(FOUND, tokens_per_batch=512 * (number + 1))

        return kept_calibration(path, measure)

    with ThreadPoolExecutor(4) as pool:
        found = set(pool.map(one, range(4)))
    assert len(found) == 1
    assert kept_calibration(path, lambda: pytest.fail("it is known")) in found
    assert [file.name for file in path.parent.iterdir()] == ["x.json"]


def test_an_engine_takes_what_is_kept_for_teachers_of_its_shape(
    teacher_folder: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """A ranker's next version above all: its replicas do not measure anew."""
    newer = Path(shutil.copytree(teacher_folder, tmp_path_factory.mktemp("newer") / "ranker"))
    weights = load_file(newer / "model.safetensors")
    save_file({name: value + 0.01 for name, value in weights.items()}, newer / "model.safetensors", {"format": "pt"})

    def load(folder: Path = teacher_folder, max_length: int = 48) -> int:
        contract = contract_of(
            folder, model_id="t", revision=None, max_length=max_length, dtype="fp32", backend="torch"
        )
        return load_engine(
            folder, contract, device=torch.device("cpu"), threads=1, calibrations=tmp_path
        ).tokens_per_batch

    first = load()
    (path,) = tmp_path.iterdir()
    kept = read_calibration(path)
    assert kept.tokens_per_batch == first
    assert kept.lengths[-1] == 48
    assert all(seconds > 0 for seconds in kept.seconds_per_pair)
    path.write_text(json.dumps(dataclasses.asdict(kept) | {"tokens_per_batch": 777}), encoding="utf-8")
    assert load() == load(newer) == 777
    load(max_length=32)
    assert len(list(tmp_path.iterdir())) == 2, "shorter pairs are another workload"


@pytest.mark.parametrize("text", ["", "{}", '{"device": "x", "tokens_per_batch": "many"}'])
def test_a_file_that_is_no_calibration_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "c.json").write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=r"c\.json is no calibration of a teacher"):
        read_calibration(tmp_path / "c.json")
