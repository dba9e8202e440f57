"""Memory that runs out costs speed, never a score; every other error comes through as it is."""

import errno
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from pipelines.teacher.backends.protocol import Logits
from pipelines.teacher.batch import PairBatch
from pipelines.teacher.memory import WithinMemory, is_out_of_memory


class Small:
    """A backend that holds `room` padded tokens; logits are the lengths of the pairs."""

    workers = 1

    def __init__(self, room: int, error: BaseException | None = None) -> None:
        self.room, self.error = room, error or torch.OutOfMemoryError("CUDA out of memory")
        self.asked: list[int] = []
        self.freed = 0

    def start(self, batch: PairBatch) -> Callable[[], Logits]:
        self.asked.append(batch.padded_tokens)
        if batch.padded_tokens > self.room:
            raise self.error
        return lambda: batch.lengths.astype(np.float32)

    def free_memory(self) -> None:
        self.freed += 1


def batch(*lengths: int) -> PairBatch:
    total = sum(lengths)
    return PairBatch(np.arange(total), np.zeros(total, dtype=np.int64), np.array(lengths), 0)


def test_a_batch_that_does_not_fit_is_halved_until_it_does() -> None:
    backend = Small(room=25)
    scores = WithinMemory(backend).start(batch(*range(10, 0, -1)))()
    assert scores.tolist() == list(range(10, 0, -1)), "every pair has its score, in order"
    assert backend.freed >= 1


def test_a_size_that_failed_is_not_tried_again() -> None:
    backend = Small(room=25)
    memory = WithinMemory(backend)
    memory.start(batch(*[10] * 8))()
    assert memory.limit == 20
    backend.asked.clear()
    memory.start(batch(*[10] * 8))()
    assert max(backend.asked) <= 20


def test_a_single_pair_that_does_not_fit_is_an_error() -> None:
    with pytest.raises(torch.OutOfMemoryError, match="CUDA out of memory"):
        WithinMemory(Small(room=5)).start(batch(10, 3))


@pytest.mark.parametrize(
    "error", [RuntimeError("shape mismatch"), ValueError("bad"), OSError(errno.EIO, "disk"), KeyError("x")]
)
def test_any_other_error_comes_through_at_once(error: Exception) -> None:
    backend = Small(room=5, error=error)
    with pytest.raises(type(error)):
        WithinMemory(backend).start(batch(10, 10))
    assert len(backend.asked) == 1


def test_what_running_out_of_memory_looks_like() -> None:
    real = None
    try:
        torch.empty(1 << 60)
    except RuntimeError as error:
        real = error
    assert real is not None
    assert is_out_of_memory(real), f"torch's own words: {real}"
    assert is_out_of_memory(MemoryError())
    for words in ("CUDA error: out of memory", "cublas: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate(handle)"):
        assert is_out_of_memory(RuntimeError(words))
    assert is_out_of_memory(OSError(errno.ENOMEM, "Cannot allocate memory"))
    assert not is_out_of_memory(RuntimeError("CUDA error: device-side assert triggered"))


def test_an_engine_goes_on_after_memory_ran_out(teacher_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipelines.teacher.backends.torch_backend import TorchBackend
    from pipelines.teacher.contract import contract_of
    from pipelines.teacher.engine import load_engine

    contract = contract_of(teacher_folder, model_id="t", revision=None, max_length=48, dtype="fp32", backend="torch")
    engine = load_engine(teacher_folder, contract, device=torch.device("cpu"), threads=1, tokens_per_batch=4096)
    queries, passages = ["what is heart"] * 40, [" ".join(["lung"] * (1 + number)) for number in range(40)]
    wanted = engine.score(queries, passages)
    run = TorchBackend._run

    def scarce(self: TorchBackend, item: PairBatch) -> torch.Tensor:
        if item.padded_tokens > 200:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return run(self, item)

    monkeypatch.setattr(TorchBackend, "_run", scarce)
    np.testing.assert_allclose(engine.score(queries, passages), wanted, rtol=1e-6, atol=1e-5)
    assert engine.tokens_per_batch <= 400
