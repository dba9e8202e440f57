"""The labelled queries' candidates, mined once per session."""

from pathlib import Path

import pyarrow as pa
import pytest
from learners_for_tests import fresh_student
from tiny import tiny_spec

from pipelines.candidates.miner import Miner, embed_corpus
from pipelines.corpus.dataset import Dataset


@pytest.fixture(scope="session")
def labelled(dataset: Dataset, encoder_folder: Path) -> pa.Table:
    corpus = embed_corpus(fresh_student(encoder_folder), dataset)
    judged = dataset.judged_rows("train")
    return Miner(dataset, tiny_spec().candidates).mine(list(judged), corpus=corpus, judged=judged)
