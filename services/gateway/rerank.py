"""Reranking by a teacher, in the shape of Cohere's API: `POST /v1/rerank` and `POST /v2/rerank`.

Enters: the name of a teacher (or its model's id, where one pool alone has it), a query, at most 1,000 documents.
Leaves: the documents' places, best first. `relevance_score` is the sigmoid of the teacher's raw logit, or with
`raw_scores` that logit itself, which stands beside it as `logit` in any case: what distillation learns from.

`max_tokens_per_doc`, `max_chunks_per_doc` and `priority` are accepted and change nothing: a teacher cuts pairs by its
own `max_length`, as its contract says, and people are served in the order in which they come, before any job.
"""

import math
import uuid
from http import HTTPStatus
from typing import Annotated, Any, Literal

import anyio.to_thread
from fastapi import APIRouter
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, field_validator

from services.gateway.context import Context, GatewayContext
from services.gateway.pool_client import Scores, starting
from services.gateway.problems import Problem
from services.store import Teacher, TeacherTable

__all__ = ["PATHS", "router"]

PATHS = ("/v1/rerank", "/v2/rerank")
_MOST_DOCUMENTS = 1000
_MOST_NAMES = 20

router = APIRouter(tags=["rerank"])

_Ignored = Annotated[int, Field(ge=0)] | None


