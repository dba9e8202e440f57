"""Documents gathered across workers: two real processes against one process on the concatenated batch.

Why: every library's first version of this was wrong in a way that still trained: no gradient to other workers'
documents (FlagEmbedding, Tevatron, GradCache), labels that pointed at other workers' hard negatives because no test had
any (sentence-transformers #3453). So the batches here are ragged, have hard negatives, and share documents.
"""

import os
from dataclasses import dataclass

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor
from torch.nn import functional

from pipelines.errors import ObjectiveError
from pipelines.objectives.cmim import cmim_loss
from pipelines.objectives.dcl import dcl_loss
from pipelines.objectives.gather import NO_DOCUMENT, gather_batch, gather_rows, query_share, text_keys
from pipelines.objectives.info_nce import info_nce_loss
from pipelines.objectives.siglip import siglip_loss

WORKERS = 2


@dataclass
class Part:
    """What one worker holds, before the student: features of queries and documents, texts, labels."""

    queries: Tensor
    documents: Tensor
    texts: list[str]
    positive: Tensor
    known: list[set[str]]
    """Texts relevant to each query, wherever they are."""
    teacher: Tensor

    @property
    def relevant(self) -> Tensor:
        return relevance(self.known, self.texts)

    @property
    def scored(self) -> Tensor:
        return torch.ones(len(self.queries), len(self.documents), dtype=torch.bool)

    @property
    def relevant_keys(self) -> Tensor:
        width = max((len(texts) for texts in self.known), default=0)
        keys = torch.full((len(self.known), width), NO_DOCUMENT)
        for row, texts in enumerate(self.known):
            keys[row, : len(texts)] = text_keys(sorted(texts))
        return keys


def relevance(known: list[set[str]], texts: list[str]) -> Tensor:
    return torch.tensor([[text in row for text in texts] for row in known], dtype=torch.bool).reshape(
        len(known), len(texts)
    )


def part(worker: int, texts: list[str], positive: list[int], also: list[set[str]]) -> Part:
    generator = torch.Generator().manual_seed(worker)
    of_text = {t: torch.randn(6, generator=torch.Generator().manual_seed(hash_of(t))).double() for t in texts}
    known = [others | ({texts[p]} if p >= 0 else set()) for p, others in zip(positive, also, strict=True)]
    return Part(
        queries=torch.randn(len(positive), 6, generator=generator, dtype=torch.float64),
        documents=torch.stack([of_text[t] for t in texts]) if texts else torch.empty(0, 6, dtype=torch.float64),
        texts=texts,
        positive=torch.tensor(positive, dtype=torch.int64),
        known=known,
        teacher=torch.randn(len(positive), len(texts), generator=generator, dtype=torch.float64),
    )


def hash_of(text: str) -> int:
    return int(text_keys([text])) % 2**31


RAGGED = [
    # "b" is on both workers: a positive on the first, a hard negative on the second. "e" is known to be relevant to the
    # first worker's second query, and only the second worker drew it.
    part(0, ["a", "hard1", "b", "hard2", "c", "hard3", "hard4"], [0, 2, 4], [set(), {"e"}, set()]),
    part(1, ["hard5", "d", "b", "e", "f"], [1, 3, 4], [set(), set(), {"hard5"}]),
]
UNEQUAL = [
    part(2, ["a", "b", "c", "hard1"], [0, 1, 2], [set(), set(), set()]),
    part(3, ["hard2", "d"], [-1, 1], [set(), set()]),
]
ONE_IS_EMPTY = [part(4, ["a", "b", "hard1"], [0, 1], [set(), set()]), part(5, [], [], [])]
BATCHES = {"ragged": RAGGED, "unequal": UNEQUAL, "one is empty": ONE_IS_EMPTY}
LOSSES = {
    "info_nce": lambda q, d, p, r, t, s: info_nce_loss(q, d, p, relevant=r, temperature=0.1),
    "info_nce with a teacher": lambda q, d, p, r, t, s: info_nce_loss(
        q,
        d,
        p,
        relevant=r,
        batch_teacher_scores=t,
        scored=s,
        teacher_margin=0.5,
        hardness_mode="hard_negatives",
        hardness_strength=2.0,
    ),
    "siglip": lambda q, d, p, r, t, s: siglip_loss(q, d, p, relevant=r),
    "dcl": lambda q, d, p, r, t, s: dcl_loss(q, d, p, relevant=r, same_view_negatives=False),
    "cmim": lambda q, d, p, r, t, s: cmim_loss(q, d, p, relevant=r),
}


def student(features: Tensor, weights: Tensor) -> Tensor:
    return functional.normalize(features @ weights, dim=1)


def weights() -> Tensor:
    return torch.randn(6, 4, generator=torch.Generator().manual_seed(9), dtype=torch.float64).requires_grad_()


