"""Other views of the same texts: heads of one embedding (AMCL), a previous student (NSPT), augmented texts (CL2L).

Why: golden files hold one square batch each. Here each loss is compared with a plain loop over its formula on batches
as jobs bring them: shared positives, known copies, learned temperatures.
"""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from synthetic_batch import (
    DIMENSIONS,
    DOCUMENTS,
    QUERIES,
    batch,
    close,
    cosine,
    mean,
    seeds,
    several,
    taught,
    together,
    without_teacher,
)
from torch.nn import functional

from pipelines.errors import ObjectiveError
from pipelines.objectives.amcl import amcl_loss
from pipelines.objectives.cl2l import cl2l_loss
from pipelines.objectives.info_nce import info_nce_loss
from pipelines.objectives.nspt import nspt_contrast, nspt_loss


def plain_amcl(values, temperature, slope, weight):
    heads = len(temperature)
    queries, documents = (values[n].chunk(heads, dim=1) for n in ("query_embeddings", "document_embeddings"))
    losses, logs = [], []
    for i in taught(values):
        logits = []
        positive = int(values["positive_document"][i])
        columns = [positive, *(~values["relevant"][i]).nonzero().squeeze(1).tolist()]
        for j in columns:
            compared = [cosine(queries[m][i], documents[m][j]) for m in range(heads)]
            taus = [temperature[m] * torch.exp(slope[m] * compared[m]) for m in range(heads)]
            logits.append(sum(s / t for s, t in zip(compared, taus, strict=True)))
            logs.extend(t.log() for t in taus)
        losses.append(torch.stack(logits).logsumexp(0) - logits[0])
    return mean(losses) + weight * mean(logs)


@several
@given(seeds, st.sampled_from([1, 2, 4]), st.sampled_from([0.0, 0.3]))
def test_amcl_sums_tempered_cosines_of_slices_in_one_softmax(seed, heads, weight):
    values = without_teacher(batch(seed, unit=False))
    generator = torch.Generator().manual_seed(seed)
    temperature = 0.2 + torch.rand(heads, generator=generator, dtype=torch.float64)
    slope = torch.randn(heads, generator=generator, dtype=torch.float64)
    parameters = {"temperature": temperature, "temperature_slope": slope, "temperature_weight": weight}
    close(amcl_loss(**values, heads=heads, **parameters), plain_amcl(values, temperature, slope, weight))


def test_amcl_with_one_head_is_info_nce_on_cosines():
    values = without_teacher(batch(12))
    close(amcl_loss(**values, heads=1, temperature=0.05), info_nce_loss(**values))


def test_amcls_default_is_as_sharp_as_info_nces():
    """Heads are summed: where all of them agree, four at 0.2 are one cosine at 0.05."""
    values = without_teacher(batch(12))
    names = ("query_embeddings", "document_embeddings")
    repeated = values | {n: values[n].repeat(1, 4) for n in names}
    close(amcl_loss(**repeated), info_nce_loss(**values))


@pytest.mark.parametrize("weight", [0.0, 0.5])
def test_the_short_way_without_a_slope_is_the_long_way_with_slope_zero(weight):
    results = []
    for slope in (0.0, torch.tensor(0.0, dtype=torch.float64)):
        values = without_teacher(batch(13))
        leaves = [values[n].requires_grad_() for n in ("query_embeddings", "document_embeddings")]
        temperature = torch.tensor([0.1, 0.2], dtype=torch.float64, requires_grad=True)
        parameters = {"temperature": temperature, "temperature_slope": slope, "temperature_weight": weight}
        loss = amcl_loss(**values, heads=2, **parameters)
        loss.backward()
        results.append([loss.detach(), temperature.grad, *(leaf.grad for leaf in leaves)])
    for short, long in zip(*results, strict=True):
        close(short, long)


def test_temperatures_and_slopes_of_heads_can_be_learned():
    values = without_teacher(batch(14))
    temperature = torch.tensor([0.5, 0.8], dtype=torch.float64, requires_grad=True)
    slope = torch.tensor([0.4, -0.3], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda t, s: amcl_loss(**values, heads=2, temperature=t, temperature_slope=s, temperature_weight=0.1),
        (temperature, slope),
    )


