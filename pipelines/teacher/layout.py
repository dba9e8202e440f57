"""The layout of a pair: which tokens stand before, between and after query and passage, and their token types.

Enters: a tokenizer and a template. Leaves: a frozen `PairLayout`, with which pairs are put together from the ids of
their texts, so that no text is ever tokenised twice. Pairs put together so are held against the tokenizer's own work
on whole pairs before the layout is trusted.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pipelines.corpus.token_cache import Tokenize
from pipelines.errors import ModelError
from pipelines.teacher.contract import PAIR

__all__ = ["PairLayout", "Segment", "pair_layout"]

_PROBES = (("heart of gold", "the lung is a pair"), ("ear", "bone, 2 eyes"), ("what?", "a"), ("in", "to the end"))


@dataclass(frozen=True)
class Segment:
    """Fixed ids at one place of a pair, and the token type of each."""

    ids: tuple[int, ...]
    types: tuple[int, ...]


_NOTHING = Segment((), ())


@dataclass(frozen=True)
class PairLayout:
    """`before`, the query, `between`, the passage, `after`."""

    before: Segment
    between: Segment
    after: Segment
    query_type: int
    passage_type: int
    has_types: bool
    """Whether the model is given token types at all."""
    query_affixes: tuple[str, str]
    """White space that the template has around the query: tokenised with it, as it would be in the whole prompt."""
    passage_affixes: tuple[str, str]
    query_tail: Segment
    """The white space after the query alone, for queries whose end was cut; likewise for the passage, both ends."""
    passage_lead: Segment
    passage_tail: Segment
    pad_id: int

    @property
    def num_fixed(self) -> int:
        """Tokens that are in every pair."""
        return len(self.before.ids) + len(self.between.ids) + len(self.after.ids)

    def query_tokens(self, tokenizer: Any) -> Tokenize:
        """How queries become ids for this layout."""
        return _tokenize(tokenizer, self.query_affixes)

    def passage_tokens(self, tokenizer: Any) -> Tokenize:
        """How passages become ids for this layout."""
        return _tokenize(tokenizer, self.passage_affixes)


def pair_layout(tokenizer: Any, template: str) -> PairLayout:
    """The layout of `template` (see `ScoreContract.template`) for `tokenizer`.

    Raises:
        ModelError: the tokenizer joins pairs in a way that depends on the texts, has no padding token, or the template
            lacks a place.
    """
    layout = _joined(tokenizer) if template == PAIR else _prompt(tokenizer, template)
    for query, passage in _PROBES:
        ours = [
            *layout.before.ids,
            *layout.query_tokens(tokenizer)([query])[0],
            *layout.between.ids,
            *layout.passage_tokens(tokenizer)([passage])[0],
            *layout.after.ids,
        ]
        whole = _whole(tokenizer, template, query, passage)
        if ours != whole:
            raise ModelError(
                f"the tokenizer makes {whole} of the pair {(query, passage)!r}, its parts put together are {ours}: "
                f"template {template[:80]!r} cannot be assembled from cached tokens"
            )
    return layout


def _tokenize(tokenizer: Any, affixes: tuple[str, str]) -> Tokenize:
    before, after = affixes

    def tokenize(texts: Sequence[str], /) -> Sequence[Sequence[int]]:
        if not texts:
            return []
        ids: list[list[int]] = tokenizer(
            [f"{before}{text}{after}" for text in texts],
            add_special_tokens=False,
            truncation=False,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
        )["input_ids"]
        return ids

    return tokenize


def _pad_id(tokenizer: Any) -> int:
    if tokenizer.pad_token_id is None:
        raise ModelError("the tokenizer has no padding token")
    return int(tokenizer.pad_token_id)


def _joined(tokenizer: Any) -> PairLayout:
    query, passage = _PROBES[0]
    encoded = tokenizer(query, passage)
    whole = list(encoded["input_ids"])
    has_types = "token_type_ids" in encoded
    types = list(encoded["token_type_ids"]) if has_types else [0] * len(whole)
    tokenize = _tokenize(tokenizer, ("", ""))
    query_ids, passage_ids = (list(ids) for ids in tokenize([query, passage]))
    start = _find(whole, query_ids, 0)
    second = _find(whole, passage_ids, start + len(query_ids))
    ends = start + len(query_ids), second + len(passage_ids)

    def segment(first: int, last: int) -> Segment:
        return Segment(tuple(whole[first:last]), tuple(types[first:last]))

    return PairLayout(
        before=segment(0, start),
        between=segment(ends[0], second),
        after=segment(ends[1], len(whole)),
        query_type=types[start],
        passage_type=types[second],
        has_types=has_types,
        query_affixes=("", ""),
        passage_affixes=("", ""),
        query_tail=_NOTHING,
        passage_lead=_NOTHING,
        passage_tail=_NOTHING,
        pad_id=_pad_id(tokenizer),
    )


def _find(whole: list[int], part: list[int], start: int) -> int:
    for place in range(start, len(whole) - len(part) + 1):
        if whole[place : place + len(part)] == part:
            return place
    raise ModelError(f"the tokenizer makes {part} of a text alone, and {whole} of the pair that it is in")


def _prompt(tokenizer: Any, template: str) -> PairLayout:
    if template.count("{query}") != 1 or template.count("{passage}") != 1:
        raise ModelError(f"template {template[:200]!r} must have {{query}} and {{passage}} once each")
    before, rest = template.split("{query}")
    if "{passage}" not in rest:
        raise ModelError(f"template {template[:200]!r} has {{passage}} before {{query}}")
    between, after = rest.split("{passage}")
    query_lead, between_lead = _trailing_space(before), _trailing_space(between)
    before, between = before[: len(before) - len(query_lead)], between[: len(between) - len(between_lead)]
    query_tail, passage_tail = _leading_space(between), _leading_space(after)
    tokenize = _tokenize(tokenizer, ("", ""))

    def segment(text: str) -> Segment:
        ids = tuple(tokenize([text])[0]) if text else ()
        return Segment(ids, (0,) * len(ids))

    return PairLayout(
        before=segment(before),
        between=segment(between[len(query_tail) :]),
        after=segment(after[len(passage_tail) :]),
        query_type=0,
        passage_type=0,
        has_types="token_type_ids" in tokenizer.model_input_names,
        query_affixes=(query_lead, query_tail),
        passage_affixes=(between_lead, passage_tail),
        query_tail=segment(query_tail),
        passage_lead=segment(between_lead),
        passage_tail=segment(passage_tail),
        pad_id=_pad_id(tokenizer),
    )


def _trailing_space(text: str) -> str:
    return text[len(text.rstrip()) :]


def _leading_space(text: str) -> str:
    return text[: len(text) - len(text.lstrip())]


def _whole(tokenizer: Any, template: str, query: str, passage: str) -> list[int]:
    if template == PAIR:
        return list(tokenizer(query, passage)["input_ids"])
    text = template.replace("{passage}", passage, 1).replace("{query}", query, 1)
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])
