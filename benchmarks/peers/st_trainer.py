"""`SentenceTransformerTrainer` on the benchmark's lists, with `MarginMSELoss` or `DistillKLDivLoss`.

Enters: settings, a `Meter`. Leaves: a function that trains for one turn. The peer is given what helps it: rows in order
(no sampler to shuffle them), no evaluation, saving, logging, reports, progress bar or check for NaN. Its defaults
otherwise: AdamW, clipping at 1, a linear schedule, each column padded to its longest text and the documents merged
into one forward pass, which the losses do by themselves since 6.0. Batches are tokenised in the trainer's own process
on a CPU, where a worker would take a core from the computation, and by two workers beside a GPU. The label is the list
of all scores, which both losses take; `MarginMSELoss` makes margins of them, from a similarity that is scaled as ours
is. `DistillKLDivLoss` multiplies by the student's temperature squared, which `list_kl` does when asked.
"""

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from students.lists import MARGIN_SCALE
from students.meter import Meter

__all__ = ["sentence_transformers"]


def sentence_transformers(settings: dict[str, Any], meter: Meter, device: torch.device) -> Callable[[], None]:
    """`trainer.train()` of a new trainer around the same model."""
    from datasets import Dataset, disable_progress_bars
    from sentence_transformers import (
        SentenceTransformer,
        SentenceTransformerTrainer,
        SentenceTransformerTrainingArguments,
        losses,
    )
    from sentence_transformers.util import pairwise_dot_score
    from torch.utils.data import BatchSampler, SequentialSampler
    from transformers import TrainerCallback

    disable_progress_bars()
    dropouts = dict.fromkeys(("hidden_dropout_prob", "attention_probs_dropout_prob"), settings["dropout"])
    model = SentenceTransformer(
        settings["model"],
        device=device.type,
        config_kwargs=dropouts,
        local_files_only=True,
    )
    if model.max_seq_length != settings["max_length"]:
        raise SystemExit(f"the peer cuts at {model.max_seq_length} tokens, not {settings['max_length']}")
    model.model_card_data.widget = [{"text": "given, so that the trainer does not look for examples"}]
    meter.watch_encoder(model[0].auto_model)
    rows = Dataset.from_dict(json.loads(Path(settings["rows"]).read_text(encoding="utf-8")))

    class Turn(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
            control.should_training_stop = meter.step()

    def scaled_dot(queries: torch.Tensor, documents: torch.Tensor) -> torch.Tensor:
        return MARGIN_SCALE * pairwise_dot_score(queries, documents)

    def in_order(dataset: Any, *, batch_size: int, drop_last: bool, **_: Any) -> BatchSampler:
        return BatchSampler(SequentialSampler(dataset), batch_size, drop_last)

    def turn() -> None:
        loss = {
            "margin_mse": lambda: losses.MarginMSELoss(model, similarity_fct=scaled_dot),
            "distill_kl": lambda: losses.DistillKLDivLoss(model, student_temperature=0.05, teacher_temperature=1.0),
        }[settings["loss"]]()
        loss.register_forward_hook(lambda _module, _inputs, value: meter.loss(value))
        with tempfile.TemporaryDirectory() as folder:
            arguments = SentenceTransformerTrainingArguments(
                output_dir=folder,
                num_train_epochs=1,
                per_device_train_batch_size=settings["queries_per_step"],
                learning_rate=3e-4,
                warmup_steps=0.1,
                batch_sampler=in_order,
                bf16=settings["dtype"] == "bf16",
                use_cpu=device.type == "cpu",
                dataloader_num_workers=settings["peer_workers"],
                dataloader_pin_memory=device.type == "cuda",
                eval_strategy="no",
                save_strategy="no",
                logging_strategy="no",
                logging_nan_inf_filter=False,
                report_to="none",
                disable_tqdm=True,
            )
            trainer = SentenceTransformerTrainer(
                model=model, args=arguments, train_dataset=rows, loss=loss, callbacks=[Turn()]
            )
            trainer.train()

    return turn
