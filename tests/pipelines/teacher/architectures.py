"""Tiny cross-encoders of every family that is promised, each with a tokenizer of its family's kind.

Random weights, then trained for some seconds to tell how much of a passage is about body parts: the scores of one query
differ by much more than rounding, as those of a real teacher do.
"""

import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tiny import ASPECTS, FILLER, TOPICS, WORDS, save_tokenizer

PROMPT = (
    "<|im_start|>system\nAnswer yes or no.<|im_end|>\n<|im_start|>user\n<Query>: {query}\n<Document>: {passage}"
    "<|im_end|>\n<|im_start|>assistant\n\n"
)
_SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "initializer_range": 0.2,
}
ENCODERS: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("Bert", {}),
    "electra": ("Electra", {"embedding_size": 16}),
    "roberta": ("Roberta", {"pad_token_id": 0, "max_position_embeddings": 80}),
    "xlm-roberta": ("XLMRoberta", {"pad_token_id": 0, "max_position_embeddings": 80}),
    "modernbert": ("ModernBert", {"local_attention": 8, "initializer_cutoff_factor": 2.0}),
    "modernbert-mean": ("ModernBert", {"local_attention": 8, "classifier_pooling": "mean"}),
    "deberta-v2": (
        "DebertaV2",
        {"relative_attention": True, "position_buckets": 16, "pos_att_type": ["p2c", "c2p"], "pooler_hidden_size": 32},
    ),
    "distilbert": ("DistilBert", {}),
}
"""Name -> (transformers' class prefix, settings beside the sizes)."""


def save_encoder_teacher(folder: Path, name: str, *, seed: int = 3, steps: int = 45) -> Path:
    """A sequence classifier of the family `name` with one label, over the word-piece tokenizer."""
    import transformers

    prefix, settings = ENCODERS[name]
    folder.mkdir(parents=True, exist_ok=True)
    sizes = dict(_SIZES)
    if prefix == "DistilBert":
        sizes = {"dim": 32, "n_layers": 3, "n_heads": 4, "hidden_dim": 64, "initializer_range": 0.2}
    special = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3, "cls_token_id": 2, "sep_token_id": 3}
    known = {"max_position_embeddings": 128} | special | sizes | settings
    config = getattr(transformers, f"{prefix}Config")(vocab_size=save_tokenizer(folder), num_labels=1, **known)
    torch.manual_seed(seed)
    model = getattr(transformers, f"{prefix}ForSequenceClassification")(config)
    _train(model, folder, steps=steps, texts=lambda queries, passages: (queries, passages), logit=lambda out: out[:, 0])
    model.save_pretrained(folder)
    return folder


def save_decoder_teacher(folder: Path, *, causal: bool, seed: int = 3, steps: int = 45) -> Path:
    """A Qwen3: a causal LM, or the same with a one-label head on the last token; byte-level BPE tokenizer."""
    from transformers import Qwen3Config, Qwen3ForCausalLM, Qwen3ForSequenceClassification

    folder.mkdir(parents=True, exist_ok=True)
    vocabulary, pad = _save_bpe_tokenizer(folder)
    config = Qwen3Config(
        vocab_size=vocabulary, num_labels=1, pad_token_id=pad, num_key_value_heads=2, head_dim=8, **_SIZES
    )
    torch.manual_seed(seed)
    model = (Qwen3ForCausalLM if causal else Qwen3ForSequenceClassification)(config)
    yes, no = answer_ids(folder)
    _train(
        model,
        folder,
        steps=steps,
        texts=lambda queries, passages: (list(map(prompt, queries, passages)),),
        logit=lambda out: out[:, -1, yes] - out[:, -1, no] if causal else out[:, 0],
    )
    model.save_pretrained(folder)
    return folder


def _save_bpe_tokenizer(folder: Path) -> tuple[int, int]:
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    # Qwen's own pattern: punctuation takes the line breaks that follow it, words the space before them.
    pattern = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
        r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    text = [f"<Query>: {word}?\n<Document>: {word} yes no\n" for word in WORDS] * 20
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([*text, "yes", "no"] * 3, trainer)
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<|endoftext|>",  # noqa: S106
        eos_token="<|im_end|>",  # noqa: S106
        padding_side="left",  # as Qwen's rerankers have it; nothing here may depend on that
        model_input_names=["input_ids", "attention_mask"],
    )
    wrapped.save_pretrained(folder)
    return len(wrapped), wrapped.pad_token_id


def _train(model: Any, folder: Path, *, steps: int, texts: Callable[..., Any], logit: Callable[[Any], Any]) -> None:
    """Teach `model` 4 times the share of body parts among a passage's words."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    names = set(inspect.signature(model.forward).parameters)
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
    for step in range(steps):
        queries, passages = sample_pairs(24, seed=100 + step)
        tokens = tokenizer(*texts(queries, passages), padding=True, return_tensors="pt")
        scores = logit(model(**{name: value for name, value in tokens.items() if name in names}).logits)
        wanted = [4.0 * np.mean([word in TOPICS for word in passage.split()]) for passage in passages]
        loss = (scores - torch.tensor(wanted, dtype=torch.float32)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()


def prompt(query: str, passage: str) -> str:
    """The whole text that a decoder reads."""
    return PROMPT.replace("{passage}", passage).replace("{query}", query)


def answer_ids(folder: Path) -> tuple[int, int]:
    """Of "yes" and "no"."""
    from transformers import AutoTokenizer

    yes, no = AutoTokenizer.from_pretrained(folder).convert_tokens_to_ids(["yes", "no"])
    return yes, no


def sample_pairs(count: int, *, seed: int = 0) -> tuple[list[str], list[str]]:
    """Questions with passages of 1 to 40 words; some are longer than 64 tokens leave room for."""
    rng = np.random.default_rng(seed)
    queries = [f"what is the {rng.choice(ASPECTS)} of {rng.choice(TOPICS)}?" for _ in range(count)]
    passages = []
    for _ in range(count):
        share, size = rng.random(), rng.integers(1, 70)
        about = rng.random(size) < share
        passages.append(" ".join(np.where(about, rng.choice(TOPICS, size), rng.choice([*FILLER, *ASPECTS], size))))
    return queries, passages


def plain_logits(folder: Path, queries: Sequence[str], passages: Sequence[str], *, max_length: int) -> np.ndarray:
    """One pair at a time, unpadded, fp32, as the model card of any cross-encoder shows it."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    names = set(inspect.signature(model.forward).parameters)
    logits = []
    with torch.no_grad():
        for query, passage in zip(queries, passages, strict=True):
            tokens = tokenizer(query, passage, truncation="only_second", max_length=max_length, return_tensors="pt")
            logits.append(model(**{key: value for key, value in tokens.items() if key in names}).logits.item())
    return np.array(logits)


def plain_prompt_logits(folder: Path, queries: Sequence[str], passages: Sequence[str], *, causal: bool) -> np.ndarray:
    """One prompt at a time, tokenised whole: logit(yes) - logit(no) after it, or the classifier's logit."""
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    auto = AutoModelForCausalLM if causal else AutoModelForSequenceClassification
    model = auto.from_pretrained(folder, dtype=torch.float32).eval()
    yes, no = answer_ids(folder)
    logits = []
    with torch.no_grad():
        for query, passage in zip(queries, passages, strict=True):
            out = model(**tokenizer(prompt(query, passage), add_special_tokens=False, return_tensors="pt")).logits
            logits.append(float(out[0, -1, yes] - out[0, -1, no]) if causal else out.item())
    return np.array(logits)