def test_the_regulariser_grows_with_the_temperature_and_is_silent_without_a_positive():
    values = without_teacher(batch(15))
    value = {
        t: float(amcl_loss(**values, temperature=t, temperature_weight=1.0) - amcl_loss(**values, temperature=t))
        for t in (0.1, 0.2)
    }
    assert value[0.2] - value[0.1] == pytest.approx(math.log(2))
    nothing = values | {"positive_document": torch.full((QUERIES,), -1)}
    for slope in (0.0, torch.tensor(1.0)):
        assert amcl_loss(**nothing, temperature_slope=slope, temperature_weight=1.0).item() == 0


def test_a_learned_slope_that_ran_away_stays_finite():
    values = {n: v.float() if v.is_floating_point() else v for n, v in without_teacher(batch(16)).items()}
    slope = torch.tensor([1e4, -1e4, 0.0, 1.0], requires_grad=True)
    loss = amcl_loss(**values, temperature_slope=slope)
    loss.backward()
    assert bool(torch.isfinite(loss))
    assert bool(torch.isfinite(slope.grad).all())


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"heads": 3}, "heads must divide the 4 dimensions, got 3"),
        ({"heads": 0}, "heads must divide .* got 0"),
        ({"temperature": -0.1}, r"temperature must be positive, got \[-0.1"),
        ({"temperature": torch.ones(3)}, r"temperature must be a number or one per head \(4\), got \(3,\)"),
        ({"temperature": math.nan}, "temperature has 1 NaN"),
        ({"temperature_slope": 11.0}, r"temperature_slope must be within \+-10, got 11.0"),
        ({"temperature_slope": math.inf}, "temperature_slope must be within"),
        ({"temperature_weight": -1.0}, "temperature_weight must be .* -1.0"),
    ],
)
def test_wrong_parameters_of_amcl_are_refused(change, complaint):
    with pytest.raises(ObjectiveError, match=rf"^amcl: {complaint}"):
        amcl_loss(**without_teacher(batch(0)), **change)


def with_previous(values, seed):
    generator = torch.Generator().manual_seed(seed + 1)
    return without_teacher(values) | {
        f"previous_{side}_embeddings": functional.normalize(
            torch.randn(rows, DIMENSIONS, generator=generator, dtype=torch.float64), dim=1
        )
        for side, rows in (("query", QUERIES), ("document", DOCUMENTS))
    }


def plain_nspt(values, temperature):
    """Texts are (side, row); one class per positive document; relevance is passed on within a query."""
    rows, positive, relevant = taught(values), values["positive_document"], values["relevant"]
    texts = [("query", i) for i in rows] + [("document", j) for j in range(DOCUMENTS)]
    now = {t: values[f"{t[0]}_embeddings"][t[1]] for t in texts}
    before = {t: values[f"previous_{t[0]}_embeddings"][t[1]] for t in texts}
    label = {t: int(positive[t[1]]) if t[0] == "query" else t[1] for t in texts}

    def known(a, b):
        if a[0] == b[0] == "query":
            return together(values, a[1], b[1])
        if a[0] == b[0] == "document":
            return any(relevant[i, a[1]] and relevant[i, b[1]] for i in rows)
        query, document = (a, b) if a[0] == "query" else (b, a)
        return bool(relevant[query[1], document[1]])

    losses = []
    for a in texts:
        if a[0] == "document" and a[1] not in positive.tolist():
            continue
        pulled = [now[a] @ before[t] / temperature for t in texts if label[t] == label[a]]
        pushed = [now[a] @ now[t] / temperature for t in texts if t != a and (label[t] == label[a] or not known(a, t))]
        losses.append(torch.stack(pushed).logsumexp(0) - torch.stack(pulled).mean())
    return mean(losses)


@several
@given(seeds)
def test_nspt_pulls_to_the_previous_student_and_pushes_from_this_one(seed):
    values = with_previous(batch(seed), seed)
    close(nspt_loss(**values, temperature=0.3), plain_nspt(values, 0.3))
    only_positives = torch.zeros_like(values["relevant"])
    only_positives[taught(values), values["positive_document"][taught(values)]] = True
    unjudged = values | {"relevant": None}
    close(nspt_loss(**unjudged, temperature=0.3), plain_nspt(values | {"relevant": only_positives}, 0.3))


