"""Terms and functions may not drift apart.

Why: a job's term is turned into keyword arguments by name. A parameter that one side has and the other lacks,
or whose default differs, would be a crash in the middle of a job, or worse, a setting without effect.
"""

import dataclasses
import inspect
import typing

import pytest
import torch
from pydantic import BaseModel

from pipelines.objective_terms import CPRD, ListKL, ObjectiveTerm
from pipelines.objectives.registry import OBJECTIVES, TERM_ONLY_FIELDS, ObjectiveInfo, term_parameters
from pipelines.spec import parse_spec


def drift(info: ObjectiveInfo) -> list[str]:
    """What differs between a term's fields and its function's parameters: names, defaults, choices."""
    keywords = {
        name: parameter
        for name, parameter in inspect.signature(info.function).parameters.items()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY and name not in info.data_inputs
    }
    fields = {name: f for name, f in info.term.model_fields.items() if name not in TERM_ONLY_FIELDS}
    found = [f"only in the function: {name}" for name in keywords.keys() - fields.keys()]
    found += [f"only in the term: {name}" for name in fields.keys() - keywords.keys()]
    for name in keywords.keys() & fields.keys():
        ours, theirs = keywords[name], fields[name]
        if ours.default != theirs.default:
            found.append(f"{name}: default {ours.default!r} is {theirs.default!r} in the term")
        if typing.Literal in (typing.get_origin(ours.annotation), typing.get_origin(theirs.annotation)) and (
            typing.get_args(ours.annotation) != typing.get_args(theirs.annotation)
        ):
            found.append(f"{name}: other choices")
    return found


every_objective = pytest.mark.parametrize(("name", "info"), OBJECTIVES.items(), ids=OBJECTIVES.keys())


@every_objective
def test_fields_of_the_term_are_the_functions_parameters(name, info):
    assert drift(info) == []


@every_objective
def test_data_inputs_are_parameters_of_the_function_and_no_fields(name, info):
    assert set(info.data_inputs) <= set(inspect.signature(info.function).parameters)
    assert not set(info.data_inputs) & set(info.term.model_fields)


class _Extra(ListKL):
    label_smoothing: float = 0.0


class _OtherDefault(CPRD):
    temperature: float = 1.0


class _OtherChoices(ListKL):
    direction: typing.Literal["forward"] = "forward"


class _Missing(BaseModel):
    name: str
    weight: float
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


def test_a_jobs_terms_reach_their_functions():
    """From the text of a job to a loss, with every parameter given by name."""
    job = {
        "name": "j",
        "dataset": {"path": "d"},
        "teacher": {"model": {"id": "t"}},
        "student": {"model": {"id": "s"}, "normalize": False},
        "training": {
            "objective": [
                {"name": "cprd", "max_valid": 2, "reduction": "sum"},
                {"name": "list_kl", "teacher_temperature": 2.0},
                {"name": "margin_mse", "scale": 4.0},
                {"name": "info_nce", "temperature": 0.1},
            ]
        },
    }
    first = torch.zeros(2, dtype=torch.int64)
    data = {"margin_mse": {"positive": first}, "info_nce": {"positive": first}}
    for term in parse_spec(job).training.objective:
        info = OBJECTIVES[term.name]
        pair = torch.eye(2, 3), torch.eye(2, 3).flip(1)
        loss = info.function(*pair, **data.get(term.name, {}), **term_parameters(term))
        assert loss.ndim == 0
        assert float(loss) > 0
