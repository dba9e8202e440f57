"""What streaming is worth: a student learns from lists while the teacher still makes them. A SIMULATION of compute.

The teacher and the student have machines of their own, which this one does not have, so both sleep for as long as they
would compute: the teacher in proportion to the pairs of a request, in a thread that takes two requests ahead as a pool
does; the student for each step. All between them is real: tokens of real pairs, the look-up of known scores, chunks
committed to a `RankedLists` table and compacted (`score_rounds`), the reader that follows it, batches of real texts
(`follow`, `batches`, `read_ahead`), and the waiting for a chunk that is not there yet.

Each balance is measured three times over: the teacher alone fills a table; the student alone learns from it; both at
once on a new table. `job_time_vs_longer` is the last one's time over the longer of the first two, the largest of three
balances (1 would be perfect); `sequential_vs_streaming`, the smallest, what is gained over one after the other.

    python benchmarks/streaming.py --quick --json out.json      # two minutes, most of them asleep
"""

import argparse
import json
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from peers.scoring_task import minilm_encoder
from students.lists import CONTRACT, JOB, WIDTH, quickstart, random_logits, real_lists
from students.ours import Silence

from pipelines.corpus.dataset import Dataset
from pipelines.devices import available_cpus, device_name
from pipelines.pretrained import quiet_loading
from pipelines.ranked.positives import PositiveRule
from pipelines.ranked.read_ahead import read_ahead
from pipelines.ranked.table import RankedLists
from pipelines.ranked.tail import StreamPosition, follow
from pipelines.scoring import ScoringInputs, ToScore, score_rounds
from pipelines.teacher.corpus_tokens import CorpusTokens, corpus_tokens
from pipelines.teacher.scorer import ScoreAnswer, ScoreRequest
from pipelines.training.batches import ListBatch, batches

PER_CHUNK = PER_STEP = 16
BALANCES = {"teacher slower": (1.0, 0.5), "equal": (1.0, 1.0), "student slower": (0.5, 1.0)}
"""Seconds that teacher and student sleep in all, as parts of `--seconds`."""
RULE = PositiveRule(use_labels=True, teacher_top=False, min_confidence=1.0)


class SleepingScorer:
    """Stands where a pool does; logits are random, the same for every request."""

    contract, weights_version = CONTRACT, 0

    def __init__(self, seconds_per_pair: float) -> None:
        self._seconds_per_pair = seconds_per_pair
        self._logits = random_logits(4096).ravel()

    def score_all(self, requests: Iterable[ScoreRequest], *, expected_pairs: int) -> Iterator[ScoreAnswer]:  # noqa: ARG002
        """One answer per request, made while the last one is committed."""

        def answers(_check: Callable[[], None]) -> Iterator[ScoreAnswer]:
            for request in read_ahead(lambda _: iter(requests)):
                time.sleep(self._seconds_per_pair * len(request.pairs))
                yield ScoreAnswer(request.key, self._logits[: len(request.pairs)], weights_version=0)

        return read_ahead(answers)


@dataclass(frozen=True)
class Job:
    """What teacher and student work on."""

    dataset: Dataset
    tokens: CorpusTokens
    candidates: pa.Table
    work: Path

    @property
    def num_steps(self) -> int:
        """Of one epoch."""
        return -(-len(self.candidates) // PER_STEP)

    def teach(self, folder: str, seconds: float) -> None:
        """Fill a table, asleep for `seconds` in all."""
        pairs = len(self.candidates) * WIDTH
        inputs = ScoringInputs(
            job_id=JOB,
            tokens=self.tokens,
            scorer=SleepingScorer(seconds / pairs),
            lists=RankedLists(self.work / folder, CONTRACT),
            work=self.work / f"{folder}-work",
            journal=Silence(),
            rows_per_chunk=PER_CHUNK,
        )
        score_rounds(inputs, [ToScore(0, self.candidates, pairs, "nobody")], threading.Event())

    def learn(self, folder: str, seconds: float, wait: Callable[[], None]) -> None:
        """Read a table once, in steps, asleep for `seconds` in all."""
        lists = RankedLists(self.work / folder, CONTRACT)

        def prepare(check: Callable[[], None]) -> Iterator[ListBatch]:
            def wait_and_check() -> None:
                wait()
                check()

            rows = follow(
                lists,
                job_id=JOB,
                round_number=0,
                num_rows=len(self.candidates),
                rows_per_chunk=PER_CHUNK,
                start=StreamPosition(),
                epochs=1,
                seed=0,
                wait=wait_and_check,
            )
            for batch, _ in batches(rows, self.dataset, queries_per_step=PER_STEP, width=WIDTH, rule=RULE, seed=0):
                yield batch

        learned = 0
        with closing(read_ahead(prepare)) as ready:
            for batch in ready:
                time.sleep(seconds / self.num_steps)
                learned += len(batch.query_ids)
        if learned != len(self.candidates):
            raise SystemExit(f"the student saw {learned} of {len(self.candidates)} lists")

    def both(self, folder: str, teacher_seconds: float, student_seconds: float) -> None:
        """At once, as a round does it: the teacher in a thread of its own."""
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="scoring") as pool:
            scoring = pool.submit(self.teach, folder, teacher_seconds)
            self.learn(folder, student_seconds, lambda: _until(scoring))
            scoring.result()


