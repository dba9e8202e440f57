"""`dualdistill lists filter-report` on real tables: a report without a GPU, or one sentence that says what to mend."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import typer
import yaml
from click.testing import Result
from tiny import tiny_dataset, write_beir
from typer.testing import CliRunner

from pipelines.candidates.schema import CANDIDATES_SCHEMA
from pipelines.ranked.schema import rank_candidates
from pipelines.ranked.table import RankedLists, ranked_lists_location
from pipelines.teacher.contract import ScoreContract
from services.cli.filter_report import filter_report
from services.cli.output import console

Report = Callable[..., Result]
CONTRACT = ScoreContract(model_id="fake", revision=None, weights_hash="0" * 64, max_length=48, dtype="fp32")


def commit(root: Path, dataset_fingerprint: str, round_number: int, lists: dict[str, dict[str, float]]) -> None:
    """One chunk; the first document of `train0` is judged relevant."""
    found = [
        {
            "query_id": query_id,
            "candidates": [
                {
                    "doc_id": doc_id,
                    "student_score": None,
                    "bm25_rank": place,
                    "dense_rank": None,
                    "relevance": 1 if query_id == "train0" and place == 0 else None,
                }
                for place, doc_id in enumerate(logits)
            ],
        }
        for query_id, logits in lists.items()
    ]
    location = ranked_lists_location(
        root, dataset_fingerprint=dataset_fingerprint, contract_fingerprint=CONTRACT.fingerprint
    )
    rows = rank_candidates(
        pa.Table.from_pylist(found, schema=CANDIDATES_SCHEMA),
        np.array([logit for logits in lists.values() for logit in logits.values()], dtype=np.float32),
        job_id="job",
        round_number=round_number,
        chunk_id=0,
        weights_version=0,
    )
    table = RankedLists(location, CONTRACT, dataset_fingerprint=dataset_fingerprint)
    assert table.commit_chunk(rows, job_id="job", round_number=round_number, chunk_id=0)


@pytest.fixture
def report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Report:
    monkeypatch.setattr(console, "width", 160)
    command = typer.Typer()
    command.command()(filter_report)
    return lambda *arguments: CliRunner().invoke(command, ["--root", str(tmp_path / "root"), *map(str, arguments)])


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data set, and two rounds of lists over it: d59 reads as d0."""
    folder = write_beir(tmp_path / "data")
    fingerprint = tiny_dataset(folder).fingerprint
    lists = {"train0": {"d1": 3.0, "d0": 9.0, "d59": 9.0, "d7": -1.0}, "train1": {"d3": 5.0, "d4": 4.9}}
    commit(tmp_path / "root", fingerprint, 0, lists)
    commit(tmp_path / "root", fingerprint, 1, {"train0": {"d1": 3.0, "d2": 9.0}})
    return folder


def as_json(done: Result) -> dict[str, object]:
    assert done.exit_code == 0, done.output
    found: dict[str, object] = json.loads(done.output)
    return found


@pytest.mark.usefixtures("data")
def test_the_last_round_is_reported_unless_another_is_named(report: Report) -> None:
    assert as_json(report("--json"))["num_candidates"] == 2
    found = as_json(report("--json", "--round", 0, "--job", "job"))
    assert (found["num_lists"], found["num_candidates"], found["num_positives"]) == (2, 6, 2)
    found = as_json(report("--json", "--round", 0, "--positives", "labels"))
    assert found["num_lists_without_positive"] == 1


@pytest.mark.usefixtures("data")
def test_tables_say_what_is_kept_and_why(report: Report) -> None:
    done = report("--round", 0, "--set", "relative_margin=0.05", "--set", "above_positive=relabel")
    assert done.exit_code == 0
    assert "2 lists, 6 candidates, 2 of them positives" in done.output
    assert "counts as a positive: the teacher puts it above the positive" in done.output
    assert "dropped: less than the margin below the positive" in done.output
    lines = [line.strip("│┃ ") for line in done.output.splitlines()]
    rows = lines[lines.index("relative_margin") :]
    assert [row.split()[0] for row in rows[1:7]] == ["off", "0", "0.05", "0.1", "0.25", "0.5"]
    assert "█" in done.output


def test_texts_are_compared_with_the_data_set_at_hand(report: Report, data: Path) -> None:
    done = report("--json", "--round", 0, "--set", "same_text=drop", "--data", data)
    assert as_json(done)["given"]["reasons"]["same_text"] == 1
    done = report("--round", 0, "--set", "same_text=drop")
    assert done.exit_code == 2
    assert done.output.startswith("--data: ")


def test_a_data_set_that_was_not_scored_is_refused(report: Report, data: Path) -> None:
    corpus = data / "corpus.jsonl"
    corpus.write_text(corpus.read_text().replace("often", "never"), encoding="utf-8")
    done = report("--data", data)
    assert done.exit_code == 1
    assert "ranked_lists_error" in done.output


@pytest.mark.usefixtures("data")
def test_filters_come_from_a_file(report: Report, tmp_path: Path) -> None:
    file = tmp_path / "filters.yaml"
    file.write_text(yaml.safe_dump({"min_candidates": 3}), encoding="utf-8")
    found = as_json(report("--json", "--round", 0, "--filters", file))
    assert found["given"]["reasons"]["short_list"] == 2
    found = as_json(report("--json", "--round", 0, "--filters", file, "--set", "min_candidates=2"))
    assert found["given"]["reasons"]["short_list"] == 0


@pytest.mark.usefixtures("data")
@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["--set", "relative_margin"], 2, "--set: needs FIELD=VALUE"),
        (["--set", "relative_margin=-1"], 2, "relative_margin: "),
        (["--set", "margin=1"], 2, "margin: unknown field"),
        (["--filters", "none.yaml"], 2, "none.yaml"),
        (["--job", "other"], 1, "'other'"),
        (["--round", "7"], 1, "round 7"),
        (["--data", "nowhere"], 1, "nowhere"),
    ],
)
def test_what_cannot_be_reported_is_a_sentence(report: Report, arguments: list[str], status: int, words: str) -> None:
    done = report(*arguments)
    assert done.exit_code == status
    assert words in done.output
    assert "Traceback" not in done.output


def test_a_root_without_lists_is_a_sentence(report: Report) -> None:
    done = report()
    assert done.exit_code == 1
    assert "there are no ranked lists" in done.output
