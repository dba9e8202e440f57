"""Documents gathered across workers: two real processes against one process on the concatenated batch.

Why: every library's first version of this was wrong in a way that still trained: no gradient to other workers'
documents (FlagEmbedding, Tevatron, GradCache), labels that pointed at other workers' hard negatives because no test had
any (sentence-transformers #3453). So the batches here are ragged, have hard negatives, and share documents.
"""

import os

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from sample_inputs import parameters
from torch import Tensor
from two_workers import BATCHES, CLOSE, WORKERS, Part, tensors_of, weights

from pipelines.errors import ObjectiveError
from pipelines.objectives.gather import gather_batch, query_share, text_keys
from pipelines.objectives.gather_rows import gather_rows
from pipelines.objectives.info_nce import info_nce_loss
from pipelines.objectives.registry import OBJECTIVES

MEANS_OVER_QUERIES = {name: {} for name in ("info_nce", "siglip", "dcl", "cmim", "amcl", "decoupled_softmax")}
MEANS_OVER_QUERIES |= {
    "soft_top_k": {},
    "info_nce with a teacher": {"teacher_margin": 0.5, "hardness_mode": "hard_negatives", "hardness_strength": 2.0},
    "mochi without draws": {"negative_mixtures": 0, "query_mixtures": 0},
}
"""What the module says this way is for; all others are in `test_gather_everything`."""


def value_of(case: str, tensors: dict[str, Tensor]) -> Tensor:
    """The objective without `same_query`: queries meet documents only."""
    name = case.partition(" ")[0]
    info = OBJECTIVES[name]
    offered = {tensor: tensors[tensor] for tensor in info.tensors if tensor in tensors and tensor != "same_query"}
    return info.function(**offered, **parameters(name, **MEANS_OVER_QUERIES[case]))


def gathered(mine: Part, tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], Tensor]:
    """This worker's queries among all documents; and its share of the labelled queries."""
    batch = gather_batch(
        tensors["document_embeddings"],
        tensors["positive_document"],
        tensors["relevant"],
        text_keys(mine.documents),
        relevant_keys=mine.relevant_keys,
    )
    return {
        "query_embeddings": tensors["query_embeddings"],
        "document_embeddings": batch.document_embeddings,
        "positive_document": batch.positive_document,
        "relevant": batch.relevant,
        "batch_scores": tensors["query_embeddings"] @ batch.document_embeddings.T,
        "batch_teacher_scores": batch.among_all(tensors["batch_teacher_scores"]),
        "scored": batch.among_all(tensors["scored"]),
    }, query_share(tensors["positive_document"])


