"""The ranker's side of a step: a cross-encoder learns to put the positive above sampled hard negatives.

Enters: a sequence-classification model and a `ListBatch` whose queries all have a positive. Leaves: listwise softmax
cross-entropy (AR2's ranker loss, arXiv 2110.03611: the positive against its negatives, mean over queries).
`new_ranker` starts one from any encoder checkpoint; the finished folder is loaded by `teacher.loading` like any other.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipelines.devices import torch_dtype
from pipelines.model_files import check_positions, copy_tokenizer
from pipelines.objectives.ranker_loss import ranker_loss
from pipelines.pretrained import load_config, load_model, load_tokenizer
from pipelines.teacher.contract import PAIR
from pipelines.teacher.pairs import PairEncoder, pair_encoder
from pipelines.training.batches import ListBatch
from pipelines.training.workers import ALONE, Workers, gather_from
from pipelines.whole_files import whole_folder

__all__ = ["new_ranker", "ranker_losses", "save_ranker"]


def new_ranker(
    folder: Path, *, max_length: int, truncation: str, dropout: float, device: torch.device
) -> tuple[Any, PairEncoder]:
    """A one-logit cross-encoder over the checkpoint in `folder` (its head is new where it has none), and its pairs.

    Raises:
        ModelError: the tokenizer does not fit the embedding, the model has fewer than `max_length` positions, or the
            checkpoint lacks weights of the encoder itself (they would be random).
    """
    from transformers import AutoModelForSequenceClassification

    config = load_config(folder, dropout=dropout)
    config.num_labels = 1
    model = load_model(
        AutoModelForSequenceClassification,
        folder,
        config=config,
        dtype=torch.float32,
        may_be_new=lambda model, name: not name.startswith(f"{model.base_model_prefix}.") or ".pooler." in name,
    )
    check_positions(model, max_length, field="teacher.max_length")
    tokenizer = load_tokenizer(folder, model)
    encoder = pair_encoder(folder, model, tokenizer, template=PAIR, max_length=max_length, truncation=truncation)
    return model.to(device), encoder


def ranker_losses(
    model: Any, encoder: PairEncoder, batch: ListBatch, *, dtype: str, workers: Workers = ALONE
) -> dict[str, Tensor]:
    """`{"loss": cross-entropy of the positive's column, mean over queries}`.

    Several workers all call it with the same batch: each scores a part of the pairs, all have the whole batch's loss.

    Raises:
        ValueError: a query of the batch has no positive.
        DataError: a query leaves no room for a passage within `max_length` tokens.
    """
    if bool((batch.positive < 0).any()):
        raise ValueError("a ranker batch holds a query without a positive")
    device = next(model.parameters()).device
    mask = batch.mask.to(device)
    cells = batch.mask.nonzero().tolist()
    pairs = encoder.tokenize(
        [batch.query_texts[query] for query, _ in cells],
        [batch.document_texts[int(batch.columns[query, column])] for query, column in cells],
    )
    parts = np.array_split(np.arange(len(pairs)), workers.world)
    own = parts[workers.rank]
    with workers.own_draws():
        if len(own):
            inputs = encoder.assemble(pairs, encoder.cut(pairs), own).padded()
            tokens = {name: torch.from_numpy(values).to(device) for name, values in inputs.items()}
            with torch.autocast(device.type, dtype=torch_dtype(dtype), enabled=dtype != "fp32"):
                logits = model(**tokens).logits[:, 0].float()
        else:  # more workers than pairs: it takes part in what all do together, backward included
            logits = torch.zeros(0, device=device).requires_grad_(torch.is_grad_enabled())
    logits = gather_from(logits, [len(part) for part in parts], workers)
    scores = torch.zeros(batch.mask.shape, device=device).masked_scatter(mask, logits)
    return {"loss": ranker_loss(scores, batch.positive.to(device), mask)}


def save_ranker(model: Any, tokenizer: Any, folder: Path, *, same_tokens_as: Path | None = None) -> None:
    """Write the ranker as a Hugging Face folder, safetensors only, replaced whole.

    With `same_tokens_as` its tokenizer is that folder's, file for file: texts tokenised for one serve the other.
    """
    with whole_folder(folder) as scratch:
        model.save_pretrained(scratch, safe_serialization=True)
        tokenizer.save_pretrained(scratch)
        if same_tokens_as:
            copy_tokenizer(same_tokens_as, scratch)
