"""step_metrics: one name for each number, all of them documented, none of them NaN."""

import math
from pathlib import Path
from typing import Any

import pytest

from pipelines.errors import ObjectiveError
from pipelines.objective_terms import InfoNCE, ListKL, MarginMSE
from pipelines.training.step_metrics import METRIC_NAMES, is_due, is_metric_name, step_metrics

OBJECTIVE = (ListKL(name="list_kl", temperature=0.2), InfoNCE(name="info_nce", learn=("temperature",)))
HEALTH = {"uniformity": -2.0, "alignment": 0.5, "effective_rank": 17.0, "modality_gap": 0.1}
OPERATIONS = Path(__file__).parents[3] / "docs" / "operations.md"


def of_step(**changes: Any) -> dict[str, float]:
    numbers: dict[str, Any] = {
        "losses": {"loss": 1.5, "list_kl": 0.5, "info_nce": 1.0, "info_nce.temperature": 0.04},
        "objective": OBJECTIVE,
        "grad_norm": 2.0,
        "learning_rate": 1e-4,
        "seconds": 2.0,
        "data_wait": 0.5,
        "queries": 16,
        "texts": 100,
        "tokens": 3000,
        "health": HEALTH,
    }
    return step_metrics(**(numbers | changes))


def test_a_step_as_one_flat_dictionary() -> None:
    assert of_step() == {
        "loss": 1.5,
        "loss/list_kl": 0.5,
        "loss/info_nce": 1.0,
        "parameter/info_nce.temperature": 0.04,
        "parameter/list_kl.temperature": 0.2,
        "grad_norm": 2.0,
        "learning_rate": 1e-4,
        "queries_per_s": 8.0,
        "texts_per_s": 50.0,
        "tokens_per_s": 1500.0,
        "data_wait_share": 0.25,
        "health/uniformity": -2.0,
        "health/alignment": 0.5,
        "health/effective_rank": 17.0,
        "health/modality_gap": 0.1,
    }


def test_a_learned_temperature_wins_over_the_one_it_started_at_and_terms_without_one_have_none() -> None:
    values = of_step(objective=(*OBJECTIVE, MarginMSE(name="margin_mse")))
    assert values["parameter/info_nce.temperature"] == 0.04
    assert [name for name in values if name.startswith("parameter/margin_mse")] == []


def test_what_is_not_known_is_left_out() -> None:
    """Not 0: a curve that drops to 0 says something else."""
    values = of_step(tokens=0, health=None)
    assert set(of_step()) - set(values) == {"tokens_per_s", *(f"health/{name}" for name in HEALTH)}
    rates = {"queries_per_s", "texts_per_s", "tokens_per_s", "data_wait_share"}
    assert set(of_step()) - set(of_step(seconds=0.0)) == rates


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_number_that_is_none_is_an_error_with_its_name(bad: float) -> None:
    """It would be no JSON in an event, and a hole in a curve that nobody sees."""
    with pytest.raises(ObjectiveError, match="loss/list_kl is"):
        of_step(losses={"loss": 1.0, "list_kl": bad})


def test_every_name_is_in_the_table_and_the_table_is_in_the_documents() -> None:
    assert [name for name in of_step() if not is_metric_name(name)] == []
    assert not is_metric_name("gradnorm")
    assert not is_metric_name("loss/")
    page = OPERATIONS.read_text(encoding="utf-8")
    missing = [name for name, meaning in METRIC_NAMES.items() if f"| `{name}` | {meaning} |" not in page]
    assert missing == []


def test_the_first_the_last_and_each_tenth_step_are_told() -> None:
    assert [s for s in range(1, 26) if is_due(s, total_steps=25, every_steps=10)] == [1, 10, 20, 25]
