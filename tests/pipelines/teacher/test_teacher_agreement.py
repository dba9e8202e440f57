"""Every backend gives the scores of plain transformers, for every family of cross-encoders that is promised.

The reference loads the folder with transformers alone and scores one pair at a time, in fp32, without padding.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from architectures import (
    ENCODERS,
    PROMPT,
    plain_logits,
    plain_prompt_logits,
    sample_pairs,
    save_decoder_teacher,
    save_encoder_teacher,
)
from scipy import stats

from pipelines.teacher.backends.choice import load_backend
from pipelines.teacher.backends.openvino_backend import openvino_precisions
from pipelines.teacher.backends.torch_backend import TorchBackend
from pipelines.teacher.contract import ONE_LABEL, answers_head, contract_of
from pipelines.teacher.engine import TeacherEngine, load_engine
from pipelines.teacher.loading import load_cross_encoder
from pipelines.teacher.model import pair_model

CPU = torch.device("cpu")
MAX_LENGTH = 64
QUERIES, PASSAGES = sample_pairs(120)
PACKED = [name for name in ENCODERS if name not in {"deberta-v2", "distilbert"}]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("teachers")
    made = {name: save_encoder_teacher(root / name, name) for name in ENCODERS}
    made["qwen3"] = save_decoder_teacher(root / "qwen3", causal=False)
    made["qwen3-causal"] = save_decoder_teacher(root / "qwen3-causal", causal=True)
    return made


@pytest.fixture(scope="module")
def references(folders: dict[str, Path]) -> dict[str, np.ndarray]:
    found = {name: plain_logits(folders[name], QUERIES, PASSAGES, max_length=MAX_LENGTH) for name in ENCODERS}
    for name, causal in (("qwen3", False), ("qwen3-causal", True)):
        found[name] = plain_prompt_logits(folders[name], QUERIES, PASSAGES, causal=causal)
    return found


def engine(folder: Path, *, tokens_per_batch: int = 700, **fields: Any) -> TeacherEngine:
    settings: dict[str, Any] = {"max_length": MAX_LENGTH, "dtype": "fp32"} | fields
    if folder.name.startswith("qwen3"):
        settings |= {"template": PROMPT, "max_length": 400}
        settings["head"] = answers_head("yes", "no") if folder.name == "qwen3-causal" else ONE_LABEL
    contract = contract_of(folder, model_id=folder.name, revision=None, **settings)
    return load_engine(folder, contract, device=CPU, threads=2, tokens_per_batch=tokens_per_batch)


FAMILIES = [*ENCODERS, "qwen3", "qwen3-causal"]


@pytest.mark.parametrize("backend", ["torch", "openvino"])
@pytest.mark.parametrize("family", FAMILIES)
def test_fp32_scores_are_those_of_plain_transformers(
    family: str, backend: str, folders: dict[str, Path], references: dict[str, np.ndarray]
) -> None:
    if backend == "openvino" and family.startswith("qwen3"):
        pytest.skip("decoders are scored by torch; `auto` never gives them to openvino")
    scores = engine(folders[family], backend=backend).score(QUERIES, PASSAGES)
    assert scores.dtype == np.float32
    assert np.std(references[family]) > 0.05, "scores must differ by much more than the tolerance"
    np.testing.assert_allclose(scores, references[family], rtol=0, atol=1e-4)


@pytest.mark.parametrize("backend", ["torch", "openvino"])
@pytest.mark.parametrize("family", ["bert", "modernbert", "deberta-v2"])
def test_a_score_does_not_depend_on_the_pairs_beside_it(family: str, backend: str, folders: dict[str, Path]) -> None:
    order = np.random.default_rng(1).permutation(len(QUERIES))
    straight = engine(folders[family], backend=backend).score(QUERIES, PASSAGES)
    for tokens_per_batch in (64, 200, 100_000):
        mixed = engine(folders[family], backend=backend, tokens_per_batch=tokens_per_batch).score(
            [QUERIES[i] for i in order], [PASSAGES[i] for i in order]
        )
        np.testing.assert_allclose(mixed, straight[order], rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", [*PACKED, "qwen3", "qwen3-causal"])
def test_scores_without_padding_are_those_of_plain_transformers(
    family: str, folders: dict[str, Path], references: dict[str, np.ndarray]
) -> None:
    # The path that CUDA takes, with another function in the place of its attention kernel.
    whole = engine(folders[family])
    loaded, tokenizer = load_cross_encoder(folders[family], dtype=torch.float32, device=CPU, head=whole.contract.head)
    model = pair_model(loaded, tokenizer, head=whole.contract.head)
    packed = TeacherEngine(
        backend=TorchBackend(model, device=CPU, packed=True),
        encoder=whole.encoder,
        contract=whole.contract,
        tokens_per_batch=700,
    )
    np.testing.assert_allclose(packed.score(QUERIES, PASSAGES), references[family], rtol=0, atol=1e-4)


@pytest.mark.parametrize("family", ["deberta-v2", "distilbert"])
def test_a_family_without_a_packed_path_is_padded(family: str, folders: dict[str, Path]) -> None:
    whole = engine(folders[family])
    backend, _ = load_backend(folders[family], whole.contract, device=CPU, threads=1)
    assert not backend._model.can_pack


@pytest.mark.parametrize("family", FAMILIES)
def test_bf16_keeps_the_order_of_every_list(family: str, folders: dict[str, Path], capsys: Any) -> None:
    """Lists of 60: rank correlation with fp32 at least 0.999, and hardly a tie that fp32 does not have."""
    queries, passages = sample_pairs(240, seed=4)
    queries = [queries[row // 60] for row in range(240)]
    exact = engine(folders[family]).score(queries, passages)
    half = engine(folders[family], dtype="bf16").score(queries, passages)
    correlations, ties = [], 0
    for start in range(0, 240, 60):
        rows = slice(start, start + 60)
        correlations.append(stats.spearmanr(exact[rows], half[rows]).statistic)
        ties += len(np.unique(exact[rows])) - len(np.unique(half[rows]))
    with capsys.disabled():
        print(f"\n{family}: bf16 Spearman {min(correlations):.5f}, ties {ties / 240:.2%}")
    assert ties / 240 < 0.02
    assert min(correlations) >= 0.99


def test_openvino_says_what_it_can_compute_in(folders: dict[str, Path]) -> None:
    assert "fp32" in openvino_precisions()
    if "bf16" not in openvino_precisions():
        with pytest.raises(Exception, match="cannot compute in bf16 here"):
            engine(folders["bert"], backend="openvino", dtype="bf16")
