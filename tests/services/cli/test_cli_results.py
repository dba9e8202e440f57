"""The table at the end of a job: what a person decides on, so its numbers and its words must be the result's."""

import re
from typing import Any

import pytest
from rich.console import Console

from pipelines.evaluation.result import SYSTEMS, summarise
from pipelines.rounds.figures import Hardness, RoundFigures
from services.cli.results import print_result


def shown(evaluation: Any, capsys: pytest.CaptureFixture[str]) -> str:
    print_result({"evaluation": evaluation}, Console(width=120, highlight=False))
    return capsys.readouterr().out


def per_query(value: float, spread: float = 0.0) -> dict[str, dict[str, float]]:
    """20 queries whose values alternate around `value`."""
    values = {f"q{number}": value + (spread if number % 2 else -spread) for number in range(20)}
    return dict.fromkeys(("nDCG@10", "RR@10", "R@100"), values)


def test_every_system_is_a_row_and_the_gap_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    systems = dict(zip(SYSTEMS, map(per_query, (0.5, 0.4, 0.45, 0.7, 0.75, 0.8)), strict=True))
    text = shown(summarise(systems, num_documents=1234).to_dict(), capsys)
    assert "20 held-out queries, 1234 documents" in text
    rows = [
        ("BM25", "0.500"),
        ("Student, before", "0.400"),
        ("Student, labels only (control)", "0.450"),
        ("Student, distilled", "0.700"),
        ("Ranker before the rounds", "0.750"),
        ("Teacher, re-ranking", "0.800"),
    ]
    lines = iter(text.splitlines())
    for title, value in rows:
        assert any(title in line and line.count(value) == 3 for line in lines), f"{title} is missing or out of order"
    assert "gap closed (nDCG@10): 75%" in text
    assert "+0.300 nDCG@10" in text
    assert "+0.250 nDCG@10" in text


@pytest.mark.parametrize(
    ("gain", "spread", "verdict"), [(0.2, 0.0, "(beyond noise)"), (0.01, 0.3, "(not distinguishable from noise)")]
)
def test_a_gain_is_called_what_the_test_says(
    gain: float, spread: float, verdict: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The sentence that a user repeats: it must not call noise a gain."""
    systems = {"student_before": per_query(0.5), "student_after": per_query(0.5 + gain, spread)}
    assert verdict in " ".join(shown(summarise(systems, num_documents=9).to_dict(), capsys).split())


def test_without_a_better_teacher_no_gap_is_claimed(capsys: pytest.CaptureFixture[str]) -> None:
    systems = {
        "student_before": per_query(0.5),
        "student_after": per_query(0.6),
        "teacher_rerank": per_query(0.4),
    }
    assert "gap closed" not in shown(summarise(systems, num_documents=9).to_dict(), capsys)


def test_a_job_without_a_test_split_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert "nothing was measured" in shown(None, capsys)


def test_a_narrow_terminal_shows_every_figure_of_every_round(capsys: pytest.CaptureFixture[str]) -> None:
    """Eighty characters: eleven figures side by side were cut to one digit each."""
    rounds = [
        RoundFigures(
            round=number,
            weights_version=number + 1,
            student={"nDCG@10": 0.5 + number / 10, "RR@10": 0.4, "R@5": 0.61},
            entropy=1.5,
            hardness=None if number < 0 else Hardness(0.125, 4.0, 0.012),
        ).to_dict()
        for number in range(-1, 4)
    ]
    print_result({"evaluation": None, "rounds": rounds}, Console(width=80, highlight=False))
    lines = capsys.readouterr().out.splitlines()
    assert "…" not in "".join(lines)
    (student,) = [line for line in lines if "student nDCG@10" in line]
    assert re.findall(r"0\.\d{3}", student) == ["0.400", "0.500", "0.600", "0.700", "0.800"]
    (fooled,) = [line for line in lines if "ranker fooled" in line]
    assert re.findall(r"0\.\d{3}|–", fooled) == ["–", *["0.012"] * 4]
