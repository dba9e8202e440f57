"""Every objective of the registry on two real workers against one process on the concatenated batch.

Why: a loss that compares queries with queries, or weighs one query against another, is another loss on each worker's
half. That the tests of `gather_batch` pass says nothing about those. Here no objective is left out: whoever adds one to
the registry is held to it.
"""

import os

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from sample_inputs import parameters
from torch import Tensor
from two_workers import BATCHES, CLOSE, WORKERS, Part, joined, tensors_of, weights

from pipelines.errors import ObjectiveError
from pipelines.objectives.gather import text_keys
from pipelines.objectives.gather_everything import gather_everything
from pipelines.objectives.registry import OBJECTIVES, TENSORS

ALL_WAYS = ("query_to_document", "document_to_query", "query_to_query", "document_to_document")
PAPER = {"same_view_negatives": True, "symmetric": True}
OPTIONS = {
    "info_nce in all directions": ("info_nce", {"directions": ALL_WAYS, "partition": "per_direction"}),
    "info_nce with a teacher": (
        "info_nce",
        {"teacher_margin": 0.5, "hardness_mode": "hard_negatives", "hardness_strength": 2.0},
    ),
    "dcl of the paper": ("dcl", PAPER),
    "dclw of the paper": ("dclw", PAPER),
    "amcl with a regulariser": ("amcl", {"temperature_weight": 0.1, "heads": 2}),
    "metrix with a share per pair": ("metrix", {"draws": "pair", "hardest": 3}),
}
CASES = {name: (name, {}) for name in OBJECTIVES} | OPTIONS
REQUIRED = ("query_embeddings", "document_embeddings", "positive_document")
LEARNED = {"info_nce": ("temperature", 0.1), "siglip": ("bias", -1.0)}


def value_of(case: str, tensors: dict[str, Tensor], **learned: Tensor) -> Tensor:
    """The objective on all its tensors; workers draw alike, as jobs that seed all workers alike do."""
    name, changed = CASES[case]
    info = OBJECTIVES[name]
    torch.manual_seed(7)
    offered = {tensor: tensors[tensor] for tensor in info.tensors if tensor in tensors}
    return info.function(**offered, **parameters(name, **changed) | learned)


def gathered(mine: Part, tensors: dict[str, Tensor], **changed) -> dict[str, Tensor]:
    keys = {"query_keys": text_keys(mine.queries), "document_keys": text_keys(mine.documents)}
    return gather_everything(tensors, **keys | {"relevant_keys": mine.relevant_keys} | changed)


