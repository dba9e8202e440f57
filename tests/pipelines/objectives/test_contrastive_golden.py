"""The contrastive group against numbers of official code, or of an independent reference where there is none.

Why: directions, partitions, masks and divisors of these losses differ between papers and libraries in ways that still
train something. Value and every gradient, float64 and float32. Where our exact form lacks a constant of official code
(DCL's log(1e-45), DEXML's -100), the constant is put back here, once, to show that it is below the tolerance.
"""

import math

import pytest
import torch
from golden_cases import DTYPES, assert_golden, case_name, cases, leaf
from torch.nn import functional

from pipelines.objectives.cmim import cmim_loss
from pipelines.objectives.dcl import dcl_loss, dclw_loss
from pipelines.objectives.decoupled_softmax import decoupled_softmax_loss
from pipelines.objectives.info_nce import info_nce_loss
from pipelines.objectives.siglip import siglip_loss
from pipelines.objectives.soft_top_k import log_soft_top_k, soft_top_k_loss
from pipelines.objectives.sup_con import sup_con_loss

every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
CLIP = {case["params"]["loss"]: case for case in cases("open_clip")}
(MULTI_MODAL,) = [case for case in cases("coconut_nspt_mm") if case["params"]["term"] == "mm"]
OUR_NAME = {
    "query_to_doc": "query_to_document",
    "doc_to_query": "document_to_query",
    "query_to_query": "query_to_query",
    "doc_to_doc": "document_to_document",
}


def test_no_golden_case_is_forgotten():
    files = ("st_mnrl_infonce", "gradcache_contrastive", "dcl", "dexml_decoupled_softmax", "dexml_soft_topk")
    assert [len(cases(name)) for name in files] == [5, 1, 3, 5, 2]
    assert len(cases("cmim_contrastive_term")) == 1
    assert set(CLIP) == {"ClipLoss", "DistillClipLoss", "SigLipLoss"}  # the distillation term: test_matching_golden
    assert len(cases("coconut_nspt_mm")) == 2  # the other one: test_synthetic_golden


def mnrl(case, dtype):
    """The batch of a sentence-transformers case: all positives first, then everybody's first hard negative, ..."""
    queries, documents = leaf(case["inputs"]["q"], dtype), leaf(case["inputs"]["docs"], dtype)
    count, width = documents.shape[:2]
    loss = info_nce_loss(
        functional.normalize(queries, dim=1),
        functional.normalize(documents.transpose(0, 1).flatten(0, 1), dim=1),
        torch.arange(count),
        scored=torch.eye(count, dtype=torch.bool).repeat(1, width),
        temperature=1 / case["params"]["scale"],
        directions=[OUR_NAME[name] for name in case["params"].get("directions", ["query_to_doc"])],
        partition=case["params"].get("partition_mode", "joint"),
        hardness_mode=case["params"].get("hardness_mode", "none"),
        hardness_strength=case["params"].get("hardness_strength", 0.0),
    )
    return loss, queries, documents


@every_dtype
@pytest.mark.parametrize("case", cases("st_mnrl_infonce"), ids=case_name)
def test_info_nce_is_sentence_transformers_multiple_negatives_ranking(case, dtype):
    loss, queries, documents = mnrl(case, dtype)
    loss.backward()
    assert loss.dtype == dtype
    assert_golden(loss, case["expected"]["loss"], dtype)
    assert_golden(queries.grad, case["expected"]["grad_q"], dtype)
    assert_golden(documents.grad, case["expected"]["grad_docs"], dtype)


@every_dtype
def test_info_nce_of_both_directions_per_direction_is_open_clips_loss_with_its_learned_scale(dtype):
    """Averaging the two log-denominators is averaging the two cross-entropies: the positive logit is the same."""
    case = CLIP["ClipLoss"]
    image, text = leaf(case["inputs"]["image"], dtype), leaf(case["inputs"]["text"], dtype)
    scale = leaf(case["inputs"]["logit_scale"], dtype)
    loss = info_nce_loss(
        image,
        text,
        torch.arange(len(image)),
        temperature=1 / scale,
        directions=("query_to_document", "document_to_query"),
        partition="per_direction",
    )
    loss.backward()
    assert_golden(loss, case["expected"]["loss"], dtype)
    assert_golden(loss, CLIP["DistillClipLoss"]["expected"]["contrastive_loss"], dtype)
    assert_golden(image.grad, case["expected"]["grad_image"], dtype)
    assert_golden(text.grad, case["expected"]["grad_text"], dtype)
    assert_golden(scale.grad, case["expected"]["grad_logit_scale"], dtype)