def on_a_worker(rank: int, folder: str) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=WORKERS)
    results = {}
    for batch_name, parts in PARTS.items():
        for case in MEANS_OVER_QUERIES:
            model = weights()
            tensors = tensors_of([parts[rank]], model)
            tensors["document_embeddings"].retain_grad()
            whole, share = gathered(parts[rank], tensors)
            loss = value_of(case, whole) * share
            loss.backward()
            results[batch_name, case] = {
                "loss": loss.detach(),
                "parameters": model.grad,
                "documents": tensors["document_embeddings"].grad,
                "positive": whole["positive_document"],
                "relevant": whole["relevant"],
                "share": share,
            }
    rows = torch.full((rank + 1, 2), float(rank), dtype=torch.float64, requires_grad=True)
    everyone = gather_rows(rows)
    (everyone * torch.arange(6.0).reshape(3, 2) * (rank + 1)).sum().backward()
    results["rows"] = {"values": everyone.detach(), "gradient": rows.grad}
    for name, call in {
        "other dimensions": lambda: gather_batch(
            torch.zeros(2, 3 + rank), torch.tensor([0]), None, text_keys(["x", "y"])
        ),
        "other widths": lambda: gather_rows(torch.zeros(2, 3 + rank)),
    }.items():
        try:
            call()
        except ObjectiveError as error:
            results[name] = str(error)
    torch.save(results, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


PARTS = {
    name: [
        Part([f"{text} {worker}" for text in part.queries], part.documents, part.positive, part.also)
        for worker, part in enumerate(parts)
    ]
    for name, parts in BATCHES.items()
}
"""No query on both workers: that is what `gather_everything` is for."""


@pytest.fixture(scope="module")
def workers(tmp_path_factory) -> list[dict]:
    """What each of two processes computed, all scenarios in one start."""
    folder = tmp_path_factory.mktemp("workers")
    mp.spawn(on_a_worker, (str(folder),), nprocs=WORKERS)
    return [torch.load(folder / f"{rank}.pt") for rank in range(WORKERS)]


@pytest.mark.parametrize("case", MEANS_OVER_QUERIES)
@pytest.mark.parametrize("batch_name", PARTS)
def test_the_mean_over_workers_is_the_single_process_on_the_whole_batch(workers, batch_name, case):
    """Loss, averaged parameter gradients and every document's own gradient."""
    found = [results[batch_name, case] for results in workers]
    model = weights()
    tensors = tensors_of(PARTS[batch_name], model)
    tensors["document_embeddings"].retain_grad()
    loss = value_of(case, tensors)
    loss.backward()
    torch.testing.assert_close(sum(f["loss"] for f in found) / WORKERS, loss.detach(), **CLOSE)
    torch.testing.assert_close(sum(f["parameters"] for f in found) / WORKERS, model.grad, **CLOSE)
    documents = torch.cat([f["documents"] for f in found]) / WORKERS
    torch.testing.assert_close(documents, tensors["document_embeddings"].grad, **CLOSE)
    assert torch.equal(torch.cat([f["relevant"] for f in found]), tensors["relevant"])


def test_the_batch_of_this_test_would_show_the_known_mistakes(workers):
    """Guards the guard: offsets that forget hard negatives, a gather without gradient, keys ignored."""
    tensors = {name: value.detach() for name, value in tensors_of(PARTS["ragged"], weights()).items()}
    queries, documents = tensors["query_embeddings"], tensors["document_embeddings"]
    right, relevant = tensors["positive_document"], tensors["relevant"]
    expected = info_nce_loss(queries, documents, right, relevant=relevant).item()
    assert right.tolist() == [0, 2, 4, 8, 10, 11]
    by_queries = torch.tensor([0, 2, 4, 4, 6, 7])
    assert info_nce_loss(queries, documents, by_queries, relevant=relevant).item() != expected
    own_worker = torch.block_diag(torch.ones(3, 7), torch.ones(3, 5)).bool()
    unaware = info_nce_loss(queries, documents, right, relevant=relevant & own_worker)
    assert abs(unaware.item() - expected) > 1e-6

    leaf = documents.clone().requires_grad_()
    info_nce_loss(queries[:3], leaf, right[:3], relevant=relevant[:3]).backward()
    assert bool((leaf.grad[7:].abs().sum(1) > 0).any())  # what a gather without gradient would lose
    assert workers[1]["ragged", "info_nce"]["positive"].tolist() == [8, 10, 11]


def test_a_workers_share_is_its_part_of_the_labelled_queries(workers):
    shares = [results["unequal", "info_nce"]["share"] for results in workers]
    assert shares == [2 * 3 / 4, 2 * 1 / 4]
    assert [results["ragged", "info_nce"]["share"] for results in workers] == [1.0, 1.0]
    assert [results["one is empty", "info_nce"]["share"] for results in workers] == [2.0, 0.0]


def test_rows_come_in_worker_order_and_their_gradients_go_home(workers):
    """Each worker weighs row r by its own factor; the owner receives the sum of both."""
    for results in workers:
        assert results["rows"]["values"].tolist() == [[0.0, 0.0], [1.0, 1.0], [1.0, 1.0]]
    assert workers[0]["rows"]["gradient"].tolist() == [[0.0, 3.0]]
    assert workers[1]["rows"]["gradient"].tolist() == [[6.0, 9.0], [12.0, 15.0]]


def test_workers_of_different_dimensions_are_refused_on_both(workers):
    for results in workers:
        assert "different dimensions, [3, 4]" in results["other dimensions"]
        assert results["other widths"] == results["other dimensions"]


def test_without_a_process_group_everything_is_returned_as_it_came():
    documents = torch.randn(3, 2, requires_grad=True)
    positive = torch.tensor([2, -1])
    gathered = gather_batch(documents, positive, None, text_keys(["a", "b", "c"]))
    assert gathered.document_embeddings is documents
    assert gathered.positive_document is positive
    assert gathered.relevant.tolist() == [[False, False, True], [False, False, False]]
    assert torch.equal(gathered.among_all(gathered.relevant), gathered.relevant)
    assert gather_rows(documents) is documents
    assert query_share(positive) == 1.0


def test_keys_are_those_of_the_text_in_every_process(workers):
    """Python's hash of a string differs from process to process; these stand in a file of another one."""
    assert text_keys(["", "dual encoder"]).tolist() == [8238016292129134938, 8181556858054658902]
    assert text_keys(["a", "b", "a"])[0] == text_keys(["a"])[0] != text_keys(["b"])[0]
    assert text_keys([]).shape == (0,)
    assert bool((text_keys([str(i) for i in range(1000)]) >= 0).all())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"document_keys": torch.zeros(3)}, "one int64 key per document"),
        ({"document_keys": torch.zeros(2, dtype=torch.int64)}, "one int64 key per document"),
        ({"positive_document": torch.tensor([3, 0])}, r"positive_document\[0\] is 3"),
        ({"relevant": torch.zeros(2, 2, dtype=torch.bool)}, "relevant must be bool"),
        ({"relevant_keys": torch.zeros(3, 1, dtype=torch.int64)}, r"relevant_keys must be \[2 queries"),
    ],
)
def test_what_does_not_fit_together_is_refused_before_anybody_waits(change, message):
    batch = {
        "document_embeddings": torch.zeros(3, 2),
        "positive_document": torch.tensor([0, 1]),
        "relevant": None,
        "document_keys": torch.arange(3),
    }
    with pytest.raises(ObjectiveError, match=message):
        gather_batch(**batch | change)
