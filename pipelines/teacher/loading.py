"""Load a cross-encoder, and refuse anything that would score plausible nonsense.

Enters: a checked model folder and the head that its contract names. Leaves: a model in eval mode whose one logit is
trained, and its own tokenizer.
"""

from pathlib import Path
from typing import Any

import torch

from pipelines.errors import ModelError
from pipelines.model_files import model_config
from pipelines.pretrained import load_config, load_model, load_tokenizer
from pipelines.teacher.contract import ONE_LABEL

__all__ = ["load_cross_encoder"]


def load_cross_encoder(
    folder: Path, *, dtype: torch.dtype, device: torch.device, head: str = ONE_LABEL
) -> tuple[Any, Any]:
    """A sequence-classification model with one trained logit, or a causal LM, and its tokenizer.

    Raises:
        ModelError: the folder's architecture does not have the head; more or fewer than one label; weights that the
            checkpoint does not hold in that shape (transformers would initialise them at random); a tokenizer with
            ids that the embedding does not have.
    """
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    config = load_config(folder)
    architectures = model_config(folder).get("architectures") or []
    causal = any(name.endswith("ForCausalLM") for name in architectures)
    if head != ONE_LABEL:
        if not causal:
            raise ModelError(
                f"teacher {folder.name!r} is {architectures or 'of unknown architecture'}; "
                "teacher.answers is for causal language models"
            )
        model = load_model(AutoModelForCausalLM, folder, config=config, dtype=dtype)
        return model.eval().to(device), load_tokenizer(folder, model)
    if causal:
        raise ModelError(
            f"teacher {folder.name!r} is a causal language model {architectures}: it scores by one of two answers; "
            "give teacher.answers and teacher.template"
        )
    if not any(name.endswith("ForSequenceClassification") for name in architectures):
        raise ModelError(
            f"teacher {folder.name!r} is {architectures or 'of unknown architecture'}, not a sequence-classification "
            "cross-encoder; give teacher.train to fine-tune one from it"
        )
    if config.num_labels != 1:
        raise ModelError(
            f"teacher {folder.name!r} has num_labels={config.num_labels}; a teacher has exactly 1 logit per pair"
        )
    model = load_model(AutoModelForSequenceClassification, folder, config=config, dtype=dtype)
    return model.eval().to(device), load_tokenizer(folder, model)
