"""Every format, written from a real table and read back with plain readers: texts, raw logits, and what is left out."""

import json
from pathlib import Path
from typing import Any

import ir_measures
import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from exports_for_tests import LISTS, Exporter, logit, ranked, table_below
from hypothesis import given
from hypothesis import strategies as st

from pipelines.corpus.dataset import Dataset
from pipelines.errors import DataError, RankedListsError
from pipelines.ranked.columns import ListColumns
from pipelines.ranked.exports.choice import ExportOptions, NoTexts, chosen_lists, hardest
from pipelines.ranked.exports.registry import FORMATS, format_named
from pipelines.ranked.positives import PositiveRule
from pipelines.spec import SpecError
from pipelines.spec_sections.filters import FilterSpec

LABELS_ONLY = PositiveRule(use_labels=True, teacher_top=False, min_confidence=1.0)


@pytest.fixture
def export(dataset: Dataset, tmp_path: Path) -> Exporter:
    return Exporter(table_below(tmp_path / "root", dataset), dataset, tmp_path)


def json_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def scored(rows: list[dict[str, Any]]) -> dict[str, float]:
    return {row["docid"]: row["score"] for row in rows}


def test_n_tuple_is_a_row_per_positive_with_its_hardest_negatives(export: Exporter, dataset: Dataset) -> None:
    done = export("n-tuple", negatives=2)
    table = pq.read_table(done.data("train.parquet"))
    # The trainer takes columns by position and `scores` as labels.
    assert table.column_names == ["query", "positive", "negative_1", "negative_2", "scores"]
    rows = table.to_pylist()
    expected = [("train0", "d1", "d3", "d2"), ("train0", "d0", "d3", "d2"), ("pool13", "d10", "d11", "d12")]
    for row, (query, positive, *negatives) in zip(rows, expected, strict=True):
        assert row["query"] == dataset.query_text(query)
        assert row["positive"] == dataset.passage(positive)
        assert [row["negative_1"], row["negative_2"]] == [dataset.passage(doc) for doc in negatives]
        assert row["scores"] == [logit(query, doc) for doc in (positive, *negatives)]  # exactly


def test_n_tuple_drops_short_lists_and_counts_them(export: Exporter) -> None:
    report = export("n-tuple", negatives=2).report
    assert report.lists_left_out == {"no positive": 2, "fewer than 2 negatives": 1}
    assert (report.lists, report.lists_exported, report.positives, report.negatives) == (5, 2, 3, 4)
    assert report.candidates_left_out == {"not among the hardest": 3}  # of train0, pool12 and pool13
    assert export("n-tuple", negatives=1).report.rows == {"train": 4}
    assert export("n-tuple", negatives=9).report.rows == {"train": 0}


def test_n_tuple_says_that_it_needs_a_number(export: Exporter, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="num_negatives: n-tuple has a fixed number of columns"):
        export("n-tuple")
    assert not [path for path in tmp_path.iterdir() if path.name != "root"]


def test_labeled_list_has_the_positive_first_and_any_length(export: Exporter, dataset: Dataset) -> None:
    done = export("labeled-list")
    table = pq.read_table(done.data("train.parquet"))
    assert table.column_names == ["query", "docs", "scores"]
    listed = {(row["query"], row["docs"][0]): row for row in table.to_pylist()}
    row = listed[dataset.query_text("train0"), dataset.passage("d0")]
    order = ["d0", "d3", "d2", "d4"]  # the other positive is in a row of its own
    assert row["docs"] == [dataset.passage(doc) for doc in order]
    assert row["scores"] == [logit("train0", doc) for doc in order]
    assert sorted(len(row["docs"]) for row in listed.values()) == [2, 4, 4, 4]
    assert done.report.lists_left_out == {"no positive": 2}


