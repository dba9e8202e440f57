"""Ranked lists as flat arrays: what filters, exports and readers compute on.

Enters: rows of the table (all of `RANKED_SCHEMA`, or some of its columns). Leaves: `ListColumns`, one number per list
or one per candidate, decoded when first asked for. Candidates of all lists stand one after the other; `offsets` says
where a list begins.
"""

from functools import cached_property
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

__all__ = ["NO_RANK", "UNJUDGED", "ListColumns"]

Number = TypeVar("Number", bound=np.generic)
UNJUDGED = -1
"""What stands in `relevance` where nobody judged."""
NO_RANK = -1
"""What stands in `bm25_rank` and `dense_rank` where that source did not find the candidate."""


class ListColumns:
    """Q lists with C candidates in all, in the rows' order, candidates best first."""

    def __init__(self, rows: pa.Table) -> None:
        self._rows = rows
        lists = rows["candidates"].combine_chunks()
        self._candidates: pa.StructArray = lists.flatten()
        lengths = np.asarray(lists.value_lengths().fill_null(0), dtype=np.int64)
        self.offsets: npt.NDArray[np.int64] = np.concatenate([[0], np.cumsum(lengths)])
        """[Q + 1]; list i is `slice(offsets[i], offsets[i + 1])` of every array over candidates."""

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def num_candidates(self) -> int:
        """C."""
        return int(self.offsets[-1])

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Candidates of each list, [Q]."""
        return np.diff(self.offsets)

    @cached_property
    def list_of(self) -> npt.NDArray[np.int64]:
        """The list that each candidate belongs to, [C]."""
        return np.repeat(np.arange(len(self)), self.lengths)

    @cached_property
    def rank(self) -> npt.NDArray[np.int64]:
        """Each candidate's place in its list, from 0 (the teacher's best), [C]."""
        return np.arange(self.num_candidates) - np.repeat(self.offsets[:-1], self.lengths)

    @cached_property
    def query_id(self) -> npt.NDArray[np.object_]:
        """[Q] str."""
        return _strings(self._rows["query_id"].combine_chunks())

    @cached_property
    def weights_version(self) -> npt.NDArray[np.int32]:
        """[Q]."""
        return _numbers(self._rows["weights_version"].combine_chunks(), np.int32, missing=0)

    @cached_property
    def doc_id(self) -> npt.NDArray[np.object_]:
        """[C] str."""
        return _strings(self.doc_ids)

    @cached_property
    def doc_ids(self) -> pa.StringArray:
        """[C], as Arrow keeps them: a fraction of the memory of Python's strings."""
        return self._candidates.field("doc_id")

    @cached_property
    def teacher_logit(self) -> npt.NDArray[np.float32]:
        """[C], raw."""
        return _numbers(self._candidates.field("teacher_logit"), np.float32, missing=np.nan)

    @cached_property
    def student_score(self) -> npt.NDArray[np.float32]:
        """[C]; NaN where the dense source did not find the candidate."""
        return _numbers(self._candidates.field("student_score"), np.float32, missing=np.nan)

    @cached_property
    def bm25_rank(self) -> npt.NDArray[np.int32]:
        """[C], from 0; `NO_RANK` where BM25 did not find it."""
        return _numbers(self._candidates.field("bm25_rank"), np.int32, missing=NO_RANK)

    @cached_property
    def dense_rank(self) -> npt.NDArray[np.int32]:
        """[C], from 0; `NO_RANK` where the dense source did not find it."""
        return _numbers(self._candidates.field("dense_rank"), np.int32, missing=NO_RANK)

    @cached_property
    def relevance(self) -> npt.NDArray[np.int16]:
        """[C], the judged grade; `UNJUDGED` where there is none."""
        return _numbers(self._candidates.field("relevance"), np.int16, missing=UNJUDGED)


def _strings(array: pa.Array) -> npt.NDArray[np.object_]:
    values: npt.NDArray[np.object_] = array.to_numpy(zero_copy_only=False)
    return values


def _numbers(array: pa.Array, dtype: type[Number], *, missing: float) -> npt.NDArray[Number]:
    values = array.fill_null(pa.scalar(missing, array.type)) if array.null_count else array
    numbers: npt.NDArray[Number] = np.asarray(values.to_numpy(zero_copy_only=False)).astype(dtype, copy=False)
    return numbers
