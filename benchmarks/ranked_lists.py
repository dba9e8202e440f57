"""What ranked lists cost: writing beside plain Parquet, reading as trainers do, seeking, compacting, memory.

SYNTHETIC lists (random document ids and logits): 1M queries x 100 candidates, made and committed in chunks. Each part
runs in a process of its own, whose peak resident memory is reported.

write   rows (candidates) per second of `RankedLists.commit_chunk` beside `pyarrow.parquet` writing the same tables to
        one plain file (its defaults) in the same run, and bytes a pair of both.
read    lists per second that `follow` hands to one trainer, over the first epoch (in order) and the second (shuffled);
        and those of its own that one of 8 trainers gets, each of which reads the whole stream.
seek    time until the first row after a resume at the last row of the round.
known   pairs per second that a second job finds known: the join that spares it the teacher.

    python benchmarks/ranked_lists.py --quick --json out.json      # 50k queries: a minute
"""

import argparse
import json
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from pipelines.devices import device_name
from pipelines.ranked.known import KnownLogits
from pipelines.ranked.schema import RANKED_SCHEMA
from pipelines.ranked.table import RankedLists
from pipelines.ranked.tail import Shard, StreamPosition, follow
from pipelines.ranked.upkeep import compact
from pipelines.teacher.contract import ScoreContract

CONTRACT = ScoreContract(model_id="synthetic", revision=None, weights_hash="0" * 64, max_length=256, dtype="fp32")
NUM_DOCUMENTS = 1_000_000
PER_LIST = 100
ALONE, TRAINERS = Shard(), 8


