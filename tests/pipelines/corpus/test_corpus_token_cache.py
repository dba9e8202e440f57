"""Every text is tokenised once per tokenizer: not again after a crash, not for the next job, not for its next query."""

import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from pipelines.corpus import token_cache
from pipelines.corpus.token_cache import TokenCache, build_token_cache
from pipelines.errors import DataError

TEXTS = [" ".join(str(word) for word in range(row % 7)) for row in range(50)]


class Counting:
    """Splits at spaces, notes every text that it was given, and may stop a run."""

    def __init__(self, *, dies_at: int | None = None) -> None:
        self.seen: list[str] = []
        self.dies_at = dies_at

    def __call__(self, texts: Sequence[str], /) -> list[list[int]]:
        if self.dies_at is not None and len(self.seen) >= self.dies_at:
            raise KeyboardInterrupt
        self.seen += texts
        return [[int(word) for word in text.split()] for text in texts]


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_cache, "_ROWS_PER_PART", 8)


def rows(cache: TokenCache) -> list[list[int]]:
    return [cache[row].tolist() for row in range(len(cache))]


WANTED = [[int(word) for word in text.split()] for text in TEXTS]


def test_rows_come_back_as_they_went_in_from_a_memory_map(tmp_path: Path) -> None:
    cache = build_token_cache(tmp_path / "cache", TEXTS, Counting())
    assert rows(cache) == WANTED
    assert cache.lengths().tolist() == [len(row) for row in WANTED]
    assert not cache[3].flags.owndata, "a row is a view of the file, not a copy"
    with pytest.raises(IndexError, match="row 50 of 50"):
        cache[50]


def test_nothing_is_tokenised_twice(tmp_path: Path) -> None:
    build_token_cache(tmp_path / "cache", TEXTS, Counting())
    again = Counting()
    assert rows(build_token_cache(tmp_path / "cache", TEXTS, again)) == WANTED
    assert again.seen == []


@pytest.mark.parametrize("dies_at", [8, 24, 48])
def test_a_killed_run_goes_on_where_it_stopped(tmp_path: Path, dies_at: int) -> None:
    with pytest.raises(KeyboardInterrupt):
        build_token_cache(tmp_path / "cache", TEXTS, Counting(dies_at=dies_at))
    second = Counting()
    assert rows(build_token_cache(tmp_path / "cache", TEXTS, second)) == WANTED
    assert second.seen == TEXTS[dies_at:]


def test_a_part_that_was_cut_short_is_made_anew_and_no_other(tmp_path: Path) -> None:
    build_token_cache(tmp_path / "cache", TEXTS, Counting())
    part = tmp_path / "cache" / "000002.arrow"
    part.write_bytes(part.read_bytes()[:-40])
    second = Counting()
    assert rows(build_token_cache(tmp_path / "cache", TEXTS, second)) == WANTED
    assert second.seen == TEXTS[16:24]


def test_progress_is_told_after_every_part_and_may_stop_the_run(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    build_token_cache(tmp_path / "cache", TEXTS, Counting(), on_part=lambda new, there: told.append((new, there)))
    assert told == [(rows, rows) for rows in (8, 16, 24, 32, 40, 48, 50)]
    (tmp_path / "cache" / "000001.arrow").unlink()
    told.clear()
    build_token_cache(tmp_path / "cache", TEXTS, Counting(), on_part=lambda new, there: told.append((new, there)))
    assert told == [(8, 50)], "progress counts what was there already"

    def stop(done: int, _there: int) -> None:
        raise InterruptedError(str(done))

    tokenize = Counting()
    with pytest.raises(DataError, match="cannot be written"):  # InterruptedError is an OSError
        build_token_cache(tmp_path / "stopped", TEXTS, tokenize, on_part=stop)
    assert len(tokenize.seen) < len(TEXTS)


def test_the_next_part_is_tokenised_while_one_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    second_is_tokenised = threading.Event()
    write = token_cache._write

    def slow_write(path: Path, part: Sequence[Sequence[int]]) -> int:
        if path.name.startswith("000000"):
            assert second_is_tokenised.wait(10), "writing waited for nothing"
        return write(path, part)

    class Watched(Counting):
        def __call__(self, texts: Sequence[str], /) -> list[list[int]]:
            found = super().__call__(texts)
            if len(self.seen) > 8:
                second_is_tokenised.set()
            return found

    monkeypatch.setattr(token_cache, "_write", slow_write)
    assert rows(build_token_cache(tmp_path / "cache", TEXTS, Watched())) == WANTED


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(DataError, match="file/cache cannot be written"):
        build_token_cache(tmp_path / "file" / "cache", TEXTS, Counting())


def test_no_texts_are_an_empty_cache(tmp_path: Path) -> None:
    cache = build_token_cache(tmp_path / "cache", [], Counting())
    assert len(cache) == 0
    assert cache.lengths().dtype == np.int64
