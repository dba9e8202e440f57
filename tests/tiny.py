"""Tiny real things for tests: a tokenizer, BERT encoders and cross-encoders with random weights, a BEIR folder, a spec.

Everything is saved and loaded by the libraries themselves, as a user's models and data would be; only the sizes are
small. Weights are random but seeded, and scaled up so that scores differ by much more than rounding.
"""

import json
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from pipelines.corpus.dataset import Dataset, load_dataset
from pipelines.errors import Cancelled
from pipelines.spec import DistillationSpec, parse_spec
from pipelines.tokens import TokenPairs, Tokens

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

TOPICS = ("heart", "lung", "liver", "bone", "skin", "blood", "brain", "nerve", "kidney", "eye", "ear", "muscle")
ASPECTS = ("cause", "symptom", "treatment", "risk", "test")
FILLER = ("patients", "often", "doctors", "common", "rare", "severe", "mild", "care", "study", "chronic")
QUESTION = ("what", "is", "the", "of", "which", "for", "how")
WORDS = (*TOPICS, *ASPECTS, *FILLER, *QUESTION)
NUM_TRAIN, NUM_POOL, NUM_TEST = 12, 20, 8


def save_tokenizer(folder: Path) -> int:
    """Write a lower-casing word-piece tokenizer over `WORDS`, letters as fall-back pieces; returns its size."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    letters = "abcdefghijklmnopqrstuvwxyz0123456789"
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, *letters, *(f"##{letter}" for letter in letters)]
    vocabulary = {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = Tokenizer(models.WordPiece(vocab=vocabulary, unk_token="[UNK]"))  # noqa: S106
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", vocabulary["[CLS]"]), ("[SEP]", vocabulary["[SEP]"])],
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",  # noqa: S106
        unk_token="[UNK]",  # noqa: S106
        cls_token="[CLS]",  # noqa: S106
        sep_token="[SEP]",  # noqa: S106
        mask_token="[MASK]",  # noqa: S106
        model_max_length=512,
    ).save_pretrained(folder)
    return len(vocabulary)


def bert_config(vocabulary: int, **overrides: Any) -> Any:
    """Two layers of width 32; `overrides` go to `BertConfig`."""
    from transformers import BertConfig

    settings = {
        "vocab_size": vocabulary,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "max_position_embeddings": 512,
        "initializer_range": 0.2,
    }
    return BertConfig(**(settings | overrides))


def save_encoder(folder: Path, *, seed: int = 0, **overrides: Any) -> Path:
    """A BERT encoder without a head."""
    from transformers import BertModel

    folder.mkdir(parents=True, exist_ok=True)
    config = bert_config(save_tokenizer(folder), **overrides)
    torch.manual_seed(seed)
    BertModel(config).eval().save_pretrained(folder)
    return folder


def save_cross_encoder(folder: Path, *, seed: int = 0, num_labels: int = 1, **overrides: Any) -> Path:
    """A BERT cross-encoder whose logits spread over about 10 per query, as a trained one's do."""
    from transformers import BertForSequenceClassification

    folder.mkdir(parents=True, exist_ok=True)
    config = bert_config(save_tokenizer(folder), num_labels=num_labels, **overrides)
    torch.manual_seed(seed)
    model = BertForSequenceClassification(config).eval()
    with torch.no_grad():
        model.classifier.weight.mul_(30)
    model.save_pretrained(folder)
    return folder


