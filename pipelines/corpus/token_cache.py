"""The token cache: every text of a data set tokenised once per tokenizer, kept as memory-mapped Arrow.

Enters: texts in row order and a tokenizer. Leaves: a folder of Arrow files, `_ROWS_PER_PART` texts each, and a
`TokenCache` that reads them through memory maps: a corpus far larger than memory costs no memory. A part is written
aside and renamed, so what is there is whole: a killed run goes on at the first missing part. The next part is
tokenised (by the tokenizer's own threads) while the last one is turned into Arrow and written.
"""

import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipelines.errors import DataError

__all__ = ["TokenCache", "Tokenize", "build_token_cache"]

_ROWS_PER_PART = 8192
_COLUMN = "token_ids"
_SCHEMA = pa.schema([pa.field(_COLUMN, pa.list_(pa.int32()))])


class Tokenize(Protocol):
    """A tokenizer without special tokens and without a limit: one list of ids per text."""

    def __call__(self, texts: Sequence[str], /) -> Sequence[Sequence[int]]:
        """Token ids of each text."""
        ...


class TokenCache:
    """Reads rows of a finished cache; safe to share between threads."""

    def __init__(self, folder: Path, num_rows: int) -> None:
        self._folder = folder
        self._num_rows = num_rows
        self._part = lru_cache(maxsize=None)(self._open)

    def __len__(self) -> int:
        return self._num_rows

    def __getitem__(self, row: int) -> npt.NDArray[np.int32]:
        """The ids of one text, a view of the memory map.

        Raises:
            IndexError: there is no such row.
        """
        if not 0 <= row < self._num_rows:
            raise IndexError(f"row {row} of {self._num_rows} tokenised texts")
        values, offsets = self._part(row // _ROWS_PER_PART)
        place = row % _ROWS_PER_PART
        return values[offsets[place] : offsets[place + 1]]

    def lengths(self) -> npt.NDArray[np.int64]:
        """Tokens of every text, in row order."""
        parts = [np.diff(self._part(number)[1]) for number in range(_num_parts(self._num_rows))]
        return np.concatenate(parts).astype(np.int64) if parts else np.empty(0, dtype=np.int64)

    def _open(self, number: int) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
        column = _read(_path(self._folder, number))
        return column.values.to_numpy(), column.offsets.to_numpy()


def build_token_cache(
    folder: Path,
    texts: Sequence[str],
    tokenize: Tokenize,
    *,
    on_part: Callable[[int, int], None] = lambda _new, _all: None,
) -> TokenCache:
    """Tokenise the texts that `folder` does not hold yet.

    Args:
        folder: belongs to exactly these texts and this tokenizer; its name must say both.
        texts: in the row order of the cache.
        tokenize: called with up to `_ROWS_PER_PART` texts at a time, never twice with the same row.
        on_part: told, after each part, the rows tokenised by this call and those in the cache; may raise to stop.

    Raises:
        DataError: a part cannot be written.
    """
    missing = [n for n in range(_num_parts(len(texts))) if not _is_whole(folder, n, _rows_in(n, len(texts)))]
    if missing:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with ThreadPoolExecutor(max_workers=1, thread_name_prefix="token-cache") as writer:
                done, writing = 0, None
                there = len(texts) - sum(_rows_in(number, len(texts)) for number in missing)
                for number in missing:
                    rows = tokenize(texts[number * _ROWS_PER_PART : (number + 1) * _ROWS_PER_PART])
                    if writing is not None:
                        done += writing.result()
                        on_part(done, there + done)
                    writing = writer.submit(_write, _path(folder, number), rows)
                done += writing.result() if writing else 0
                on_part(done, there + done)
        except OSError as error:
            raise DataError(f"the token cache {folder} cannot be written: {error}") from error
    return TokenCache(folder, len(texts))


def _num_parts(num_rows: int) -> int:
    return -(-num_rows // _ROWS_PER_PART)


def _rows_in(number: int, num_rows: int) -> int:
    return min(_ROWS_PER_PART, num_rows - number * _ROWS_PER_PART)


def _path(folder: Path, number: int) -> Path:
    return folder / f"{number:06d}.arrow"


def _is_whole(folder: Path, number: int, num_rows: int) -> bool:
    path = _path(folder, number)
    if not path.is_file():
        return False
    try:
        return len(_read(path)) == num_rows
    except (pa.ArrowInvalid, OSError):
        return False  # cut short by a full disk or a lost machine: it is made anew


def _read(path: Path) -> pa.ListArray:
    with pa.memory_map(str(path)) as source:
        return pa.ipc.open_file(source).get_batch(0).column(0)


def _write(path: Path, rows: Sequence[Sequence[int]]) -> int:
    offsets = np.zeros(len(rows) + 1, dtype=np.int32)
    np.cumsum([len(row) for row in rows], out=offsets[1:])
    values = np.fromiter((token for row in rows for token in row), dtype=np.int32, count=int(offsets[-1]))
    column = pa.ListArray.from_arrays(pa.array(offsets), pa.array(values))
    scratch = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
    with pa.OSFile(str(scratch), "wb") as sink, pa.ipc.new_file(sink, _SCHEMA) as writer:
        writer.write_batch(pa.record_batch([column], schema=_SCHEMA))
    scratch.replace(path)
    return len(rows)
