"""Numbers that an objective learns together with the student: temperatures, scales, biases.

Enters: the terms of a job, with `learn` naming parameters. Leaves: a module whose `of(term)` gives those parameters
as tensors with gradient. Positive ones are learned as logarithms (CLIP, arXiv 2103.00020). `keep_in_bounds` holds them
where CLIP holds its own: a temperature below 0.01 makes any batch's softmax one-hot. It moves the parameter and not
its value in the graph, so that one which reached a bound still has a gradient to come back by.
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
        self._bounds: dict[str, tuple[float, float]] = {}
        for term in objective:
            for name in term.learn:
                start = float(getattr(term, name))
                positive = term.LEARNABLE[name] == "positive"
                heads = getattr(term, "heads", None)
                stored = torch.full((heads,) if heads else (), math.log(start) if positive else start)
                self._values[_key(term, name)] = nn.Parameter(stored)
                if positive:
                    self._bounds[_key(term, name)] = _bounds(name, start)

    def of(self, term: Term) -> dict[str, Tensor]:
        """Keyword arguments that replace the term's own numbers."""
        stored = {name: self._values[_key(term, name)] for name in term.learn}
        return {name: value.exp() if term.LEARNABLE[name] == "positive" else value for name, value in stored.items()}

    @torch.no_grad()
    def keep_in_bounds(self) -> None:
        """Bring back what the last optimizer step moved out; to be called between steps."""
        for key, (low, high) in self._bounds.items():
            self._values[key].clamp_(low, high)

    def report(self, objective: Sequence[Term]) -> Mapping[str, Tensor]:
        """`{"<term>.<parameter>": mean value}`, for the learning curve."""
        return {
            f"{term.name}.{name}": value.detach().mean() for term in objective for name, value in self.of(term).items()
        }


def _key(term: Term, parameter: str) -> str:
    return f"{term.name}_{parameter}"


def _bounds(name: str, start: float) -> tuple[float, float]:
    """Of the logarithm; a term that starts beyond CLIP's bounds may stay where it starts."""
    if name == "temperature":
        return math.log(min(start, _SMALLEST_TEMPERATURE)), math.inf
    return -math.inf, math.log(max(start, _LARGEST_SCALE))
