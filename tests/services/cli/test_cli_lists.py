"""`dualdistill lists` on real files: what is printed, what is written, and a sentence for whatever is wrong.

0 done, 1 it did not work, 2 the user must mend something. Never a traceback.
"""

import json
from pathlib import Path
from typing import Any

import ir_measures
import pyarrow.parquet as pq
import pytest
from exports_for_tests import CONTRACT, table_below
from tiny import tiny_dataset, write_beir

from pipelines.corpus.dataset import Dataset
from services.cli.lists import lists
from services.cli.output import console


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_beir(tmp_path / "data")


@pytest.fixture
def dataset(data: Path) -> Dataset:
    return tiny_dataset(data)


@pytest.fixture
def root(tmp_path: Path, dataset: Dataset) -> Path:
    table_below(tmp_path / "root", dataset)
    return tmp_path / "root"


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "width", 200)


def test_these_are_the_commands_tried_here() -> None:
    assert {"list", "inspect", "export", "import"} <= {command.name for command in lists.registered_commands}


def test_nothing_there_is_a_sentence(cli: Any, tmp_path: Path) -> None:
    nowhere = ("--root", tmp_path / "nowhere")
    done = cli("lists", "list", *nowhere)
    assert (done.exit_code, done.output.strip()) == (0, "there are no ranked lists yet")
    for command in (("inspect", "q"), ("export", "trec", tmp_path / "out")):
        done = cli("lists", *command, *nowhere)
        assert done.exit_code == 1
        assert done.output.startswith("failed (ranked_lists_error): there are no ranked lists below")
    done = cli("lists", "import", tmp_path / "run.trec", "--data", tmp_path / "no", "--name", "x", *nowhere)
    assert done.exit_code == 1
    assert done.output.startswith("failed (invalid_dataset): dataset.path: there is no folder")


def test_list_shows_tables_jobs_and_rounds(cli: Any, root: Path, dataset: Dataset) -> None:
    done = cli("lists", "list", "--root", root)
    assert done.exit_code == 0, done.output
    for word in (dataset.fingerprint[:12], CONTRACT.fingerprint[:12], "a/teacher", "job", "round 0: 5"):
        assert word in done.output


def test_inspect_shows_ids_without_a_data_set(cli: Any, root: Path) -> None:
    done = cli("lists", "inspect", "train0", "--root", root)
    assert done.exit_code == 0, done.output
    rows = [line.split("│")[1:-1] for line in done.output.splitlines() if line.startswith("│")]
    cells = [[cell.strip() for cell in row] for row in rows]
    assert cells[0] == ["1", "d3", "7.2500", "", "4", "", "0", "kept"]
    assert cells[1] == ["2", "d1", "3.3000", "", "2", "", "1", "positive"]
    assert [row[1] for row in cells] == ["d3", "d1", "d2", "d0", "d4"]


def test_inspect_shows_texts_and_reasons(cli: Any, root: Path, data: Path, dataset: Dataset, tmp_path: Path) -> None:
    filters = tmp_path / "filters.yaml"
    filters.write_text("filters:\n  absolute_margin: 1\n", encoding="utf-8")
    done = cli("lists", "inspect", "train0", "--root", root, "--data", data, "--filters", filters)
    assert done.exit_code == 0, done.output
    assert f"query      train0: {dataset.query_text('train0')}" in done.output
    assert dataset.passage("d3")[:40] in done.output
    assert "above_positive" in done.output
    full = cli("lists", "inspect", "train0", "--root", root, "--data", data, "--full").output
    assert all(dataset.passage(doc) in full for doc in ("d0", "d1", "d2", "d3", "d4"))
    assert "1. d3  (teacher logit 7.2500, bm25 4, judged 0, verdict kept)" in full


