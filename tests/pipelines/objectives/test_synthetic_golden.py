"""Parity of the objectives that make their own negatives, weights or targets with stored numbers, value and gradient.

Why: mixtures, filters and soft weights have many places to go wrong without a crash. The files give the random choices,
so that also what is drawn in a job is compared here, in float64 and float32.
"""

import pytest
import torch
from golden_cases import DTYPES, assert_golden, case_name, cases, leaf
from torch.nn import functional

from pipelines.objectives.amcl import amcl_loss, head_similarities, multihead_logits
from pipelines.objectives.cl2l import cl2l_loss, global_contrast, local_contrast
from pipelines.objectives.cwcl import cwcl_loss, in_batch_query_loss, similarity_weights, weighted_contrast
from pipelines.objectives.embedding_batch import embedding_batch, similarities
from pipelines.objectives.iqr_filter import iqr_filter
from pipelines.objectives.metrix import metrix_loss, mixed_pairs, non_zero_mean
from pipelines.objectives.mixtures import (
    Mixing,
    hardest_negatives,
    mixtures_of_negatives,
    mixtures_with_queries,
)
from pipelines.objectives.mochi import mochi_loss
from pipelines.objectives.nspt import nspt_contrast
from pipelines.objectives.uniformity_alignment import (
    alignment,
    cross_uniformity,
    uniformity,
    uniformity_alignment_loss,
)
from pipelines.objectives.unpg import negative_query_pairs, unpg_loss

every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
METRIX, UNPG, CL2L = cases("metrix"), cases("unpg"), cases("clip_rocket_cl2l")
UNIFORMITY = cases("uniformity_alignment")
(NSPT,) = (case for case in cases("coconut_nspt_mm") if case["params"]["term"] == "nspt")


def across(gradient, vectors):
    """The part of a gradient at right angles to each unit vector: what normalising inside the graph leaves of it."""
    full, unit = torch.tensor(gradient, dtype=torch.float64), vectors.detach().double()
    return (full - (full * unit).sum(dim=1, keepdim=True) * unit).tolist()


def test_no_golden_case_is_forgotten():
    """The other case of coconut_nspt_mm is the multimodal term, which another objective has."""
    counts = {name: len(cases(name)) for name in ("cwcl", "mochi", "amcl_multihead_temperature", "coconut_nspt_mm")}
    assert counts == {"cwcl": 1, "mochi": 1, "amcl_multihead_temperature": 1, "coconut_nspt_mm": 2}
    assert (len(METRIX), len(UNPG), len(CL2L), len(UNIFORMITY)) == (3, 3, 2, 12)


@every_dtype
def test_cwcl(dtype):
    """Both directions apart and together; the paper's weights from a frozen modality."""
    (case,) = cases("cwcl")
    queries, documents = (leaf(case["inputs"][side], dtype) for side in "pq")
    weights = similarity_weights(torch.tensor(case["inputs"]["reference"], dtype=dtype))
    assert_golden(weights, case["expected"]["weights"], dtype)

    own = torch.arange(5)
    logits = similarities(queries, documents) / case["params"]["tau"]
    batch = embedding_batch("cwcl", queries, documents, own, None)
    assert_golden(weighted_contrast(logits, weights, own >= 0), case["expected"]["loss_cwcl"], dtype)
    assert_golden(in_batch_query_loss(logits, batch), case["expected"]["loss_other_direction"], dtype)

    no_teacher = torch.zeros(5, 5, dtype=dtype)
    loss = cwcl_loss(
        query_embeddings=queries,
        document_embeddings=documents,
        positive_document=own,
        batch_teacher_scores=no_teacher,
        scored=no_teacher.bool(),
        weights=weights,
        temperature=case["params"]["tau"],
    )
    loss.backward()
    assert_golden(loss, case["expected"]["loss"], dtype)
    assert_golden(queries.grad, case["expected"]["grad_p"], dtype)
    assert_golden(documents.grad, case["expected"]["grad_q"], dtype)


