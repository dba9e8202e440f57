"""A query that fills a pair alone is found before anything is trained, and named."""

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import save_cross_encoder

from pipelines.errors import DataError
from pipelines.pretrained import load_config, load_model, load_tokenizer
from pipelines.teacher.pairs import PairEncoder, pair_encoder
from pipelines.teacher.query_room import require_room

LENGTH = 24
WORD = "heart"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_cross_encoder(tmp_path_factory.mktemp("room") / "teacher")


@pytest.fixture(scope="module")
def encoder(folder: Path) -> PairEncoder:
    from transformers import AutoModelForSequenceClassification

    model = load_model(AutoModelForSequenceClassification, folder, config=load_config(folder), dtype=torch.float32)
    tokenizer = load_tokenizer(folder, model)
    return pair_encoder(folder, model, tokenizer, template="pair", max_length=LENGTH, truncation="passage_end")


def check(folder: Path, queries: dict[str, str], truncation: str = "passage_end") -> None:
    require_room(folder, queries, template="pair", max_length=LENGTH, truncation=truncation)


def test_it_says_what_scoring_would_say(folder: Path, encoder: PairEncoder) -> None:
    """For every length around the border: refused here exactly where a pair could not be cut."""
    refused = []
    for words in range(1, LENGTH + 3):
        query = " ".join([WORD] * words)
        pairs = encoder.tokenize([query], ["bone"])
        try:
            encoder.cut(pairs)
            check(folder, {"q": query})
        except DataError:
            refused.append(words)
            with pytest.raises(DataError, match=rf"'q' with {len(pairs.queries[0])} tokens"):
                check(folder, {"q": query})
    assert refused
    assert refused == list(np.arange(refused[0], LENGTH + 3)), "from the border on"


def test_the_first_is_named_and_all_are_counted(folder: Path) -> None:
    long = " ".join([WORD] * 40)
    with pytest.raises(DataError, match=r"2 queries leave no room .* within teacher\.max_length 24; the first is 'b'"):
        check(folder, {"a": WORD, "b": long, "c": long})
    check(folder, {"b": long}, truncation="longest_first")
