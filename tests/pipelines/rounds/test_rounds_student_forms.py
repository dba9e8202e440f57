"""Jobs whose student has two heads or Matryoshka prefixes: mined, trained, measured and exported as one and the same.

Only a whole job shows it: evaluation and mining see the student through `encode`, training through the views of its
heads, and the user through sentence-transformers.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from jobs_for_tests import run
from safetensors.torch import load_file
from tiny import tiny_spec

from pipelines.corpus.dataset import Dataset
from pipelines.evaluation.metrics import evaluate

FORMS: dict[str, dict[str, Any]] = {
    "interpolated": {"heads": {"dimension": 8, "alpha": 0.3}},
    "contrastive-with-prefixes": {"heads": {"serve": "contrastive"}, "matryoshka": {"dimensions": [16, 4]}},
}


@pytest.mark.parametrize("form", FORMS)
def test_what_the_job_measured_is_what_sentence_transformers_loads(
    tiny_root: Path, dataset: Dataset, tmp_path: Path, form: str
) -> None:
    from sentence_transformers import SentenceTransformer

    run(tiny_root, tmp_path, tiny_spec(student=FORMS[form]))
    job = tmp_path / "jobs" / "job"
    student = SentenceTransformer(str(job / "artifacts" / "student"), device="cpu")
    query_ids, doc_ids = dataset.labelled_queries("test"), dataset.documents["doc_id"].to_pylist()
    queries = student.encode_query([dataset.query_text(query_id) for query_id in query_ids])
    scores = queries @ student.encode_document(dataset.passages()).T
    found = {
        query_id: dict(zip(doc_ids, map(float, row), strict=True))
        for query_id, row in zip(query_ids, scores, strict=True)
    }
    measured = json.loads((job / "artifacts" / "metrics.json").read_text(encoding="utf-8"))["per_query"]
    ours = evaluate({query_id: dataset.judged("test")[query_id] for query_id in query_ids}, found)["nDCG@10"]
    assert ours == pytest.approx(measured["student_after"]["nDCG@10"], abs=1e-6)

    (snapshot,) = [load_file(path) for path in job.rglob("snapshots/round-0.safetensors")]
    for head in ("contrastive", "distillation"):
        weight = snapshot[f"student.heads.{head}.weight"].numpy()
        start = np.eye(len(weight))
        assert np.abs(weight @ weight.T - start).max() > 1e-3, f"the {head} head never learned"
