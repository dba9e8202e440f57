"""What every handler needs, made once by `create_app`: settings, the store, the clients of Ray and of the pools."""

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request

from services.gateway.pool_client import PoolClient
from services.gateway.pool_states import PoolStates
from services.gateway.ray_jobs import RayJobs
from services.settings import Settings
from services.store import Store

__all__ = ["Context", "GatewayContext"]


@dataclass(frozen=True, kw_only=True)
class GatewayContext:
    """The parts of one gateway process. `poll_s`: how often an event stream looks for news, in seconds."""

    settings: Settings
    store: Store
    ray: RayJobs
    pool_states: PoolStates
    pools: PoolClient
    poll_s: float


def _context(request: Request) -> GatewayContext:
    context = request.app.state.context
    assert isinstance(context, GatewayContext)  # noqa: S101 - create_app put it there; tells mypy
    return context


Context = Annotated[GatewayContext, Depends(_context)]
"""Parameter type of a handler that wants the context."""