@every_dtype
@pytest.mark.parametrize("case", cases("gradcache_contrastive"), ids=case_name)
def test_info_nce_is_gradcaches_contrastive_loss(case, dtype):
    queries, documents = leaf(case["inputs"]["q"], dtype), leaf(case["inputs"]["d"], dtype)
    every = case["params"]["n_hard_negatives"] + 1
    loss = info_nce_loss(queries, documents, torch.arange(len(queries)) * every, temperature=1.0)
    loss.backward()
    assert_golden(loss, case["expected"]["loss"], dtype)
    assert_golden(queries.grad, case["expected"]["grad_q"], dtype)
    assert_golden(documents.grad, case["expected"]["grad_d"], dtype)


@every_dtype
@pytest.mark.parametrize("learned", [False, True], ids=["numbers", "tensors"])
def test_siglip_is_open_clips(learned, dtype):
    case = CLIP["SigLipLoss"]
    image, text = leaf(case["inputs"]["image"], dtype), leaf(case["inputs"]["text"], dtype)
    scale, bias = (torch.tensor(case["inputs"][name], dtype=dtype) for name in ("logit_scale", "logit_bias"))
    if not learned:
        scale, bias = float(scale), float(bias)
    loss = siglip_loss(image, text, torch.arange(len(image)), scale=scale, bias=bias)
    loss.backward()
    assert_golden(loss, case["expected"]["loss"], dtype)
    assert_golden(image.grad, case["expected"]["grad_image"], dtype)
    assert_golden(text.grad, case["expected"]["grad_text"], dtype)


@every_dtype
def test_sup_con_is_coconuts_multi_modal_term(dtype):
    inputs, expected = MULTI_MODAL["inputs"], MULTI_MODAL["expected"]
    audio, text, labels = leaf(inputs["student"], dtype), leaf(inputs["text"], dtype), torch.tensor(inputs["labels"])
    loss = sup_con_loss(
        audio,
        text,
        torch.arange(len(labels)),
        relevant=labels.unsqueeze(1) == labels,
        temperature=MULTI_MODAL["params"]["tau"],
    )
    loss.backward()
    assert_golden(loss, expected["loss"], dtype)
    assert_golden(audio.grad, expected["grad_student"], dtype)
    assert_golden(text.grad, expected["grad_text"], dtype)


@every_dtype
@pytest.mark.parametrize("case", cases("dcl"), ids=case_name)
def test_dcl_and_dclw_in_the_papers_form_are_the_community_code(case, dtype):
    first, second = leaf(case["inputs"]["z1"], dtype), leaf(case["inputs"]["z2"], dtype)
    pairs = torch.arange(len(first))
    if case["params"]["variant"] == "DCL":
        loss = dcl_loss(first, second, pairs, temperature=case["params"]["temperature"], same_view_negatives=True)
    else:
        loss = dclw_loss(
            first,
            second,
            pairs,
            temperature=case["params"]["temperature"],
            sigma=case["params"]["sigma"],
            same_view_negatives=True,
        )
    loss.backward()
    assert_golden(loss, case["expected"]["loss"], dtype)
    assert_golden(first.grad, case["expected"]["grad_z1"], dtype)
    assert_golden(second.grad, case["expected"]["grad_z2"], dtype)


@pytest.mark.parametrize("case", [c for c in cases("dcl") if c["params"]["variant"] == "DCL"], ids=case_name)
def test_the_positive_that_the_community_code_leaks_into_dcls_denominator_is_below_the_tolerance(case):
    first, second = (torch.tensor(case["inputs"][name], dtype=torch.float64) for name in ("z1", "z2"))
    temperature = case["params"]["temperature"]
    suppressed = torch.eye(len(first), dtype=torch.float64) * math.log(1e-45)
    denominators = torch.cat(
        [first @ first.T / temperature + suppressed, first @ second.T / temperature + suppressed], 1
    )
    leaky = (denominators.logsumexp(1) - (first * second).sum(1) / temperature).mean()
    assert_golden(leaky, case["expected"]["loss"], torch.float64)
    exact = dcl_loss(first, second, torch.arange(len(first)), temperature=temperature, same_view_negatives=True)
    assert abs(float(leaky - exact)) < 1e-12


