"""What each objective is worth on the quickstart's data: same teacher, same lists, same steps, another loss.

The first job trains the teacher and scores; every other job reuses both (zero teacher calls), so only the student's
loss differs. An objective that learns from lists is joined by InfoNCE, one that needs positives by list KL: the job's
default is `list_kl + info_nce`, and each row replaces one of the two. Prints nDCG@10 on 300 held-out questions, with
the paired permutation test against the default.

    python benchmarks/objective_quality.py --quick --json out.json          # three objectives, one seed
    python benchmarks/objective_quality.py --json out.json --markdown docs/objective_quality.md
"""

import argparse
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from pipelines.devices import device_name
from pipelines.evaluation.significance import paired_test
from pipelines.objectives.registry import OBJECTIVES
from pipelines.spec import DistillationSpec, load_spec
from services.cli.run import run_in_process

ROOT = Path(__file__).resolve().parent.parent
QUICKSTART = ROOT / "examples" / "quickstart"
DEFAULT = "list_kl + info_nce"
QUICK = ("cprd", "info_nce")
PARAMETERS: dict[str, dict[str, Any]] = {
    "margin_mse": {"scale": 10.0},  # cosines cannot reach a margin of 10 logits
    "mw": {"reduction": "mean_over_pairs"},  # the paper's sum grows with the batch
}


def objectives(names: list[str]) -> dict[str, list[dict[str, Any]]]:
    """What is compared, by how a table names it; the default first."""
    rows = {DEFAULT: [{"name": "list_kl"}, {"name": "info_nce"}]}
    for name in names:
        term = {"name": name} | PARAMETERS.get(name, {})
        partner = "info_nce" if OBJECTIVES[name].term.LEARNS_FROM == "lists" else "list_kl"
        if {name, partner} != {"list_kl", "info_nce"}:
            rows[f"{name} + {partner}"] = [term, {"name": partner}]
    return {**rows, "info_nce alone": [{"name": "info_nce"}], "list_kl alone": [{"name": "list_kl"}]}


def job(terms: list[dict[str, Any]], seed: int) -> DistillationSpec:
    """The quickstart job with other terms, without a control."""
    data = load_spec(QUICKSTART / "job.yaml").model_dump()
    data["seed"] = seed
    data["training"]["objective"] = terms
    data["evaluation"]["label_only_control"] = False
    data["dataset"]["path"] = "data"
    return DistillationSpec.model_validate(data)


def measure(terms: list[dict[str, Any]], seed: int, root: Path, console: Console) -> dict[str, Any]:
    """nDCG@10 of the student, per query and on average, before and after."""
    artifacts, result = run_in_process(job(terms, seed), root=root, data_root=QUICKSTART, console=console)
    per_query = json.loads((artifacts / "metrics.json").read_text(encoding="utf-8"))["per_query"]["student_after"]
    systems = result["evaluation"]["systems"]
    return {
        "nDCG@10": systems["student_after"]["nDCG@10"],
        "R@100": systems["student_after"]["R@100"],
        "before": systems["student_before"]["nDCG@10"],
        "teacher": systems["teacher_rerank"]["nDCG@10"],
        "per_query": per_query["nDCG@10"],
    }


def main() -> None:
    """Run, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="three objectives: about ten minutes on 2 cores")
    parser.add_argument("--json", type=Path, help="write device, figures and ratios here; an interrupted run goes on")
    parser.add_argument("--markdown", type=Path, help="write the table here")
    parser.add_argument("--seed", type=int, default=17)
    parser.add_argument("--objectives", nargs="+", default=list(OBJECTIVES), choices=list(OBJECTIVES))
    parser.add_argument("--root", type=Path, help="keep teacher and scores here between runs")
    options = parser.parse_args()
    plan = objectives(list(QUICK) if options.quick else options.objectives)
    figures: dict[str, Any] = {}
    if options.json and options.json.is_file():
        figures = json.loads(options.json.read_text(encoding="utf-8"))["figures"]
    console = Console()
    with tempfile.TemporaryDirectory() as scratch:
        root = options.root or Path(scratch)
        for name, terms in plan.items():
            if name in figures:
                continue
            figures[name] = measure(terms, options.seed, root, console)
            console.print(f"{name}: nDCG@10 {figures[name]['nDCG@10']:.3f}")
            if options.json:
                _write(options.json, figures)
    table = _table(figures)
    console.print(table, markup=False, highlight=False)
    if options.markdown:
        options.markdown.write_text(f"{_HEAD}\n{table}\n", encoding="utf-8")


_HEAD = """# What each objective is worth on the quickstart

Written by `benchmarks/objective_quality.py`: the quickstart's job (120 labelled, 1,050 unlabelled questions, a 2-layer
student, one epoch, seed 17) with another loss, the same teacher and the same lists. One seed on one small data set:
differences below about .01 are noise (see p), and every objective runs with its default parameters, untuned.
"""


def _table(figures: dict[str, Any]) -> str:
    lines = ["| objective | nDCG@10 | R@100 | difference to the default | p |", "|---|---|---|---|---|"]
    default = figures[DEFAULT]
    for name, row in sorted(figures.items(), key=lambda item: -item[1]["nDCG@10"]):
        p_value = "" if name == DEFAULT else f"{paired_test(row['per_query'], default['per_query']).p_value:.3f}"
        difference = row["nDCG@10"] - default["nDCG@10"]
        lines.append(f"| {name} | {row['nDCG@10']:.3f} | {row['R@100']:.3f} | {difference:+.3f} | {p_value} |")
    return "\n".join(lines)


def _write(path: Path, figures: dict[str, Any]) -> None:
    ratios = {
        f"{name} over {DEFAULT}": row["nDCG@10"] / figures[DEFAULT]["nDCG@10"]
        for name, row in figures.items()
        if DEFAULT in figures
    }
    device = f"{device_name(torch.device('cpu'))}, {os.cpu_count()} cores, {torch.get_num_threads()} torch thread(s)"
    path.write_text(json.dumps({"device": device, "figures": figures, "ratios": ratios}, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
