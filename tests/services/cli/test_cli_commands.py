"""The commands as a user types them: what is printed, and the exit status that a script acts on.

0 done, 1 it did not work, 2 the user must mend something. Never a traceback.
"""

import json
import re
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from tiny import spec_data

from pipelines.evaluation.result import summarise
from services.cli import run, watch
from services.store import DriverSession, ReconcilerSession, Store

RESULT = {
    "evaluation": summarise(
        {
            system: {
                measure: {f"q{number}": value for number in range(20)} for measure in ("nDCG@10", "RR@10", "R@100")
            }
            for system, value in (("bm25", 0.5), ("student_before", 0.4), ("student_after", 0.7))
        },
        num_documents=60,
    ).to_dict(),
    "facts": {},
}


def start(store: Store, job_id: str) -> DriverSession:
    """Be the reconciler and the driver."""
    token = ReconcilerSession(store, "reconciler").claim_for_start(job_id, 30)
    assert token is not None
    session = DriverSession(store, job_id, token)
    session.start()
    return session


def test_submit_prints_the_id_of_the_job_that_exists_then(cli: Any, gateway: str, store: Store, job_file: Path) -> None:
    """Scripts take the id from the output: it stands alone."""
    done = cli("submit", job_file, "--url", gateway, "--set", "training.epochs=3")
    assert done.exit_code == 0, done.output
    job = store.get_job(done.output.strip())
    assert (job.status, job.spec["training"]["epochs"], job.spec["name"]) == ("queued", 3, "tiny")


