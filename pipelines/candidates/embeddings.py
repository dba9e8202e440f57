"""Embeddings on disk: rows are written as they are produced and read back block by block.

Enters: batches of embeddings, in any order of rows. Leaves: a `.npy` file, float32 [rows, dim], and a read-only memory
map of it. An encoder that fills an array in memory needs as much of it as the corpus has documents, and loses
everything when it dies on the last of them. The file gets its name when it is whole.
"""

import mmap
import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pipelines.whole_files import whole_file

__all__ = ["let_go", "write_embeddings"]

_FORMAT = np.dtype("<f4")


def write_embeddings(
    path: Path, shape: tuple[int, int], batches: Iterable[tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]]
) -> npt.NDArray[np.float32]:
    """Write `batches` to `path`, unless embeddings of that shape are there already.

    Args:
        path: ends in `.npy`; must name what is embedded and by which state of the encoder, for what is found there is
            taken to be that.
        shape: (rows, dim).
        batches: row numbers int64 [n] and their embeddings float32 [n, dim]; together every row. Not begun when the
            file is there.

    Returns:
        A read-only memory map, float32 `shape`. It stays usable when the file is removed.
    """
    if not path.is_file() or np.load(path, mmap_mode="r").shape != shape:
        # Written, not mapped: pages of a map count as this process's memory until the system takes them away.
        with whole_file(path) as scratch, scratch.open("wb", buffering=0) as file:
            header = {"descr": _FORMAT.str, "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
            first, stride = file.tell(), shape[1] * _FORMAT.itemsize
            file.truncate(first + shape[0] * stride)
            for rows, embeddings in batches:
                for row, embedding in zip(rows.tolist(), embeddings.astype(_FORMAT, copy=False), strict=True):
                    os.pwrite(file.fileno(), embedding.tobytes(), first + row * stride)
    found: npt.NDArray[np.float32] = np.load(path, mmap_mode="r")
    return found


def let_go(embeddings: object) -> None:
    """Give back the pages that reading a read-only memory map brought in; anything else is left alone.

    They stay in the system's cache, so reading them again is cheap, but no longer count as this process's memory.
    """
    if isinstance(embeddings, np.memmap) and embeddings.mode == "r":
        owner: object = embeddings.base
        if isinstance(owner, mmap.mmap):  # else it is a slice of one
            owner.madvise(mmap.MADV_DONTNEED)
