"""The gateway process: one FastAPI app and the reconciler beside it.

Enters: `Settings` (from the environment when run by `uvicorn --factory services.gateway.app:create_app`).
Leaves: an ASGI app. Everything with a connection is made here, can be given instead (tests do), and is closed
when the app stops.
"""

import asyncio
import contextlib
import logging
import os
import socket
import uuid
from collections.abc import AsyncIterator

from fastapi import FastAPI

from services.gateway import artifacts, events, health, jobs, problems, rerank
from services.gateway import teachers as teachers_api
from services.gateway.body_limit import BodyLimit
from services.gateway.context import GatewayContext
from services.gateway.pool_client import PoolClient
from services.gateway.pool_states import PoolStates
from services.gateway.ray_jobs import RayJobs
from services.gateway.reconciler import Reconciler, TeacherPool
from services.gateway.request_id import RequestId
from services.settings import Settings
from services.store import ReconcilerSession, Store
from services.teacher_pool.control import PoolSettings, ServeControl

__all__ = ["create_app"]

_log = logging.getLogger(__name__)

_TICK_S = 1.0
_MAX_BODY_BYTES = 1 << 20
_MAX_TEXTS_BYTES = 16 << 20
"""Of a request that carries the texts it is about, and no description of a job."""


def create_app(
    settings: Settings | None = None,
    *,
    ray: RayJobs | None = None,
    teachers: TeacherPool | None = None,
    pool_states: PoolStates | None = None,
    pools: PoolClient | None = None,
    reconcile: bool = True,
    poll_s: float = 0.5,
) -> FastAPI:
    """Build the app. `reconcile=False` leaves the reconciler out: this process then only answers requests."""
    settings = settings or Settings.from_environment()
    store = Store(settings.database_url)
    ray = ray or RayJobs(settings.ray_dashboard_url, settings.ray_token)
    control = teachers or ServeControl(settings.ray_dashboard_url, settings.ray_token, PoolSettings.of(settings))
    pool_states = pool_states or PoolStates(settings.ray_dashboard_url, settings.ray_token)
    pools = pools or PoolClient(settings.serve_url, settings.ray_token)
    owner = f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex[:8]}"
    reconciler = Reconciler(session=ReconcilerSession(store, owner), ray=ray, teachers=control, settings=settings)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await asyncio.to_thread(store.migrate)
        stop = asyncio.Event()
        task = asyncio.create_task(_reconcile(reconciler, stop)) if reconcile else None
        try:
            yield
        finally:
            stop.set()
            if task is not None:
                await task
            await pools.close()
            pool_states.close()
            ray.close()
            store.close()

    app = FastAPI(
        title="dualdistill",
        summary="Distil a cross-encoder into a dual encoder.",
        lifespan=lifespan,
        docs_url=None,  # these pages load scripts from a CDN; /openapi.json stays
        redoc_url=None,
    )
    app.state.context = GatewayContext(
        settings=settings, store=store, ray=ray, pool_states=pool_states, pools=pools, poll_s=poll_s
    )
    app.add_middleware(BodyLimit, max_bytes=_MAX_BODY_BYTES, below=dict.fromkeys(rerank.PATHS, _MAX_TEXTS_BYTES))
    app.add_middleware(RequestId)  # added last, so the outermost: a refused body has an id too
    problems.install(app)
    for module in (jobs, events, artifacts, teachers_api, rerank, health):
        app.include_router(module.router)
    return app


async def _reconcile(reconciler: Reconciler, stop: asyncio.Event) -> None:
    """Tick until told to stop; a tick that is under way is finished."""
    while not stop.is_set():
        try:
            await asyncio.to_thread(reconciler.tick)
        except Exception:  # noqa: BLE001 - logged; jobs wait for the next tick, none waits for a restart
            _log.exception("the reconciler's tick failed; trying again")
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), _TICK_S)
    with contextlib.suppress(Exception):  # the lease runs out by itself when the database is away
        await asyncio.to_thread(reconciler.session.resign)