def uniformity_term(term, image, text, **form):
    return {
        "uniform_image": lambda: uniformity(image, **form),
        "uniform_text": lambda: uniformity(text, **form),
        "uniform_mean": lambda: (uniformity(image, **form) + uniformity(text, **form)) / 2,
        "cross_uniform_offdiag": lambda: cross_uniformity(image, text, pairs="off_diagonal", **form),
        "cross_uniform_all": lambda: cross_uniformity(image, text, pairs="all", **form),
        "align": lambda: alignment(image, text, **{k: v for k, v in form.items() if k == "distance"}),
    }[term]()


@every_dtype
@pytest.mark.parametrize("case", UNIFORMITY, ids=case_name)
def test_uniformity_and_alignment_in_both_forms_of_the_distance(case, dtype):
    image, text = (leaf(case["inputs"][side], dtype) for side in ("image", "text"))
    params = case["params"]
    loss = uniformity_term(params["term"], image, text, sharpness=params["t"], distance=params["distance"])
    loss.backward()
    assert_golden(loss, case["expected"]["loss"], dtype)
    for side, tensor in (("image", image), ("text", text)):
        gradient = torch.zeros_like(tensor) if tensor.grad is None else tensor.grad
        assert_golden(gradient, case["expected"][f"grad_{side}"], dtype)


REGISTERED = {
    "align": {"alignment_weight": 1.0, "uniformity_weight": 0.0, "cross_weight": 0.0},
    "uniform_mean": {"alignment_weight": 0.0, "uniformity_weight": 1.0, "cross_weight": 0.0},
    "cross_uniform_offdiag": {"alignment_weight": 0.0, "uniformity_weight": 0.0, "cross_weight": 1.0},
}


@every_dtype
@pytest.mark.parametrize("case", [c for c in UNIFORMITY if c["params"]["term"] in REGISTERED], ids=case_name)
def test_the_registered_loss_has_the_gradient_that_both_forms_share(case, dtype):
    """It normalises inside the graph: what is left is the part of the golden gradient across each vector."""
    sides = {side: leaf(case["inputs"][side], dtype) for side in ("image", "text")}
    loss = uniformity_alignment_loss(
        query_embeddings=sides["image"],
        document_embeddings=sides["text"],
        positive_document=torch.arange(5),
        sharpness=case["params"]["t"],
        **REGISTERED[case["params"]["term"]],
    )
    loss.backward()
    assert_golden(loss, case["expected"]["loss"], dtype)
    for side, tensor in sides.items():
        assert_golden(tensor.grad, across(case["expected"][f"grad_{side}"], tensor), dtype)


@every_dtype
def test_mochi(dtype):
    (case,) = cases("mochi")
    inputs, params, expected = case["inputs"], case["params"], case["expected"]
    query = leaf([inputs["q"]], dtype)
    documents = torch.tensor([inputs["k"], *inputs["negatives"]], dtype=dtype)
    first, second = torch.tensor(params["pairs"]).T
    mixing = Mixing(
        first=first.unsqueeze(0),
        second=second.unsqueeze(0),
        first_share=torch.tensor([params["alpha"]], dtype=dtype),
        partner=torch.tensor([params["type2_idx"]]),
        query_share=torch.tensor([params["beta"]], dtype=dtype),
    )
    safe = torch.tensor([[False] + [True] * 8])
    scores = query.detach() @ documents.T
    nearest = hardest_negatives(scores, safe, params["N"])
    assert (nearest - 1).tolist() == [expected["hard_order"]]  # the positive is document 0
    assert_golden(mixtures_of_negatives(documents[nearest], mixing), [expected["h"]], dtype)
    mixed, usable = mixtures_with_queries(query.detach(), scores[:, :1], documents[nearest], mixing)
    assert_golden(mixed, [expected["h_query_mixed"]], dtype)
    assert bool(usable.all())

    loss = mochi_loss(
        query_embeddings=query,
        document_embeddings=documents,
        positive_document=torch.tensor([0]),
        mixing=mixing,
        temperature=params["tau"],
        hardest=params["N"],
    )
    loss.backward()
    assert_golden(loss, expected["loss"], dtype)
    assert_golden(query.grad, [expected["grad_q"]], dtype)


