"""A score is the model's raw logit and nothing else: not of its batch, not of padding, not of where the folder lies."""

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from tiny import ASPECTS, FILLER, TOPICS

from pipelines.corpus.dataset import Dataset
from pipelines.errors import ContractError, DataError, ModelError
from pipelines.teacher.contract import ScoreContract, contract_of
from pipelines.teacher.engine import TeacherEngine, load_engine
from pipelines.teacher.scorer import InProcessHost, ScoreRequest


def contract(folder: Path, **changes: Any) -> ScoreContract:
    settings = {"model_id": "teacher", "revision": None, "max_length": 48, "dtype": "fp32"} | changes
    return contract_of(folder, **settings)


def engine(folder: Path, *, tokens_per_batch: int = 512, **changes: Any) -> TeacherEngine:
    return load_engine(
        folder, contract(folder, **changes), device=torch.device("cpu"), tokens_per_batch=tokens_per_batch
    )


@pytest.fixture(scope="module")
def pairs(dataset: Dataset) -> tuple[list[str], list[str]]:
    """480 pairs: every query but the pool's with a spread of documents."""
    rng = np.random.default_rng(0)
    passages = dataset.passages()
    queries = [text for text in dataset.queries["text"].to_pylist()[:20] for _ in range(24)]
    return queries, [passages[i] for i in rng.integers(0, len(passages), size=len(queries))]


