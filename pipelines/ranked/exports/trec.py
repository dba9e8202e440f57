"""TREC run: `query_id Q0 doc_id rank score tag`, what evaluation tools read, and what `lists import` takes back.

Enters: chosen lists. Leaves: one line per candidate, ranks from 1 in stored order. A score is written with the fewest
digits that read back as the same float32, so order and values survive the trip. Tools that sort by score break ties
their own way; an import keeps ours.
"""

from collections.abc import Iterator

import numpy as np

from pipelines.errors import DataError
from pipelines.ranked.exports.choice import ChosenList, ExportOptions, Texts
from pipelines.ranked.exports.format import Format, Row, TableSpec

__all__ = ["TREC"]


def _tables(_: ExportOptions) -> tuple[TableSpec, ...]:
    return (TableSpec("run", "trec"),)


def _rows(chosen: ChosenList, _: Texts, options: ExportOptions) -> Iterator[tuple[str, Row]]:
    query_id = _word(chosen.query_id, "query")
    for rank, (doc_id, logit) in enumerate(chosen.candidates, start=1):
        score = str(np.float32(logit))
        yield "run", {"line": f"{query_id} Q0 {_word(doc_id, 'document')} {rank} {score} {options.tag}"}


def _lacks(chosen: ChosenList, _: ExportOptions) -> str | None:
    return None if chosen.candidates else "no candidate"


def _word(name: str, kind: str) -> str:
    if name.split() != [name]:
        raise DataError(f"{kind} id {name!r} holds white space, which a TREC run cannot")
    return name


TREC = Format(
    name="trec",
    summary="any evaluation tool, and `lists import`: a line is query, Q0, document, rank, score, tag",
    usage="""import ir_measures

run = list(ir_measures.read_trec_run("{folder}/data/run.trec"))""",
    tables=_tables,
    rows=_rows,
    lacks=_lacks,
    needs_texts=False,
)
