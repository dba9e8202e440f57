"""`dualdistill teachers` and `rerank` against a real gateway; only Ray is missing, so every pool is about to start.

0 done, 1 it did not work, 2 the user must mend something. Never a traceback.
"""

import json
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from tiny import save_cross_encoder, spec_data

from services.cli.client import GatewayClient, RequestRefused
from services.cli.teachers import teachers
from services.store import DriverSession, ReconcilerSession, Store, Teacher, TeacherTable

CONTRACT = {"model_id": "org/reranker", "revision": None, "weights_hash": "ab", "max_length": 64, "dtype": "fp32"}
NAME = "reranker-0123abcd"


@pytest.fixture
def table(store: Store) -> TeacherTable:
    return TeacherTable(store)


@pytest.fixture
def pinned(table: TeacherTable) -> str:
    return table.pin(Teacher(name=NAME, model_dir="d", contract=CONTRACT, replicas=2, max_replicas=2)).name


@pytest.fixture
def model(gateway: str, tmp_path: Path) -> str:
    """Id of a real cross-encoder below the gateway's data root."""
    save_cross_encoder(tmp_path / "data-root" / "teacher", seed=1)
    return "./teacher"


def test_every_command_is_tried_here() -> None:
    """A command that is added is added to `test_a_gateway_that_is_not_there_is_a_sentence`, too."""
    assert {command.name for command in teachers.registered_commands} == {"list", "show", "add", "scale", "remove"}


@pytest.mark.parametrize(
    "command",
    [
        ("teachers", "list"),
        ("teachers", "show", NAME),
        ("teachers", "add", "--model", "x"),
        ("teachers", "scale", NAME, "--replicas", "1"),
        ("teachers", "remove", NAME),
        ("rerank", "--model", NAME, "--query", "q", "d"),
    ],
)
def test_a_gateway_that_is_not_there_is_a_sentence(cli: Any, nobody: str, command: tuple[str, ...]) -> None:
    done = cli(*command, "--url", nobody)
    assert done.exit_code == 1
    assert done.output.startswith(f"failed: the gateway at {nobody} does not answer")
    assert len(done.output.splitlines()) == 1


def test_add_prints_the_name_of_the_teacher_that_is_wanted_then(
    cli: Any, gateway: str, table: TeacherTable, model: str
) -> None:
    """Scripts take the name from the output: it stands alone."""
    sizes = ("--replicas", 3, "--cpus-per-replica", 0.5, "--max-length", 48, "--dtype", "fp32")
    done = cli("teachers", "add", "--model", model, *sizes, "--url", gateway)
    assert done.exit_code == 0, done.output
    (wanted,) = table.wanted()
    assert done.output.strip() == wanted.name
    assert (wanted.mode, wanted.replicas, wanted.cpus_per_replica) == ("fixed", 3, 0.5)
    assert (wanted.contract["max_length"], wanted.contract["dtype"]) == (48, "fp32")


def test_add_takes_the_teacher_of_a_job_file(
    cli: Any, gateway: str, table: TeacherTable, model: str, job_file: Path
) -> None:
    """Its whole section; what the command line says besides comes on top."""
    done = cli("teachers", "add", job_file, "--max", 4, "--url", gateway)
    assert done.exit_code == 0, done.output
    (wanted,) = table.wanted()
    assert (wanted.contract["max_length"], wanted.tokens_per_batch) == (48, 512)
    assert (wanted.mode, wanted.replicas, wanted.min_replicas, wanted.max_replicas) == ("auto", 1, 0, 4)


def test_a_job_file_s_teacher_that_is_to_be_trained_is_refused(
    cli: Any, gateway: str, table: TeacherTable, tmp_path: Path
) -> None:
    path = tmp_path / "trains.yaml"
    path.write_text(yaml.safe_dump(spec_data(teacher={"train": {"max_steps": 2}})), encoding="utf-8")
    done = cli("teachers", "add", path, "--url", gateway)
    assert done.exit_code == 2
    assert done.output.startswith("train: ")
    assert "train a teacher in a job" in done.output
    assert table.all() == []


def test_add_keeps_the_teacher_of_a_job(cli: Any, gateway: str, store: Store, table: TeacherTable) -> None:
    job_id = store.create_job(spec_data()).id
    token = ReconcilerSession(store, "reconciler").claim_for_start(job_id, 30)
    assert token is not None
    driver = DriverSession(store, job_id, token)
    driver.use_teacher(Teacher(name=NAME, model_dir="/trained", contract=CONTRACT))
    driver.succeed({})
    done = cli("teachers", "add", "--job", job_id, "--replicas", 2, "--url", gateway)
    assert (done.exit_code, done.output.strip()) == (0, NAME)
    assert [(teacher.name, teacher.replicas) for teacher in table.wanted()] == [(NAME, 2)]


@pytest.mark.parametrize("which", [[], ["--model", "x", "--job", "y"], ["JOB", "--model", "x"]])
def test_add_wants_to_know_one_teacher(cli: Any, gateway: str, job_file: Path, which: list[str]) -> None:
    done = cli("teachers", "add", *(job_file if word == "JOB" else word for word in which), "--url", gateway)
    assert done.exit_code == 2
    assert done.output.strip() == "add: needs one of JOB.yaml, --model ID and --job JOB_ID"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--model", "/etc"], "model.id: '/etc' does not lie below a data root"),
        (["--model", "./teacher", "--dtype", "fp23"], "dtype: "),
        (["--model", "./teacher", "--min", "2"], "autoscale.max_replicas: "),
        (["--job", "ddjob-none"], "request: 404: there is no job 'ddjob-none'"),
        (["--job", "ddjob-none", "--max-length", "9"], "max_length: unknown field"),
    ],
)
def test_what_only_the_gateway_can_know_is_named_too(
    cli: Any, gateway: str, model: str, arguments: list[str], told: str
) -> None:
    done = cli("teachers", "add", *arguments, "--url", gateway)
    assert done.exit_code == 2
    assert done.output.startswith(told)


