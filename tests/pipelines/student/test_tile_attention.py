"""Attention by matrix products: the same numbers as torch's, forward and backward, used where it helps only."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from pipelines.spec import StudentSpec
from pipelines.student import tile_attention
from pipelines.student.model import DualEncoder, load_student
from pipelines.student.tile_attention import IMPLEMENTATION, attend


def _inputs(dtype: torch.dtype, tokens: int = 7) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shape = (3, 2, tokens, 4)
    return [torch.randn(shape, generator=generator, dtype=dtype).requires_grad_() for _ in range(3)]


def _mask(tokens: int = 7) -> torch.Tensor:
    lengths = torch.tensor([tokens, tokens - 2, 1])
    return (torch.arange(tokens) < lengths[:, None])[:, None, None, :].expand(3, 1, tokens, tokens)


@pytest.mark.parametrize("masked", [True, False])
def test_values_and_gradients_are_those_of_the_fused_kernel(masked: bool) -> None:
    query, key, value = _inputs(torch.float64)
    mask = _mask() if masked else None
    weights = torch.randn(query.shape, dtype=torch.float64)
    found = attend(query, key, value, mask, 0.3)
    expected = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=0.3)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    of_found = torch.autograd.grad((found * weights).sum(), (query, key, value))
    of_expected = torch.autograd.grad((expected * weights).sum(), (query, key, value))
    for mine, theirs in zip(of_found, of_expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-12)


def test_gradients_by_finite_differences() -> None:
    assert torch.autograd.gradcheck(lambda *qkv: attend(*qkv, _mask(), 0.5), _inputs(torch.float64))


def test_nothing_of_the_size_of_all_pairs_of_tokens_is_kept() -> None:
    query, key, value = _inputs(torch.float32, tokens=64)
    kept: list[int] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        attend(query, key, value, None, 0.5)
    assert kept
    assert max(kept) == query.numel() < 3 * 2 * 64 * 64


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[torch.Size]:
    """Shapes that the tiles were asked for."""
    seen: list[torch.Size] = []

    def noted(query: torch.Tensor, *rest: Any) -> torch.Tensor:
        seen.append(query.shape)
        return attend(query, *rest)

    monkeypatch.setattr(tile_attention, "attend", noted)
    return seen


def _student(folder: Path, *, dropout: float = 0.0) -> DualEncoder:
    spec = StudentSpec.model_validate({"model": {"id": "x"}, "max_length": 64})
    return load_student(folder, spec, dropout=dropout, device=torch.device("cpu")).train()


def _pooled(student: DualEncoder, *, bf16: bool) -> torch.Tensor:
    tokens = student.tokenize(["one", "a somewhat longer text about the sea"], "document")
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
        return student.pooled(tokens, np.arange(len(tokens)))


def test_a_student_that_trains_in_bf16_uses_it_and_gets_the_same_gradients(
    encoder_folder: Path, calls: list[torch.Size]
) -> None:
    student = _student(encoder_folder)
    assert student.backbone.config._attn_implementation == IMPLEMENTATION
    gradients = []
    for implementation in (IMPLEMENTATION, "sdpa"):
        student.backbone.set_attn_implementation(implementation)
        before = len(calls)
        student.zero_grad()
        _pooled(student, bf16=True).square().sum().backward()
        assert (len(calls) > before) == (implementation == IMPLEMENTATION)
        found = [weight.grad for name, weight in student.named_parameters() if "attention" in name]
        gradients.append(torch.cat([grad.flatten() for grad in found if grad is not None]))
    mine, fused = gradients
    assert (mine - fused).norm() < 0.02 * fused.norm()  # bf16 has 8 bits


@pytest.mark.parametrize("case", ["fp32", "no gradient", "dropout", "long"])
def test_elsewhere_the_fused_kernel_is_used(
    case: str, encoder_folder: Path, calls: list[torch.Size], monkeypatch: pytest.MonkeyPatch
) -> None:
    student = _student(encoder_folder, dropout=0.1 if case == "dropout" else 0.0)
    if case == "long":
        monkeypatch.setattr(tile_attention, "LONGEST", 4)
    with torch.set_grad_enabled(case != "no gradient"):
        assert torch.isfinite(_pooled(student, bf16=case != "fp32")).all()
    assert not calls