def test_the_url_may_come_from_the_environment(
    cli: Any, gateway: str, store: Store, job_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DUALDISTILL_URL", gateway)
    assert cli("submit", job_file).exit_code == 0
    assert len(store.list_jobs()) == 1


def test_a_proxy_of_the_environment_is_not_asked_for_a_local_gateway(
    cli: Any, gateway: str, nobody: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Behind a company's proxy, `make demo` must still reach the gateway that it has just started."""
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, nobody)
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    assert cli("jobs", "list", "--url", gateway).exit_code == 0


@pytest.mark.parametrize("command", ["submit", "run", "up"])
@pytest.mark.parametrize("override", ["epochs", "=3", ""])
def test_an_override_needs_a_field_and_a_value(
    cli: Any, job_file: Path, tmp_path: Path, command: str, override: str
) -> None:
    arguments = ["--submit", job_file, "--root", tmp_path / "root"] if command == "up" else [job_file]
    done = cli(command, *arguments, "--set", override)
    assert done.exit_code == 2, done.output
    assert f"--set: needs FIELD=VALUE, got {override!r}" in done.output
    assert not (tmp_path / "root").exists(), "nothing was started"


@pytest.mark.parametrize("command", ["submit", "run", "up"])
def test_every_wrong_field_is_named(cli: Any, job_file: Path, tmp_path: Path, command: str) -> None:
    """One line each, so that all can be mended at once; before anything is started or asked."""
    arguments = ["--submit", job_file, "--root", tmp_path / "root"] if command == "up" else [job_file]
    done = cli(command, *arguments, "--set", "training.learning_rate=-1", "--set", "training.epochss=2")
    assert done.exit_code == 2
    lines = done.output.splitlines()
    assert any(re.match(r"training\.learning_rate: .*-1", line) for line in lines), lines
    assert "training.epochss: unknown field" in lines
    assert not (tmp_path / "root").exists(), "nothing was started"


def test_a_wrong_value_is_shown_as_it_was_typed(cli: Any, job_file: Path) -> None:
    """Square brackets are markup to the library that prints; a value in them vanished, or ended in a traceback."""
    for value in ("'[bold]x'", "'[/nowhere]'"):
        done = cli("submit", job_file, "--set", f"name={value}")
        assert done.exit_code == 2, done.output
        assert yaml.safe_load(value) in done.output


@pytest.mark.parametrize("command", ["submit", "run", "up"])
def test_a_job_file_that_is_not_there(cli: Any, tmp_path: Path, command: str) -> None:
    flag = ["--submit"] if command == "up" else []
    done = cli(command, *flag, tmp_path / "nowhere.yaml")
    assert done.exit_code == 2
    assert "there is no file" in done.output
    assert "nowhere.yaml" in done.output


def test_a_job_file_that_is_not_yaml(cli: Any, tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text("name: [unclosed")
    done = cli("submit", tmp_path / "job.yaml")
    assert done.exit_code == 2
    assert "is not YAML" in done.output


def test_what_only_the_gateway_can_know_is_named_too(cli: Any, gateway: str, store: Store, job_file: Path) -> None:
    done = cli("submit", job_file, "--url", gateway, "--set", "dataset.path=../secrets")
    assert done.exit_code == 2
    assert done.output.startswith("spec.dataset.path: ")
    assert "../secrets" in done.output
    assert store.list_jobs() == []


@pytest.mark.parametrize(
    "command", [("submit",), ("jobs", "list"), ("jobs", "show"), ("jobs", "watch"), ("jobs", "cancel")]
)
def test_a_gateway_that_is_not_there_is_a_sentence(
    cli: Any, nobody: str, job_file: Path, command: tuple[str, ...]
) -> None:
    subject = {"submit": [job_file], "list": []}.get(command[-1], ["ddjob-x"])
    done = cli(*command, *subject, "--url", nobody)
    assert done.exit_code == 1
    assert done.output.startswith(f"failed: the gateway at {nobody} does not answer")
    assert len(done.output.splitlines()) == 1


def test_another_server_on_the_port_is_a_sentence(cli: Any, something_else: str) -> None:
    done = cli("jobs", "list", "--url", something_else)
    assert done.exit_code == 1
    assert "is no dualdistill gateway" in done.output


@pytest.mark.parametrize("command", ["show", "watch", "cancel"])
def test_a_job_that_does_not_exist_is_a_sentence(cli: Any, gateway: str, command: str) -> None:
    done = cli("jobs", command, "ddjob-nowhere", "--url", gateway)
    assert done.exit_code == 2
    assert "there is no job 'ddjob-nowhere'" in done.output


def test_a_wrong_query_parameter_is_named(cli: Any, gateway: str) -> None:
    done = cli("jobs", "list", "--limit", 1_000_000, "--url", gateway)
    assert done.exit_code == 2
    assert done.output.startswith("limit: ")


def test_jobs_are_listed_newest_first(cli: Any, gateway: str, store: Store) -> None:
    ids = [store.create_job(spec_data(name=name)).id for name in ("older", "newer")]
    done = cli("jobs", "list", "--url", gateway)
    assert done.exit_code == 0
    assert done.output.index(ids[1]) < done.output.index("newer") < done.output.index(ids[0])
    assert "queued" in done.output


def test_a_job_is_shown_as_json(cli: Any, gateway: str, store: Store) -> None:
    job_id = store.create_job(spec_data()).id
    shown = json.loads(cli("jobs", "show", job_id, "--url", gateway).output)
    assert (shown["id"], shown["status"], shown["spec"]["name"]) == (job_id, "queued", "tiny")


def test_cancel_says_what_became_of_the_job(cli: Any, gateway: str, store: Store) -> None:
    job_id = store.create_job(spec_data()).id
    done = cli("jobs", "cancel", job_id, "--url", gateway)
    assert (done.exit_code, done.output.strip()) == (0, "cancelled")
    again = cli("jobs", "cancel", job_id, "--url", gateway)
    assert again.exit_code == 2
    assert "has already ended" in again.output


def test_watching_a_job_that_succeeded_prints_its_table(cli: Any, gateway: str, store: Store) -> None:
    job_id = store.create_job(spec_data()).id
    start(store, job_id).succeed(RESULT)
    done = cli("jobs", "watch", job_id, "--url", gateway)
    assert done.exit_code == 0, done.output
    assert "Student, distilled" in done.output
    assert "0.700" in done.output


def test_watching_a_job_that_failed_prints_why(cli: Any, gateway: str, store: Store) -> None:
    """The message is not markup: a path or a list in it is printed as it is."""
    job_id = store.create_job(spec_data()).id
    start(store, job_id).fail("invalid_dataset", "qrels/train.tsv, line 3: ['d9'] [/x] is in no corpus file")
    done = cli("jobs", "watch", job_id, "--url", gateway)
    assert done.exit_code == 1
    assert "failed (invalid_dataset): qrels/train.tsv, line 3: ['d9'] [/x] is in no corpus file" in done.output


def test_submit_and_watch_in_one_command(
    cli: Any, gateway: str, store: Store, job_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The job is done between the first look and the second: where the command would wait."""

    def work_instead_of_waiting(_: float) -> None:
        (job,) = store.list_jobs()
        start(store, job.id).succeed(RESULT)

    played_time = SimpleNamespace(monotonic=time.monotonic, sleep=work_instead_of_waiting)
    monkeypatch.setattr(watch, "time", played_time)
    done = cli("submit", job_file, "--url", gateway, "--watch")
    assert done.exit_code == 0, done.output
    assert re.match(r"submitted +ddjob-", done.output)
    assert "Student, distilled" in done.output


def test_run_says_what_must_be_mended(cli: Any, job_file: Path, tmp_path: Path) -> None:
    """`run` on a folder that is not there: the same words as the service's, no traceback."""
    done = cli("run", job_file, "--root", tmp_path / "root", "--data-root", tmp_path)
    assert done.exit_code == 1
    assert "failed (invalid_dataset): dataset.path: there is no folder 'data'" in done.output


def test_run_shows_messages_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    """A folder called [x] is no markup, also not in the lines of a run."""
    from rich.console import Console

    run.ConsoleJournal(Console()).event("teacher.trained", "wrote /models/[bold]x and [/nowhere]")
    assert "/models/[bold]x and [/nowhere]" in capsys.readouterr().out


def test_without_a_command_help_is_printed(cli: Any) -> None:
    done = cli("--help")
    assert done.exit_code == 0
    assert {"up", "submit", "run", "jobs"} <= set(done.output.split())
