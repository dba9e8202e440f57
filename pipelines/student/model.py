"""DualEncoder: any Hugging Face encoder, pooled and normalised into one vector per text.

Enters: a checked model folder and a `StudentSpec`. Leaves: a module from texts to embeddings [n, dim] with gradient,
as served and as each of its heads sees them, and a batched, gradient-free `encode` for whole collections.
"""

import inspect
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from pipelines.errors import ModelError
from pipelines.model_files import check_positions
from pipelines.pretrained import load_config, load_model, load_tokenizer
from pipelines.spec import StudentSpec
from pipelines.student.heads import DualHeads, StudentViews, keeping_geometry
from pipelines.student.tile_attention import use_where_it_helps
from pipelines.tokens import Tokens

__all__ = ["DualEncoder", "TextKind", "load_student"]

TextKind = Literal["query", "document"]


class DualEncoder(nn.Module):
    """One tower for queries and documents; they differ by prompt only."""

    def __init__(self, *, backbone: Any, tokenizer: Any, spec: StudentSpec) -> None:
        super().__init__()
        self.backbone = backbone
        self.tokenizer = tokenizer
        self.spec = spec
        self.heads = DualHeads(self.hidden_size, spec.heads) if spec.heads else None
        self.projection = keeping_geometry(self.hidden_size, spec.projection) if spec.projection else None

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    @property
    def hidden_size(self) -> int:
        """Length of a pooled vector."""
        return int(self.backbone.config.hidden_size)

    @property
    def dimension(self) -> int:
        """Length of an embedding as it is served."""
        if self.heads:
            return self.heads.served_dimension
        return self.projection.out_features if self.projection else self.hidden_size

    def served_weight(self) -> Tensor | None:
        """The one matrix [dim, hidden] from pooled to served vectors, before their norm; None: they are the same."""
        if self.heads:
            return self.heads.served_weight()
        return self.projection.weight if self.projection else None

    def embed(self, texts: Sequence[str], kind: TextKind) -> Tensor:
        """Served embeddings [n, dim] of `texts`, with gradient when enabled; unit norm if the spec normalises."""
        return self.embed_views(texts, kind).served

    def embed_views(self, texts: Sequence[str], kind: TextKind) -> StudentViews:
        """`embed`, and the same texts as each head sees them; without heads all three are one tensor."""
        tokens = self.tokenize(texts, kind)
        return self.views(self.pooled(tokens, np.arange(len(tokens))))

    def tokenize(self, texts: Sequence[str], kind: TextKind) -> Tokens:
        """Ids of each text behind its prompt, special tokens included, cut to the spec's `max_length`."""
        ids = self.tokenizer(self._prompted(texts, kind), truncation=True, max_length=self.spec.max_length)["input_ids"]
        return Tokens.of(ids)

    def pooled(self, tokens: Tokens, rows: npt.NDArray[np.int64]) -> Tensor:
        """One forward pass: the pooled vectors float32 [rows, hidden] of some rows of `tokens`, before any head."""
        padded = tokens.padded(rows, pad_id=self.tokenizer.pad_token_id or 0)
        inputs = {name: torch.from_numpy(values).to(self.device) for name, values in padded.items()}
        return self._pool(self.backbone(**inputs).last_hidden_state, inputs["attention_mask"])

    def word_vectors(self, tokens: Tokens) -> Tensor | None:
        """The encoder's first table, looked up once for several `pooled_words`: [tokens, width], text after text.

        None where the encoder takes ids alone. The gradient of a lookup is as large as the vocabulary, whatever the
        number of tokens: a step of many forward passes should have one.
        """
        if "inputs_embeds" not in inspect.signature(self.backbone.forward).parameters:
            return None
        ids = torch.from_numpy(tokens.values).to(self.device, torch.int64)
        vectors: Tensor = self.backbone.get_input_embeddings()(ids)
        return vectors

    def pooled_words(self, words: Tensor, lengths: npt.NDArray[np.int64]) -> Tensor:
        """`pooled` of texts of `lengths` tokens, given as their `word_vectors`; padding is zeros, never attended."""
        mask = torch.from_numpy(np.arange(int(lengths.max())) < lengths[:, None]).to(self.device)
        padded = words.new_zeros((*mask.shape, words.shape[1])).masked_scatter(mask.unsqueeze(2), words)
        attended = mask.long()
        return self._pool(self.backbone(inputs_embeds=padded, attention_mask=attended).last_hidden_state, attended)

    def views(self, pooled: Tensor) -> StudentViews:
        """What is served and what each head sees of pooled vectors [n, hidden]."""
        if self.heads:
            return self.heads.views(pooled, normalize=self.spec.normalize)
        if self.projection:
            with torch.autocast(pooled.device.type, enabled=False):  # in bf16 it would not begin as the identity
                pooled = self.projection(pooled)
        served = nn.functional.normalize(pooled, dim=-1) if self.spec.normalize else pooled
        return StudentViews(served, served, served)

    def encode(self, texts: Sequence[str], kind: TextKind, *, tokens_per_batch: int = 16384) -> npt.NDArray[np.float32]:
        """Embeddings float32 [n, dim] of a whole collection, in order; `encode_batches` put together."""
        embeddings = np.empty((len(texts), self.dimension), dtype=np.float32)
        for rows, found in self.encode_batches(texts, kind, tokens_per_batch=tokens_per_batch):
            embeddings[rows] = found
        return embeddings

    def encode_batches(
        self, texts: Sequence[str], kind: TextKind, *, tokens_per_batch: int = 16384
    ) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]]:
        """Rows of `texts` int64 [b] and their embeddings float32 [b, dim], until each row has come once.

        Batches are of similar length, longest first, dropout off. The student must not be trained in between.

        Raises:
            ModelError: an embedding holds NaN or infinity.
        """
        was_training = self.training
        self.eval()
        # Characters stand in for tokens: sorting must not cost a second tokenisation of the corpus.
        lengths = np.fromiter(map(len, texts), dtype=np.int64, count=len(texts))
        order, start = np.argsort(-lengths, kind="stable"), 0
        try:
            while start < len(order):
                longest = min(self.spec.max_length, 2 + int(lengths[order[start]]) // 3)
                rows = order[start : start + max(1, tokens_per_batch // longest)]
                with torch.inference_mode():
                    embeddings = self.embed([texts[row] for row in rows], kind).float().cpu().numpy()
                if not np.isfinite(embeddings).all():
                    raise ModelError("the student's embeddings hold NaN or infinity")
                yield rows, embeddings
                start += len(rows)
        finally:
            self.train(was_training)

    def _prompted(self, texts: Sequence[str], kind: TextKind) -> list[str]:
        prompt = self.spec.query_prompt if kind == "query" else self.spec.document_prompt
        return [prompt + text for text in texts]

    def _pool(self, hidden: Tensor, attention_mask: Tensor) -> Tensor:
        if self.spec.pooling == "cls":
            pooled = hidden[:, 0]
        elif self.spec.pooling == "last_token":
            last = attention_mask.sum(dim=1).clamp(min=1) - 1  # rows are padded on the right
            pooled = hidden[torch.arange(len(hidden), device=hidden.device), last]
        else:
            weights = attention_mask.unsqueeze(-1).to(hidden.dtype)
            pooled = (hidden * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1)
        return pooled.float()


def load_student(folder: Path, spec: StudentSpec, *, dropout: float, device: torch.device) -> DualEncoder:
    """The student's starting point: the checkpoint in `folder`, cut to `spec.num_layers`, dropout as given.

    Heads and projection of the spec are new, and seeded by torch's global generator.

    Raises:
        ModelError: more layers, positions or Matryoshka dimensions are asked for than the checkpoint has, it lacks
            weights, or a `Dense` module stands behind its pooling, without which it is another model.
    """
    from transformers import AutoModel

    _refuse_dense(folder)

    config = load_config(folder, dropout=dropout)
    if hasattr(config, "use_cache"):
        config.use_cache = False  # decoders would keep keys and values for a next token that nobody asks for
    if spec.num_layers is not None:
        if spec.num_layers > config.num_hidden_layers:
            raise ModelError(
                f"student.num_layers is {spec.num_layers}, {folder.name!r} has {config.num_hidden_layers} layers"
            )
        config.num_hidden_layers = spec.num_layers
        if getattr(config, "layer_types", None):
            config.layer_types = config.layer_types[: spec.num_layers]
    backbone = load_model(
        AutoModel,
        folder,
        config=config,
        dtype=torch.float32,
        may_be_new=lambda _, name: name.startswith("pooler."),
    )
    check_positions(backbone, spec.max_length, field="student.max_length")
    tokenizer = load_tokenizer(folder, backbone)
    # Whoever loads the export pads as in training: on the right, and with something where a decoder has no padding.
    tokenizer.padding_side = "right"
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    student = DualEncoder(backbone=backbone, tokenizer=tokenizer, spec=spec)
    if spec.matryoshka and spec.matryoshka.dimensions[0] >= student.dimension:
        raise ModelError(
            f"student.matryoshka.dimensions has {spec.matryoshka.dimensions[0]}, but the student's vectors have "
            f"{student.dimension} dimensions, and a prefix must be shorter"
        )
    student.to(device)
    use_where_it_helps(student.backbone)
    return student


def _refuse_dense(folder: Path) -> None:
    modules = folder / "modules.json"
    kinds = [item["type"] for item in json.loads(modules.read_text(encoding="utf-8"))] if modules.is_file() else []
    if any(kind.rpartition(".")[2] == "Dense" for kind in kinds):
        raise ModelError(
            f"{folder.name!r} is a sentence-transformers model with a Dense module behind its pooling (dual heads and "
            "projections are exported so); a student starts from the encoder alone and would lose it. To start from "
            "that encoder nevertheless, give the folder without its modules.json"
        )