def test_a_text_never_breaks_the_table(cli: Any, root: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a narrow terminal the text gives way, one line per candidate."""
    monkeypatch.setattr(console, "width", 100)
    done = cli("lists", "inspect", "train0", "--root", root, "--data", data)
    rows = [line for line in done.output.splitlines() if line.startswith("│")]
    assert len(rows) == 5
    assert all("│" in row and "…" in row for row in rows)


def test_a_query_without_a_list_is_a_sentence(cli: Any, root: Path) -> None:
    done = cli("lists", "inspect", "nobody", "--root", root)
    assert done.exit_code == 1
    assert "job 'job' has no list of query 'nobody' (rounds searched: 0)" in done.output


def test_export_writes_and_says_what_it_left_out(cli: Any, root: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = ("lists", "export", "n-tuple", out, "--root", root, "--data", data, "--negatives", 2)
    done = cli(*arguments)
    assert done.exit_code == 0, done.output
    assert done.output.splitlines() == [
        "2 of 5 lists of job job, round 0",
        "3 positives, 4 negatives",
        "left out: 1 list, fewer than 2 negatives",
        "left out: 2 lists, no positive",
        "left out: 3 candidates, not among the hardest",
        "3 rows in table train",
        f"{out}  (README.md says how to load it)",
    ]
    assert pq.read_table(out / "data" / "train.parquet").num_rows == 3
    again = cli(*arguments)
    assert again.exit_code == 1
    assert "--force replaces an earlier export" in again.output
    assert cli(*arguments, "--force").exit_code == 0


def test_export_takes_the_rule_of_positives_and_filters(cli: Any, root: Path, data: Path, tmp_path: Path) -> None:
    filters = tmp_path / "filters.yaml"
    filters.write_text("max_logit: 5\n", encoding="utf-8")
    out = tmp_path / "out"
    places = ("--root", root, "--data", data, "--filters", filters)
    done = cli("lists", "export", "flag-embedding", out, "--positives", "labels", *places)
    assert done.exit_code == 0, done.output
    rows = [json.loads(line) for line in (out / "data" / "train.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["neg_id"] for row in rows] == [["d2", "d4"], ["d6"]]
    assert "left out: 2 candidates, outside_score_band" in done.output  # d3, and d10 that no label makes a positive


@pytest.mark.parametrize(
    ("arguments", "status", "told"),
    [
        (["csv"], 2, "format: there is no format 'csv'; there are: n-tuple,"),
        (["pylate"], 2, "--data: pylate holds texts: give the data set's folder"),
        (["n-tuple", "--data", "DATA"], 2, "num_negatives: n-tuple has a fixed number of columns"),
        (["trec", "--job", "nobody"], 1, "no ranked lists of job 'nobody'"),
        (["trec", "--round", "3"], 1, "no lists in round 3; the table holds: job round 0"),
        (["trec", "--filters", "WRONG"], 2, "margin: unknown field"),
        (["trec", "--filters", "missing.yaml"], 2, "there is no file 'missing.yaml'"),
        (["trec", "--tag", "two words"], 2, "tag: must be one word"),
        (["trec", "--data", "OTHER"], 1, "no ranked lists of data set"),
    ],
)
def test_what_export_cannot_do_is_a_sentence(
    arguments: list[str], status: int, told: str, cli: Any, root: Path, data: Path, tmp_path: Path
) -> None:
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text("margin: 1\n", encoding="utf-8")
    other = write_beir(tmp_path / "other")
    (other / "corpus.jsonl").write_text('{"_id": "d0", "text": "another corpus"}\n', encoding="utf-8")
    named = {"DATA": data, "WRONG": wrong, "OTHER": other}
    format_name, *options = [named.get(word, word) for word in arguments]
    done = cli("lists", "export", format_name, tmp_path / "out", "--root", root, *options)
    assert done.exit_code == status, done.output
    assert told in done.output
    assert not (tmp_path / "out").exists()


def test_export_and_import_again(cli: Any, root: Path, data: Path, tmp_path: Path) -> None:
    assert cli("lists", "export", "trec", tmp_path / "out", "--root", root).exit_code == 0
    file = tmp_path / "out" / "data" / "run.trec"
    arguments = ("lists", "import", file, "--data", data, "--name", "back", "--root", root)
    done = cli(*arguments)
    assert done.exit_code == 0, done.output
    job, facts, contract = done.output.splitlines()
    assert job.startswith("import-")
    assert facts == "4 lists, 14 scores of imported:back"
    assert contract.startswith("contract ")
    assert "4 lists were there before and stayed as they are" in cli(*arguments).output

    again = cli("lists", "export", "trec", tmp_path / "again", "--root", root, "--job", job)
    assert again.exit_code == 0, again.output
    one, two = (
        list(ir_measures.read_trec_run(str(tmp_path / name / "data" / "run.trec"))) for name in ("out", "again")
    )
    assert one == two

    both = cli("lists", "export", "trec", tmp_path / "which", "--root", root)
    assert both.exit_code == 1
    assert "2 tables of ranked lists" in both.output
    assert job in both.output


def test_import_takes_relevance_from_a_split(cli: Any, data: Path, tmp_path: Path, dataset: Dataset) -> None:
    (positive, grade), *_ = dataset.judged("train")["train1"].items()
    file = tmp_path / "scores.jsonl"
    file.write_text(json.dumps({"query_id": "train1", "doc_id": positive, "score": 1.5}) + "\n", encoding="utf-8")
    places = ("--data", data, "--root", tmp_path / "root")
    assert cli("lists", "import", file, "--name", "api", "--split", "train", *places).exit_code == 0
    done = cli("lists", "inspect", "train1", *places)
    row = next(line for line in done.output.splitlines() if line.startswith("│"))
    assert [cell.strip() for cell in row.split("│")[1:-2]] == [
        "1",
        positive,
        "1.5000",
        "",
        "",
        "",
        str(grade),
        "positive",
    ]


def test_a_wrong_line_is_named(cli: Any, data: Path, tmp_path: Path) -> None:
    file = tmp_path / "run.trec"
    file.write_text("train0 Q0 d1 1 nan x\n", encoding="utf-8")
    done = cli("lists", "import", file, "--data", data, "--name", "x", "--root", tmp_path / "root")
    assert done.exit_code == 1
    assert done.output.strip() == ("failed (invalid_dataset): run.trec, line 1: the score nan is not a finite float32")