def _as_utf8(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError("is no text: half of a surrogate pair stands alone in it") from error
    return text


_Text = Annotated[str, AfterValidator(_as_utf8)]


class _Rerank(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    model: Annotated[str, Field(min_length=1, max_length=512)]
    query: Annotated[_Text, Field(min_length=1)]
    top_n: Annotated[int, Field(ge=1)] | None = None
    raw_scores: bool = False
    max_tokens_per_doc: _Ignored = None
    max_chunks_per_doc: _Ignored = None
    priority: _Ignored = None


class RerankDocument(BaseModel):
    """A document whose `text` is ranked; its other fields, texts too, come back with it."""

    model_config = ConfigDict(frozen=True, extra="allow")
    __pydantic_extra__: dict[str, _Text] = Field(init=False)

    text: _Text


def _as_document(value: Any) -> Any:
    return {"text": value} if isinstance(value, str) else value


_Document = Annotated[RerankDocument, BeforeValidator(_as_document, json_schema_input_type=str | RerankDocument)]


class RerankV1(_Rerank):
    """Body of POST /v1/rerank."""

    documents: Annotated[list[_Document], Field(min_length=1, max_length=_MOST_DOCUMENTS)]
    return_documents: bool = False
    rank_fields: list[str] | None = None

    @field_validator("rank_fields")
    @classmethod
    def _text_alone(cls, fields: list[str] | None) -> list[str] | None:
        if fields not in (None, ["text"]):
            raise ValueError("is not supported: put what is to be ranked into each document's text")
        return fields


class RerankV2(_Rerank):
    """Body of POST /v2/rerank."""

    documents: Annotated[list[_Text], Field(min_length=1, max_length=_MOST_DOCUMENTS)]


class RerankResult(BaseModel):
    """One document's place; `index` is its position in the request."""

    index: int
    relevance_score: float
    logit: float
    document: RerankDocument | None = None


class ApiVersion(BaseModel):
    """Whose shape the reply has."""

    version: Literal["1", "2"]


class BilledUnits(BaseModel):
    """Cohere's unit; nothing is billed here."""

    search_units: int = 1


class RerankMeta(BaseModel):
    """As Cohere's."""

    api_version: ApiVersion
    billed_units: BilledUnits = BilledUnits()


class RerankReply(BaseModel):
    """Documents by falling relevance; equals in the order in which they came."""

    id: str
    results: list[RerankResult]
    meta: RerankMeta
    model: str
    """The teacher's name."""
    model_version: int
    """Of its weights."""
    contract: str
    """Fingerprint of what made the logits: logits of two contracts are not to be compared."""


@router.post("/v1/rerank", response_model_exclude_none=True)
async def rerank_v1(body: RerankV1, context: Context) -> RerankReply:
    """Rerank texts or objects with a `text`; `return_documents` sends them back."""
    reply = await _rerank(context, body, [document.text for document in body.documents], "1")
    if not body.return_documents:
        return reply
    results = [item.model_copy(update={"document": body.documents[item.index]}) for item in reply.results]
    return reply.model_copy(update={"results": results})


@router.post("/v2/rerank", response_model_exclude_none=True)
async def rerank_v2(body: RerankV2, context: Context) -> RerankReply:
    """Rerank texts."""
    return await _rerank(context, body, body.documents, "2")


async def _rerank(
    context: GatewayContext, body: _Rerank, documents: list[str], version: Literal["1", "2"]
) -> RerankReply:
    with context.pools.room():
        teacher = await anyio.to_thread.run_sync(_ready_teacher, context, body.model)
        scores = await context.pools.score(teacher.name, body.query, documents)
    return RerankReply(
        id=str(uuid.uuid4()),
        results=_ranked(scores, raw=body.raw_scores)[: body.top_n],
        meta=RerankMeta(api_version=ApiVersion(version=version)),
        model=teacher.name,
        model_version=scores.weights_version,
        contract=scores.contract,
    )


def _ranked(scores: Scores, *, raw: bool) -> list[RerankResult]:
    """By the logit, whose order is still seen where the sigmoid has become 1."""
    order = sorted(range(len(scores.logits)), key=lambda index: -scores.logits[index])
    return [
        RerankResult(index=index, relevance_score=logit if raw else _sigmoid(logit), logit=logit)
        for index in order
        for logit in [scores.logits[index]]
    ]


def _sigmoid(logit: float) -> float:
    small = math.exp(-abs(logit))  # never overflows
    return (1.0 if logit >= 0 else small) / (1.0 + small)


def _ready_teacher(context: GatewayContext, model: str) -> Teacher:
    """The teacher that is meant, noted as used, if it can be asked now.

    Raises:
        Problem: 404 unknown, 409 wanted by nobody, 503 not there (yet).
    """
    table = TeacherTable(context.store)
    teacher = _wanted_teacher(table, model)
    if context.pools.due_for_touch(teacher.name):
        table.touch(teacher.name)  # first: what sleeps wakes up
    if not teacher.replicas:
        raise starting(teacher.name, "it was scaled to zero, and wakes up now")
    states = context.pool_states.get()
    state = (states or {}).get(teacher.name)
    if states is not None and not (state and state.running):
        if state and state.failed:
            detail = f"teacher {teacher.name!r} could not be deployed: {state.message}"
            raise Problem(HTTPStatus.SERVICE_UNAVAILABLE, "teacher_failed", detail)
        raise starting(teacher.name, (state and state.message) or "Serve is deploying it")
    return teacher


def _wanted_teacher(table: TeacherTable, model: str) -> Teacher:
    wanted = table.wanted()
    by_name = [teacher for teacher in wanted if teacher.name == model]
    by_model = [teacher for teacher in wanted if teacher.contract.get("model_id") == model]
    if len(found := by_name or by_model) == 1:
        return found[0]
    if any(teacher.name == model for teacher in table.all()):
        detail = f"teacher {model!r} is neither pinned nor used by an unfinished job; POST /v1/teachers pins it"
        raise Problem(
            HTTPStatus.CONFLICT, "teacher_not_wanted", detail, param="model", headers={"x-should-retry": "false"}
        )
    names = ", ".join(teacher.name for teacher in (by_model or wanted)[:_MOST_NAMES]) or "none"
    why = "several teachers have the model" if by_model else "there is no teacher"
    detail = f"{why} {model[:200]!r}; teachers in use: {names}"
    raise Problem(HTTPStatus.NOT_FOUND, "teacher_not_found", detail, param="model")
