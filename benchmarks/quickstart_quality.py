"""What distillation is worth on the quickstart's data: seeds, and the curve over the number of labels.

For every label budget and seed, three students of the same size, steps and candidates:
  labels only         the control: InfoNCE on the labelled queries
  teacher only        the teacher learned from those labels; the student sees no label, only the teacher's lists
  teacher + labels    what `make demo` does: gold where a query is labelled, the teacher everywhere
Prints nDCG@10 per budget (mean and range over seeds), paired tests per seed, and draws the curve.

    python benchmarks/quickstart_quality.py --quick --json out.json     # one seed, the demo's own 120 labels
    python benchmarks/quickstart_quality.py --json out.json --plot curve.svg
"""

import argparse
import json
import os
import shutil
import statistics
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from pipelines.devices import device_name
from pipelines.spec import DistillationSpec, load_spec
from services.cli.run import run_in_process

ROOT = Path(__file__).resolve().parent.parent
QUICKSTART = ROOT / "examples" / "quickstart"
METHODS = ("labels only", "teacher only", "teacher + labels")


def labelled_folder(target: Path, labels: int | None, seed: int) -> int:
    """A copy of the quickstart data with `labels` labelled queries (None: as shipped); returns their number.

    Budgets up to the shipped 120 are drawn from those; above, hidden labels of the pool are added.
    """
    shutil.copytree(QUICKSTART / "data", target)
    train, pool = (_judgements(target / "qrels" / f"{name}.tsv") for name in ("train", "pool"))
    if labels is None:
        return len(train)
    rng = np.random.default_rng((seed, labels))
    first = [list(train)[i] for i in rng.permutation(len(train))[:labels]]
    more = [list(pool)[i] for i in rng.permutation(len(pool))[: labels - len(first)]]
    chosen = train | pool
    lines = ["query-id\tcorpus-id\tscore"]
    lines += [f"{query}\t{doc}\t1" for query in [*first, *more] for doc in chosen[query]]
    (target / "qrels" / "train.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return len(first) + len(more)


def _judgements(path: Path) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for line in path.read_text(encoding="utf-8").splitlines()[1:]:
        query, doc, _ = line.split("\t")
        found.setdefault(query, []).append(doc)
    return found


def variant(spec: DistillationSpec, *, seed: int, use_labels: bool) -> DistillationSpec:
    """The quickstart job with another seed, and with or without labels for the student."""
    data = spec.model_dump()
    data["seed"] = seed
    data["training"]["use_labels"] = use_labels
    data["evaluation"]["label_only_control"] = use_labels
    data["dataset"]["path"] = "data"
    return DistillationSpec.model_validate(data)


def measure(labels: int | None, seed: int, console: Console, *, teacher_only: bool) -> dict[str, Any]:
    """nDCG@10 of the methods (and the teacher) for one budget and seed, with the paired test."""
    spec = load_spec(QUICKSTART / "job.yaml")
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        count = labelled_folder(work / "data", labels, seed)
        results = {}
        for use_labels in (True, False) if teacher_only else (True,):  # the second reuses the teacher and most scores
            job = variant(spec, seed=seed, use_labels=use_labels)
            _, result = run_in_process(job, root=work / "root", data_root=work, console=console)
            results[use_labels] = result["evaluation"]
    both = results[True]["systems"]
    return {
        "labels": count,
        "seed": seed,
        "bm25": both["bm25"]["nDCG@10"],
        "student before": both["student_before"]["nDCG@10"],
        "labels only": both["label_only"]["nDCG@10"],
        "teacher only": results[False]["systems"]["student_after"]["nDCG@10"] if teacher_only else None,
        "teacher + labels": both["student_after"]["nDCG@10"],
        "teacher": both["teacher_rerank"]["nDCG@10"],
        "p, teacher + labels against labels only": results[True]["comparisons"]["student_after_vs_label_only"][
            "p_value"
        ],
        "gap closed": results[True]["gap_closed"],
    }


def draw(runs: list[dict[str, Any]], path: Path) -> None:
    """The curve: nDCG@10 over the number of labels, mean over seeds with their range."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4.5))
    budgets = sorted({run["labels"] for run in runs})
    for method in (*METHODS, "teacher"):
        values = [[run[method] for run in runs if run["labels"] == budget and run[method]] for budget in budgets]
        if not all(values):
            continue
        means = [statistics.fmean(row) for row in values]
        spread = [
            [m - min(v) for m, v in zip(means, values, strict=True)],
            [max(v) - m for m, v in zip(means, values, strict=True)],
        ]
        style = "--" if method == "teacher" else "-"
        axes.errorbar(budgets, means, yerr=spread, marker="o", linestyle=style, capsize=3, label=method)
    axes.set_xlabel("labelled queries")
    axes.set_ylabel("nDCG@10, 300 held-out queries")
    axes.legend()
    figure.tight_layout()
    figure.savefig(path)


def main() -> None:
    """Run, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--quick", action="store_true", help="one seed, the demo's own labels: about ten minutes on 2 cores"
    )
    parser.add_argument("--json", type=Path, help="write device, figures and ratios here")
    parser.add_argument("--plot", type=Path, help="write the curve here (svg or png)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[17, 18, 19])
    parser.add_argument("--labels", type=int, nargs="+", default=[100, 300, 700])
    parser.add_argument("--skip-teacher-only", action="store_true", help="leave that method out: a third less time")
    options = parser.parse_args()
    plan = [(None, 17)] if options.quick else [(n, seed) for seed in options.seeds for n in options.labels]
    console, runs = Console(), []
    if not options.quick and options.json and options.json.is_file():  # an interrupted measurement goes on
        runs = json.loads(options.json.read_text(encoding="utf-8"))["figures"]["runs"]
    done = {(run["labels"], run["seed"]) for run in runs}
    for labels, seed in plan:
        if (labels, seed) in done:
            continue
        runs.append(measure(labels, seed, console, teacher_only=not options.skip_teacher_only))
        console.print(runs[-1])
        if options.json:
            _write(options.json, runs)
    if options.plot:
        draw(runs, options.plot)


def _write(path: Path, runs: list[dict[str, Any]]) -> None:
    budgets = sorted({run["labels"] for run in runs})
    figures: dict[str, Any] = {"runs": runs}
    ratios: dict[str, float] = {}
    for budget in budgets:
        rows = [run for run in runs if run["labels"] == budget]
        for method in (*METHODS, "teacher"):
            found = [run[method] for run in rows if run[method]]
            if found:
                figures[f"nDCG@10, {method}, {budget} labels"] = statistics.fmean(found)
        ratios[f"teacher + labels over labels only, {budget} labels"] = statistics.fmean(
            run["teacher + labels"] / run["labels only"] for run in rows
        )
    cpu = device_name(torch.device("cpu"))
    device = f"{cpu}, {os.cpu_count()} cores, {torch.get_num_threads()} torch thread(s) a process"
    path.write_text(json.dumps({"device": device, "figures": figures, "ratios": ratios}, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
