"""What a step knows, as one flat dictionary of documented names: the same in every logger, event and gauge.

Enters: losses, norms, times and counts of one step or of several together. Leaves: `{name: finite number}`, named as
in `METRIC_NAMES`. Temperatures are there whether they are learned or not: a loss means nothing without its own.
"""

import math
import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from pipelines.errors import ObjectiveError
from pipelines.objective_terms import Term

__all__ = ["METRIC_NAMES", "is_due", "is_metric_name", "step_metrics"]

METRIC_NAMES: Mapping[str, str] = MappingProxyType(
    {
        "loss": "weighted sum of the terms, what is minimised",
        "loss/<term>": "a term before its weight; also of weight 0, and `matryoshka_invariance`",
        "parameter/<term>.<name>": "what the term learns, and its `temperature` in any case; mean over heads",
        "grad_norm": "of all gradients together, before clipping at `training.max_grad_norm`",
        "learning_rate": "of the student's weights",
        "queries_per_s": "queries trained on, per second",
        "texts_per_s": "queries and documents encoded, per second",
        "tokens_per_s": "their tokens, padding excluded, per second",
        "data_wait_share": "share of the time that training waited for batches; near 1: the teacher is the limit",
        "health/uniformity": "of the documents, log mean exp(-2 squared distance); 0 is collapsed, -4 well spread",
        "health/alignment": "mean squared distance of query and positive; 0 is the same vector, 2 orthogonal",
        "health/effective_rank": "dimensions that the documents use; 1 is collapsed, at most documents or dimensions",
        "health/modality_gap": "distance between the mean query and the mean document; 0 is none, 2 the most",
    }
)
"""Name or pattern, and meaning: the table of docs/operations.md."""

_PATTERNS = [re.compile(re.sub(r"<\w+>", r"\\w+", re.escape(name).replace(r"\<", "<"))) for name in METRIC_NAMES]


def is_metric_name(name: str) -> bool:
    """Whether `METRIC_NAMES` says what it means."""
    return any(pattern.fullmatch(name) for pattern in _PATTERNS)


def is_due(step: int, *, total_steps: int, every_steps: int) -> bool:
    """Whether a step's numbers are to be told: each `every_steps`th, and the first and the last."""
    return step in {1, total_steps} or step % every_steps == 0


def step_metrics(
    *,
    losses: Mapping[str, float],
    objective: Sequence[Term],
    grad_norm: float,
    learning_rate: float,
    seconds: float,
    data_wait: float,
    queries: int,
    texts: int,
    tokens: int,
    health: Mapping[str, float] | None = None,
) -> dict[str, float]:
    """One flat dictionary.

    Args:
        losses: `loss`, `<term>`, `<term>.<parameter>`, as `StudentStep` returns them.
        objective: the job's terms.
        grad_norm: before clipping.
        learning_rate: of the step.
        seconds: wall time that the counts below took, waiting included; 0 leaves all rates out.
        data_wait: seconds of it in which training waited for a batch.
        queries: trained on in that time.
        texts: encoded in that time.
        tokens: of those texts, padding excluded; 0 (not counted) leaves its rate out.
        health: of `embedding_health`; None or what it lacks is left out.

    Raises:
        ObjectiveError: a number is NaN or infinite; the message has its name.
    """
    values = {_named(name): float(value) for name, value in losses.items()}
    for term in objective:
        temperature = getattr(term, "temperature", None)
        if temperature is not None:
            values.setdefault(f"parameter/{term.name}.temperature", float(temperature))
    values |= {"grad_norm": float(grad_norm), "learning_rate": float(learning_rate)}
    if seconds > 0:
        values |= {"queries_per_s": queries / seconds, "texts_per_s": texts / seconds}
        values |= {"tokens_per_s": tokens / seconds} if tokens else {}
        values |= {"data_wait_share": data_wait / seconds}
    values |= {f"health/{name}": float(value) for name, value in (health or {}).items()}
    for name, value in values.items():
        if not math.isfinite(value):
            raise ObjectiveError(f"training metric {name} is {value}")
    return values


def _named(name: str) -> str:
    if name == "loss":
        return name
    return f"parameter/{name}" if "." in name else f"loss/{name}"
