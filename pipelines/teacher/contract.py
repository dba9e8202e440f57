"""The score contract: everything that must be equal for two teacher scores to be comparable.

Enters: a teacher folder and its settings. Leaves: a frozen `ScoreContract` and the fingerprint that names every score
made under it. Ranked lists of different fingerprints never share a table, and every table says which contract is its.
"""

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.errors import ContractError
from pipelines.model_files import weights_hash

__all__ = ["ONE_LABEL", "PAIR", "ScoreContract", "answers_head", "answers_of", "contract_of"]

PAIR = "pair"
"""Template: query and passage as the tokenizer joins two sequences."""
ONE_LABEL = "one_label"
"""Head: the raw logit of a sequence classifier with one label."""
_ANSWERS = "answers:"


@dataclass(frozen=True, kw_only=True)
class ScoreContract:
    """How a teacher logit came to be."""

    model_id: str
    revision: str | None
    weights_hash: str
    max_length: int
    dtype: str
    """fp32, tf32, bf16 or fp16: of the matrix products. The last one, which makes the logit, is always fp32."""
    template: str = PAIR
    """`pair`, or a prompt with the places `{query}` and `{passage}`."""
    truncation: str = "passage_end"
    """What is cut when a pair is too long: passage_end, passage_start, longest_first."""
    head: str = ONE_LABEL
    """`one_label`, or `answers:yes,no`: a causal LM's logit(yes) - logit(no) after the last token."""
    backend: str = "torch"
    """torch, torch_compiled or openvino."""
    owner: str = ""
    """Of a ranker that a job trains, that job's id: its next versions are nobody else's. Empty: it stays as it is."""

    @property
    def fingerprint(self) -> str:
        """32 hex digits over all fields except `model_id` and `revision`: a moved folder is the same teacher."""
        unnamed = {"model_id", "revision"} if self.owner else {"model_id", "revision", "owner"}
        named = {key: value for key, value in self.to_dict().items() if key not in unnamed}
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


def contract_of(folder: Path, *, model_id: str, revision: str | None, **fields: Any) -> ScoreContract:
    """The contract of the teacher in `folder`; `fields` are those of `ScoreContract`, all of them concrete."""
    return ScoreContract(model_id=model_id, revision=revision, weights_hash=weights_hash(folder), **fields)


def answers_head(positive: str, negative: str) -> str:
    """The head of a causal LM that answers with one of two tokens."""
    return f"{_ANSWERS}{positive},{negative}"


def answers_of(head: str) -> tuple[str, str] | None:
    """(positive, negative) answer of a causal LM's head; None for a sequence classifier.

    Raises:
        ContractError: no head of that name is known.
    """
    if head == ONE_LABEL:
        return None
    positive, comma, negative = head.removeprefix(_ANSWERS).partition(",")
    if not (head.startswith(_ANSWERS) and comma and positive and negative):
        raise ContractError(f"head {head!r} is neither {ONE_LABEL!r} nor '{_ANSWERS}<positive>,<negative>'")
    return positive, negative
