"""`dualdistill run`: a whole job in this process, without service and without Ray.

Enters: a spec and a root folder. Leaves: what the service would leave, in the same places below the root.
"""

import hashlib
import multiprocessing
import sys
import threading
import time
from concurrent.futures import Future, ProcessPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from pipelines.control import ControlTask
from pipelines.corpus.dataset import load_dataset
from pipelines.devices import available_cpus, use_threads
from pipelines.job import run_job
from pipelines.job_context import JobContext
from pipelines.preparation import input_fingerprint
from pipelines.pretrained import quiet_loading
from pipelines.spec import DistillationSpec
from pipelines.teacher.scorer import InProcessHost

if TYPE_CHECKING:
    from pipelines.evaluation.metrics import PerQuery

__all__ = ["ConsoleJournal", "run_in_process"]


class ConsoleJournal:
    """Prints phases and events; progress is one line, rewritten where the output is a terminal."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._lock = threading.Lock()
        self._numbers: dict[str, float | str] = {}
        self._started = time.monotonic()

    def phase(self, name: str) -> None:
        """Print the phase."""
        elapsed = time.monotonic() - self._started
        self._console.print(f"{elapsed:5.0f} s  [bold]{name.replace('_', ' ')}[/]", highlight=False)

    def progress(self, **numbers: float | str) -> None:
        """Show the newest numbers on one line (terminals only)."""
        with self._lock:
            self._numbers |= numbers
            if self._console.is_terminal:
                line = "  ".join(
                    f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
                    for name, value in self._numbers.items()
                )
                sys.stdout.write(f"\r\x1b[2K{line[: self._console.width - 1]}")
                sys.stdout.flush()

    def event(self, type_: str, message: str, **data: Any) -> None:  # noqa: ARG002 - the console shows the message
        """Print the message."""
        with self._lock:
            if self._console.is_terminal:
                sys.stdout.write("\r\x1b[2K")
            elapsed = time.monotonic() - self._started
            self._console.print(f"{elapsed:5.0f} s  {message}", highlight=False, markup=False)

    def check_cancelled(self) -> None:
        """Ctrl-C is the only way to cancel; it needs no polling."""


def run_in_process(
    spec: DistillationSpec,
    *,
    root: Path,
    data_root: Path,
    console: Console,
    lists_url: str | None = None,
    num_cpus: int | None = None,
) -> tuple[Path, dict[str, Any]]:
    """Run `spec`; returns the artifacts folder and the result.

    The same spec over the same data goes on where it was stopped: the job's id hashes both.
    `num_cpus` (default: all) are shared by main work and label-only control, or by training and scoring.
    """
    quiet_loading()
    share = max(1, (num_cpus or available_cpus()) // 2)
    use_threads(share)
    folder, roots = data_root / spec.dataset.path, (data_root, Path.cwd())
    inputs = input_fingerprint(spec, load_dataset(spec.dataset, folder), roots)
    digest = hashlib.sha256((spec.model_dump_json() + inputs).encode()).hexdigest()[:12]
    others = set(multiprocessing.active_children())
    with ProcessPoolExecutor(max_workers=1, mp_context=multiprocessing.get_context("spawn")) as side:

        def side_task(function: Any, task: ControlTask) -> "Future[PerQuery]":
            return side.submit(function, task)

        context = JobContext(
            job_id=f"run-{spec.name}-{digest}",
            spec=spec,
            root=root,
            dataset_folder=folder,
            model_roots=roots,
            host=InProcessHost(tokens_per_batch=spec.teacher.tokens_per_batch, calibrations=root / "calibrations"),
            side_task=side_task,
            side_task_cpus=share,
            journal=ConsoleJournal(console),
            lists_url=lists_url,
        )
        try:
            return context.artifacts, run_job(context)
        except BaseException:  # the caller must not wait for the control to learn that the job is over
            for child in set(multiprocessing.active_children()) - others:
                child.terminate()
            raise
