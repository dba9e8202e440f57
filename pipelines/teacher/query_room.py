"""Queries that leave no room for a passage, found before anything is trained or scored.

Enters: queries, a teacher's folder and how it cuts pairs. Leaves: nothing, or a `DataError` that names the first. Only
queries that are long in bytes are tokenised: a token has at least one.
"""

from collections.abc import Mapping
from pathlib import Path

from pipelines.errors import DataError
from pipelines.pretrained import load_folder_tokenizer
from pipelines.teacher.layout import pair_layout

__all__ = ["require_room"]


def require_room(folder: Path, queries: Mapping[str, str], *, template: str, max_length: int, truncation: str) -> None:
    """Hold every query to what `PairEncoder.cut` will ask of it.

    Args:
        folder: of the teacher.
        queries: id -> text.
        template: of the pairs, see `ScoreContract.template`.
        max_length: tokens of a pair.
        truncation: `longest_first` cuts queries, too; the others keep them whole.

    Raises:
        DataError: some query fills a pair alone.
        ModelError: the template cannot be assembled from tokens of its parts.
    """
    if truncation == "longest_first":
        return
    tokenizer = load_folder_tokenizer(folder)
    layout = pair_layout(tokenizer, template)
    room = max_length - layout.num_fixed
    long = [query_id for query_id, text in queries.items() if len(text.encode()) >= room]
    tokens = layout.query_tokens(tokenizer)([queries[query_id] for query_id in long]) if long else []
    found = [(query_id, len(ids)) for query_id, ids in zip(long, tokens, strict=True) if len(ids) >= room]
    if found:
        query_id, length = found[0]
        raise DataError(
            f"{len(found)} queries leave no room for a passage within teacher.max_length {max_length}; the first is "
            f"{query_id!r} with {length} tokens: {queries[query_id][:80]!r}. Raise max_length, take them out, or set "
            "teacher.truncation: longest_first"
        )
