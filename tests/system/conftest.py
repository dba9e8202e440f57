"""One real local stack per session: Ray head with token auth, gateway, SQLite; real data, tiny random models."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from tiny import save_encoder

from services.cli.client import GatewayClient
from services.cli.stack import Stack, local_stack

QUICKSTART = Path(__file__).parents[2] / "examples" / "quickstart"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.system)


@pytest.fixture(scope="session")
def data_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The quickstart's real data beside a tiny encoder: what jobs of these tests may read."""
    root = tmp_path_factory.mktemp("data-root")
    save_encoder(root / "encoder")
    shutil.copytree(QUICKSTART / "data", root / "medquad")
    return root


@pytest.fixture(scope="session")
def stack(data_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with local_stack(
        root=tmp_path_factory.mktemp("root"), data_roots=(data_root,), port=0, dashboard_port=0
    ) as running:
        yield running


@pytest.fixture
def client(stack: Stack) -> Iterator[GatewayClient]:
    with GatewayClient(stack.gateway_url) as connected:
        yield connected
