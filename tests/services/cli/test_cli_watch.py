"""`watch` on a scripted client: events once each and in order, both bars' numbers, and an end at the end."""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from services.cli import watch as watch_module
from services.cli.watch import watch
from services.store import TERMINAL


class ScriptedClient:
    """A job that is `looks[i]` when it is looked at for the i-th time; its events arrive between the looks."""

    def __init__(self, *looks: tuple[str, dict[str, Any], list[str]]) -> None:
        self._looks = looks
        self._events: list[dict[str, Any]] = []
        self.times_looked = 0

    def job(self, job_id: str) -> dict[str, Any]:
        status, progress, messages = self._looks[self.times_looked]
        self.times_looked += 1
        self._events += [
            {"id": str(len(self._events) + number + 1), "message": message, "type": message.split(":")[0]}
            for number, message in enumerate(messages)
        ]
        return {"id": job_id, "status": status, "progress": progress}

    def events(self, job_id: str, after: str | None = None) -> Iterator[dict[str, Any]]:
        return iter(self._events[int(after or 0) :])


@pytest.fixture
def seconds(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Time that passes only by being waited for; the waits so far."""
    waits: list[float] = []
    monkeypatch.setattr(watch_module, "time", SimpleNamespace(monotonic=lambda: 1000 + sum(waits), sleep=waits.append))
    return waits


def follow(client: ScriptedClient, capsys: pytest.CaptureFixture[str], **options: Any) -> tuple[dict, list[str]]:
    console = Console(width=200, **options)
    job = watch(client, "ddjob-x", console, every_s=5.0)
    return job, capsys.readouterr().out.splitlines()


@pytest.mark.parametrize("status", sorted(TERMINAL))
def test_it_ends_when_the_job_has_ended(status: str, seconds: list[float], capsys: Any) -> None:
    client = ScriptedClient(("queued", {}, []), ("running", {}, []), (status, {}, []))
    job, _ = follow(client, capsys)
    assert job["status"] == status
    assert client.times_looked == 3
    assert seconds == [5.0, 5.0], "and it waits between looks"


def test_every_event_is_printed_once_and_the_last_ones_too(seconds: list[float], capsys: Any) -> None:
    client = ScriptedClient(
        ("queued", {}, ["queued"]),
        (
            "running",
            {},
            ["mining", "training.metrics: a curve's point, not for reading", "wrote /models/[bold]x and [/nowhere]"],
        ),
        ("running", {}, []),
        ("succeeded", {}, ["publishing", "running -> succeeded"]),
    )
    _, lines = follow(client, capsys)
    assert [line.split(" s  ")[1] for line in lines] == [
        "queued",
        "mining",
        "wrote /models/[bold]x and [/nowhere]",
        "publishing",
        "running -> succeeded",
    ]
    assert [line.split(" s  ")[0].strip() for line in lines] == ["0", "5", "5", "15", "15"]


def test_without_a_terminal_numbers_come_every_ten_seconds(seconds: list[float], capsys: Any) -> None:
    """Scoring and training on one line: the log of `make demo` shows that they run at once."""
    numbers = {
        "pairs_scored": 30,
        "pairs_reused": 10,
        "pairs_total": 200,
        "lists_committed": 4,
        "lists_total": 20,
        "step": 3,
        "total_steps": 12,
        "loss": 0.51234,
    }
    client = ScriptedClient(*[("running", numbers, [])] * 5, ("succeeded", numbers, []))
    _, lines = follow(client, capsys)
    sentence = "pairs scored 40/200, lists committed 4/20, student training 3/12 (loss 0.512)"
    assert lines == [f"   10 s  {sentence}", f"   20 s  {sentence}"]


def test_a_ranker_that_learns_is_seen_and_its_first_training_is_history(seconds: list[float], capsys: Any) -> None:
    teacher = {"teacher_step": 80, "teacher_total_steps": 80, "teacher_loss": 0.2, "pairs_scored": 7, "pairs_total": 9}
    ranker = {"ranker_step": 3, "ranker_total_steps": 60, "ranker_loss": 0.25}
    client = ScriptedClient(*[("running", teacher | ranker, [])] * 3, ("succeeded", teacher | ranker, []))
    _, lines = follow(client, capsys)
    assert lines == ["   10 s  pairs scored 7/9, ranker training 3/60 (loss 0.250)"]


def test_numbers_that_are_not_there_yet_are_left_out(seconds: list[float], capsys: Any) -> None:
    """While the teacher learns there is nothing else to show, and its total may come later."""
    client = ScriptedClient(
        *[("running", {"teacher_step": 2}, [])] * 3, ("failed", {"teacher_step": 2, "teacher_total_steps": 8}, [])
    )
    _, lines = follow(client, capsys)
    assert lines == ["   10 s  teacher training 2/0"]


def test_a_terminal_gets_bars(seconds: list[float], capsys: Any) -> None:
    numbers = {"pairs_scored": 30, "pairs_total": 200, "step": 3, "total_steps": 12, "loss": 0.5}
    client = ScriptedClient(("running", {}, ["mining"]), ("succeeded", numbers, []))
    _, lines = follow(client, capsys, force_terminal=True)
    text = "\n".join(lines)
    assert "mining" in text
    assert "30/200" in text
    assert "3/12" in text
    assert "loss 0.500" in text
    assert "teacher training" not in text, "a bar of nothing would only confuse"
