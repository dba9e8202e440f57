"""Score requests of real lengths, and the files in which they reach the processes that send them.

Enters: the quickstart's questions and passages (MedQuAD). Leaves: requests as `fill_round` makes them, lists of one
question with passages drawn at random, as token ids: what a driver does before it has them (mining, the look-up of
known scores, the token cache) is in no benchmark of the pool.
"""

import gzip
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from peers.scoring_task import QUICKSTART

from pipelines.model_files import tokenizer_hash
from pipelines.pretrained import load_folder_tokenizer
from pipelines.teacher.layout import pair_layout
from pipelines.tokens import TokenPairs, Tokens, runs

__all__ = ["Texts", "load_requests", "read_texts", "save_requests"]


@dataclass(frozen=True, eq=False)
class Texts:
    """The data set as one tokenizer reads it."""

    tokenizer_hash: str
    queries: Tokens
    passages: Tokens

    @classmethod
    def of(cls, folder: Path) -> "Texts":
        """As the tokenizer in the model folder `folder` reads it."""
        tokenizer = load_folder_tokenizer(folder)
        layout = pair_layout(tokenizer, "pair")
        queries, passages = read_texts()
        return cls(
            tokenizer_hash(folder),
            Tokens.of(layout.query_tokens(tokenizer)(queries)),
            Tokens.of(layout.passage_tokens(tokenizer)(passages)),
        )

    def request(
        self,
        rng: np.random.Generator,
        *,
        lists: int,
        per_list: int,
        between: tuple[int, int] = (0, 1 << 30),
        longest: int | None = None,
    ) -> TokenPairs:
        """`lists` questions with `per_list` passages each.

        Args:
            rng: draws them.
            lists: questions.
            per_list: passages of each.
            between: only passages with so many tokens, the upper bound excluded.
            longest: passages end after so many tokens.
        """
        lengths = self.passages.lengths
        fit = np.flatnonzero((lengths >= between[0]) & (lengths < between[1]))
        queries, query = np.unique(rng.integers(0, len(self.queries), size=lists), return_inverse=True)
        passages, passage = np.unique(rng.choice(fit, size=lists * per_list), return_inverse=True)
        kept = self.passages.take(passages)
        return TokenPairs(
            self.tokenizer_hash,
            self.queries.take(queries),
            kept if longest is None else _cut(kept, longest),
            np.repeat(query, per_list),
            passage,
        )


def read_texts() -> tuple[list[str], list[str]]:
    """(questions, passages) of the quickstart."""
    with gzip.open(QUICKSTART / "corpus.jsonl.gz", "rt", encoding="utf-8") as stream:
        documents = [json.loads(line) for line in stream]
    lines = (QUICKSTART / "queries.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["text"] for line in lines], [f"{d['title']} {d['text']}".strip() for d in documents]


def save_requests(path: Path, requests: Sequence[TokenPairs]) -> Path:
    """Write them to one file."""
    pairs = TokenPairs.joined(requests)
    arrays = {"query": pairs.query, "passage": pairs.passage, "sizes": np.array([len(part) for part in requests])}
    for name, tokens in (("queries", pairs.queries), ("passages", pairs.passages)):
        arrays |= {f"{name}_values": tokens.values, f"{name}_offsets": tokens.offsets}
    np.savez(path, hash=pairs.tokenizer_hash, allow_pickle=False, **arrays)
    return path


def load_requests(path: Path) -> list[TokenPairs]:
    """What `save_requests` wrote."""
    found = np.load(path)
    queries, passages = (Tokens(found[f"{n}_values"], found[f"{n}_offsets"]) for n in ("queries", "passages"))
    pairs = TokenPairs(str(found["hash"]), queries, passages, found["query"], found["passage"])
    ends = np.cumsum(found["sizes"])
    return [pairs.take(np.arange(end - size, end)) for end, size in zip(ends, found["sizes"], strict=True)]


def _cut(tokens: Tokens, longest: int) -> Tokens:
    lengths = np.minimum(tokens.lengths, longest)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    return Tokens(tokens.values[runs(tokens.offsets[:-1], lengths)], offsets)
