"""Follow a job until it ends: its events as lines, its progress as bars.

Enters: a gateway client and a job id. Leaves: the finished job. Bars need a terminal; elsewhere the same numbers come
as a line every ten seconds, so that a log of `make demo` shows scoring and training side by side, too.
"""

import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from services.cli.client import GatewayClient
from services.store import TERMINAL

__all__ = ["watch"]

_BARS = (
    ("teacher training", "teacher_step", "teacher_total_steps", "teacher_loss"),
    ("pairs scored", "pairs_done", "pairs_total", None),
    ("lists committed", "lists_committed", "lists_total", None),
    ("ranker training", "ranker_step", "ranker_total_steps", "ranker_loss"),
    ("student training", "step", "total_steps", "loss"),
)
_LINE_EVERY_S = 10.0
_UNSAID = {"training.metrics"}
"""Events for curves, not for reading."""


def watch(client: GatewayClient, job_id: str, console: Console, *, every_s: float = 0.5) -> dict[str, Any]:
    """Show the job until its status is terminal; returns it."""
    started, last_event, last_line = time.monotonic(), None, 0.0
    columns = (TextColumn("{task.description:<18}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(
        *columns, TextColumn("{task.fields[note]}"), console=console, disable=not console.is_terminal
    ) as bars:
        tasks = {name: bars.add_task(name, total=None, note="", visible=False) for name, *_ in _BARS}
        while True:
            job = client.job(job_id)
            elapsed = time.monotonic() - started
            for event in client.events(job_id, last_event):
                last_event = event["id"]
                if event["type"] in _UNSAID:
                    continue
                bars.console.print(f"{elapsed:5.0f} s  {event['message']}", highlight=False, markup=False)
            numbers = _with_pairs_done(job["progress"])
            for name, done, total, loss in _BARS:
                if done in numbers:
                    note = f"loss {numbers[loss]:.3f}" if loss and loss in numbers else ""
                    bars.update(tasks[name], completed=numbers[done], total=numbers.get(total), note=note, visible=True)
            if not console.is_terminal and elapsed - last_line >= _LINE_EVERY_S and numbers:
                last_line = elapsed
                console.print(f"{elapsed:5.0f} s  {_line(numbers)}", highlight=False, markup=False, soft_wrap=True)
            if job["status"] in TERMINAL:
                return job
            time.sleep(every_s)


def _with_pairs_done(progress: dict[str, Any]) -> dict[str, Any]:
    if "pairs_scored" not in progress:
        return progress
    return progress | {"pairs_done": progress["pairs_scored"] + progress.get("pairs_reused", 0)}


def _line(numbers: dict[str, Any]) -> str:
    """What goes on now: once pairs are scored, the teacher's own training is history."""
    parts = []
    for name, done, total, loss in _BARS:
        if done in numbers and not (name == "teacher training" and "pairs_done" in numbers):
            note = f" (loss {numbers[loss]:.3f})" if loss and loss in numbers else ""
            parts.append(f"{name} {numbers[done]:g}/{numbers.get(total, 0):g}{note}")
    return ", ".join(parts)
