"""Numbers that an objective learns together with the student: temperatures, scales, biases.

Enters: the terms of a job, with `learn` naming parameters. Leaves: a module whose `of(term)` gives those parameters
as tensors with gradient. Positive ones are learned as logarithms (CLIP, arXiv 2103.00020), and kept within the
bounds that CLIP uses: a temperature below 0.01 makes any batch's softmax one-hot.
"""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from pipelines.objective_terms import Term

__all__ = ["LearnedParameters"]

_SMALLEST_TEMPERATURE = 0.01
_LARGEST_SCALE = 100.0


class LearnedParameters(nn.Module):
    """One parameter per name in a term's `learn`; a vector of `heads` numbers where the term has heads."""

    def __init__(self, objective: Sequence[Term]) -> None:
        super().__init__()
        self._values = nn.ParameterDict()
        for term in objective:
            for name in term.learn:
                start = float(getattr(term, name))
                stored = math.log(start) if term.LEARNABLE[name] == "positive" else start
                heads = getattr(term, "heads", None)
                self._values[_key(term, name)] = nn.Parameter(torch.full((heads,) if heads else (), stored))

    def of(self, term: Term) -> dict[str, Tensor]:
        """Keyword arguments that replace the term's own numbers."""
        return {name: _bounded(term, name, self._values[_key(term, name)]) for name in term.learn}

    def report(self, objective: Sequence[Term]) -> Mapping[str, Tensor]:
        """`{"<term>.<parameter>": mean value}`, for the learning curve."""
        return {
            f"{term.name}.{name}": value.detach().mean() for term in objective for name, value in self.of(term).items()
        }


def _key(term: Term, parameter: str) -> str:
    return f"{term.name}_{parameter}"


def _bounded(term: Term, name: str, stored: Tensor) -> Tensor:
    if term.LEARNABLE[name] == "real":
        return stored
    start = float(getattr(term, name))
    if name == "temperature":
        return stored.exp().clamp(min=min(start, _SMALLEST_TEMPERATURE))
    return stored.exp().clamp(max=max(start, _LARGEST_SCALE))
