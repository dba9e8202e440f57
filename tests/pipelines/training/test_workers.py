"""Real processes that train one student together are one process on the whole batch: losses, gradients, weights.

Why: half the negatives, a gradient that stays at home or a draw of one's own would train something, at full speed, and
worse. All scenarios run in one start of three processes; then two of them go on as two.
"""

import multiprocessing
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp
from torch import Tensor
from workers_for_tests import RESUMED, SCENARIOS, WORLDS, new_step, on_a_worker, results_of, resumed, wrong_variants

from pipelines.training.workers import ALONE, Workers

LIBRARIES = (
    "pandas",
    "pipelines.training.student_step",
    "torch.distributed.tensor",
    "transformers.models.auto.modeling_auto",
    "transformers.models.bert.modeling_bert",
)
"""Loaded once, by the server that the processes are forked from: most of what their start costs."""
TRIED = [(world, name) for world, names in WORLDS.items() for name in names]
ALIKE = [(world, name) for world, name in TRIED if name != "dropout"]


@pytest.fixture(scope="module")
def folder(tiny_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("workers")
    multiprocessing.set_forkserver_preload(list(LIBRARIES))
    mp.start_processes(on_a_worker, (tiny_root, folder), nprocs=max(WORLDS), start_method="forkserver")
    return folder


@pytest.fixture(scope="module")
def found(folder: Path) -> dict[int, list[dict[str, Any]]]:
    """What each worker computed, by the number of workers."""
    return {world: [torch.load(folder / f"{world}-{rank}.pt") for rank in range(world)] for world in WORLDS}


@pytest.fixture(scope="module")
def alone(tiny_root: Path) -> dict[str, dict[str, Any]]:
    return {name: results_of(tiny_root, SCENARIOS[name], ALONE) for name in dict(map(reversed, ALIKE))}


def distance(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """Norm of the difference over all tensors, relative to theirs."""
    assert set(found) == set(expected)
    squares = [(found[name].double() - value.double()).square().sum() for name, value in expected.items()]
    whole = [value.double().square().sum() for value in expected.values()]
    return float((torch.stack(squares).sum() / torch.stack(whole).sum()).sqrt())


def moved(results: dict[str, Any], start: dict[str, Tensor]) -> dict[str, Tensor]:
    """How far weights went; but for key biases, which softmax does not see: Adam makes steps of their rounding."""
    names = [name for name in start if not name.startswith("queue.") and not name.endswith("key.bias")]
    return {name: results["weights"][name] - start[name] for name in names}


@pytest.mark.parametrize(("world", "scenario"), ALIKE)
def test_workers_learn_what_one_process_learns(
    found: dict[int, list[dict[str, Any]]],
    alone: dict[str, dict[str, Any]],
    tiny_root: Path,
    world: int,
    scenario: str,
) -> None:
    """Averaged gradients at the first step; all losses of three, learned numbers among them; where all weights went."""
    expected = alone[scenario]
    start = new_step(tiny_root, SCENARIOS[scenario], ALONE).state_dict()
    assert float(torch.cat([g.flatten() for g in expected["gradients"].values()]).norm()) > 1e-3
    for results in (each[scenario] for each in found[world]):
        assert distance(results["gradients"], expected["gradients"]) < 2e-6
        for ours, theirs in zip(results["losses"], expected["losses"], strict=True):
            assert ours == pytest.approx(theirs, rel=1e-5, abs=1e-6)
        assert distance(moved(results, start), moved(expected, start)) < 5e-4


@pytest.mark.parametrize(("world", "scenario"), TRIED)
def test_all_workers_agree_to_the_last_bit(found: dict[int, list[dict[str, Any]]], world: int, scenario: str) -> None:
    """With dropout too. Who drifts by rounding alone ends as another model, for nobody sends weights around."""
    first, *others = (each[scenario] for each in found[world])
    for other in others:
        assert other["losses"] == first["losses"]
        for part in ("gradients", "weights"):
            assert all(torch.equal(value, first[part][name]) for name, value in other[part].items())


@pytest.mark.parametrize("world", WORLDS)
def test_the_queue_holds_the_same_documents_everywhere(
    found: dict[int, list[dict[str, Any]]], alone: dict[str, dict[str, Any]], world: int
) -> None:
    expected = alone["queue and average"]["weights"]
    assert int(expected["queue.filled"]) == 13
    for weights in (each["queue and average"]["weights"] for each in found[world]):
        assert torch.equal(weights["queue.keys"], expected["queue.keys"])
        torch.testing.assert_close(weights["queue.vectors"], expected["queue.vectors"], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("mistake", wrong_variants(0))
def test_the_comparison_notices_a_worker_that(
    found: dict[int, list[dict[str, Any]]], alone: dict[str, dict[str, Any]], mistake: str
) -> None:
    """A check that cannot fail is no check."""
    scenario = wrong_variants(0)[mistake][0]
    wrong = [distance(each[mistake]["gradients"], alone[scenario]["gradients"]) for each in found[2]]
    assert min(wrong) > 1e-2


def test_dropout_takes_part_and_is_drawn_by_every_worker_alone(found: dict[int, list[dict[str, Any]]]) -> None:
    """Alike it would be the same mask for different texts; and what is drawn afterwards must be alike again."""
    for world, results in found.items():
        assert results[0]["dropout"]["losses"] != results[0]["hard negatives"]["losses"], world
    inside, after = set(), set()
    for world in (2, 3):
        for rank in range(world):
            torch.manual_seed(4)
            with Workers(rank, world).own_draws():
                inside.add((rank, torch.rand(1).item()))
            after.add(torch.rand(1).item())
    assert len({number for _, number in inside}) == 3
    assert len(after) == 1, "however many workers there are"


def test_a_checkpoint_of_two_workers_is_resumed_by_two_as_if_nothing_had_happened(
    found: dict[int, list[dict[str, Any]]],
) -> None:
    """Killed at step 5, so from the checkpoint after step 4; both load the best weights on held-out queries."""
    for results in found[2]:
        whole, again = results["whole"], results["resumed"]
        assert list(again["losses"]) == [5, 6]
        assert again["losses"].items() <= whole["losses"].items()
        assert again["best"] == whole["best"]
        assert all(torch.equal(value, whole["weights"][name]) for name, value in again["weights"].items())
        assert all(torch.equal(v, found[2][0]["whole"]["weights"][n]) for n, v in whole["weights"].items())


def test_a_checkpoint_of_two_workers_is_resumed_by_one(
    found: dict[int, list[dict[str, Any]]], folder: Path, tiny_root: Path
) -> None:
    """A machine fewer must not cost the run: only rounding differs."""
    whole = found[2][0]["whole"]
    again = resumed(tiny_root, folder / "for one", ALONE)
    assert list(again["losses"]) == [5, 6]
    for step, losses in again["losses"].items():
        assert losses == pytest.approx(whole["losses"][step], rel=1e-5, abs=1e-6)
    assert again["best"] == (whole["best"][0], pytest.approx(whole["best"][1], rel=1e-3))
    start = new_step(tiny_root, RESUMED, ALONE).state_dict()
    assert distance(moved(again, start), moved(whole, start)) < 5e-4