def chunks(queries: int, per_chunk: int) -> Iterator[pa.Table]:
    """Ranked chunks of synthetic lists; documents repeat as they do in a corpus of a million."""
    rng = np.random.default_rng(0)
    doc_ids = pa.array([f"doc{i}" for i in range(NUM_DOCUMENTS)])
    for chunk_id in range(-(-queries // per_chunk)):
        rows = min(per_chunk, queries - chunk_id * per_chunk)
        total = rows * PER_LIST
        logits = -np.sort(-rng.normal(0, 4, (rows, PER_LIST)).astype(np.float32), axis=1).ravel()
        fields = {
            "doc_id": doc_ids.take(pa.array(rng.integers(0, NUM_DOCUMENTS, total))),
            "teacher_logit": pa.array(logits),
            "student_score": pa.array(rng.normal(0.5, 0.1, total).astype(np.float32)),
            "bm25_rank": pa.array(rng.integers(0, 100, total).astype(np.int32), mask=rng.random(total) < 0.5),
            "dense_rank": pa.array(rng.integers(0, 100, total).astype(np.int32), mask=rng.random(total) < 0.3),
            "relevance": pa.array(np.ones(total, np.int8), mask=rng.random(total) < 0.99),
        }
        kind = RANKED_SCHEMA.field("candidates").type.value_type
        items = pa.StructArray.from_arrays([fields[field.name] for field in kind], fields=list(kind))
        offsets = pa.array(np.arange(rows + 1, dtype=np.int32) * PER_LIST)
        first = chunk_id * per_chunk
        yield pa.table(
            {
                "job_id": pa.array(["bench"] * rows),
                "round": pa.array(np.zeros(rows, np.int32)),
                "query_id": pa.array([f"query{i}" for i in range(first, first + rows)]),
                "chunk_id": pa.array(np.full(rows, chunk_id, np.int32)),
                "weights_version": pa.array(np.zeros(rows, np.int32)),
                "candidates": pa.ListArray.from_arrays(offsets, items),
            },
            schema=RANKED_SCHEMA,
        )


def write(folder: Path, queries: int, per_chunk: int) -> dict[str, Any]:
    """Both writers take every chunk in turns; making it is not counted."""
    lists = RankedLists(folder / "lists", CONTRACT)
    ours: list[float] = []
    plain: list[float] = []
    writer = pq.ParquetWriter(folder / "plain.parquet", RANKED_SCHEMA)
    for number, rows in enumerate(chunks(queries, per_chunk)):
        started = time.perf_counter()
        lists.commit_chunk(rows, job_id="bench", round_number=0, chunk_id=number)
        ours.append(time.perf_counter() - started)
        started = time.perf_counter()
        writer.write_table(rows)
        plain.append(time.perf_counter() - started)
    started = time.perf_counter()
    writer.close()
    plain[-1] += time.perf_counter() - started
    peak = peak_mib()
    started = time.perf_counter()
    compact(lists, "bench", 0)
    compacted = time.perf_counter() - started
    pairs = queries * PER_LIST
    size = sum(entry.size for entry in lists.files())
    return {
        "chunks": len(ours),
        "pairs/s, committed": pairs / sum(ours),
        "pairs/s, plain Parquet": pairs / sum(plain),
        "a commit, median ms": 1000 * statistics.median(ours),
        "bytes a pair, committed": size / pairs,
        "bytes a pair, plain Parquet": (folder / "plain.parquet").stat().st_size / pairs,
        "peak MiB while committing": peak,
        "compaction, pairs/s": pairs / compacted,
        "files after compaction": len(lists.files()),
        "write_vs_pyarrow": sum(plain) / sum(ours),
    }


def read(folder: Path, queries: int, per_chunk: int) -> dict[str, Any]:
    """As one trainer: every list of two epochs, then a seek."""
    lists = RankedLists(folder / "lists", CONTRACT)

    def rows(start: StreamPosition, shard: Shard = ALONE) -> Iterator[Any]:
        return follow(
            lists,
            job_id="bench",
            round_number=0,
            num_rows=queries,
            rows_per_chunk=per_chunk,
            start=start,
            epochs=2,
            seed=0,
            wait=_absent,
            shard=shard,
        )

    found: dict[str, Any] = {}
    for epoch, name in enumerate(("in order", "shuffled")):
        started = time.perf_counter()
        count = sum(1 for _ in islice(rows(StreamPosition(epoch, 0)), queries))
        found[f"lists/s, {name}"] = count / (time.perf_counter() - started)
    for epoch, name in enumerate(("in order", "shuffled")):
        started = time.perf_counter()
        count = sum(1 for _ in islice(rows(StreamPosition(epoch, 0), Shard(3, TRAINERS)), queries // TRAINERS))
        found[f"lists/s of its own to one of {TRAINERS} trainers, {name}"] = count / (time.perf_counter() - started)
    for epoch, name in enumerate(("in order", "shuffled")):
        times = []
        for _ in range(5):
            started = time.perf_counter()
            stream = rows(StreamPosition(epoch, queries - 1))
            next(stream)
            times.append(time.perf_counter() - started)
            stream.close()
        found[f"seek to the last list, {name}, s"] = statistics.median(times)
    return found | {"peak MiB while reading": peak_mib()}


def known(folder: Path, queries: int, _: int) -> dict[str, Any]:
    """As a second job over the same queries, in another order of chunks."""
    lists = RankedLists(folder / "lists", CONTRACT)
    window = 1024
    order = np.random.default_rng(1).permutation(queries)
    query_ids = [f"query{i}" for i in order]
    candidates = next(lists.chunks("bench", 0)).select(["query_id", "candidates"]).slice(0, window)
    query_ids[:window] = candidates["query_id"].to_pylist()  # the first window asks for what the first chunk holds
    started = time.perf_counter()
    lookup = KnownLogits(lists, query_ids, weights_version=0, own=("second", 0), folder=folder / "known", window=window)
    found = lookup.logits(candidates, 0)
    seconds = time.perf_counter() - started
    lookup.close()
    if np.isnan(found).any():
        raise SystemExit("a pair that was committed is not known")
    return {"pairs/s that a second job takes in": queries * PER_LIST / seconds, "peak MiB": peak_mib()}


def peak_mib() -> float:
    """Peak resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _absent() -> None:
    raise SystemExit("a list that was written is not there")


PARTS = {"write": write, "read": read, "known": known}


def main() -> None:
    """Each part in a process of its own, so that peaks are its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--queries", type=int)
    parser.add_argument("--per-chunk", type=int, default=2048)
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    queries = options.queries or (50_000 if options.quick else 1_000_000)
    if options.part:
        print(json.dumps(PARTS[options.part](options.folder, queries, options.per_chunk)))
        return
    folder = Path(tempfile.mkdtemp(dir=options.folder))
    figures: dict[str, Any] = {
        "SYNTHETIC lists": f"{queries} queries x {PER_LIST} candidates, {options.per_chunk} a chunk"
    }
    try:
        for part in PARTS:
            command = [sys.executable, __file__, "--part", part, "--folder", str(folder)]
            command += ["--queries", str(queries), "--per-chunk", str(options.per_chunk)]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            figures[part] = json.loads(done.stdout)
            print(part, json.dumps(figures[part], indent=1), flush=True)
    finally:
        shutil.rmtree(folder)
    ratios = {"write_vs_pyarrow": figures["write"].pop("write_vs_pyarrow")}
    print(ratios)
    if options.json:
        result = {"device": device_name(torch.device("cpu")), "figures": figures, "ratios": ratios}
        options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
