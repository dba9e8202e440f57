"""Pairs put together from tokens of their parts are, id by id, what the tokenizer makes of the whole pair."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from architectures import PROMPT, prompt, sample_pairs, save_decoder_teacher, save_encoder_teacher
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.errors import ContractError, DataError, ModelError
from pipelines.model_files import tokenizer_hash
from pipelines.pretrained import load_folder_tokenizer
from pipelines.spec_sections.models import PROMPTS
from pipelines.teacher.layout import pair_layout
from pipelines.teacher.pairs import PairEncoder
from pipelines.teacher.truncation import kept_lengths
from pipelines.tokens import TokenPairs

QUERIES, PASSAGES = sample_pairs(60, seed=7)
PASSAGES[0] = "  spaces at both ends, and UPPER case \n\n with breaks  "
PASSAGES[1] = ""


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = save_encoder_teacher(tmp_path_factory.mktemp("pairs") / "bert", "bert", steps=0)
    settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    settings["model_input_names"] = ["input_ids", "token_type_ids", "attention_mask"]  # as BERT's own has it
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_decoder_teacher(tmp_path_factory.mktemp("pairs") / "qwen", causal=True, steps=0)


def encoder(folder: Path, *, template: str = "pair", max_length: int = 48, truncation: str = "passage_end") -> Any:
    tokenizer = load_folder_tokenizer(folder)
    return PairEncoder(
        tokenizer=tokenizer,
        tokenizer_hash=tokenizer_hash(folder),
        layout=pair_layout(tokenizer, template),
        max_length=max_length,
        truncation=truncation,
    )


def assembled(ours: PairEncoder, queries: list[str], passages: list[str]) -> list[dict[str, list[int]]]:
    pairs = ours.tokenize(queries, passages)
    batch = ours.assemble(pairs, ours.cut(pairs), np.arange(len(queries)))
    ends = np.cumsum(batch.lengths)
    types = batch.token_types if batch.token_types is not None else np.zeros_like(batch.input_ids)
    return [
        {"input_ids": batch.input_ids[end - size : end].tolist(), "token_type_ids": types[end - size : end].tolist()}
        for end, size in zip(ends, batch.lengths, strict=True)
    ]


@pytest.mark.parametrize(("truncation", "theirs"), [("passage_end", "only_second"), ("longest_first", "longest_first")])
@pytest.mark.parametrize("max_length", [24, 37, 48, 400])
def test_pairs_are_the_tokenizers_own(bert: Path, truncation: str, theirs: str, max_length: int) -> None:
    ours = encoder(bert, max_length=max_length, truncation=truncation)
    whole = ours.tokenizer(QUERIES, PASSAGES, truncation=theirs, max_length=max_length)
    found = assembled(ours, QUERIES, PASSAGES)
    assert [pair["input_ids"] for pair in found] == whole["input_ids"]
    assert [pair["token_type_ids"] for pair in found] == whole["token_type_ids"]


def test_a_passage_may_lose_its_start_instead(bert: Path) -> None:
    ours = encoder(bert, max_length=16, truncation="passage_start")
    (found,) = assembled(ours, ["heart"], ["lung " * 30 + "eye ear bone"])
    text = ours.tokenizer.decode(found["input_ids"])
    assert text == "[CLS] heart [SEP] " + "lung " * 9 + "eye ear bone [SEP]"


@pytest.mark.parametrize("template", [PROMPT, PROMPTS["qwen3_reranker"], "Is {passage} ? no: {query}"])
def test_prompts_are_the_tokenizers_own(qwen: Path, template: str) -> None:
    if template.index("{passage}") < template.index("{query}"):
        with pytest.raises(ModelError, match=r"\{passage\} before \{query\}"):
            encoder(qwen, template=template)
        return
    ours = encoder(qwen, template=template, max_length=2000)
    # A text of white space alone melts into that of the prompt: no part can be cached for it.
    queries, passages = QUERIES[2:], PASSAGES[2:]
    for found, query, passage in zip(assembled(ours, queries, passages), queries, passages, strict=True):
        text = template.replace("{passage}", passage).replace("{query}", query)
        assert found["input_ids"] == ours.tokenizer(text, add_special_tokens=False)["input_ids"]


def test_a_cut_prompt_keeps_what_follows_the_passage(qwen: Path) -> None:
    ours = encoder(qwen, template=PROMPT, max_length=200)
    (found,) = assembled(ours, ["heart"], ["lung " * 300])
    assert len(found["input_ids"]) == 200
    text = ours.tokenizer.decode(found["input_ids"])
    start, end = prompt("heart", "{passage}").split("{passage}")
    assert text.startswith(start)
    assert text.endswith(end)


@pytest.mark.parametrize("truncation", ["passage_end", "passage_start", "longest_first"])
def test_white_space_of_a_prompt_outlives_the_cut(qwen: Path, truncation: str) -> None:
    # It is tokenised with the text beside it, and must not be cut with it.
    ours = encoder(qwen, template="Query: {query}\nText: {passage}\nRelevant:", max_length=60, truncation=truncation)
    query = "heart " * (60 if truncation == "longest_first" else 2)
    (found,) = assembled(ours, [query.strip()], [("lung " * 90).strip()])
    text = ours.tokenizer.decode(found["input_ids"])
    assert len(found["input_ids"]) == 60
    assert text.startswith("Query: heart")
    assert "\nText: " in text
    assert text.endswith("\nRelevant:")


def test_a_template_without_room_for_texts_is_refused(qwen: Path) -> None:
    fixed = encoder(qwen, template=PROMPT).layout.num_fixed
    for room in (-3, 0, 7):
        ours = encoder(qwen, template=PROMPT, max_length=fixed + room, truncation="longest_first")
        with pytest.raises(DataError, match=f"leaves {room} tokens for query and passage; the template alone has"):
            assembled(ours, ["heart"], ["lung"])


@pytest.mark.parametrize("template", ["{query}t {passage}", "{query}?\n{passage}", "{query}\n\n{passage}"])
def test_a_prompt_that_runs_into_its_texts_is_refused(qwen: Path, template: str) -> None:
    # "ear" + "t" is one token, "?" + line breaks another: the cache could not know of either.
    with pytest.raises(ModelError, match="cannot be assembled from cached tokens"):
        encoder(qwen, template=template, max_length=200)


@given(
    st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60)), min_size=1, max_size=30),
    st.integers(2, 50),
)
@settings(max_examples=300)
def test_lengths_never_exceed_the_room_and_waste_none(sizes: list[tuple[int, int]], room: int) -> None:
    queries, passages = (np.array(column) for column in zip(*sizes, strict=True))
    for truncation in ("longest_first", "passage_end", "passage_start"):
        kept_query, kept_passage = kept_lengths(queries, passages, room=room, truncation=truncation)
        assert (kept_query <= queries).all()
        assert (kept_passage <= passages).all()
        if truncation == "longest_first":
            assert (kept_query + kept_passage == np.minimum(queries + passages, room)).all()
        else:
            assert (kept_query == queries).all()
            assert (kept_passage == np.minimum(passages, np.maximum(room - queries, 0))).all()


def test_an_unknown_truncation_is_refused() -> None:
    with pytest.raises(ContractError, match="'only_first' is none of passage_end"):
        kept_lengths(np.array([1]), np.array([1]), room=5, truncation="only_first")


def test_a_query_may_be_cut_only_where_the_contract_says_so(bert: Path) -> None:
    with pytest.raises(DataError, match="leaves no room for a passage"):
        assembled(encoder(bert, max_length=16), ["heart " * 20], ["lung"])
    (found,) = assembled(encoder(bert, max_length=16, truncation="longest_first"), ["heart " * 20], ["lung"])
    assert len(found["input_ids"]) == 16


def test_ids_of_another_tokenizer_are_refused(bert: Path) -> None:
    ours = encoder(bert)
    pairs = ours.tokenize(["heart"], ["lung"])
    other = TokenPairs("0" * 64, pairs.queries, pairs.passages, pairs.query, pairs.passage)
    with pytest.raises(ContractError, match="pairs were tokenised by 000000000000"):
        ours.cut(other)


def test_a_repeated_text_is_tokenised_once(bert: Path) -> None:
    pairs = encoder(bert).tokenize(["heart"] * 5 + ["lung"], ["eye", "ear"] * 3)
    assert (len(pairs.queries), len(pairs.passages), len(pairs)) == (2, 2, 6)
    assert pairs.passage.tolist() == [0, 1, 0, 1, 0, 1]
