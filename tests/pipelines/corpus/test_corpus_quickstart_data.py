"""The quickstart's data keeps what its SOURCE.md promises, or the demo's comparison would not be an honest one."""

from pathlib import Path

import pytest

from pipelines.corpus.dataset import Dataset, load_dataset
from pipelines.spec import DatasetSpec

FOLDER = Path(__file__).parents[3] / "examples" / "quickstart" / "data"
SPLITS = ("train", "pool", "test")


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    spec = DatasetSpec(path="data", train_split="train", dev_split="pool", test_split="test")
    return load_dataset(spec, FOLDER)


def test_counts_and_size(dataset: Dataset) -> None:
    assert [len(dataset.labelled_queries(split)) for split in SPLITS] == [120, 1050, 300]
    assert (dataset.documents.num_rows, dataset.queries.num_rows) == (3606, 1470)
    assert sum(file.stat().st_size for file in FOLDER.rglob("*") if file.is_file()) <= 3_000_000
    assert {file.name for file in FOLDER.iterdir()} >= {"LICENSE", "SOURCE.md"}


def test_a_job_that_names_train_and_test_sees_no_label_of_the_pool(dataset: Dataset) -> None:
    job = load_dataset(DatasetSpec(path="data"), FOLDER)
    assert job.splits == ["train", "test"]
    assert job.unlabelled_queries("train", "test") == dataset.labelled_queries("pool")


def test_pools_share_no_focus_and_no_relevant_document(dataset: Dataset) -> None:
    focus = dict(zip(dataset.documents["doc_id"].to_pylist(), dataset.documents["title"].to_pylist(), strict=True))
    documents = [{d for found in dataset.judged(split).values() for d in found} for split in SPLITS]
    foci = [{focus[doc_id].casefold() for doc_id in pool} for pool in documents]
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert documents[one].isdisjoint(documents[other])
        assert foci[one].isdisjoint(foci[other])
