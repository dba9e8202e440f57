"""report.html: one file that says what a job achieved, to open anywhere, attach anywhere, without a server.

Enters: the evaluation, the learning curve, the scores. Leaves: a self-contained HTML file: inline SVG and
CSS, no script, no request to anywhere (a content security policy in the page holds it to that). Every text
from outside, job names and facts included, is escaped by the template.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from numpy.typing import NDArray

from pipelines.errors import PipelineError
from pipelines.evaluation.plots import gain_plot, learning_curve_plot, score_plot
from pipelines.evaluation.result import MAIN_MEASURE, SYSTEMS, EvaluationResult, comparison
from pipelines.evaluation.round_table import ROUND_COLUMNS, round_cells
from pipelines.evaluation.wording import LABELS, SIGNIFICANT_BELOW, p_text, signed, summary_sentences

__all__ = ["write_report"]

_SHORT = {"student_before": "before", "label_only": "labels only"}
"""The other versions of the student, to which the distilled one is compared query by query."""


@dataclass(frozen=True)
class _Row:
    label: str
    highlighted: bool
    values: list[str]
    share: float
    difference: str
    p: str
    clear: bool


def write_report(
    path: Path,
    *,
    job_name: str,
    result: EvaluationResult,
    per_query: Mapping[str, Mapping[str, float]],
    learning_curve: Sequence[Mapping[str, float]],
    teacher_scores: NDArray[np.floating],
    student_scores: NDArray[np.floating],
    facts: Mapping[str, str],
    rounds: Sequence[Mapping[str, Any]] = (),
) -> None:
    """Write the report of one job.

    Args:
        path: file to write; its folder exists.
        job_name: shown as the title.
        result: what was measured; needs `student_after`.
        per_query: system -> query id -> nDCG@10.
        learning_curve: per logged step `step`, `loss`, `loss.<term>`; may be empty.
        teacher_scores: teacher logits, any shape, may be empty.
        student_scores: scores of the trained student, any shape, may be empty.
        facts: name -> value, shown as they are (models, versions, counts, times).
        rounds: of adversarial rounds, one row of figures each (`rounds.figures.RoundFigures` as JSON).

    Raises:
        PipelineError: the result lacks the distilled student, the systems were measured on different queries,
            or there are NaN or infinite numbers to draw.
    """
    if "student_after" not in result.systems:
        raise PipelineError(f"a report needs the system 'student_after'; got {list(result.systems)}")
    environment = Environment(
        loader=PackageLoader("pipelines.evaluation", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    gains = _gains(per_query)
    page = environment.get_template("report.html.j2").render(
        job_name=job_name,
        sentences=summary_sentences(result),
        tiles=_tiles(result),
        measures=list(result.systems["student_after"]),
        rows=_rows(result),
        method=next((test.method for test in result.comparisons.values()), ""),
        num_queries=result.num_queries,
        has_teacher="teacher_rerank" in result.systems,
        main_measure=MAIN_MEASURE,
        learning_curve=_inline(learning_curve_plot(learning_curve)),
        scores=_inline(score_plot(teacher_scores, student_scores)),
        gains=_inline(gain_plot({f"distilled − {_SHORT[name]}": values for name, values in gains.items()})),
        tallies=[_tally(name, values) for name, values in gains.items()],
        facts=dict(facts),
        round_columns=list(ROUND_COLUMNS),
        rounds=[round_cells(figures) for figures in rounds],
    )
    path.write_text(page, encoding="utf-8")


def _inline(svg: str | None) -> Markup | None:
    return None if svg is None else Markup(svg)  # noqa: S704 - from plots.py; matplotlib escapes its texts


def _tiles(result: EvaluationResult) -> list[tuple[str, str, str]]:
    """Headline numbers: (what, number, note)."""
    tiles = [("Distilled student", f"{result.systems['student_after'][MAIN_MEASURE]:.3f}", MAIN_MEASURE)]
    for name, title in _SHORT.items():
        test = result.comparisons.get(comparison("student_after", name))
        if test is not None:
            tiles.append((f"Against {title}", signed(test.mean_difference), p_text(test.p_value)))
    if result.gap_closed is not None:
        tiles.append(("Gap closed", f"{result.gap_closed:.0%}".replace("-", "−"), "from before to the teacher"))
    return tiles


def _rows(result: EvaluationResult) -> list[_Row]:
    rows = []
    for name in SYSTEMS:
        if name not in result.systems:
            continue
        test = result.comparisons.get(comparison("student_after", name))
        measures = result.systems[name]
        rows.append(
            _Row(
                label=LABELS[name],
                highlighted=name == "student_after",
                values=[f"{value:.3f}" for value in measures.values()],
                share=round(100 * min(max(measures[MAIN_MEASURE], 0.0), 1.0), 1),
                difference=signed(test.mean_difference) if test else "",
                p=p_text(test.p_value) if test else "",
                clear=test is not None and test.p_value < SIGNIFICANT_BELOW,
            )
        )
    return rows


def _gains(per_query: Mapping[str, Mapping[str, float]]) -> dict[str, NDArray[np.float64]]:
    """Distilled student minus each other version of the student, per query."""
    after = per_query.get("student_after", {})
    gains: dict[str, NDArray[np.float64]] = {}
    for name in _SHORT:
        other = per_query.get(name)
        if not other or not after:
            continue
        if other.keys() != after.keys():
            raise PipelineError(f"'student_after' and {name!r} were measured on different queries")
        gains[name] = np.array([after[query] - other[query] for query in after], dtype=np.float64)
    return gains


def _tally(name: str, gains: NDArray[np.float64]) -> str:
    up, down = int((gains > 0).sum()), int((gains < 0).sum())
    return (
        f"Against {_SHORT[name]}: {up:,} queries better, {down:,} worse, {gains.size - up - down:,} equal; "
        f"mean {signed(math.fsum(gains) / gains.size)}."
    )
