"""TeacherEngine: the one place where a cross-encoder's forward pass happens.

Enters: parallel lists of queries and passages, text untouched. Leaves: one raw fp32 logit per pair, in order.
The order in which pairs arrive decides their batches, so the same call gives the same bits.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from pipelines.devices import torch_dtype
from pipelines.errors import ContractError, ModelError
from pipelines.model_files import check_positions, weights_hash
from pipelines.teacher.contract import ScoreContract
from pipelines.teacher.loading import load_cross_encoder
from pipelines.teacher.packing import pack_by_tokens
from pipelines.teacher.pairs import encode_pairs

__all__ = ["TeacherEngine", "load_engine"]


class TeacherEngine:
    """Scores pairs under one contract."""

    def __init__(
        self,
        *,
        model: Any,
        tokenizer: Any,
        contract: ScoreContract,
        device: torch.device,
        tokens_per_batch: int,
    ) -> None:
        self.contract = contract
        self._model = model
        self._tokenizer = tokenizer
        self._device = device
        self._tokens_per_batch = tokens_per_batch

    @torch.inference_mode()
    def score(self, queries: Sequence[str], passages: Sequence[str]) -> npt.NDArray[np.float32]:
        """Raw logits [n] of `queries[i]` with `passages[i]`; higher is more relevant.

        Raises:
            DataError: a query leaves no room for a passage within `max_length` tokens.
            ModelError: a logit is NaN or infinite.
        """
        if len(queries) != len(passages):
            raise ValueError(f"{len(queries)} queries for {len(passages)} passages")
        if not queries:
            return np.empty(0, dtype=np.float32)
        encoded = encode_pairs(self._tokenizer, queries, passages, max_length=self.contract.max_length)
        lengths = np.array([len(ids) for ids in encoded["input_ids"]], dtype=np.int64)
        logits = np.empty(len(queries), dtype=np.float32)
        for rows in pack_by_tokens(lengths, self._tokens_per_batch):
            padded = self._tokenizer.pad(
                {name: [values[row] for row in rows] for name, values in encoded.items()},
                padding="longest",
                return_tensors="pt",
            ).to(self._device)
            logits[rows] = self._model(**padded).logits[:, 0].float().cpu().numpy()
        if not np.isfinite(logits).all():
            bad = int(np.flatnonzero(~np.isfinite(logits))[0])
            raise ModelError(f"teacher logit {logits[bad]} for query {queries[bad]!r}: weights or dtype are broken")
        return logits


def load_engine(folder: Path, contract: ScoreContract, *, device: torch.device, tokens_per_batch: int) -> TeacherEngine:
    """Load the teacher in `folder` onto `device` and hold it to its contract.

    Raises:
        ContractError: the folder's weights are not those that the contract names.
        ModelError: the folder is no usable cross-encoder.
    """
    found = weights_hash(folder)
    if found != contract.weights_hash:
        raise ContractError(
            f"teacher folder {folder.name!r} has weights {found[:12]}, contract {contract.weights_hash[:12]}"
        )
    model, tokenizer = load_cross_encoder(folder, dtype=torch_dtype(contract.dtype), device=device)
    check_positions(model, contract.max_length, field="teacher.max_length")
    return TeacherEngine(
        model=model, tokenizer=tokenizer, contract=contract, device=device, tokens_per_batch=tokens_per_batch
    )
