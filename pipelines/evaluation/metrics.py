"""Retrieval measures, per query, by ir-measures.

Enters: judgements and a run (query -> document -> score). Leaves: measure -> query -> value in [0, 1]. Values
stay per query because the paired test and the report need them; a mean alone cannot be compared.

nDCG is trec_eval's: gain = the judged relevance (linear), discount log2(1 + rank). RR and R count relevance
>= 1.
"""

import math
from collections.abc import Mapping, Sequence

from ir_measures import iter_calc, parse_measure

from pipelines.errors import PipelineError

__all__ = ["MEASURES", "PerQuery", "evaluate", "means"]

MEASURES = ("nDCG@10", "RR@10", "R@100")

PerQuery = dict[str, dict[str, float]]
"""measure -> query id -> value."""


def evaluate(
    qrels: Mapping[str, Mapping[str, int]],
    run: Mapping[str, Mapping[str, float]],
    measures: Sequence[str] = MEASURES,
) -> PerQuery:
    """Measure a run on every query that has a relevant document.

    Equal scores are ranked by document id, ascending, so that the same run always gets the same value
    whichever library measures it. A query missing from the run, or with no documents there, counts 0. A
    judged query without any relevance above 0 cannot be measured and is left out; so are queries of the run
    that are not judged.

    Args:
        qrels: query id -> document id -> relevance.
        run: query id -> document id -> score, higher is better.
        measures: names in ir-measures' notation.

    Returns:
        For each measure, a value for each measurable query, in the order of `qrels`.

    Raises:
        PipelineError: no query has a relevant document, or a score is NaN.
    """
    measurable = {query: dict(judged) for query, judged in qrels.items() if any(r > 0 for r in judged.values())}
    if not measurable:
        raise PipelineError(f"none of the {len(qrels)} judged queries has a relevant document to find")
    ranked = {query: _strict(query, run[query]) for query in measurable if run.get(query)}
    names = {parse_measure(name): name for name in measures}
    found: PerQuery = {name: dict.fromkeys(measurable, 0.0) for name in measures}
    for metric in iter_calc(list(names), measurable, ranked):
        found[names[metric.measure]][metric.query_id] = float(metric.value)
    return found


def means(per_query: PerQuery) -> dict[str, float]:
    """Mean of each measure over its queries."""
    return {measure: math.fsum(values.values()) / len(values) for measure, values in per_query.items()}


def _strict(query: str, scores: Mapping[str, float]) -> dict[str, float]:
    """The same ranking with no two scores equal: libraries break ties each in their own way."""
    broken = [document for document, score in scores.items() if math.isnan(score)]
    if broken:
        raise PipelineError(
            f"the run scores {len(broken)} document(s) of query {query!r} as NaN, the first is {broken[0]!r}"
        )
    order = sorted(scores, key=lambda document: (-scores[document], document))
    return {document: float(-rank) for rank, document in enumerate(order)}
