"""Terms and functions may not drift apart.

Why: a job's term is turned into keyword arguments by name. A parameter that one side has and the other lacks,
or whose default differs, would be a crash in the middle of a job, or worse, a setting without effect.
"""

import dataclasses
import inspect
import typing
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from sample_inputs import call, completed, parameters, sample

from pipelines.objective_terms import CPRD, ListKL, ObjectiveTerm, Term
from pipelines.objectives.registry import OBJECTIVES, TENSORS, TERM_ONLY_FIELDS, ObjectiveInfo


def drift(info: ObjectiveInfo) -> list[str]:
    """What differs between a term's fields and its function's parameters: names, defaults, choices."""
    keywords = {
        name: parameter
        for name, parameter in inspect.signature(info.function).parameters.items()
        if name not in TENSORS and name not in LIBRARY_ONLY
    }
    fields = {name: f for name, f in info.term.model_fields.items() if name not in TERM_ONLY_FIELDS}
    found = [f"only in the function: {name}" for name in keywords.keys() - fields.keys()]
    found += [f"only in the term: {name}" for name in fields.keys() - keywords.keys()]
    for name in keywords.keys() & fields.keys():
        ours, theirs = keywords[name], fields[name]
        if ours.default != theirs.default:
            found.append(f"{name}: default {ours.default!r} is {theirs.default!r} in the term")
        if choices(ours.annotation) != choices(theirs.annotation):
            found.append(f"{name}: other choices")
    return found


def choices(annotation: Any) -> tuple[Any, ...]:
    """What a Literal allows, wherever it stands inside an annotation."""
    if typing.get_origin(annotation) is typing.Literal:
        return typing.get_args(annotation)
    return tuple(choice for inner in typing.get_args(annotation) for choice in choices(inner))


LIBRARY_ONLY = {"valid", "queue_embeddings", "weights", "relevance_weights", "mixing", "grades"}
"""Optional arguments that neither a step of a job offers nor a term sets; for callers of the functions."""

every_objective = pytest.mark.parametrize(("name", "info"), OBJECTIVES.items(), ids=OBJECTIVES.keys())


@every_objective
def test_fields_of_the_term_are_the_functions_parameters(name, info):
    assert drift(info) == []


@every_objective
def test_every_tensor_a_function_needs_is_one_that_steps_offer(name, info):
    assert info.tensors
    assert set(info.required_tensors) <= set(TENSORS)
    assert set(info.tensors) - set(TENSORS) <= LIBRARY_ONLY


@every_objective
def test_a_term_sees_the_head_that_its_tensors_are_about(name, info):
    """What must match the teacher is not what places positives: with dual heads they are kept apart."""
    if any(tensor.startswith("previous_") for tensor in info.tensors):
        assert info.term.VIEW == "served"
    elif {"teacher_scores", "batch_teacher_scores"} & set(info.required_tensors):
        assert info.term.VIEW == "distillation"
    else:
        assert info.term.VIEW == "contrastive"


@every_objective
def test_what_may_be_learned_is_a_parameter_and_takes_a_tensor(name, info):
    """A learned temperature arrives as a tensor: its gradient must reach it."""
    for parameter in info.term.LEARNABLE:
        heads = parameters(name).get("heads")
        start = torch.tensor(float(parameters(name)[parameter]), dtype=torch.float64)
        learned = (start.expand(heads).clone() if heads else start).requires_grad_()
        call(name, sample(1), **{parameter: learned}).backward()
        assert learned.grad is not None
        assert bool((learned.grad != 0).any())


def test_the_objectives_known_to_learn_something_of_their_own_do():
    """Guards the test above: it would pass on an empty registry of learnable parameters."""
    learning = {name for name, info in OBJECTIVES.items() if info.term.LEARNABLE}
    assert learning == {"info_nce", "siglip", "amcl", "binary_kl", "binary_kl_norm"}


@every_objective
def test_an_objective_learns_from_positives_exactly_if_it_is_silent_without_them(name, info):
    batch = sample(2, full=True)
    batch["positive"] = torch.full_like(batch["positive"], -1)
    batch["positives"] = torch.zeros_like(batch["positives"])
    silent = call(name, completed(batch)).item() == 0
    assert silent == (info.term.LEARNS_FROM == "positives")


class _Extra(ListKL):
    label_smoothing: float = 0.0


class _OtherDefault(CPRD):
    temperature: float = 1.0


class _OtherChoices(ListKL):
    direction: typing.Literal["forward"] = "forward"


class _Missing(Term):
    temperature: float = 0.05


@pytest.mark.parametrize(
    ("objective", "term", "complaint"),
    [
        ("list_kl", _Extra, "only in the term: label_smoothing"),
        ("cprd", _OtherDefault, "temperature: default 0.05 is 1.0 in the term"),
        ("list_kl", _OtherChoices, "direction: other choices"),
        ("list_kl", _Missing, "only in the function: teacher_temperature"),
    ],
)
def test_the_check_notices_each_kind_of_drift(objective, term, complaint):
    """Guards the guard: comparing nothing would pass as well."""
    assert complaint in drift(dataclasses.replace(OBJECTIVES[objective], term=term))


def test_every_term_that_a_job_may_write_has_an_objective_under_its_name():
    union, *_ = typing.get_args(ObjectiveTerm)
    terms = {typing.get_args(term.model_fields["name"].annotation)[0]: term for term in typing.get_args(union)}
    assert terms == {name: info.term for name, info in OBJECTIVES.items()}


def test_the_registry_cannot_be_changed_by_its_readers():
    with pytest.raises(TypeError):
        OBJECTIVES["cprd"] = OBJECTIVES["list_kl"]


def test_what_cannot_be_learned_is_refused_with_what_can():
    with pytest.raises(ValidationError, match=r"learn: 'scale' cannot be learned here; can be: nothing"):
        OBJECTIVES["margin_mse"].term(name="margin_mse", learn=["scale"])