def dexml(case, dtype):
    """Scores, positives as flags, their relevance: a value of 0 is padding."""
    scores = leaf(case["inputs"]["student_scores"], dtype)
    places, values = torch.tensor(case["inputs"]["pos_inds"]), torch.tensor(case["inputs"]["pos_vals"], dtype=dtype)
    rows, slots = (values > 0).nonzero(as_tuple=True)
    weights = torch.zeros_like(scores)
    weights[rows, places[rows, slots]] = values[rows, slots]
    return scores, weights > 0, weights


DEXML_FORMS = {"decoupled-softmax": "decoupled", "softmax": "softmax", "bce": "binary"}


@every_dtype
@pytest.mark.parametrize("case", cases("dexml_decoupled_softmax"), ids=case_name)
def test_decoupled_softmax_is_dexmls(case, dtype):
    scores, relevant, weights = dexml(case, dtype)
    loss = decoupled_softmax_loss(
        scores,
        relevant,
        relevance_weights=weights if case["params"]["weighted"] else None,
        form=DEXML_FORMS[case["params"]["criterion"]],
        temperature=1.0,
    )
    loss.backward()
    assert_golden(loss, case["expected"]["loss"], dtype)
    assert_golden(scores.grad, case["expected"]["grad_student_scores"], dtype)


def test_the_positives_that_dexml_masks_with_minus_100_leak_below_the_tolerance():
    """Scores of the golden file lie within +-7, so the leak is e^-93 of the denominator."""
    (case,) = [
        c for c in cases("dexml_decoupled_softmax") if c["name"].startswith("criterion=decoupled-softmax, weighted=F")
    ]
    scores, relevant, _ = dexml(case, torch.float64)
    leaky = -functional.logsigmoid(scores - scores.masked_fill(relevant, -100.0).logsumexp(1, keepdim=True))
    leaky = ((leaky * relevant).sum(1) / relevant.sum(1)).mean()
    assert_golden(leaky, case["expected"]["loss"], torch.float64)
    assert abs((leaky - decoupled_softmax_loss(scores, relevant, temperature=1.0)).item()) < 1e-12


@every_dtype
@pytest.mark.parametrize("case", cases("dexml_soft_topk"), ids=case_name)
def test_soft_top_k_is_dexmls(case, dtype):
    """Its 64 bisections are our few Newton steps: the same root, so the same indicator, loss and gradient."""
    scores, relevant, _ = dexml(case, dtype)
    k, alpha = case["params"]["K"], case["params"]["alpha"]
    loss = soft_top_k_loss(scores, relevant, k=k, alpha=alpha, temperature=1.0)
    loss.backward()
    assert_golden(loss, case["expected"]["loss"], dtype)
    assert_golden(scores.grad, case["expected"]["grad_student_scores"], dtype)
    indicator = log_soft_top_k(scores.detach(), torch.full((len(scores),), k), alpha=alpha, iterations=32)
    assert_golden(indicator, case["expected"]["log_soft_topk"], dtype)
    assert_golden(indicator.exp(), case["expected"]["soft_topk"], dtype)


@every_dtype
@pytest.mark.parametrize("case", cases("cmim_contrastive_term"), ids=case_name)
def test_cmim_is_the_stated_formula(case, dtype):
    first, second = leaf(case["inputs"]["z"], dtype), leaf(case["inputs"]["z2"], dtype)
    loss = cmim_loss(first, second, torch.arange(len(first)), temperature=case["params"]["tau"])
    loss.backward()
    assert_golden(loss, case["expected"]["loss"], dtype)
    assert_golden(first.grad, case["expected"]["grad_z"], dtype)
    assert_golden(second.grad, case["expected"]["grad_z2"], dtype)