def write_beir(folder: Path) -> Path:
    """60 documents (5 aspects of 12 topics), 12 labelled, 20 unlabelled and 8 test queries; seeded.

    Two labelled queries have two positives; the last document reads exactly as the first.
    """
    rng = np.random.default_rng(5)
    documents = []
    for number, (topic, aspect) in enumerate((topic, aspect) for topic in TOPICS for aspect in ASPECTS):
        words = [topic, aspect, *rng.choice(FILLER, size=4 + number % 7), topic, aspect]
        documents.append({"_id": f"d{number}", "title": f"{topic} {aspect}", "text": " ".join(words)})
    documents[-1] |= {key: documents[0][key] for key in ("title", "text")}

    queries, qrels = [], {"train": [], "test": []}
    cells = rng.permutation(59)
    for number in range(NUM_TRAIN + NUM_POOL + NUM_TEST):
        topic, aspect = TOPICS[cells[number] // 5], ASPECTS[cells[number] % 5]
        split = "train" if number < NUM_TRAIN else "pool" if number < NUM_TRAIN + NUM_POOL else "test"
        queries.append({"_id": f"{split}{number}", "text": f"What is the {aspect} of {topic}?"})
        if split != "pool":
            qrels[split].append((f"{split}{number}", f"d{cells[number]}", 1))
    qrels["train"] += [("train0", f"d{cells[50]}", 2), ("train1", f"d{cells[51]}", 1), ("train2", f"d{cells[52]}", 0)]

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "qrels").mkdir()
    for name, rows in (("corpus", documents), ("queries", queries)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    for split, judged in qrels.items():
        lines = ["query-id\tcorpus-id\tscore", *("\t".join(map(str, row)) for row in judged)]
        (folder / "qrels" / f"{split}.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def spec_data(**sections: Any) -> dict[str, Any]:
    """A small job as a mapping; each section given is laid over the section of that name."""
    data: dict[str, Any] = {
        "name": "tiny",
        "seed": 3,
        "dataset": {"path": "data", "unlabelled": {"min_confidence": 0.2}},
        "teacher": {"model": {"id": "teacher"}, "max_length": 48, "dtype": "fp32", "tokens_per_batch": 512},
        "student": {"model": {"id": "encoder"}, "num_layers": 1, "max_length": 32},
        "candidates": {
            "bm25": {"top_k": 5},
            "dense": {"top_k": 4},
            "max_candidates": 6,
            "queries_per_chunk": 5,
        },
        "training": {
            "queries_per_step": 4,
            "candidates_per_query": 4,
            "learning_rate": 3e-3,
            "checkpoint_every_steps": 2,
        },
        "evaluation": {"rerank_depth": 5, "label_only_control": False},
    }
    for name, fields in sections.items():
        data[name] = data.get(name, {}) | fields if isinstance(fields, dict) else fields
    return data


def tiny_spec(**sections: Any) -> DistillationSpec:
    """`spec_data` as a spec."""
    return parse_spec(spec_data(**sections))


def tiny_dataset(folder: Path) -> Dataset:
    """The data set of `write_beir`, both splits."""
    return load_dataset(tiny_spec().dataset, folder)


class RecordingJournal:
    """Keeps what it is told; `on_progress` and `on_check` may raise, to be the crash or the cancellation of a test."""

    def __init__(self) -> None:
        self.phases: list[str] = []
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.numbers: dict[str, float | str] = {}
        self.on_progress: Callable[[dict[str, float | str]], None] = lambda _: None
        self.cancelled = False
        self._lock = threading.Lock()

    def phase(self, name: str) -> None:
        self.phases.append(name)

    def progress(self, **numbers: float | str) -> None:
        with self._lock:
            self.numbers |= numbers
        self.on_progress(numbers)

    def event(self, type_: str, message: str, **data: Any) -> None:
        with self._lock:
            self.events.append((type_, {"message": message, **data}))

    def check_cancelled(self) -> None:
        if self.cancelled:
            raise Cancelled("asked to stop")

    def named(self, type_: str) -> list[dict[str, Any]]:
        """Data of all events of one type."""
        return [data for found, data in self.events if found == type_]


def byte_pairs(pairs: "Sequence[tuple[str, str]]") -> TokenPairs:
    """Pairs of texts whose token ids are their UTF-8 bytes: `texts_of` reads them back."""
    queries, passages = zip(*pairs, strict=True) if pairs else ((), ())
    rows = np.arange(len(pairs), dtype=np.int64)
    made = [Tokens.of(list(text.encode()) for text in texts) for texts in (queries, passages)]
    return TokenPairs("bytes", made[0], made[1], rows, rows)


def texts_of(pairs: TokenPairs) -> list[tuple[str, str]]:
    """The texts of `byte_pairs`."""
    return [
        (bytes(pairs.queries[query].tolist()).decode(), bytes(pairs.passages[passage].tolist()).decode())
        for query, passage in zip(pairs.query, pairs.passage, strict=True)
    ]
