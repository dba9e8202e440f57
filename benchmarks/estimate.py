"""How well `dualdistill estimate` foretells a real job on the quickstart's data.

Predicts, then runs the job to its end in this process, and compares: pairs that the teacher really scored, and the time
from the start of scoring to the last committed list, while the student trains beside it. The two must use the machine
as a job on a cluster would: teacher and student have a core each.

    python benchmarks/estimate.py --quick --json out.json     # 300 queries, about 4 minutes
    python benchmarks/estimate.py --json out.json             # the whole quickstart
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from pipelines.corpus.dataset import load_dataset
from pipelines.devices import available_cpus, device_name, use_threads
from pipelines.estimate import estimate_job
from pipelines.job import run_job
from pipelines.job_context import JobContext
from pipelines.pretrained import quiet_loading
from pipelines.spec import DistillationSpec, load_spec
from pipelines.teacher.scorer import InProcessHost

ROOT = Path(__file__).resolve().parent.parent


class TimedJournal:
    """Keeps when each event came, and prints it."""

    def __init__(self) -> None:
        self.events: list[tuple[float, str, dict[str, Any]]] = []

    def phase(self, name: str) -> None:
        """Print it."""
        print(f"{time.strftime('%H:%M:%S')}  {name}", flush=True)

    def progress(self, **numbers: float | str) -> None:
        """Not needed."""

    def event(self, type_: str, message: str, **data: Any) -> None:
        """Keep and print it."""
        self.events.append((time.perf_counter(), type_, data))
        print(f"{time.strftime('%H:%M:%S')}  {message}", flush=True)

    def check_cancelled(self) -> None:
        """Never."""


def job(*, quick: bool) -> DistillationSpec:
    """The quickstart without its control, which is no part of scoring."""
    changes = {"evaluation.label_only_control": "false", "teacher.replicas": "1", "teacher.cpus_per_replica": "1"}
    if quick:
        changes |= {
            "dataset.unlabelled.max_queries": "180",
            "evaluation.max_queries": "40",
            "teacher.train.max_steps": "10",
        }
    return load_spec(ROOT / "examples" / "quickstart" / "job.yaml", changes)


def run(spec: DistillationSpec, root: Path) -> tuple[int, float]:
    """(pairs scored, seconds of scoring) of the real job."""
    journal = TimedJournal()
    run_job(
        JobContext(
            job_id="estimated",
            spec=spec,
            root=root,
            dataset_folder=ROOT / spec.dataset.path,
            model_roots=(ROOT,),
            host=InProcessHost(calibrations=root / "calibrations"),
            side_task=lambda *_: (_ for _ in ()).throw(RuntimeError("the job has no control")),
            side_task_cpus=1,
            journal=journal,
        )
    )
    started = next(at for at, kind, _ in journal.events if kind == "scoring.started")
    finished, data = [(at, data) for at, kind, data in journal.events if kind == "scoring.finished"][-1]
    return data["pairs_scored"], finished - started


def main() -> None:
    """Predict, run, compare, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer queries")
    parser.add_argument("--json", type=Path, help="write device, figures and ratios here")
    options = parser.parse_args()
    quiet_loading()
    spec = job(quick=options.quick)
    use_threads(available_cpus())
    dataset = load_dataset(spec.dataset, ROOT / spec.dataset.path)
    started = time.perf_counter()
    found = estimate_job(spec, dataset, model_roots=(ROOT,))
    took = time.perf_counter() - started
    use_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        pairs, seconds = run(spec, Path(scratch))
    figures = {
        "estimate": {"pairs": found.pairs, "seconds": round(found.seconds_of_one_replica, 1), "took_s": round(took, 1)},
        "real job": {"pairs": pairs, "seconds": round(seconds, 1)},
    }
    ratios = {"pairs": round(found.pairs / pairs, 3), "seconds": round(found.seconds_of_one_replica / seconds, 3)}
    report = {"device": device_name(torch.device("cpu")), "figures": figures, "ratios": ratios}
    print(json.dumps(report, indent=1))
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
