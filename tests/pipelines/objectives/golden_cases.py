"""Reads tests/golden and compares at the tolerances its README states. Shared by the tests of this folder."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

FOLDER = Path(__file__).parents[2] / "golden"
DTYPES = (torch.float64, torch.float32)


def cases(method: str) -> list[Any]:
    return list(json.loads((FOLDER / f"{method}.json").read_text(encoding="utf-8"))["cases"])


def case_name(case: Any) -> str:
    return str(case["name"])


def leaf(values: Any, dtype: torch.dtype) -> Tensor:
    return torch.tensor(values, dtype=dtype, requires_grad=True)


def flags(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.bool)


def assert_golden(actual: Tensor, expected: Any, dtype: torch.dtype) -> None:
    """Tolerance is relative to the largest entry, as the golden README asks."""
    wanted = torch.tensor(expected, dtype=torch.float64)
    relative, absolute = (1e-9, 1e-12) if dtype == torch.float64 else (1e-4, 1e-5)
    allowed = absolute + relative * float(wanted.abs().max())
    torch.testing.assert_close(actual.double(), wanted, rtol=0, atol=allowed)