@every_dtype
@pytest.mark.parametrize("case", METRIX, ids=case_name)
def test_metrix(case, dtype):
    inputs, params, expected = case["inputs"], case["params"], case["expected"]
    anchor, positive, negative = (leaf(inputs[part], dtype) for part in ("anchor", "pos", "neg"))
    pairs = mixed_pairs(
        anchor,
        positive,
        negative,
        torch.tensor(params["lam"], dtype=dtype),
        positive_margin=params["margin_pos"],
        negative_margin=params["margin_neg"],
    )
    assert_golden(pairs.distances, expected["pair_dist"], dtype)
    assert_golden(pairs.positive_terms, expected["pos_terms"], dtype)
    assert_golden(pairs.negative_terms, expected["neg_terms"], dtype)
    loss = non_zero_mean(pairs.positive_terms) + non_zero_mean(pairs.negative_terms)
    loss.backward()
    assert_golden(loss, expected["loss"], dtype)
    for part, tensor in (("anchor", anchor), ("pos", positive), ("neg", negative)):
        assert_golden(tensor.grad, expected[f"grad_{part}"], dtype)


@every_dtype
@pytest.mark.parametrize("case", METRIX, ids=case_name)
def test_the_registered_metrix_on_queries_that_have_that_one_negative(case, dtype):
    """All other negatives are known to be relevant, so that the hardest one is the golden one.

    Queries are normalised inside the graph, which leaves the part of the golden gradient across each of them.
    """
    inputs, params, expected = case["inputs"], case["params"], case["expected"]
    anchor, positive, negative = (leaf(inputs[part], dtype) for part in ("anchor", "pos", "neg"))
    own = torch.eye(6, dtype=torch.bool)
    loss = metrix_loss(
        query_embeddings=anchor,
        document_embeddings=torch.cat([positive, negative]),
        positive_document=torch.arange(6),
        relevant=torch.cat([torch.ones_like(own), ~own], dim=1),
        mixing=torch.tensor(params["lam"], dtype=dtype),
        positive_margin=params["margin_pos"],
        negative_margin=params["margin_neg"],
    )
    loss.backward()
    assert_golden(loss, expected["loss"], dtype)
    assert_golden(anchor.grad, across(expected["grad_anchor"], anchor), dtype)
    for part, tensor in (("pos", positive), ("neg", negative)):
        assert_golden(tensor.grad, expected[f"grad_{part}"], dtype)


@every_dtype
@pytest.mark.parametrize("case", UNPG, ids=case_name)
def test_unpg(case, dtype):
    """Samples are the queries, class weights the documents, the class of a sample its positive."""
    inputs, params, expected = case["inputs"], case["params"], case["expected"]
    queries = leaf(inputs["x"], dtype)
    documents = torch.tensor(inputs["class_weights"], dtype=dtype)
    labels = torch.tensor(inputs["labels"])
    unit = functional.normalize(queries.detach(), dim=1)
    pairs = negative_query_pairs(unit @ unit.T, embedding_batch("unpg", queries, documents, labels, None))
    assert_golden(pairs.sort().values, expected["neg_sims_all_sorted"], dtype)
    kept = pairs[iqr_filter(pairs, params["wisk"])]
    assert_golden(kept.sort().values, expected["neg_sims_kept"], dtype)

    loss = unpg_loss(
        query_embeddings=queries,
        document_embeddings=documents,
        positive_document=labels,
        scale=params["s"],
        margin=params["cos_margin"],
        whisker=params["wisk"],
    )
    loss.backward()
    assert_golden(loss, expected["loss"], dtype)
    assert_golden(queries.grad, expected["grad_x"], dtype)


@every_dtype
@pytest.mark.parametrize("case", UNPG, ids=case_name)
def test_unpg_without_pairs_is_the_class_loss_alone(case, dtype):
    """A query alone in its batch has no pairs: the mean of eight such batches is the golden loss without UNPG."""
    inputs, params = case["inputs"], case["params"]
    queries = torch.tensor(inputs["x"], dtype=dtype)
    documents = torch.tensor(inputs["class_weights"], dtype=dtype)
    labels = torch.tensor(inputs["labels"])
    alone = [
        unpg_loss(queries[i : i + 1], documents, labels[i : i + 1], scale=params["s"], margin=params["cos_margin"])
        for i in range(len(queries))
    ]
    assert_golden(torch.stack(alone).mean(), case["expected"]["loss_without_unpg"], dtype)


