"""How pairs become model inputs: tokens of their texts, cut to a length, laid out. Learning and scoring both ask here.

Enters: texts, or `TokenPairs` from a token cache. Leaves: `PairBatch`es. A ranker that learned on pairs cut in one way
and scored pairs cut in another would be a worse teacher, and nothing would say so.
"""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipelines.errors import ContractError, DataError
from pipelines.model_files import tokenizer_hash
from pipelines.teacher.batch import PairBatch
from pipelines.teacher.layout import PairLayout, Segment, pair_layout
from pipelines.teacher.truncation import kept_lengths
from pipelines.tokens import TokenPairs, Tokens, runs

__all__ = ["KeptTokens", "PairEncoder", "pair_encoder"]

Ints = npt.NDArray[np.int64]
_LEAST_ROOM = 8


@dataclass(frozen=True, eq=False)
class KeptTokens:
    """What is kept of each pair: tokens of the query, of the passage, and of both with the fixed ones; each [n]."""

    query: Ints
    passage: Ints
    total: Ints


@dataclass(frozen=True, kw_only=True)
class PairEncoder:
    """One tokenizer, one layout, one length, one way to cut."""

    tokenizer: Any
    tokenizer_hash: str
    layout: PairLayout
    max_length: int
    truncation: str

    def tokenize(self, queries: Sequence[str], passages: Sequence[str]) -> TokenPairs:
        """`queries[i]` with `passages[i]`, each distinct text tokenised once.

        Raises:
            ValueError: the two have different lengths.
        """
        if len(queries) != len(passages):
            raise ValueError(f"{len(queries)} queries for {len(passages)} passages")
        rows = [{text: row for row, text in enumerate(dict.fromkeys(texts))} for texts in (queries, passages)]
        return TokenPairs(
            self.tokenizer_hash,
            Tokens.of(self.layout.query_tokens(self.tokenizer)(list(rows[0]))),
            Tokens.of(self.layout.passage_tokens(self.tokenizer)(list(rows[1]))),
            np.array([rows[0][text] for text in queries], dtype=np.int64),
            np.array([rows[1][text] for text in passages], dtype=np.int64),
        )

    def cut(self, pairs: TokenPairs) -> KeptTokens:
        """What `max_length` leaves of each pair.

        Raises:
            ContractError: another tokenizer made the ids.
            DataError: a query that must stay whole leaves no room for a passage.
        """
        if pairs.tokenizer_hash != self.tokenizer_hash:
            raise ContractError(
                f"pairs were tokenised by {pairs.tokenizer_hash[:12]}, the teacher's tokenizer is "
                f"{self.tokenizer_hash[:12]}"
            )
        room = self.max_length - self.layout.num_fixed
        if room < _LEAST_ROOM:
            raise DataError(
                f"teacher.max_length {self.max_length} leaves {room} tokens for query and passage; "
                f"the template alone has {self.layout.num_fixed}"
            )
        queries, passages = pairs.queries.lengths[pairs.query], pairs.passages.lengths[pairs.passage]
        if self.truncation != "longest_first" and (too_long := np.flatnonzero(queries >= room)).size:
            ids = pairs.queries[int(pairs.query[too_long[0]])]
            raise DataError(
                f"query {self.tokenizer.decode(ids.tolist())[:80]!r} has {len(ids)} tokens; "
                f"teacher.max_length {self.max_length} leaves no room for a passage"
            )
        query, passage = kept_lengths(queries, passages, room=room, truncation=self.truncation)
        return KeptTokens(query, passage, query + passage + self.layout.num_fixed)

    def assemble(self, pairs: TokenPairs, kept: KeptTokens, rows: Ints) -> PairBatch:
        """The pairs `rows` as one batch, in that order."""
        layout = self.layout
        query, passage, lengths = kept.query[rows], kept.passage[rows], kept.total[rows]
        starts = np.cumsum(lengths) - lengths
        at_query = starts + len(layout.before.ids)
        at_between = at_query + query
        at_passage = at_between + len(layout.between.ids)
        query_from = pairs.queries.offsets[pairs.query[rows]]
        passage_from = pairs.passages.offsets[pairs.passage[rows]]
        if self.truncation == "passage_start":
            passage_from = passage_from + pairs.passages.lengths[pairs.passage[rows]] - passage

        ids = np.empty(int(lengths.sum()), dtype=np.int64)
        types = np.zeros_like(ids)
        for number, at, source, source_from, type_ in (
            (query, at_query, pairs.queries, query_from, layout.query_type),
            (passage, at_passage, pairs.passages, passage_from, layout.passage_type),
        ):
            places = runs(at, number)
            ids[places] = source.values[runs(source_from, number)]
            types[places] = type_
        for at, segment in (
            (starts, layout.before),
            (at_between, layout.between),
            (at_passage + passage, layout.after),
        ):
            _put(ids, types, at, segment)
        # White space of the template was tokenised with the text beside it; where the text was cut, it is put back.
        cut_query = query < pairs.queries.lengths[pairs.query[rows]]
        cut_passage = passage < pairs.passages.lengths[pairs.passage[rows]]
        if self.truncation == "passage_start":
            _put(ids, types, at_passage[cut_passage], layout.passage_lead)
        else:
            _put_before(ids, types, (at_query + query)[cut_query], layout.query_tail)
            _put_before(ids, types, (at_passage + passage)[cut_passage], layout.passage_tail)
        return PairBatch(ids, types if layout.has_types else None, lengths, layout.pad_id)


def pair_encoder(
    folder: Path, model: Any, tokenizer: Any, *, template: str, max_length: int, truncation: str
) -> PairEncoder:
    """The encoder of pairs for a loaded model and its tokenizer; token types are left out where it takes none.

    Raises:
        ModelError: the template cannot be assembled from tokens of its parts.
    """
    layout = pair_layout(tokenizer, template)
    takes_types = "token_type_ids" in inspect.signature(model.forward).parameters
    return PairEncoder(
        tokenizer=tokenizer,
        tokenizer_hash=tokenizer_hash(folder),
        layout=replace(layout, has_types=layout.has_types and takes_types),
        max_length=max_length,
        truncation=truncation,
    )


def _put_before(ids: Ints, types: Ints, end: Ints, segment: Segment) -> None:
    _put(ids, types, end - len(segment.ids), segment)


def _put(ids: Ints, types: Ints, at: Ints, segment: Segment) -> None:
    places = at[:, None] + np.arange(len(segment.ids))
    ids[places] = np.array(segment.ids, dtype=np.int64)
    types[places] = np.array(segment.types, dtype=np.int64)
