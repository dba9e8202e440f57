"""How a pair becomes tokens: the query whole, the passage cut from the right. Learning and scoring both ask here.

Enters: a tokenizer and parallel texts, untouched. Leaves: one list of token ids per pair. A ranker that learned on
pairs cut in one way and scored pairs cut in another would be a worse teacher, and nothing would say so.
"""

from collections.abc import Sequence
from typing import Any

from pipelines.errors import DataError

__all__ = ["encode_pairs"]


def encode_pairs(
    tokenizer: Any, queries: Sequence[str], passages: Sequence[str], *, max_length: int
) -> dict[str, list[list[int]]]:
    """Unpadded model inputs by name (`input_ids` ...), each [pairs][tokens], at most `max_length` tokens a pair.

    Raises:
        DataError: a query leaves no room for a passage within `max_length` tokens.
    """
    room = max_length - tokenizer.num_special_tokens_to_add(pair=True)
    distinct = list(dict.fromkeys(queries))
    for query, ids in zip(distinct, tokenizer(distinct, add_special_tokens=False)["input_ids"], strict=True):
        if len(ids) >= room:
            raise DataError(
                f"query {query[:80]!r} has {len(ids)} tokens; "
                f"teacher.max_length {max_length} leaves no room for a passage"
            )
    return dict(tokenizer(list(queries), list(passages), truncation="only_second", max_length=max_length))
