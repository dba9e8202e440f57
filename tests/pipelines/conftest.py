"""Tiny models and data, built once per session; tests must not write into them."""

from pathlib import Path

import pytest
from tiny import save_cross_encoder, save_encoder, tiny_dataset, write_beir

from pipelines.corpus.dataset import Dataset


@pytest.fixture(scope="session")
def tiny_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data root with `encoder`, `teacher` and `data`, as a spec of `tiny.spec_data` names them."""
    root = tmp_path_factory.mktemp("tiny")
    save_encoder(root / "encoder")
    save_cross_encoder(root / "teacher", seed=1)
    write_beir(root / "data")
    return root


@pytest.fixture(scope="session")
def encoder_folder(tiny_root: Path) -> Path:
    return tiny_root / "encoder"


@pytest.fixture(scope="session")
def teacher_folder(tiny_root: Path) -> Path:
    return tiny_root / "teacher"


@pytest.fixture(scope="session")
def dataset(tiny_root: Path) -> Dataset:
    return tiny_dataset(tiny_root / "data")
