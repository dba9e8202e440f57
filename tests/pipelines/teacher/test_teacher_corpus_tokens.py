"""A data set is tokenised once per tokenizer, whatever the weights, the job or the number of pairs a text is in."""

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import RecordingJournal, save_cross_encoder

from pipelines.corpus.dataset import Dataset
from pipelines.corpus.token_cache import Tokenize
from pipelines.teacher.contract import contract_of
from pipelines.teacher.corpus_tokens import CorpusTokens, corpus_tokens
from pipelines.teacher.engine import load_engine
from pipelines.teacher.layout import PairLayout


def tokens(root: Path, dataset: Dataset, folder: Path) -> tuple[CorpusTokens, dict[str, int]]:
    journal = RecordingJournal()
    found = corpus_tokens(root, dataset, folder, template="pair", journal=journal)
    (event,) = journal.named("tokens.ready")
    if event["tokenized"]:
        total = len(dataset.documents) + len(dataset.queries)
        assert journal.numbers == {"texts_tokenized": total, "texts_total": total}
    return found, event


def test_each_text_once_and_never_again(
    dataset: Dataset, teacher_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenized: list[str] = []
    real = PairLayout.passage_tokens

    def noted(self: PairLayout, tokenizer: object) -> Tokenize:
        tokenize = real(self, tokenizer)

        def wrapped(texts: list[str], /) -> object:
            tokenized.extend(texts)
            return tokenize(texts)

        return wrapped  # type: ignore[return-value]

    total = len(dataset.documents) + len(dataset.queries)
    first, event = tokens(tmp_path, dataset, teacher_folder)
    assert (event["tokenized"], event["reused"]) == (total, 0)
    monkeypatch.setattr(PairLayout, "passage_tokens", noted)
    # Other weights, the same tokenizer: a second job, or a ranker after its next round.
    other = save_cross_encoder(tmp_path / "other", seed=9)
    second, event = tokens(tmp_path, dataset, other)
    assert (event["tokenized"], event["reused"]) == (0, total)
    ids = [("train0", "d3"), ("train1", "d3"), ("pool12", "d0")] * 20
    assert len(second.pairs(ids)) == 60
    assert not [text for text in tokenized if text in set(dataset.passages())], "pairs come from the cache alone"
    np.testing.assert_array_equal(first.document_lengths(), second.document_lengths())


def test_pairs_from_the_cache_score_as_their_texts(dataset: Dataset, teacher_folder: Path, tmp_path: Path) -> None:
    contract = contract_of(teacher_folder, model_id="t", revision=None, max_length=48, dtype="fp32", backend="torch")
    engine = load_engine(teacher_folder, contract, device=torch.device("cpu"), threads=1, tokens_per_batch=512)
    found, _ = tokens(tmp_path, dataset, teacher_folder)
    ids = [(query, document) for query in ("train0", "test32") for document in ("d0", "d7", "d59")]
    texts = [(dataset.query_text(query), dataset.passage(document)) for query, document in ids]
    wanted = engine.score([query for query, _ in texts], [passage for _, passage in texts])
    assert engine.score_pairs(found.pairs(ids)).tobytes() == wanted.tobytes()


def test_an_unknown_id_is_an_error(dataset: Dataset, teacher_folder: Path, tmp_path: Path) -> None:
    found, _ = tokens(tmp_path, dataset, teacher_folder)
    with pytest.raises(KeyError, match="nobody"):
        found.pairs([("train0", "nobody")])