def plain_logits(folder: Path, queries: list[str], passages: list[str]) -> np.ndarray:
    """One pair at a time, unpadded, as the model card of any cross-encoder shows it."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    logits = []
    with torch.no_grad():
        for query, passage in zip(queries, passages, strict=True):
            tokens = tokenizer(query, passage, truncation="only_second", max_length=48, return_tensors="pt")
            logits.append(model(**tokens).logits.item())
    return np.array(logits)


def test_scores_are_the_raw_logits_of_plain_transformers(
    teacher_folder: Path, pairs: tuple[list[str], list[str]]
) -> None:
    # Activated or filtered scores (a sigmoid, say) would saturate into ties; padding must not leak into a score.
    queries, passages = (texts[:100] for texts in pairs)
    ours = engine(teacher_folder).score(queries, passages)
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours, plain_logits(teacher_folder, queries, passages), rtol=0, atol=1e-4)
    assert ours.max() - ours.min() > 3, "logits must differ by much more than the tolerance for this to mean anything"


@pytest.mark.parametrize("tokens_per_batch", [64, 200, 100_000])
def test_a_score_does_not_depend_on_the_pairs_beside_it(
    teacher_folder: Path, pairs: tuple[list[str], list[str]], tokens_per_batch: int
) -> None:
    queries, passages = (texts[:100] for texts in pairs)
    order = np.random.default_rng(1).permutation(len(queries))
    straight = engine(teacher_folder).score(queries, passages)
    mixed = engine(teacher_folder, tokens_per_batch=tokens_per_batch).score(
        [queries[i] for i in order], [passages[i] for i in order]
    )
    # This teacher's logits are near -40, where 1e-5 is two steps of fp32; at a logit of 10 this is 2e-5 and less.
    np.testing.assert_allclose(mixed, straight[order], rtol=1e-6, atol=1e-5)


def test_the_same_request_gives_the_same_bits(teacher_folder: Path, pairs: tuple[list[str], list[str]]) -> None:
    # What a pool with one, or with three, replicas stores must be equal; each of them loads the folder on its own.
    queries, passages = (texts[:60] for texts in pairs)
    first = engine(teacher_folder).score(queries, passages)
    assert first.tobytes() == engine(teacher_folder).score(queries, passages).tobytes()


def test_bf16_keeps_the_order_of_scores(teacher_folder: Path, pairs: tuple[list[str], list[str]]) -> None:
    queries, passages = pairs
    exact = engine(teacher_folder).score(queries, passages)
    half = engine(teacher_folder, dtype="bf16").score(queries, passages)
    assert half.dtype == np.float32
    assert stats.spearmanr(exact, half).statistic >= 0.999
    assert float(np.abs(exact - half).max()) < 0.05 * float(exact.max() - exact.min())


def test_no_pairs_are_no_scores(teacher_folder: Path) -> None:
    scores = engine(teacher_folder).score([], [])
    assert scores.shape == (0,)
    assert scores.dtype == np.float32


def test_lists_of_different_length_are_refused(teacher_folder: Path) -> None:
    with pytest.raises(ValueError, match="2 queries for 1 passages"):
        engine(teacher_folder).score(["a", "b"], ["c"])


def test_the_query_stays_whole_and_the_passage_is_cut_from_the_right(teacher_folder: Path) -> None:
    # 3 special tokens and a query of 10 leave 35 tokens of passage in 48.
    scorer = engine(teacher_folder)
    query, passage = " ".join(FILLER), " ".join(f"{word}" for word in (TOPICS * 3)[:35])
    full, longer, shorter = scorer.score([query] * 3, [passage, passage + " eye" * 500, passage.rsplit(" ", 1)[0]])
    assert longer == pytest.approx(full, abs=1e-5)
    assert abs(full - shorter) > 1e-4
    other_end = scorer.score([query.replace("chronic", "rare")], [passage + " eye" * 500])
    assert abs(float(other_end[0]) - longer) > 1e-4, "the query's last word must still be read"


def test_a_query_longer_than_its_passage_still_stays_whole(teacher_folder: Path) -> None:
    # "Longest first", the usual default, would cut the question here: 3 special tokens and 30 of query leave 15.
    scorer = engine(teacher_folder)
    query, passage = " ".join((FILLER * 3)[:30]), " ".join((TOPICS * 3)[:15])
    fits, longer, other = scorer.score([query, query, query[:-7] + "rare"], [passage, passage + " eye" * 10, passage])
    assert longer == pytest.approx(fits, abs=1e-5)
    assert abs(float(other - fits)) > 1e-4, "the query's last word must be read"


def test_a_query_that_leaves_no_room_is_an_error_with_both_numbers(teacher_folder: Path) -> None:
    # Cutting it would score another question; tokenizers themselves only say "sequence too short".
    scorer = engine(teacher_folder, max_length=16)
    fits, too_long = "heart " * 12, "heart " * 13
    assert np.isfinite(scorer.score([fits], ["lung eye"])).all()
    with pytest.raises(DataError, match=r"query 'heart .* has 13 tokens; teacher.max_length 16"):
        scorer.score(["lung", too_long], ["heart", "heart"])


def test_a_logit_that_is_not_finite_is_an_error_and_not_a_score(teacher_folder: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    broken = Path(shutil.copytree(teacher_folder, tmp_path / "broken"))
    weights = load_file(broken / "model.safetensors")
    weights["classifier.bias"].fill_(float("nan"))
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"nan.*'heart'"):
        engine(broken).score(["heart"], ["lung"])


def test_a_folder_that_is_not_the_contracts_is_refused(teacher_folder: Path, encoder_folder: Path) -> None:
    # A replica that loads other weights would fill a contract's table with another teacher's scores.
    with pytest.raises(ContractError, match="contract"):
        load_engine(encoder_folder, contract(teacher_folder), device=torch.device("cpu"), tokens_per_batch=64)


def test_a_length_beyond_the_positions_is_refused_at_load(teacher_folder: Path) -> None:
    with pytest.raises(ModelError, match=r"teacher\.max_length is 513"):
        engine(teacher_folder, max_length=513)


def test_the_in_process_host_scores_requests_in_order_and_lazily(teacher_folder: Path) -> None:
    taken: list[int] = []
    encoder = engine(teacher_folder).encoder

    def requests() -> Any:
        for key in range(3):
            taken.append(key)
            yield ScoreRequest(key, encoder.tokenize([f"what is {ASPECTS[key]}"], ["heart"]))

    with InProcessHost(tokens_per_batch=64).host(teacher_folder, contract(teacher_folder)) as scorer:
        assert scorer.contract == contract(teacher_folder)
        assert scorer.weights_version == 0
        results = scorer.score_all(requests(), expected_pairs=3)
        first = next(results)
        assert (first.key, first.logits.shape, taken) == (0, (1,), [0])
        assert [answer.key for answer in results] == [1, 2]


def test_a_fingerprint_is_the_teachers_and_not_the_folders(teacher_folder: Path, tmp_path: Path) -> None:
    # A moved or renamed folder is the same teacher: its scores must be found again.
    moved = Path(shutil.copytree(teacher_folder, tmp_path / "elsewhere"))
    here = contract(teacher_folder)
    assert contract(moved, model_id="another name", revision="v2").fingerprint == here.fingerprint
    assert len(here.fingerprint) == 32


@pytest.mark.parametrize("field", ["weights_hash", "max_length", "dtype", "template", "truncation", "head", "backend"])
def test_a_fingerprint_changes_with_everything_that_changes_a_score(teacher_folder: Path, field: str) -> None:
    here = contract(teacher_folder)
    other = dataclasses.replace(here, **{field: 47 if field == "max_length" else "other"})
    assert other.fingerprint != here.fingerprint


def test_a_contract_survives_json_and_refuses_other_fields(teacher_folder: Path) -> None:
    here = contract(teacher_folder)
    assert ScoreContract.from_dict(here.to_dict()) == here
    for wrong in ({**here.to_dict(), "extra": 1}, {"model_id": "x"}):
        with pytest.raises(ContractError, match="not a score contract"):
            ScoreContract.from_dict(wrong)
