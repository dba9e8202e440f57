"""What a dtype costs a teacher's lists: rank correlation with fp32, and ties, list by list.

A fine-tuned teacher scores BM25's 100 best passages of the quickstart's test questions in fp32, bf16, fp16 (emulated
where the CPU does not multiply them: the rounding is the same, the speed is not). The teacher is that of
`make demo` by default; give another with --teacher.

    python benchmarks/teacher_precision.py --quick --json out.json     # 4 lists
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import stats

from pipelines.candidates.bm25 import BM25Index
from pipelines.corpus.dataset import load_dataset
from pipelines.devices import available_cpus, device_name, resolve_device
from pipelines.pretrained import quiet_loading
from pipelines.spec import load_spec
from pipelines.teacher.contract import contract_of
from pipelines.teacher.engine import load_engine

ROOT = Path(__file__).resolve().parent.parent
DEPTH = 100


def lists(count: int) -> tuple[list[str], list[str]]:
    """`count` test questions, each with BM25's `DEPTH` best passages."""
    spec = load_spec(ROOT / "examples" / "quickstart" / "job.yaml")
    dataset = load_dataset(spec.dataset, ROOT / spec.dataset.path)
    questions = [dataset.query_text(query) for query in dataset.labelled_queries("test")[:count]]
    passages = dataset.passages()
    rows, _ = BM25Index(passages, k1=0.9, b=0.4).search(questions, DEPTH)
    return [text for text in questions for _ in range(DEPTH)], [passages[row] for found in rows for row in found]


def demo_teacher() -> Path:
    """The teacher that `make demo` left."""
    found = sorted((ROOT / ".dualdistill" / "demo" / "teachers").rglob("config.json"))
    if not found:
        raise SystemExit("there is no teacher below .dualdistill/demo: run make demo, or give --teacher FOLDER")
    return found[0].parent


def against(exact: np.ndarray, found: np.ndarray) -> dict[str, Any]:
    """Spearman per list, and the share of scores that tie where fp32's do not."""
    parts = [slice(start, start + DEPTH) for start in range(0, len(exact), DEPTH)]
    correlations = [float(stats.spearmanr(exact[part], found[part]).statistic) for part in parts]
    ties = sum(len(np.unique(exact[part])) - len(np.unique(found[part])) for part in parts)
    return {
        "lowest Spearman of a list": round(min(correlations), 5),
        "mean Spearman": round(float(np.mean(correlations)), 5),
        "rate of ties": ties / len(exact),
        "largest difference": round(float(np.abs(exact - found).max()), 4),
    }


def main() -> None:
    """Score, compare, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="4 lists instead of 12")
    parser.add_argument("--json", type=Path, help="write device, figures and ratios here")
    parser.add_argument("--teacher", type=Path, help="a model folder; default: the demo's")
    parser.add_argument("--max-length", type=int, default=96)
    options = parser.parse_args()
    quiet_loading()
    folder, device = options.teacher or demo_teacher(), resolve_device()
    queries, passages = lists(4 if options.quick else 12)
    scores = {}
    for dtype in ("fp32", "bf16", "fp16"):
        contract = contract_of(
            folder, model_id="measured", revision=None, max_length=options.max_length, dtype=dtype, backend="torch"
        )
        engine = load_engine(folder, contract, device=device, threads=available_cpus(), tokens_per_batch=1024)
        scores[dtype] = engine.score(queries, passages)
        engine.close()
    exact = scores["fp32"]
    spread = float(np.mean([exact[start : start + DEPTH].std() for start in range(0, len(exact), DEPTH)]))
    figures: dict[str, Any] = {"lists": len(exact) // DEPTH, "standard deviation within a list": round(spread, 3)}
    figures |= {dtype: against(exact, scores[dtype]) for dtype in ("bf16", "fp16")}
    ratios = {f"{dtype}_lowest_spearman": figures[dtype]["lowest Spearman of a list"] for dtype in ("bf16", "fp16")}
    report = {"device": device_name(torch.device(device)), "figures": figures, "ratios": ratios}
    print(json.dumps(report, indent=1))
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