def test_flag_embedding_has_scores_and_ids_in_the_order_of_the_texts(export: Exporter, dataset: Dataset) -> None:
    rows = json_lines(export("flag-embedding").data("train.jsonl"))
    assert [row["query"] for row in rows] == [dataset.query_text(q) for q in ("train0", "train1", "pool13")]
    assert rows[0]["pos_id"] == ["d1", "d0"]
    assert rows[0]["neg_id"] == ["d3", "d2", "d4"]
    for query, row in zip(("train0", "train1", "pool13"), rows, strict=True):
        for side in ("pos", "neg"):
            assert row[side] == [dataset.passage(doc) for doc in row[f"{side}_id"]]
            assert row[f"{side}_scores"] == [logit(query, doc) for doc in row[f"{side}_id"]]


def test_tevatron_has_a_score_in_every_passage_and_no_title_to_be_added_twice(
    export: Exporter, dataset: Dataset
) -> None:
    rows = json_lines(export("tevatron", negatives=2).data("train.jsonl"))
    assert [row["query_id"] for row in rows] == ["train0", "train1", "pool13"]
    assert scored(rows[0]["positive_passages"]) == {doc: logit("train0", doc) for doc in ("d1", "d0")}
    assert scored(rows[0]["negative_passages"]) == {doc: logit("train0", doc) for doc in ("d3", "d2")}
    passage = rows[0]["positive_passages"][0]
    assert passage == {"docid": "d1", "text": dataset.passage("d1"), "score": logit("train0", "d1")}


def test_tevatron_listwise_has_a_positive_in_front(export: Exporter, dataset: Dataset) -> None:
    row = json_lines(export("tevatron-listwise").data("train.jsonl"))[0]
    order = ["d1", "d0", "d3", "d2", "d4"]
    assert row["passages"] == [{"docid": doc, "text": dataset.passage(doc)} for doc in order]
    assert row["scores"] == [logit("train0", doc) for doc in order]


def test_pylate_has_whole_lists_and_each_text_once(export: Exporter, dataset: Dataset) -> None:
    done = export("pylate")
    train, queries, documents = (
        pq.read_table(done.data(f"{name}.parquet")).to_pylist() for name in ("train", "queries", "documents")
    )
    assert {row["query_id"]: row["text"] for row in queries} == {
        query: dataset.query_text(query) for query in LISTS if LISTS[query]
    }
    ids = [row["document_id"] for row in documents]
    assert len(ids) == len(set(ids))
    assert all(row["text"] == dataset.passage(row["document_id"]) for row in documents)
    assert {row["query_id"]: row["document_ids"] for row in train}["train0"] == ["d3", "d1", "d2", "d0", "d4"]
    for row in train:
        assert row["scores"] == [logit(row["query_id"], doc) for doc in row["document_ids"]]
    # A list without a positive is as good as any here; one of nothing is not.
    assert done.report.lists_left_out == {"fewer than 2 candidates": 1}
    assert done.report.rows == {"train": 4, "queries": 4, "documents": 14}


def test_a_document_of_many_lists_is_written_once(dataset: Dataset, tmp_path: Path) -> None:
    lists = table_below(tmp_path / "root", dataset)
    lists.commit_chunk(ranked(["train0"], 9), job_id="job", round_number=0, chunk_id=9)
    done = Exporter(lists, dataset, tmp_path)("pylate")
    assert done.report.rows == {"train": 5, "queries": 4, "documents": 14}


def test_trec_is_read_by_ir_measures_with_every_bit(export: Exporter) -> None:
    done = export("trec")
    run = list(ir_measures.read_trec_run(str(done.data("run.trec"))))
    assert len(run) == sum(map(len, LISTS.values()))
    assert all(np.float32(doc.score) == np.float32(logit(doc.query_id, doc.doc_id)) for doc in run)
    lines = [line.split(" ") for line in done.data("run.trec").read_text(encoding="utf-8").splitlines()]
    # Ties stay in mined order: the stored order is the ranking.
    assert [(line[0], line[2], line[3]) for line in lines if line[0] == "pool12"] == [
        ("pool12", "d7", "1"),
        ("pool12", "d8", "2"),
        ("pool12", "d9", "3"),
    ]
    assert {(line[1], line[5]) for line in lines} == {("Q0", "dualdistill")}