def test_training_on_nspt_makes_new_queries_find_documents_in_the_old_index():
    """The purpose: a student that starts elsewhere becomes able to search what its predecessor embedded."""
    generator = torch.Generator().manual_seed(17)
    old_documents, new_documents = functional.normalize(torch.randn(2, 12, 16, generator=generator), dim=2)
    old_queries = functional.normalize(old_documents[:6] + 0.1 * torch.randn(6, 16, generator=generator), dim=1)
    positive = torch.arange(6)
    leaves = [torch.randn(6, 16, generator=generator).requires_grad_(), new_documents.requires_grad_()]
    optimizer = torch.optim.Adam(leaves, lr=0.05)

    def found():
        return int(((leaves[0].detach() @ old_documents.T).argmax(dim=1) == positive).sum())

    before = found()
    for _ in range(100):
        queries, documents = (functional.normalize(leaf, dim=1) for leaf in leaves)
        loss = nspt_loss(queries, documents, old_queries, old_documents, positive)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert before < 3
    assert found() == 6


def test_the_previous_student_gets_no_gradient():
    values = with_previous(batch(18), 18)
    for name in ("query_embeddings", "previous_query_embeddings", "previous_document_embeddings"):
        values[name].requires_grad_()
    nspt_loss(**values).backward()
    assert bool(values["query_embeddings"].grad.any())
    assert values["previous_query_embeddings"].grad is None
    assert values["previous_document_embeddings"].grad is None


def test_no_anchor_is_zero_with_zero_gradient():
    student = torch.randn(3, 2, requires_grad=True)
    nothing = torch.zeros(0, dtype=torch.int64)
    loss = nspt_contrast(student, torch.randn(3, 2), torch.tensor([0, 0, 1]), nothing, temperature=0.1)
    loss.backward()
    assert loss.item() == 0
    assert not bool(student.grad.any())


@pytest.mark.parametrize("side", ["query", "document"])
def test_a_previous_student_of_another_size_is_refused(side):
    values = with_previous(batch(0), 0)
    name = f"previous_{side}_embeddings"
    values[name] = values[name][:, :3]
    with pytest.raises(ObjectiveError, match=rf"^nspt: {name} must be floating of shape \(\d+, 4\)"):
        nspt_loss(**values)


def views(seed, count, pairs=3):
    generator = torch.Generator().manual_seed(seed)
    left, right = torch.randn(2, pairs, 4, generator=generator, dtype=torch.float64)
    return left, right, *torch.randn(2, count, pairs, 5, generator=generator, dtype=torch.float64)


@several
@given(seeds, st.integers(0, 3), st.sampled_from([0.0, 0.1]))
def test_cl2l_is_the_mean_of_global_and_local_terms_in_both_directions(seed, count, smoothing):
    sides = views(seed, count)
    left, right, left_views, right_views = (functional.normalize(side, dim=-1) for side in sides)

    def one_way(x, y, x_views, y_views):
        own = torch.arange(len(x))
        total = functional.cross_entropy(x @ y.T / 0.1, own)
        local = [
            functional.cross_entropy(a @ b.T / 0.2, own, label_smoothing=smoothing) for a in x_views for b in y_views
        ]
        return (total + count * mean(local)) / (1 + count)

    ways = [one_way(left, right, left_views, right_views), one_way(right, left, right_views, left_views)]
    parameters = {"temperature": 0.1, "local_temperature": 0.2, "label_smoothing": smoothing}
    close(cl2l_loss(*sides, **parameters), mean(ways))
    close(cl2l_loss(*sides, **parameters, reduction="sum"), sum(ways))


@pytest.mark.parametrize(
    ("sides", "change", "complaint"),
    [
        (views(0, 1, pairs=1), {}, r"1 pair\(s\) has no negative"),
        ((*views(0, 1)[:2], *views(0, 1, pairs=4)[2:]), {}, "3 pairs, but views of 4"),
        ((views(0, 1)[0], views(0, 1, pairs=4)[1], *views(0, 1)[2:]), {}, "left and right must be floating"),
        (tuple(side * math.nan for side in views(0, 1)), {}, "left has .* NaN"),
        (views(0, 1), {"label_smoothing": 1.0}, "label_smoothing must be .* 1.0"),
        (views(0, 1), {"temperature": 0.0}, "temperature must be .* 0.0"),
        (views(0, 1), {"reduction": "max"}, "unknown reduction 'max'"),
    ],
)
def test_wrong_inputs_of_cl2l_are_refused(sides, change, complaint):
    with pytest.raises(ObjectiveError, match=rf"^cl2l: .*{complaint}"):
        cl2l_loss(*sides, **change)