def test_list_shows_all_pages(cli: Any, gateway: str, table: TeacherTable) -> None:
    """More than one page, and every kind of size: what is unknown while Ray is away is shown as such."""
    for number in range(101):
        table.pin(Teacher(name=f"t-{number:03}", model_dir="d", contract=CONTRACT))
    table.pin(Teacher(name="t-100", model_dir="d", contract=CONTRACT, mode="auto", min_replicas=1, max_replicas=8))
    done = cli("teachers", "list", "--url", gateway)
    assert done.exit_code == 0, done.output
    assert done.output.count("unknown") == 101
    assert done.output.index("t-000") < done.output.index("t-100")
    assert "1 to 8" in done.output
    assert "? / 1" in done.output


def test_a_teacher_is_shown_as_json(cli: Any, gateway: str, pinned: str) -> None:
    shown = json.loads(cli("teachers", "show", pinned, "--url", gateway).output)
    assert (shown["id"], shown["replicas"]["target"], shown["contract"]) == (NAME, 2, CONTRACT)


def test_scaling(cli: Any, gateway: str, table: TeacherTable, pinned: str) -> None:
    for arguments, told, replicas in (
        (["--replicas", 5], "fixed, 5 now", 5),
        (["--auto", "--max", 4], "auto, 4 now, 0 to 4", 4),
        (["--min", 1, "--max", 3], "auto, 3 now, 1 to 3", 3),
        (["--replicas", 2], "fixed, 2 now", 2),
    ):
        done = cli("teachers", "scale", pinned, *arguments, "--url", gateway)
        assert (done.exit_code, done.output.strip()) == (0, told), done.output
        assert table.get(pinned).replicas == replicas


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "nothing to change"),
        (["--max", 3], '"mode": "auto" with max_replicas'),
        (["--auto", "--min", 5, "--max", 3], "min_replicas: min_replicas 5 is above max_replicas 3"),
        (["--auto", "--replicas", 3], "replicas is for mode fixed"),
        (["--replicas", 0], "replicas: "),
    ],
)
def test_a_size_that_makes_no_sense_is_a_sentence(
    cli: Any, gateway: str, table: TeacherTable, pinned: str, arguments: list[Any], told: str
) -> None:
    done = cli("teachers", "scale", pinned, *arguments, "--url", gateway)
    assert done.exit_code == 2
    assert told in done.output
    assert table.get(pinned).replicas == 2


def test_remove_says_nothing_and_does_it(cli: Any, gateway: str, table: TeacherTable, pinned: str) -> None:
    done = cli("teachers", "remove", pinned, "--url", gateway)
    assert (done.exit_code, done.output) == (0, "")
    assert table.wanted() == []


@pytest.mark.parametrize("command", [("show",), ("remove",), ("scale", "--replicas", "1")])
@pytest.mark.parametrize("name", ["nowhere", "../distillation/jobs", "a b?c=d"])
def test_a_teacher_that_does_not_exist_is_a_sentence(
    cli: Any, gateway: str, command: tuple[str, ...], name: str
) -> None:
    """Whatever was typed stays one part of the path: `..` must not lead to another resource."""
    done = cli("teachers", command[0], name, *command[1:], "--url", gateway)
    assert done.exit_code == 2
    assert done.output.startswith("request: 404: ")


def test_rerank_of_a_pool_that_is_not_there_yet_says_so(cli: Any, gateway: str, pinned: str) -> None:
    """Status 1: the same command works later, nothing is to be mended in it."""
    done = cli("rerank", "--model", pinned, "--query", "q", "one", "two", "--url", gateway)
    assert done.exit_code == 1
    assert done.output.startswith(f"request: 503: teacher '{NAME}' has no running replica yet")


def test_rerank_prints_the_best_first(cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The answer is played; a document in square brackets is printed as it is."""
    asked: list[Any] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append((request.url.path, json.loads(request.content)))
        results = [(1, 0.9, 2.25), (0, 0.25, -1.0)]
        keys = ("index", "relevance_score", "logit")
        return httpx.Response(200, json={"results": [dict(zip(keys, row, strict=True)) for row in results]})

    made = httpx.Client
    monkeypatch.setattr(httpx, "Client", lambda **options: made(**options, transport=httpx.MockTransport(answer)))
    done = cli("rerank", "--model", NAME, "--query", "q", "worse", "[bold]better")
    assert done.exit_code == 0, done.output
    assert [line.split() for line in done.output.splitlines()] == [
        ["0.9000", "2.250", "[bold]better"],
        ["0.2500", "-1.000", "worse"],
    ]
    body = {"model": NAME, "query": "q", "documents": ["worse", "[bold]better"]}
    assert asked == [("/v2/rerank", body)]


def test_a_refusal_names_its_fields_for_programs(gateway: str) -> None:
    with GatewayClient(gateway) as client, pytest.raises(RequestRefused) as refused:
        client.add_teacher({"model": {"id": "../x"}})
    assert (refused.value.status, [field for field, _ in refused.value.problems]) == (422, ["model.id"])
