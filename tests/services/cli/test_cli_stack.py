"""What the local stack tells its children, without starting them: the whole of it is in tests/system."""

from pathlib import Path
from typing import Any

import pytest

from services.cli import stack
from services.errors import RayUnavailable
from services.settings import GATEWAY_PORT, RAY_DASHBOARD_PORT, SERVE_PORT, Settings
from services.teacher_pool.control import PoolSettings


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Start a stack whose Ray does not come up; give the environment that Ray would have had."""

    def started(*busy: int) -> dict[str, str]:
        given: dict[str, str] = {}

        def start_ray(*, env: dict[str, str], **_: Any) -> None:
            given.update(env)
            raise RayUnavailable("not in this test")

        free = iter(range(50_000, 50_010))
        monkeypatch.setattr(stack, "free_port", lambda port: port if port and port not in busy else next(free))
        monkeypatch.setattr(stack, "start_ray", start_ray)
        with pytest.raises(RayUnavailable), stack.local_stack(root=tmp_path, data_roots=(tmp_path,)):
            raise AssertionError("the stack must not come up")
        return given

    return started


def test_the_gateway_and_serve_agree_on_a_port(environment: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """One says where the proxy listens, the other asks there; both read the same variables."""
    for name, value in environment().items():
        monkeypatch.setenv(name, value)
    settings = Settings.from_environment()
    pools = PoolSettings.of(settings)
    assert (pools.proxy_host, pools.proxy_port) == ("127.0.0.1", SERVE_PORT)
    assert settings.serve_url == f"http://127.0.0.1:{SERVE_PORT}"


@pytest.mark.parametrize(
    ("busy", "port"),
    [
        ((), SERVE_PORT),
        ((GATEWAY_PORT,), SERVE_PORT),
        ((SERVE_PORT,), 50_000),
        # Another stack runs, and its Serve will want the default port when its first teacher comes.
        ((RAY_DASHBOARD_PORT,), 50_001),
    ],
)
def test_two_stacks_do_not_wait_for_one_port(environment: Any, busy: tuple[int, ...], port: int) -> None:
    assert environment(*busy)["DUALDISTILL_SERVE_URL"] == f"http://127.0.0.1:{port}"


def test_a_hung_replica_is_killed(environment: Any) -> None:
    assert environment()["RAY_SERVE_FORCE_STOP_UNHEALTHY_REPLICAS"] == "1"