def _until(scoring: "Future[None]") -> None:
    """As rounds wait for a chunk."""
    wait_for([scoring], timeout=0.1)
    if scoring.done():
        scoring.result()


def _nothing_is_missing() -> None:
    raise SystemExit("a chunk is missing, though scoring has ended")


def timed(work: Callable[[], None]) -> float:
    """Seconds that it takes."""
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def measure(job: Job, name: str, seconds: float, rounds: int) -> tuple[dict[str, Any], dict[str, float]]:
    """Figures and ratios of one balance."""
    teacher_s, student_s = (part * seconds for part in BALANCES[name])
    runs: list[tuple[float, float, float]] = []
    for number in range(rounds):
        place = f"{name.replace(' ', '-')}-{number}"
        teacher = timed(lambda place=place: job.teach(f"{place}-alone", teacher_s))
        student = timed(lambda place=place: job.learn(f"{place}-alone", student_s, _nothing_is_missing))
        together = timed(lambda place=place: job.both(f"{place}-both", teacher_s, student_s))
        runs.append((teacher, student, together))
        print(f"{name}, round {number + 1}: teacher {teacher:.2f} s, student {student:.2f} s, both {together:.2f} s")
    names = ("teacher alone, s", "student alone, s", "streaming, s")
    figures = {key: statistics.median(run[place] for run in runs) for place, key in enumerate(names)}
    figures |= {"teacher asleep, s": teacher_s, "student asleep, s": student_s}
    ratios = {
        "job_time_vs_longer": statistics.median(both / max(teacher, student) for teacher, student, both in runs),
        "sequential_vs_streaming": statistics.median((teacher + student) / both for teacher, student, both in runs),
    }
    return figures, ratios


def main() -> None:
    """Measure every balance, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="512 lists, the longer side 15 s, one round")
    parser.add_argument("--json", type=Path, help="write device, figures and ratios here")
    parser.add_argument("--lists", type=int, help="default 1024, 512 if quick")
    parser.add_argument("--seconds", type=float, help="asleep, of the longer side; default 60, 15 if quick")
    parser.add_argument("--rounds", type=int, help="default 3, 1 if quick")
    options = parser.parse_args()
    count, seconds = options.lists or (512 if options.quick else 1024), options.seconds or (15 if options.quick else 60)
    rounds = options.rounds or (1 if options.quick else 3)
    quiet_loading()
    dataset = quickstart()
    report: dict[str, Any] = {
        "device": f"{device_name(torch.device('cpu'))}, {available_cpus()} cores",
        "figures": {
            "SIMULATION": "teacher and student sleep instead of computing; table, commits and readers are real",
            "lists": count,
            "candidates a list": WIDTH,
            "lists a chunk": PER_CHUNK,
            "load average at the start": round(os.getloadavg()[0], 2),
        },
        "ratios": {},
    }
    found: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory() as scratch:
        tokens = corpus_tokens(Path(scratch) / "tokens", dataset, minilm_encoder(), template="pair", journal=Silence())
        job = Job(dataset, tokens, real_lists(dataset, count), Path(scratch))
        for name in BALANCES:
            figures, ratios = measure(job, name, seconds, rounds)
            report["figures"][name] = {key: round(value, 2) for key, value in figures.items()}
            report["ratios"] |= {f"{key}_{name.replace(' ', '_')}": round(v, 3) for key, v in ratios.items()}
            found.append(ratios)
    report["ratios"]["job_time_vs_longer"] = round(max(r["job_time_vs_longer"] for r in found), 3)
    report["ratios"]["sequential_vs_streaming"] = round(min(r["sequential_vs_streaming"] for r in found), 3)
    print(json.dumps(report, indent=1))
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
