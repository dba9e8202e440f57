"""A retrieval problem of 200 documents with a known teacher, on which any objective can train a student in a second.

Every text is a hidden vector of 6 numbers that the world shows as 24 noisy features; the teacher knows the hidden
vectors, the student must find the projection of the features in which dot products order documents as the teacher does.

    python tests/pipelines/objectives/toy_problem.py     # writes tests/golden/trajectories.json anew
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from sample_inputs import call, completed
from torch import Tensor

from pipelines.objectives.registry import OBJECTIVES

TRAJECTORIES = Path(__file__).parents[2] / "golden" / "trajectories.json"
STEPS_STORED = 50
STEPS = 150
_HIDDEN, _FEATURES, _WIDTH = 6, 24, 12
_QUERIES_PER_STEP, _CANDIDATES = 16, 8


@dataclass(frozen=True)
class World:
    """Features and teacher logits of training and held-out queries against all documents."""

    queries: Tensor
    held_out: Tensor
    documents: Tensor
    teacher: Tensor
    held_out_teacher: Tensor
    start: Tensor


def world() -> World:
    """Always the same one."""
    generator = torch.Generator().manual_seed(11)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    show = draw(_HIDDEN, _FEATURES) / math.sqrt(_HIDDEN)
    noise = 3 * draw(4, _FEATURES)  # four strong directions that say nothing about relevance

    def texts(count: int) -> tuple[Tensor, Tensor]:
        hidden = torch.nn.functional.normalize(draw(count, _HIDDEN), dim=1)
        return hidden, hidden @ show + draw(count, 4) @ noise / 4 + 0.05 * draw(count, _FEATURES)

    documents, queries, held_out = texts(200), texts(160), texts(60)
    return World(
        queries=queries[1],
        held_out=held_out[1],
        documents=documents[1],
        teacher=8 * queries[0] @ documents[0].T,
        held_out_teacher=8 * held_out[0] @ documents[0].T,
        start=draw(_FEATURES, _WIDTH) / math.sqrt(_FEATURES),
    )


def trained(name: str, here: World, steps: int) -> tuple[list[float], Tensor]:
    """Losses per step and the projection after `steps` of Adam on the objective alone, with its default parameters."""
    generator = torch.Generator().manual_seed(5)
    projection = here.start.clone().requires_grad_()
    optimizer = torch.optim.Adam([projection], lr=0.03)
    losses = []
    for _ in range(steps):
        rows = torch.randperm(len(here.queries), generator=generator)[:_QUERIES_PER_STEP]
        loss = call(name, _batch(here, projection, rows, generator))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses, projection.detach()


def _batch(here: World, projection: Tensor, rows: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
    teacher = here.teacher[rows]
    best = teacher.topk(40, dim=1).indices  # hard ones: half of each list from the teacher's best 40
    near = torch.stack([best[i, torch.randperm(40, generator=generator)[: _CANDIDATES // 2]] for i in range(len(rows))])
    far = torch.randint(0, len(here.documents), (len(rows), _CANDIDATES // 2), generator=generator)
    chosen = torch.cat([teacher.argmax(dim=1, keepdim=True), near, far], dim=1)
    first = torch.tensor([[c not in row[:i] for i, c in enumerate(row)] for row in chosen.tolist()])
    documents, columns = chosen.unique(return_inverse=True)
    queries, embedded = (_embedded(x, projection) for x in (here.queries[rows], here.documents[documents]))
    return completed(
        {
            "teacher_scores": teacher.gather(1, chosen),
            "mask": first,
            "positive": torch.zeros(len(rows), dtype=torch.int64),
            "positives": torch.arange(chosen.shape[1]).expand(len(rows), -1) == 0,
            "columns": columns,
            "query_embeddings": queries,
            "document_embeddings": embedded,
            "batch_scores": queries @ embedded.T,
            "previous_query_embeddings": _embedded(here.queries[rows], here.start),
            "previous_document_embeddings": _embedded(here.documents[documents], here.start),
        }
    )


def _embedded(features: Tensor, projection: Tensor) -> Tensor:
    return torch.nn.functional.normalize(features @ projection, dim=1)


def ndcg_at_10(here: World, projection: Tensor) -> float:
    """Mean over held-out queries; gain is the teacher's logit where positive."""
    scores = _embedded(here.held_out, projection) @ _embedded(here.documents, projection).T
    gains = here.held_out_teacher.clamp(min=0)
    discount = 1 / torch.arange(2, 12, dtype=torch.float64).log2()
    found = (gains.gather(1, scores.topk(10, dim=1).indices) * discount).sum(dim=1)
    return float((found / (gains.topk(10, dim=1).values * discount).sum(dim=1)).mean())


def stored(name: str) -> dict[str, Any]:
    """`losses` of this objective's first steps and `ndcg_at_10` after all, as they were when stored."""
    return dict(json.loads(TRAJECTORIES.read_text(encoding="utf-8"))[name])


if __name__ == "__main__":
    torch.set_num_threads(1)
    everything, runs = world(), {}
    for objective in sorted(OBJECTIVES):
        values, learned = trained(objective, everything, STEPS)
        runs[objective] = {"ndcg_at_10": ndcg_at_10(everything, learned), "losses": values[:STEPS_STORED]}
    TRAJECTORIES.write_text(json.dumps(runs, indent=1) + "\n", encoding="utf-8")
