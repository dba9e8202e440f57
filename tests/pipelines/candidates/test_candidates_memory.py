"""Four times the queries must not need more memory: measured in a process of its own."""

import os
import subprocess
import sys

import pytest

FEW, MANY = 4_000, 16_000
PROGRAM = """
import sys, tempfile
from pathlib import Path
import numpy as np, pyarrow as pa, torch
from pipelines.candidates.miner import EmbeddedCorpus, Miner, mine_once
from pipelines.corpus.dataset import Dataset
from pipelines.spec import CandidatesSpec

torch.set_num_threads(1)
FEW, MANY = map(int, sys.argv[1:])
draw = np.random.default_rng(0)
documents, queries = (draw.standard_normal((rows, 256), dtype=np.float32) for rows in (1_000, MANY))

class Encoder:
    device, dimension = torch.device("cpu"), 256
    def encode_batches(self, texts, kind):
        for start in range(0, len(texts), 1000):
            rows = np.arange(start, min(len(texts), start + 1000))
            yield rows, queries[rows]

names = [f"q{i}" for i in range(MANY)]
ids = [f"d{i}" for i in range(len(documents))]
dataset = Dataset(
    "many",
    pa.table({"doc_id": ids, "title": [""] * len(ids), "text": ids}),
    pa.table({"query_id": names, "text": names}),
    pa.table({"split": names[:0], "query_id": names[:0], "doc_id": names[:0], "relevance": [1][:0]}),
)
spec = CandidatesSpec.model_validate({"bm25": None, "dense": {"top_k": 200}, "max_candidates": 200})
corpus, miner = EmbeddedCorpus(Encoder(), documents), Miner(dataset, spec)
dataset.query_text("q0")

def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024

with tempfile.TemporaryDirectory() as folder:
    for number, count in enumerate((FEW, FEW, MANY)):  # the first one warms up
        scratch = Path(folder) / "queries.npy"
        mined = mine_once(
            Path(folder) / f"{number}.parquet",
            lambda: miner.mine_blocks(names[:count], corpus=corpus, judged={}, scratch=scratch),
        )
        assert mined.num_pairs == 200 * count
        for start in range(0, count, 16):
            mined.slice(start, 16)
        print(peak())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_memory_does_not_grow_with_the_queries() -> None:
    # The larger table is about 80 MiB; its embeddings are 16 MiB. What Arrow's own pool keeps back is not counted.
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(FEW), str(MANY)],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"ARROW_DEFAULT_MEMORY_POOL": "system"},
    )
    _, few, many = map(float, done.stdout.split())
    assert many - few < 30, f"{FEW} queries took {few:.0f} MiB, {MANY} took {many:.0f} MiB"
