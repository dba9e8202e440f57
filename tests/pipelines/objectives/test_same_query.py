"""Two queries of equal text with different answers: whoever compares queries must not take them for negatives.

Why: a question that stands twice in a batch, with two labelled answers, has cosine 1 with itself: the hardest negative
there is, and pure noise. `same_query` says so.
"""

import pytest
import torch
from contrastive_batch import Batch, few, seeds
from hypothesis import given
from sample_inputs import parameters
from torch.nn import functional

from pipelines.errors import ObjectiveError
from pipelines.objectives.registry import OBJECTIVES

WAYS = {"directions": ("query_to_document", "document_to_query", "query_to_query", "document_to_document")}
PAPER = {"same_view_negatives": True, "symmetric": True}
COMPARING_QUERIES = {
    "info_nce": WAYS,
    "dcl": PAPER,
    "dclw": PAPER,
    "unpg": {"whisker": 1e3},
    "uniformity_alignment": {},
    "nspt": {},
}
COMPARING_DOCUMENTS_WITH_QUERIES = {"info_nce": WAYS, "dcl": PAPER, "dclw": PAPER}
OPTIONS = {"sup_con": {}, "cwcl": {}} | COMPARING_QUERIES
READS = {
    "query_embeddings": lambda b: b.q,
    "document_embeddings": lambda b: b.d,
    "positive_document": lambda b: b.positive,
    "relevant": lambda b: b.relevant,
    "batch_teacher_scores": lambda b: b.teacher,
    "scored": lambda b: b.scored,
    "previous_query_embeddings": lambda b: b.q.flip(1),
    "previous_document_embeddings": lambda b: b.d.flip(1),
}


def value_of(name, b, **changed):
    info = OBJECTIVES[name]
    tensors = {tensor: read(b) for tensor, read in READS.items() if tensor in info.tensors}
    return info.function(**tensors | parameters(name, **OPTIONS[name]) | changed)


def test_all_that_take_the_tensor_are_tested_here():
    assert {name for name, info in OBJECTIVES.items() if "same_query" in info.tensors} == set(OPTIONS)


@pytest.mark.parametrize("name", OPTIONS)
@given(seeds)
@few
def test_queries_of_equal_text_share_what_is_relevant_to_them(name, seed):
    """Spelled out in a loop; every objective then leaves out whom it leaves out for a shared positive."""
    b = Batch(seed)
    text = torch.randint(0, 4, (len(b.q),), generator=torch.Generator().manual_seed(seed)).tolist()
    shared = b.relevant.clone()
    for i, mine in enumerate(text):
        for j, other in enumerate(text):
            if mine == other:
                shared[i] |= b.relevant[j]
    same_query = torch.tensor([[mine == other for other in text] for mine in text])
    found = value_of(name, b, same_query=same_query)
    torch.testing.assert_close(found, value_of(name, b, relevant=shared), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", OPTIONS)
def test_texts_that_all_differ_change_nothing(name):
    b = Batch(1)
    assert torch.equal(value_of(name, b, same_query=torch.eye(5) > 0), value_of(name, b))


class Twins:
    """Two queries of one text with an answer each, a third query, and a direction that the test can flip.

    The last dimension is 0 but for a twin and what `meets` it: a query (the other twin) or its positive. Turning the
    twin's last number around changes that one dot product and nothing else, no length either.
    """

    def __init__(self, meets: str, *, turned: bool) -> None:
        generator = torch.Generator().manual_seed(3)
        self.q, self.d = (
            functional.pad(functional.normalize(torch.randn(rows, 3, generator=generator).double(), dim=1), (0, 1))
            for rows in (3, 6)
        )
        self.positive = torch.tensor([0, 1, 2])
        self.relevant = functional.one_hot(self.positive, 6).bool()
        self.teacher, self.scored = torch.zeros(3, 6).double(), self.relevant
        (self.q if meets == "query" else self.d)[0, 3] = 0.5
        self.q[1, 3] = -0.5 if turned else 0.5


TWINS = torch.tensor([[True, True, False], [True, True, False], [False, False, True]])


@pytest.mark.parametrize(
    ("name", "meets"),
    [(name, "query") for name in COMPARING_QUERIES] + [(name, "document") for name in COMPARING_DOCUMENTS_WITH_QUERIES],
)
def test_how_near_a_twin_is_to_a_twin_or_to_its_answer_does_not_matter(name, meets):
    straight, turned = (Twins(meets, turned=turned) for turned in (False, True))
    arguments = {warm: 1.0 for warm in ("temperature", "scale") if warm in parameters(name)}
    if name == "nspt":
        flat = torch.tensor([1.0, 1, 1, 0])
        arguments |= {"previous_query_embeddings": straight.q * flat, "previous_document_embeddings": straight.d * flat}
    values = [value_of(name, b, same_query=TWINS, **arguments).item() for b in (straight, turned)]
    assert values[0] == pytest.approx(values[1], rel=0, abs=1e-12)
    unaware = [value_of(name, b, **arguments).item() for b in (straight, turned)]
    assert abs(unaware[0] - unaware[1]) > 1e-3


@pytest.mark.parametrize("name", ["sup_con", "cwcl"])
def test_a_twin_is_drawn_to_its_twins_answer_instead_of_pushed(name):
    """These two learn from all that is relevant, so the shared answer is a positive."""
    b = Twins("document", turned=False)
    b.d.requires_grad_()
    pulls = []
    for same_query in (None, TWINS):
        (gradient,) = torch.autograd.grad(value_of(name, b, same_query=same_query), b.d)
        pulls.append(float(gradient[0] @ b.q[1]))
    assert pulls[0] > 0 > pulls[1]


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize(
    ("same_query", "complaint"),
    [
        (torch.eye(4) > 0, "same_query must be bool"),
        (torch.eye(5), "same_query must be bool"),
        (torch.ones(5, 5).triu() > 0, "same_query must put each query into one group"),
        (torch.ones(5, 5).triu(-1).tril(1) > 0, "same_query must put each query into one group"),
        (torch.zeros(5, 5) > 0, "same_query must put each query into one group of equals, itself included"),
    ],
)
def test_what_cannot_be_who_equals_whom_is_refused(name, same_query, complaint):
    with pytest.raises(ObjectiveError, match=rf"^{name}: {complaint}"):
        value_of(name, Batch(0), same_query=same_query)
