"""Real teachers for pools: MiniLM-L6 with one logit, and a tiny random one for when seconds count.

Enters: a folder to write to. Leaves: the wanted state of a pool of one replica, on all cores that there are.
"""

from pathlib import Path
from typing import Any

from peers.scoring_task import minilm, minilm_encoder

from pipelines.devices import available_cpus
from pipelines.teacher.backends.choice import resolve_backend
from pipelines.teacher.contract import contract_of
from services.store import Teacher
from services.teacher_pool.control import application_name

__all__ = ["TOKENS_PER_BATCH", "real_teacher"]

TOKENS_PER_BATCH = 1024
"""Given, so that no calibration decides what is compared; see docs/performance.md for how little it matters."""


def real_teacher(folder: Path, *, max_length: int, tiny: bool = False) -> Teacher:
    """One that computes in fp32, with the backend that `auto` means on CPUs."""
    name = "tiny-random" if tiny else "minilm-l6"
    _save_tiny(folder) if tiny else minilm(folder, max_length=max_length)
    backend, dtype = resolve_backend("auto", "fp32", device_type="cpu", folder=folder)
    more: dict[str, Any] = {"max_length": max_length, "dtype": dtype, "backend": backend}
    contract = contract_of(folder, model_id=name, revision=None, **more)
    return Teacher(
        name=application_name(contract),
        model_dir=str(folder),
        contract=contract.to_dict(),
        cpus_per_replica=available_cpus(),
        tokens_per_batch=TOKENS_PER_BATCH,
    )


def _save_tiny(folder: Path) -> None:
    """2 layers of 64, random weights, MiniLM's tokenizer."""
    import torch
    from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

    tokenizer = AutoTokenizer.from_pretrained(minilm_encoder())
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer),
        num_labels=1,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=128,
        initializer_range=0.2,
    )
    BertForSequenceClassification(config).eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
