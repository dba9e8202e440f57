"""Which queries a job trains on: all of them, or, round by round, those that the teacher is asked about.

Enters: a spec and its data set; after the first round, what each query has cost the student. Leaves: query ids in the
seeded order that defines chunks and the first epoch. With `dataset.unlabelled.queries_per_round` the teacher's time
goes where it is expected to teach most (`training.loss_predictor`); a choice is made once and kept in the job's folder.
"""

import json
from pathlib import Path

import numpy as np

from pipelines.corpus.dataset import Dataset
from pipelines.journal import Journal
from pipelines.spec import DistillationSpec
from pipelines.training.loss_predictor import next_queries
from pipelines.training.student_step import StudentStep
from pipelines.whole_files import write_json

__all__ = ["adversarial_queries", "num_round_queries", "queries_of_round", "training_queries"]


def training_queries(spec: DistillationSpec, dataset: Dataset) -> list[str]:
    """Labelled and unlabelled training queries in the seeded order that defines chunks and the first epoch."""
    return _shuffled(_labelled(spec, dataset) + _pool(spec, dataset), spec)


def num_round_queries(spec: DistillationSpec, dataset: Dataset) -> int:
    """How many queries one round of the job trains on, where that is the same for all."""
    return len(adversarial_queries(spec, dataset, 0))


def adversarial_queries(spec: DistillationSpec, dataset: Dataset, number: int) -> list[str]:
    """The queries of an adversarial round: all training queries, or the next lot of them, round and round.

    Labelled and unlabelled ones take turns apart, so that every lot has both in the same proportion.
    """
    lot = spec.rounds.adversarial.queries_per_round if spec.rounds.adversarial else None
    labelled, pool = _shuffled(_labelled(spec, dataset), spec), _pool(spec, dataset)
    if lot is None or lot >= len(labelled) + len(pool):
        return training_queries(spec, dataset)
    of_labelled = max(1, lot - len(pool), min(len(labelled), round(lot * len(labelled) / (len(labelled) + len(pool)))))
    parts = [(labelled, of_labelled), (pool, lot - of_labelled)]
    return _shuffled(
        [queries[(number * count + place) % len(queries)] for queries, count in parts for place in range(count)], spec
    )


def queries_of_round(
    spec: DistillationSpec, dataset: Dataset, step: StudentStep, number: int, *, work: Path, journal: Journal
) -> list[str]:
    """The queries of a round: all, or the labelled ones and those chosen for it and for earlier rounds.

    Args:
        spec: of the job.
        dataset: its data.
        step: as the round before left it.
        number: of the round.
        work: the job's folder.
        journal: told why which ones were chosen.
    """
    count = spec.dataset.unlabelled.queries_per_round
    if count is None:
        return training_queries(spec, dataset)
    chosen: list[str] = []
    for earlier in range(number + 1):
        path = work / f"queries-{earlier}.json"
        if not path.is_file():
            new = _choose(spec, dataset, step, earlier, asked=set(chosen), count=count, journal=journal)
            write_json(path, new)
        chosen += json.loads(path.read_text(encoding="utf-8"))
    return _shuffled(_labelled(spec, dataset) + chosen, spec)


def _choose(
    spec: DistillationSpec,
    dataset: Dataset,
    step: StudentStep,
    number: int,
    *,
    asked: set[str],
    count: int,
    journal: Journal,
) -> list[str]:
    pool = [query_id for query_id in _pool(spec, dataset) if query_id not in asked]
    losses = step.query_losses
    if losses is None:
        raise ValueError("the step does not remember what queries cost")
    seen = losses.seen.cpu().numpy()
    known = [query_id for query_id, row in step.query_row.items() if seen[row]]

    def embedded(query_ids: list[str]) -> "np.ndarray":
        # In the first round only their number is read.
        texts = [dataset.query_text(query_id) for query_id in query_ids]
        return step.outcome.encode(texts, "query") if number else np.zeros((len(texts), 1), dtype=np.float32)

    choice = next_queries(
        embedded(known),
        losses.average.cpu().numpy()[seen],
        embedded(pool),
        count=count,
        round_number=number,
        rounds=spec.rounds.count,
        seed=spec.seed,
    )
    journal.event(
        "queries.chosen",
        f"round {number}: {len(choice.rows)} of {len(pool)} unlabelled queries: {choice.reason}",
        round=number,
        chosen=len(choice.rows),
        guided=choice.guided,
        correlation=choice.correlation,
    )
    return [pool[row] for row in choice.rows]


def _labelled(spec: DistillationSpec, dataset: Dataset) -> list[str]:
    return dataset.labelled_queries(spec.dataset.train_split) if spec.dataset.train_split else []


def _pool(spec: DistillationSpec, dataset: Dataset) -> list[str]:
    """Unlabelled queries that may take part, in a seeded order."""
    data = spec.dataset
    splits = [split for split in (data.train_split, data.dev_split, data.test_split) if split]
    unlabelled = dataset.unlabelled_queries(*splits) if data.unlabelled.use else []
    order = np.random.default_rng((spec.seed, 1)).permutation(len(unlabelled))
    return [unlabelled[i] for i in order[: data.unlabelled.max_queries]]


def _shuffled(queries: list[str], spec: DistillationSpec) -> list[str]:
    return [queries[i] for i in np.random.default_rng((spec.seed, 2)).permutation(len(queries))]
