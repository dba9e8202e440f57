"""Mining hard negatives, time and peak memory, beside sentence-transformers' `mine_hard_negatives`.

The vectors are synthetic: documents are random directions of 384 dimensions, and a query is its positive with noise.
They say nothing about quality; what is measured is search, choice and output, on the same vectors, for the same number
of negatives. Both searches are exact, so both must find the same documents, and the share of common ones is printed.
BM25 is off: the peer has none. Each runs in a process of its own with all cores (`peers/miners.py`), in turn, and
a ratio is the median over rounds of one round's figures, the peer's over ours.

The peer multiplies 16,384 queries at a time with all documents by default. At a million documents that takes 65 GB, so
there both get fewer queries than that (the figures say how many). It is measured with batches of 256 as well, the
`tuned` ratios, and with FAISS, an exact index in memory, the `faiss` ratios. The last figures are ours alone, with ten
times the queries: the peak must stay.

    python benchmarks/mining.py --quick --json out.json      # 100,000 documents: some minutes on 2 cores
    python benchmarks/mining.py --json out.json              # and 1,000,000

The peer needs the packages `datasets` and `faiss-cpu`, which dualdistill does not.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipelines.devices import available_cpus, device_name

DIMENSIONS = 384
NEGATIVES = 32
NOISE = 1.5
"""Length of the noise in a query, its positive's being 1: they then score about 0.55, and strangers 0 +- 0.05."""
OURS = "ours"
PEERS: dict[str, dict[str, Any]] = {
    "default": {"batch": 16_384, "faiss": False},
    "tuned": {"batch": 256, "faiss": False},
    "faiss": {"batch": 16_384, "faiss": True},
}


def vectors(path: Path, rows: int, *, seed: int) -> np.ndarray:
    """Random unit vectors float32 [rows, DIMENSIONS], written to `path` and mapped."""
    kept = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(rows, DIMENSIONS))
    for start in range(0, rows, 65_536):
        block = kept[start : start + 65_536]
        drawn = np.random.default_rng((seed, start)).standard_normal(block.shape, dtype=np.float32)
        block[:] = drawn / np.linalg.norm(drawn, axis=1, keepdims=True)
    kept.flush()
    return np.load(path, mmap_mode="r")


def make_data(folder: Path, num_documents: int, num_queries: int) -> None:
    """Documents, queries near their positives, and which rows those are."""
    folder.mkdir()
    documents = vectors(folder / "documents.npy", num_documents, seed=1)
    noise = vectors(folder / "noise.npy", num_queries, seed=2)
    positives = np.random.default_rng(3).integers(0, num_documents, num_queries)
    queries = np.asarray(documents[positives]) + NOISE * np.asarray(noise)
    np.save(folder / "queries.npy", queries / np.linalg.norm(queries, axis=1, keepdims=True))
    np.save(folder / "positives.npy", positives)
    (folder / "noise.npy").unlink()


def mine(data: Path, name: str, num_queries: int) -> tuple[dict[str, float], np.ndarray]:
    """One run in its own process, of `OURS` or one of `PEERS`: its figures and the negatives that it found."""
    with tempfile.TemporaryDirectory(dir=data.parent) as scratch:
        found = Path(scratch) / "found.npy"
        settings = {
            "system": OURS if name == OURS else "sentence_transformers",
            "data": str(data),
            "found": str(found),
            "queries": num_queries,
            "negatives": NEGATIVES,
            "threads": available_cpus(),
        } | PEERS.get(name, {})
        program = Path(__file__).with_name("peers") / "miners.py"
        answer = subprocess.run(
            [sys.executable, "-W", "ignore", str(program), json.dumps(settings)],
            check=True,
            stdout=subprocess.PIPE,
            text=True,
        ).stdout
        return json.loads(answer), np.load(found)


def compare(data: Path, num_queries: int, rounds: int) -> tuple[dict[str, Any], dict[str, float]]:
    """Figures of all, and the peer's over ours."""
    runs: dict[str, list[dict[str, float]]] = {}
    negatives: dict[str, np.ndarray] = {}
    for number in range(rounds):
        for name in (OURS, *PEERS):
            run, negatives[name] = mine(data, name, num_queries)
            runs.setdefault(name, []).append(run)
            print(f"round {number + 1}: {name}: {run}", flush=True)
    figures: dict[str, Any] = {
        OURS if name == OURS else f"sentence-transformers, {name}: {PEERS[name]}": _medians(found)
        for name, found in runs.items()
    }
    ratios: dict[str, float] = {}
    for name in PEERS:
        suffix = "" if name == "default" else f"_{name}"
        pairs = list(zip(runs[name], runs[OURS], strict=True))
        for kind, key in (("time", "seconds"), ("peak_rss", "peak_mib")):
            ratio = statistics.median(theirs[key] / mine[key] for theirs, mine in pairs)
            ratios[f"mining_{kind}_vs_sentence_transformers{suffix}"] = round(ratio, 3)
        figures[f"negatives in common with {name}"] = common(negatives[OURS], negatives[name])
    return figures, ratios


def common(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Mean share of the negatives of a query that both found."""
    both = zip(ours.tolist(), theirs.tolist(), strict=True)
    shares = [len(set(mine) & set(given) - {-1}) / NEGATIVES for mine, given in both]
    return round(statistics.fmean(shares), 6)


def growth(data: Path, num_queries: int) -> dict[str, Any]:
    """Ours with so many queries and with ten times as many; beyond what the process held when mining began.

    The data set itself, with its texts and labels, is held in memory and does grow.
    """
    figures: dict[str, Any] = {}
    for count in (num_queries, 10 * num_queries):
        run, _ = mine(data, OURS, count)
        beyond = run["peak_mib"] - run["before_mib"]
        figures[f"{count} queries"] = {key: round(value, 1) for key, value in run.items()} | {
            "peak_beyond_data_mib": round(beyond, 1)
        }
        print(f"{count} queries: {figures[f'{count} queries']}", flush=True)
    return figures


def _medians(runs: list[dict[str, float]]) -> dict[str, float]:
    return {key: round(statistics.median(run[key] for run in runs), 2) for key in runs[0]}


def main() -> None:
    """Make the vectors, let both mine, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="100,000 documents only, fewer queries, one round")
    parser.add_argument("--json", type=Path, help="write device, figures and ratios here")
    parser.add_argument("--rounds", type=int, help="default 3, 1 if quick")
    options = parser.parse_args()
    rounds = options.rounds or (1 if options.quick else 3)
    sizes = {"100k": (100_000, 2_000)} if options.quick else {"100k": (100_000, 10_000), "1M": (1_000_000, 2_000)}
    begin = 1_000 if options.quick else 10_000
    report: dict[str, Any] = {
        "device": f"{device_name(torch.device('cpu'))}, {available_cpus()} cores",
        "figures": {
            "vectors": f"synthetic, {DIMENSIONS} dimensions",
            "negatives": NEGATIVES,
            "load average at the start": round(os.getloadavg()[0], 2),
        },
        "ratios": {},
    }
    with tempfile.TemporaryDirectory() as scratch:
        for name, (num_documents, num_queries) in sizes.items():
            data = Path(scratch) / name
            most = max(num_queries, 10 * begin) if name == "100k" else num_queries
            make_data(data, num_documents, most)
            figures, ratios = compare(data, num_queries, rounds)
            report["figures"][f"{num_documents} documents, {num_queries} queries"] = figures
            report["ratios"] |= {f"{key}_{name}": value for key, value in ratios.items()}
            if name == "100k":
                report["figures"][f"ours, {num_documents} documents"] = growth(data, begin)
    print(json.dumps(report, indent=1))
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