def on_a_worker(rank: int, folder: str) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=WORKERS)
    results = {}
    for batch_name, parts in BATCHES.items():
        mine = parts[rank]
        for loss_name, loss_of in LOSSES.items():
            model = weights()
            documents = student(mine.documents, model)
            documents.retain_grad()
            gathered = gather_batch(
                documents,
                mine.positive,
                mine.relevant,
                text_keys(mine.texts),
                relevant_keys=mine.relevant_keys,
            )
            loss = loss_of(
                student(mine.queries, model),
                gathered.document_embeddings,
                gathered.positive_document,
                gathered.relevant,
                gathered.among_all(mine.teacher),
                gathered.among_all(mine.scored),
            )
            loss = loss * query_share(mine.positive)
            loss.backward()
            results[batch_name, loss_name] = {
                "loss": loss.detach(),
                "parameters": model.grad,
                "documents": documents.grad,
                "positive": gathered.positive_document,
                "relevant": gathered.relevant,
                "share": query_share(mine.positive),
            }
    rows = torch.full((rank + 1, 2), float(rank), dtype=torch.float64, requires_grad=True)
    everyone = gather_rows(rows)
    (everyone * torch.arange(6.0).reshape(3, 2) * (rank + 1)).sum().backward()
    results["rows"] = {"values": everyone.detach(), "gradient": rows.grad}
    try:
        gather_batch(torch.zeros(2, 3 + rank), torch.tensor([0]), None, text_keys(["x", "y"]))
    except ObjectiveError as error:
        results["other dimensions"] = str(error)
    torch.save(results, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def workers(tmp_path_factory) -> list[dict]:
    """What each of two processes computed, all scenarios in one start."""
    folder = tmp_path_factory.mktemp("workers")
    mp.spawn(on_a_worker, (str(folder),), nprocs=WORKERS)
    return [torch.load(folder / f"{rank}.pt") for rank in range(WORKERS)]


def in_one_process(parts: list[Part], loss_of) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Loss, gradient of parameters and of documents, relevance of the concatenated batch, from texts alone."""
    model = weights()
    texts = [text for p in parts for text in p.texts]
    starts = [0, len(parts[0].texts)]
    positive = torch.cat(
        [torch.where(p.positive >= 0, p.positive + start, -1) for p, start in zip(parts, starts, strict=True)]
    )
    relevant = relevance([row for p in parts for row in p.known], texts)
    documents = student(torch.cat([p.documents for p in parts]), model)
    documents.retain_grad()
    teacher = torch.block_diag(*[p.teacher for p in parts])
    scored = torch.block_diag(*[p.scored.double() for p in parts]).bool()
    queries = student(torch.cat([p.queries for p in parts]), model)
    loss = loss_of(queries, documents, positive, relevant, teacher, scored)
    loss.backward()
    return loss.detach(), model.grad, documents.grad, relevant


@pytest.mark.parametrize("loss_name", LOSSES)
@pytest.mark.parametrize("batch_name", BATCHES)
def test_the_mean_over_workers_is_the_single_process_on_the_whole_batch(workers, batch_name, loss_name):
    """Loss, averaged parameter gradients and every document's own gradient."""
    found = [results[batch_name, loss_name] for results in workers]
    loss, parameters, documents, relevant = in_one_process(BATCHES[batch_name], LOSSES[loss_name])
    close = {"rtol": 1e-12, "atol": 1e-12}
    torch.testing.assert_close(sum(f["loss"] for f in found) / WORKERS, loss, **close)
    torch.testing.assert_close(sum(f["parameters"] for f in found) / WORKERS, parameters, **close)
    torch.testing.assert_close(torch.cat([f["documents"] for f in found]) / WORKERS, documents, **close)
    assert torch.equal(torch.cat([f["relevant"] for f in found]), relevant)


def test_the_batch_of_this_test_would_show_the_known_mistakes(workers):
    """Guards the guard: offsets that forget hard negatives, a gather without gradient, keys ignored."""
    expected = in_one_process(RAGGED, LOSSES["info_nce"])[0]
    model = weights()
    documents = student(torch.cat([p.documents for p in RAGGED]), model)
    queries = student(torch.cat([p.queries for p in RAGGED]), model)
    relevant = relevance([row for p in RAGGED for row in p.known], [t for p in RAGGED for t in p.texts])
    right = torch.cat([RAGGED[0].positive, RAGGED[1].positive + 7])
    by_queries = torch.cat([RAGGED[0].positive, RAGGED[1].positive + 3])
    assert info_nce_loss(queries, documents, right, relevant=relevant, temperature=0.1).item() == expected.item()
    assert info_nce_loss(queries, documents, by_queries, relevant=relevant, temperature=0.1).item() != expected.item()
    own_worker = torch.block_diag(torch.ones(3, 7), torch.ones(3, 5)).bool()
    unaware = info_nce_loss(queries, documents, right, relevant=relevant & own_worker, temperature=0.1)
    assert abs(unaware.item() - expected.item()) > 1e-6

    leaf = documents.detach().requires_grad_()
    info_nce_loss(queries[:3], leaf, right[:3], relevant=relevant[:3], temperature=0.1).backward()
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