def test_trec_needs_no_texts_and_the_others_do(export: Exporter, tmp_path: Path) -> None:
    export.dataset = NoTexts()
    export("trec")
    for name in set(FORMATS) - {"trec"}:
        assert format_named(name).needs_texts
        with pytest.raises(RankedListsError, match="no data set is at hand"):
            export(name, negatives=1)


def test_an_id_with_white_space_does_not_become_two_columns(export: Exporter) -> None:
    rows = FORMATS["trec"].rows
    (chosen,) = (each for each in _chosen(["train1"]))
    broken = type(chosen)("a query", chosen.candidates, chosen.positive)
    with pytest.raises(DataError, match="query id 'a query' holds white space"):
        list(rows(broken, NoTexts(), ExportOptions()))


def test_only_labels_only_labelled_lists(export: Exporter) -> None:
    rows = json_lines(export("flag-embedding", rule=LABELS_ONLY).data("train.jsonl"))
    assert [row["pos_id"] for row in rows] == [["d1", "d0"], ["d5"]]


def test_filters_leave_out_and_relabel_and_are_counted(export: Exporter) -> None:
    done = export("flag-embedding", filters=FilterSpec(above_positive="relabel", min_logit=-2.0))
    rows = json_lines(done.data("train.jsonl"))
    # Of train0 everything but d4 lies above its lesser positive, and d4 is below the band.
    assert [(row["pos_id"], row["neg_id"]) for row in rows] == [(["d5"], ["d6"]), (["d10"], ["d11"])]
    assert done.report.lists_left_out == {"no positive": 2, "no negative": 1}
    assert done.report.candidates_left_out == {"outside_score_band": 3}
    manifest = json.loads((done.folder / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["filters"]["above_positive"] == "relabel"


def test_a_filter_may_compare_texts(export: Exporter, dataset: Dataset) -> None:
    done = export("pylate", filters=FilterSpec(same_text="drop"))
    assert done.report.lists == 5


def test_every_export_says_where_it_comes_from(export: Exporter, dataset: Dataset) -> None:
    for name in FORMATS:
        done = export(name, negatives=1)
        manifest = json.loads((done.folder / "manifest.json").read_text(encoding="utf-8"))
        assert manifest["format"] == name
        assert manifest["contract"] == export.lists.contract.to_dict()
        assert manifest["dataset_fingerprint"] == dataset.fingerprint
        assert (manifest["job_id"], manifest["round"]) == ("job", 0)
        assert manifest["counts"]["lists"] == 5
        assert sum(manifest["left_out"]["lists"].values()) == 5 - manifest["counts"]["lists_exported"]
        readme = (done.folder / "README.md").read_text(encoding="utf-8")
        assert f"{done.folder.name}/data" in readme or f'"{done.folder.name}"' in readme
        # Some trainers read every JSON file of a folder: data/ holds data and nothing else.
        assert {path.stem for path in (done.folder / "data").iterdir()} == set(manifest["counts"]["rows"])


def test_the_readme_opens_with_the_tables_for_dataset_loaders(export: Exporter) -> None:
    header = (export("pylate").folder / "README.md").read_text(encoding="utf-8").split("---\n")[1]
    assert yaml.safe_load(header)["configs"] == [
        {"config_name": name, "data_files": f"data/{name}.parquet"} for name in ("train", "queries", "documents")
    ]


def test_a_failure_leaves_nothing_behind(export: Exporter, dataset: Dataset, tmp_path: Path) -> None:
    class Forgetful:
        def query_text(self, query_id: str) -> str:
            return dataset.query_text(query_id)

        def passage(self, doc_id: str) -> str:
            if doc_id == "d13":  # of the last list
                raise DataError(f"data set has no document {doc_id!r}")
            return dataset.passage(doc_id)

    export.dataset = Forgetful()
    for name in sorted(set(FORMATS) - {"trec", "n-tuple"}):
        with pytest.raises(DataError, match="'d13'"):
            export(name)
    assert [path.name for path in tmp_path.iterdir()] == ["root"]


def test_nothing_is_overwritten_but_an_export_when_that_is_asked(export: Exporter, tmp_path: Path) -> None:
    done = export("trec")
    before = done.data("run.trec").read_bytes()
    with pytest.raises(RankedListsError, match="--force replaces an earlier export"):
        export("pylate", to=done.folder)
    assert done.data("run.trec").read_bytes() == before
    assert export("pylate", to=done.folder, overwrite=True).data("train.parquet").exists()
    assert not done.data("run.trec").exists()
    assert {path.name for path in tmp_path.iterdir()} == {"root", done.folder.name}

    precious = tmp_path / "thesis"
    precious.mkdir()
    (precious / "manifest.json").write_text("{}", encoding="utf-8")
    with pytest.raises(RankedListsError, match="is no export, so it is not replaced"):
        export("trec", to=precious, overwrite=True)
    link = tmp_path / "link"
    link.symlink_to(done.folder)
    with pytest.raises(RankedListsError, match="is no export"):
        export("trec", to=link, overwrite=True)
    assert (precious / "manifest.json").exists()


def test_an_earlier_export_survives_a_new_one_that_cannot_take_its_place(
    export: Exporter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = export("trec")
    rename = Path.rename

    def refused(self: Path, target: Path) -> Path:
        if target == done.folder and not self.name.endswith(".old"):
            raise OSError("no space left")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refused)
    with pytest.raises(RankedListsError, match="cannot be written: no space left"):
        export("pylate", to=done.folder, overwrite=True)
    assert done.data("run.trec").exists()
    assert {path.name for path in tmp_path.iterdir()} == {"root", done.folder.name}


def test_a_folder_that_cannot_be_made_is_a_sentence(export: Exporter, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(RankedListsError, match="cannot be written"):
        export("trec", to=tmp_path / "file" / "export")


def test_many_rows_make_many_row_groups(dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.ranked.exports.writers._ROWS_PER_GROUP", 3)
    done = Exporter(table_below(tmp_path / "root", dataset), dataset, tmp_path)("labeled-list")
    assert pq.ParquetFile(done.data("train.parquet")).num_row_groups == 2
    assert pq.read_table(done.data("train.parquet")).num_rows == 4


def test_an_unknown_format_is_told_the_known_ones() -> None:
    with pytest.raises(SpecError, match="no format 'csv'; there are: n-tuple, labeled-list, flag-embedding"):
        format_named("csv")


@pytest.mark.parametrize("options", [{"num_negatives": 0}, {"tag": "two words"}, {"tag": ""}])
def test_options_that_make_no_sense_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(SpecError):
        ExportOptions(**options)


@given(st.lists(st.lists(st.booleans(), max_size=6), max_size=6), st.integers(1, 4))
def test_hardest_are_the_first_negatives_of_each_list(negative: list[list[bool]], most: int) -> None:
    columns = _columns_of_lengths([len(each) for each in negative])
    flat = np.array([flag for each in negative for flag in each], dtype=np.bool_)
    expected = [flag and sum(each[:place]) < most for each in negative for place, flag in enumerate(each)]
    assert hardest(columns, flat, most).tolist() == expected
    assert hardest(columns, flat, None).tolist() == flat.tolist()


def _columns_of_lengths(lengths: list[int]) -> ListColumns:
    import pyarrow as pa

    rows = [{"query_id": f"q{i}", "candidates": [{"doc_id": "d"}] * length} for i, length in enumerate(lengths)]
    schema = pa.schema([("query_id", pa.string()), ("candidates", pa.list_(pa.struct([("doc_id", pa.string())])))])
    return ListColumns(pa.Table.from_pylist(rows, schema=schema))


def _chosen(queries: list[str]) -> list[Any]:
    columns = ListColumns(ranked(queries))
    everything = np.ones(columns.num_candidates, dtype=np.bool_)
    return list(chosen_lists(columns, chosen=everything, positive=~everything))
