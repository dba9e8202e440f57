"""The one place where transformers loads anything: local safetensors, no remote code, no weight left to chance.

Enters: a checked model folder. Leaves: its config, its model with every weight from the checkpoint, its own tokenizer.
transformers fills missing or misshapen weights with random numbers and says so in a log line only; here it is an error,
except for the parts that the caller is about to train from scratch.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from pipelines.errors import ModelError

__all__ = ["load_config", "load_folder_tokenizer", "load_model", "load_tokenizer", "quiet_loading"]

_LOCAL: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
_DROPOUTS = (
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "classifier_dropout",
    "seq_classif_dropout",
    "pooler_dropout",
    "embd_pdrop",
    "resid_pdrop",
    "attn_pdrop",
    "mlp_dropout",
    "embedding_dropout",
    "attention_dropout",
    "dropout",
)


def load_config(folder: Path, *, dropout: float | None = None) -> Any:
    """The model's config; `dropout` replaces every dropout probability that it has."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder, **_LOCAL)
    for name in _DROPOUTS:
        if dropout is not None and hasattr(config, name):
            setattr(config, name, dropout)
    return config


def load_model(
    auto_class: Any,
    folder: Path,
    *,
    config: Any,
    dtype: torch.dtype,
    may_be_new: Callable[[Any, str], bool] = lambda _model, _name: False,
) -> Any:
    """A model whose weights all come from the checkpoint.

    Args:
        auto_class: one of transformers' `AutoModel...` classes.
        folder: the checkpoint.
        config: of the model to build, which may be smaller than the checkpoint.
        dtype: of the weights.
        may_be_new: whether a weight of that name of the model may be missing: it is unused, or will be trained.

    Raises:
        ModelError: names the first weights that would have been random.
    """
    model, loading = auto_class.from_pretrained(
        folder,
        config=config,
        dtype=dtype,
        use_safetensors=True,
        ignore_mismatched_sizes=True,
        output_loading_info=True,
        **_LOCAL,
    )
    absent = {*loading["missing_keys"], *(entry[0] for entry in loading["mismatched_keys"])}
    if missing := sorted(name for name in absent if not may_be_new(model, name)):
        raise ModelError(f"checkpoint {folder.name!r} lacks weights {missing[:5]}; they would be random")
    return model


def load_tokenizer(folder: Path, model: Any) -> Any:
    """The folder's own tokenizer, held against the model's embedding.

    Raises:
        ModelError: it yields ids beyond the embedding, or knows hardly any token; with both sizes.
    """
    tokenizer = load_folder_tokenizer(folder)
    rows = model.get_input_embeddings().num_embeddings
    if len(tokenizer) > rows or len(tokenizer) <= len(tokenizer.all_special_tokens):
        raise ModelError(f"{folder.name!r}: tokenizer has {len(tokenizer)} tokens, the embedding {rows} rows")
    return tokenizer


def load_folder_tokenizer(folder: Path) -> Any:
    """The tokenizer of a checked model folder, when the model itself is not needed."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder, **_LOCAL)


def quiet_loading() -> None:
    """Stop transformers from drawing progress bars and load reports into logs; processes call it once, at start."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