def on_a_worker(rank: int, folder: str) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=WORKERS)
    results = {}
    for batch_name, parts in BATCHES.items():
        for case in CASES:
            model = weights()
            tensors = tensors_of([parts[rank]], model)
            for side in ("query_embeddings", "document_embeddings"):
                tensors[side].retain_grad()
            whole = gathered(parts[rank], tensors)
            loss = value_of(case, whole)
            loss.backward()
            results[batch_name, case] = {
                "loss": loss.detach(),
                "parameters": model.grad,
                "query_embeddings": tensors["query_embeddings"].grad,
                "document_embeddings": tensors["document_embeddings"].grad,
            }
        results[batch_name] = {name: value.detach() for name, value in whole.items()}
    mine = BATCHES["ragged"][rank]
    for name, (parameter, start) in LEARNED.items():
        learned = torch.tensor(start, dtype=torch.float64, requires_grad=True)
        value_of(name, gathered(mine, tensors_of([mine], weights())), **{parameter: learned}).backward()
        results["learned", name] = learned.grad
    model = weights()
    (value_of("mochi", gathered(mine, tensors_of([mine], model))) * (1 + rank)).backward()
    results["another loss on each"] = model.grad
    tensors = {name: value.detach() for name, value in tensors_of([mine], weights()).items()}
    three = {name: tensors[name] for name in REQUIRED}
    results["without options"] = gathered(mine, three, relevant_keys=None)
    other_dimensions = {name: three[name][:, : 3 + rank] for name in REQUIRED[:2]}
    other_names = {"scored": tensors["scored"]} if rank else {}
    for complaint, change in {"other dimensions": other_dimensions, "other names": other_names}.items():
        try:
            gathered(mine, three | change)
        except ObjectiveError as error:
            results[complaint] = str(error)
    torch.save(results, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def workers(tmp_path_factory) -> list[dict]:
    """What each of two processes computed, all scenarios in one start."""
    folder = tmp_path_factory.mktemp("workers")
    mp.spawn(on_a_worker, (str(folder),), nprocs=WORKERS)
    return [torch.load(folder / f"{rank}.pt") for rank in range(WORKERS)]


def in_one_process(batch_name: str, case: str) -> dict[str, Tensor]:
    model = weights()
    tensors = tensors_of(BATCHES[batch_name], model)
    for side in ("query_embeddings", "document_embeddings"):
        tensors[side].retain_grad()
    loss = value_of(case, tensors)
    loss.backward()
    return {
        "loss": loss.detach(),
        "parameters": model.grad,
        "query_embeddings": tensors["query_embeddings"].grad,
        "document_embeddings": tensors["document_embeddings"].grad,
    }


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("batch_name", BATCHES)
def test_averaged_over_workers_it_is_the_single_process_on_the_whole_batch(workers, batch_name, case):
    """The loss on every worker; parameter gradients averaged as data parallel training does; every row's own."""
    found = [results[batch_name, case] for results in workers]
    expected = in_one_process(batch_name, case)
    for each in found:
        torch.testing.assert_close(each["loss"], expected["loss"], **CLOSE)
    torch.testing.assert_close(sum(f["parameters"] for f in found) / WORKERS, expected["parameters"], **CLOSE)
    for side in ("query_embeddings", "document_embeddings"):
        rows = torch.cat([f[side] for f in found]) / WORKERS
        torch.testing.assert_close(rows, expected[side], **CLOSE)


@pytest.mark.parametrize("batch_name", BATCHES)
def test_every_tensor_of_the_vocabulary_is_that_of_the_whole_batch(workers, batch_name):
    expected = tensors_of(BATCHES[batch_name], weights())
    assert set(expected) == set(TENSORS)
    for results in workers:
        assert set(results[batch_name]) == set(TENSORS)
        for name, value in expected.items():
            pair = (results[batch_name][name], value.detach())
            if name in ("columns", "student_scores"):  # whatever stands at padding
                pair = tuple(each.masked_fill(~expected["mask"], 0) for each in pair)
            torch.testing.assert_close(*pair, msg=name, **CLOSE)  # dtypes too


def test_most_losses_here_are_something_else_without_the_other_workers_queries(workers):
    """Guards the guard: with one worker's queries alone, the mean over workers is another number."""
    differ = []
    for case in CASES:
        parts = BATCHES["ragged"]
        alone = sum(value_of(case, tensors_of([part], weights())).item() for part in parts) / WORKERS
        if abs(alone - workers[0]["ragged", case]["loss"].item()) > 1e-6:
            differ.append(case)
    assert {"info_nce in all directions", "sup_con", "dclw of the paper", "unpg", "uniformity_alignment", "nspt"} <= {
        *differ
    }


def test_the_ragged_batch_has_a_query_on_both_workers_and_its_answers_are_shared(workers):
    """The two answers to "who" would push each other, and the queries each other at cosine 1."""
    whole = joined(BATCHES["ragged"])
    first, second = (place for place, text in enumerate(whole.queries) if text == "who")
    for results in workers:
        tensors = results["ragged"]
        assert tensors["same_query"].sum() == len(whole.queries) + 2
        assert bool(tensors["same_query"][first, second])
        for query in (first, second):
            assert tensors["relevant"][query, tensors["positive_document"][[first, second]]].all()


@pytest.mark.parametrize("name", LEARNED)
def test_a_learned_parameter_of_the_loss_gets_its_gradient_on_every_worker(workers, name):
    parameter, start = LEARNED[name]
    learned = torch.tensor(start, dtype=torch.float64, requires_grad=True)
    value_of(name, tensors_of(BATCHES["ragged"], weights()), **{parameter: learned}).backward()
    for results in workers:
        torch.testing.assert_close(results["learned", name], learned.grad, **CLOSE)


def test_losses_that_differ_between_workers_average(workers):
    """As after other random draws on each: the gradient is that of the mean of the losses, here 1 and 2 times one."""
    average = sum(results["another loss on each"] for results in workers) / WORKERS
    torch.testing.assert_close(average, 1.5 * in_one_process("ragged", "mochi")["parameters"], **CLOSE)


def test_three_tensors_are_enough_and_relevance_is_the_positives_then(workers):
    """No `relevant_keys` either: copies of a positive on the other worker are found by their text."""
    parts = [Part(p.queries, p.documents, p.positive, [set()] * len(p.queries)) for p in BATCHES["ragged"]]
    expected = tensors_of(parts, weights())
    for results in workers:
        found = results["without options"]
        assert set(found) == {*REQUIRED, "relevant", "same_query"}
        for name, value in found.items():
            torch.testing.assert_close(value, expected[name].detach(), msg=name, **CLOSE)


def test_workers_that_do_not_fit_together_are_refused_on_both(workers):
    for results in workers:
        assert "different dimensions, [3, 4]" in results["other dimensions"]
        assert "workers offer different tensors" in results["other names"]
        assert "'scored'" in results["other names"]


def test_without_a_process_group_everything_is_returned_as_it_came():
    part = BATCHES["ragged"][0]
    tensors = tensors_of([part], weights())
    whole = gathered(part, tensors)
    assert whole == tensors
    assert whole is not tensors


PART = BATCHES["unequal"][0]


@pytest.mark.parametrize(
    ("change", "keys", "message"),
    [
        ({"queue": torch.zeros(3)}, {}, r"does not know \['queue'\]"),
        ({"positive_document": None}, {}, r"lacks \['positive_document'\]"),
        ({"columns": None}, {}, r"lacks \['columns'\]"),
        ({}, {"query_keys": torch.arange(2)}, "one int64 key per query, 3, got torch.int64 of shape"),
        ({}, {"query_keys": torch.zeros(3)}, "one int64 key per query, 3, got torch.float32"),
        ({}, {"document_keys": torch.zeros(4)}, "one int64 key per document"),
        ({"scored": torch.zeros(3, 2) > 0}, {}, r"scored must have shape \(3, 4\), got \(3, 2\)"),
        ({"columns": torch.zeros(3, 9, dtype=torch.int64)}, {}, "columns must have shape"),
        ({"previous_query_embeddings": torch.zeros(2, 4)}, {}, "previous_query_embeddings must have shape"),
        ({"relevant": torch.zeros(3, 2) > 0}, {}, "relevant must be bool"),
    ],
)
def test_what_does_not_fit_together_is_refused_before_anybody_waits(change, keys, message):
    tensors = tensors_of([PART], weights()) | change
    with pytest.raises(ObjectiveError, match=message):
        gathered(PART, {name: value for name, value in tensors.items() if value is not None}, **keys)
