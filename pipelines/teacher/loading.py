"""Load a cross-encoder, and refuse anything that would score plausible nonsense.

Enters: a checked model folder. Leaves: a model in eval mode whose one logit is trained, and its own tokenizer.
"""

from pathlib import Path
from typing import Any

import torch

from pipelines.errors import ModelError
from pipelines.model_files import model_config

__all__ = ["check_vocabulary", "load_cross_encoder"]


def load_cross_encoder(folder: Path, *, dtype: torch.dtype, device: torch.device) -> tuple[Any, Any]:
    """A sequence-classification model with one trained logit, and its tokenizer.

    Raises:
        ModelError: more or fewer than one label, weights that the checkpoint does not hold in that shape
            (transformers would initialise them at random), or a tokenizer with ids that the embedding does not have.
    """
    from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

    labels = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False).num_labels
    architectures = model_config(folder).get("architectures") or []
    if not any(name.endswith("ForSequenceClassification") for name in architectures):
        raise ModelError(
            f"teacher {folder.name!r} is {architectures or 'of unknown architecture'}, not a sequence-classification "
            "cross-encoder; give teacher.train to fine-tune one from it"
        )
    if labels != 1:
        raise ModelError(f"teacher {folder.name!r} has num_labels={labels}; a teacher has exactly 1 logit per pair")
    model, loading = AutoModelForSequenceClassification.from_pretrained(
        folder,
        dtype=dtype,
        local_files_only=True,
        trust_remote_code=False,
        use_safetensors=True,
        ignore_mismatched_sizes=True,
        output_loading_info=True,
    )
    if missing := sorted({*loading["missing_keys"], *(entry[0] for entry in loading["mismatched_keys"])}):
        raise ModelError(f"teacher {folder.name!r} lacks weights {missing[:5]}; they would be random")
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    check_vocabulary(tokenizer, model, folder)
    return model.eval().to(device), tokenizer


def check_vocabulary(tokenizer: Any, model: Any, folder: Path) -> None:
    """Refuse a tokenizer that yields ids beyond the embedding, or that knows hardly any token.

    Raises:
        ModelError: with both sizes.
    """
    rows = model.get_input_embeddings().num_embeddings
    if len(tokenizer) > rows or len(tokenizer) <= len(tokenizer.all_special_tokens):
        raise ModelError(f"{folder.name!r}: tokenizer has {len(tokenizer)} tokens, the embedding {rows} rows")
