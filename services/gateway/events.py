"""A job's events: as pages, oldest first, or as a server-sent stream that ends when the job does.

The stream reads the same table as the pages, so it survives a restart of the gateway: the client reconnects
with `Last-Event-ID` (browsers do so by themselves) and continues after the last event it saw, whichever
gateway answers.

SSE names: `job.status`, `job.metrics` (type `metrics`), `job.event` (all others), `ping` when idle, `done` at
the end.
"""

import json
import time
from collections.abc import AsyncIterator
from typing import Annotated

import anyio
import anyio.to_thread
from fastapi import APIRouter, Header, Query
from fastapi.responses import StreamingResponse
from fastapi.sse import format_sse_event
from starlette.responses import Response

from services.gateway.context import Context, GatewayContext
from services.gateway.schemas import EventReply, Page, event_number, page
from services.store import Event, Job

__all__ = ["router"]

router = APIRouter(prefix="/v1/distillation/jobs", tags=["events"])

_BATCH = 100
_PING_EVERY_S = 15.0
_STREAM_HEADERS = {"cache-control": "no-store", "x-accel-buffering": "no"}
_NAMES = {"job.status": "job.status", "metrics": "job.metrics"}


@router.get("/{job_id}/events", response_model=Page[EventReply])
def list_events(
    job_id: str,
    context: Context,
    after: Annotated[str | None, Query(max_length=64)] = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    stream: bool = False,
    accept: Annotated[str, Header()] = "",
    last_event_id: Annotated[str | None, Header(max_length=64)] = None,
) -> Page[EventReply] | Response:
    """Events after `after`; a stream with `?stream=true` or `Accept: text/event-stream`."""
    context.store.get_job(job_id)
    cursor = 0 if after is None else event_number(after, param="after")
    if stream or "text/event-stream" in accept:
        if last_event_id:
            cursor = max(cursor, event_number(last_event_id, param="Last-Event-ID"))
        return StreamingResponse(
            _stream(context, job_id, cursor), media_type="text/event-stream", headers=_STREAM_HEADERS
        )
    events = context.store.list_events(job_id, after=cursor, limit=limit + 1)
    replies = [EventReply.of(event) for event in events]
    return page(replies, [reply.id for reply in replies], limit)


async def _stream(context: GatewayContext, job_id: str, after: int) -> AsyncIterator[bytes]:
    def read(after: int) -> tuple[Job, list[Event]]:
        # The job first: when it had ended by then, the events read afterwards are all there will ever be.
        return context.store.get_job(job_id), context.store.list_events(job_id, after=after, limit=_BATCH)

    last_sent = time.monotonic()
    while True:
        job, events = await anyio.to_thread.run_sync(read, after)
        for event in events:
            reply = EventReply.of(event)
            name = _NAMES.get(event.type, "job.event")
            yield format_sse_event(data_str=reply.model_dump_json(), event=name, id=reply.id)
            after, last_sent = event.id, time.monotonic()
        if len(events) == _BATCH:
            continue
        if job.terminal:
            data = json.dumps({"id": job.id, "status": job.status})
            yield format_sse_event(data_str=data, event="done")
            return
        if time.monotonic() - last_sent >= _PING_EVERY_S:
            yield format_sse_event(data_str="{}", event="ping")
            last_sent = time.monotonic()
        await anyio.sleep(context.poll_s)