@every_dtype
def test_amcl_with_a_temperature_per_head_and_pair(dtype):
    (case,) = cases("amcl_multihead_temperature")
    left, temperature = (leaf(case["inputs"][name], dtype) for name in ("z1", "tau"))
    right = torch.tensor(case["inputs"]["z2"], dtype=dtype)
    logits = multihead_logits(head_similarities(left, right), temperature)
    loss = functional.cross_entropy(logits, torch.arange(4))
    loss.backward()
    assert_golden(loss, case["expected"]["loss"], dtype)
    assert_golden(temperature.log().mean(), case["expected"]["log_tau_mean"], dtype)
    assert_golden(left.grad, case["expected"]["grad_z1"], dtype)
    assert_golden(temperature.grad, case["expected"]["grad_tau"], dtype)


@every_dtype
def test_the_registered_amcl_is_the_golden_form_on_slices(dtype):
    """Joined heads are sliced again: same softmax as the core, with temperatures predicted from the pair."""
    (case,) = cases("amcl_multihead_temperature")
    left, right = (torch.tensor(case["inputs"][name], dtype=dtype) for name in ("z1", "z2"))
    base, slope = torch.tensor([0.3, 0.2], dtype=dtype), torch.tensor([0.5, -1.0], dtype=dtype)
    compared = head_similarities(left, right)
    temperature = base.reshape(2, 1, 1) * (slope.reshape(2, 1, 1) * compared).exp()
    expected = functional.cross_entropy(multihead_logits(compared, temperature), torch.arange(4))
    actual = amcl_loss(
        left.transpose(0, 1).flatten(1),
        right.transpose(0, 1).flatten(1),
        torch.arange(4),
        heads=2,
        temperature=base,
        temperature_slope=slope,
        temperature_weight=0.1,
    )
    assert_golden(actual, float(expected + 0.1 * temperature.log().mean()), dtype)


@every_dtype
def test_nspt_on_rehearsal_anchors(dtype):
    inputs = NSPT["inputs"]
    student = leaf(inputs["student"], dtype)
    loss = nspt_contrast(
        student,
        torch.tensor(inputs["teacher"], dtype=dtype),
        torch.tensor(inputs["labels"]),
        torch.tensor(inputs["rehearsal_idx"]),
        temperature=NSPT["params"]["tau"],
    )
    loss.backward()
    assert_golden(loss, NSPT["expected"]["loss"], dtype)
    assert_golden(student.grad, NSPT["expected"]["grad_student"], dtype)


@every_dtype
@pytest.mark.parametrize("case", CL2L, ids=case_name)
def test_cl2l(case, dtype):
    inputs, params, expected = case["inputs"], case["params"], case["expected"]
    names = ("z_image_global", "z_text_global", "h_image_local", "h_text_local")
    sides = {name: leaf(inputs[name], dtype) for name in names}
    temperatures = {"temperature": 1 / inputs["logit_scale"], "local_temperature": 1 / inputs["h_logit_scale"]}
    loss = cl2l_loss(
        *sides.values(),
        **temperatures,
        label_smoothing=params["label_smoothing"],
        reduction={"avg": "mean", "sum": "sum"}[params["reduction"]],
    )
    loss.backward()
    assert_golden(loss, expected["loss"], dtype)
    for name, tensor in sides.items():
        assert_golden(tensor.grad, expected[f"grad_{name}"], dtype)
    one_way = global_contrast(sides["z_image_global"], sides["z_text_global"], temperatures["temperature"])
    assert_golden(one_way, expected["clip_loss_image_global"], dtype)
    views = (sides["h_image_local"], sides["h_text_local"])
    local = local_contrast(*views, temperatures["local_temperature"], params["label_smoothing"])
    assert_golden(local, expected["clip_loss_image_local"], dtype)
