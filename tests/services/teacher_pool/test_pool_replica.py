"""One replica without Serve: the class inside the deployment, over a real tiny cross-encoder."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import byte_pairs, save_cross_encoder

from pipelines.corpus.tokens import TokenPairs
from pipelines.errors import ContractError
from pipelines.teacher.contract import ScoreContract, contract_of
from pipelines.teacher.engine import load_engine
from services.teacher_pool.replica import TeacherReplica

QUERIES, PASSAGES = ["what is the cause of blood"] * 2, ["blood cause rare", "eye test common care"]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_cross_encoder(tmp_path_factory.mktemp("models") / "teacher", seed=1)


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    """Replicas set the threads of their process; here that is the process of all tests."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def contract(folder: Path) -> ScoreContract:
    return contract_of(folder, model_id="teacher", revision=None, max_length=48, dtype="fp32")


def user_config(folder: Path, **fields: Any) -> dict[str, Any]:
    config: dict[str, Any] = {
        "model_dir": str(folder),
        "contract": contract(folder).to_dict(),
        "tokens_per_batch": 512,
        "calibrations_dir": None,
        "num_cpus": 1.0,
        "num_gpus": 0.0,
        "weights_version": 0,
    }
    return config | fields


def pairs(replica: Any) -> TokenPairs:
    return replica._engine.encoder.tokenize(QUERIES, PASSAGES)


def new_replica() -> Any:
    return TeacherReplica.func_or_class()


def test_a_replica_gives_the_engine_s_bits(teacher: Path) -> None:
    async def score() -> tuple[str, np.ndarray]:
        replica = new_replica()
        await replica.reconfigure(user_config(teacher))
        return await replica.score(pairs(replica))

    fingerprint, logits = asyncio.run(score())
    assert fingerprint == contract(teacher).fingerprint
    expected = load_engine(teacher, contract(teacher), device=torch.device("cpu"), tokens_per_batch=512).score(
        QUERIES, PASSAGES
    )
    np.testing.assert_array_equal(logits, expected)


@pytest.mark.parametrize(("num_cpus", "cores"), [(0.3, 1), (1.0, 1), (2.0, 2)])
def test_a_replica_computes_on_the_cpus_it_was_given(teacher: Path, num_cpus: float, cores: int) -> None:
    """One core a batch: torch keeps its limit per thread, so it must hold where the forward pass runs."""
    torch.set_num_threads(4)

    async def score() -> tuple[int, set[int]]:
        replica = new_replica()
        await replica.reconfigure(user_config(teacher, num_cpus=num_cpus))
        seen: set[int] = set()
        backend = replica._engine.backend
        inner = backend._forward
        backend._forward = lambda **batch: (seen.add(torch.get_num_threads()), inner(**batch))[1]
        await replica.score(pairs(replica))
        return backend.workers, seen

    assert asyncio.run(score()) == (cores, {1})


def test_new_weights_are_taken_in_place(teacher: Path, tmp_path: Path) -> None:
    other = save_cross_encoder(tmp_path / "other", seed=2)

    async def fingerprints() -> list[str]:
        replica = new_replica()
        found = []
        for folder in (teacher, other):
            await replica.reconfigure(user_config(folder))
            found.append((await replica.score(pairs(replica)))[0])
        return found

    assert asyncio.run(fingerprints()) == [contract(teacher).fingerprint, contract(other).fingerprint]


def test_an_equal_config_loads_nothing(teacher: Path) -> None:
    """Serve sends the config again on changes that do not concern it, such as another number of replicas."""

    async def engines() -> tuple[object, object]:
        replica = new_replica()
        await replica.reconfigure(user_config(teacher))
        first = replica._engine
        await replica.reconfigure(user_config(teacher))
        return first, replica._engine

    first, second = asyncio.run(engines())
    assert first is second


def test_a_replica_refuses_weights_that_are_not_the_contract_s(teacher: Path, tmp_path: Path) -> None:
    """The folder was overwritten since the job wrote its contract down."""
    other = save_cross_encoder(tmp_path / "other", seed=2)
    config = user_config(teacher, model_dir=str(other))
    with pytest.raises(ContractError):
        asyncio.run(new_replica().reconfigure(config))


def test_an_unconfigured_replica_does_not_guess() -> None:
    with pytest.raises(RuntimeError, match="before it was configured"):
        asyncio.run(new_replica().score(byte_pairs([])))
