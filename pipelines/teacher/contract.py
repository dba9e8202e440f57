"""The score contract: everything that must be equal for two teacher scores to be comparable.

Enters: a teacher folder and its settings. Leaves: a frozen `ScoreContract` and the fingerprint that names every score
made under it. Ranked lists of different fingerprints never share a table.
"""

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.errors import ContractError
from pipelines.model_files import weights_hash

__all__ = ["ScoreContract", "contract_of"]


@dataclass(frozen=True, kw_only=True)
class ScoreContract:
    """How a teacher logit came to be."""

    model_id: str
    revision: str | None
    weights_hash: str
    max_length: int
    dtype: str
    template: str = "query,passage"
    truncation: str = "passage only, from the right"
    head: str = "sequence classification, 1 label, raw logit"
    backend: str = "torch"

    @property
    def fingerprint(self) -> str:
        """32 hex digits over all fields except `model_id` and `revision`: a moved folder is the same teacher."""
        named = {key: value for key, value in self.to_dict().items() if key not in {"model_id", "revision"}}
        return hashlib.sha256(json.dumps(named, sort_keys=True).encode()).hexdigest()[:32]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON-ready fields."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "ScoreContract":
        """The inverse of `to_dict`.

        Raises:
            ContractError: a field is missing or unknown.
        """
        try:
            return cls(**data)
        except TypeError as error:
            raise ContractError(f"not a score contract: {error}") from error


def contract_of(folder: Path, *, model_id: str, revision: str | None, max_length: int, dtype: str) -> ScoreContract:
    """The contract of the teacher in `folder`; `dtype` must be concrete (see `devices.resolve_dtype`)."""
    return ScoreContract(
        model_id=model_id,
        revision=revision,
        weights_hash=weights_hash(folder),
        max_length=max_length,
        dtype=dtype,
    )
