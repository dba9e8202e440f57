"""An estimate counts what the job will really score; how fast that is, `benchmarks/estimate.py` holds against a job."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from tiny import NUM_POOL, NUM_TEST, NUM_TRAIN, tiny_spec
from typer.testing import CliRunner

from pipelines.candidates import sample
from pipelines.candidates.miner import Miner, embed_corpus
from pipelines.candidates.sample import sample_candidates
from pipelines.corpus.dataset import Dataset
from pipelines.devices import resolve_device
from pipelines.errors import ContractError, DataError, ModelError
from pipelines.estimate import Estimate, estimate_job
from pipelines.queries import training_queries
from pipelines.student.model import load_student
from pipelines.teacher.calibration import Calibration
from services.cli.app import app

MEASURED = Calibration(
    device="a node of the cluster",
    workload="torch fp32 on cpu, bert 2x32x64, 48 tokens",
    tokens_per_batch=4096,
    lengths=(8, 48),
    seconds_per_pair=(0.01, 0.06),
)


def estimated(dataset: Dataset, root: Path, *, calibration: Calibration | None = MEASURED, **sections: Any) -> Estimate:
    sections["teacher"] = {"backend": "torch"} | sections.get("teacher", {})
    return estimate_job(tiny_spec(**sections), dataset, model_roots=(root,), seconds=0.4, calibration=calibration)


def mined(dataset: Dataset, root: Path) -> list[tuple[str, str]]:
    """Every pair of the first round, as the job itself mines them."""
    spec = tiny_spec()
    student = load_student(root / "encoder", spec.student, dropout=0.0, device=resolve_device())
    table = Miner(dataset, spec.candidates).mine(
        training_queries(spec, dataset), corpus=embed_corpus(student, dataset), judged=dataset.judged_rows("train")
    )
    return [
        (query_id, item["doc_id"])
        for query_id, items in zip(table["query_id"].to_pylist(), table["candidates"].to_pylist(), strict=True)
        for item in items
    ]


def test_pairs_and_tokens_of_a_small_job_are_exact(dataset: Dataset, tiny_root: Path) -> None:
    found = estimated(dataset, tiny_root)
    pairs = mined(dataset, tiny_root)
    depth = tiny_spec().evaluation.rerank_depth
    assert (found.queries, found.test_queries) == (NUM_TRAIN + NUM_POOL, NUM_TEST)
    assert found.pairs == len(pairs) + NUM_TEST * min(depth, len(dataset.documents))
    words = [len(dataset.query_text(q).replace("?", " ?").split()) + len(dataset.passage(d).split()) for q, d in pairs]
    lengths = np.minimum(np.array(words) + 3, 48)
    assert found.tokens == round(found.pairs * float(lengths.mean()))
    assert found.token_quantiles["100%"] == lengths.max()


def test_a_sample_of_queries_and_documents_comes_close(
    dataset: Dataset, tiny_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sample, "_QUERIES", 12)
    monkeypatch.setattr(sample, "_DOCUMENTS", 40)
    found = estimated(dataset, tiny_root)
    exact = len(mined(dataset, tiny_root)) + NUM_TEST * min(tiny_spec().evaluation.rerank_depth, 60)
    assert found.pairs == pytest.approx(exact, rel=0.2)


def test_later_rounds_add_what_only_the_student_finds(dataset: Dataset, tiny_root: Path) -> None:
    once, thrice = (estimated(dataset, tiny_root, rounds=rounds) for rounds in (1, 3))
    queries = training_queries(tiny_spec(), dataset)
    only_dense = sample_candidates(tiny_spec(), dataset, queries, model_roots=(tiny_root,)).only_dense
    assert 0 < only_dense < 1
    in_a_round = len(mined(dataset, tiny_root))
    assert thrice.pairs - once.pairs == pytest.approx(2 * only_dense * in_a_round, abs=1)
    without = estimated(dataset, tiny_root, rounds=3, candidates={"dense": None})
    assert without.pairs == estimated(dataset, tiny_root, rounds=1, candidates={"dense": None}).pairs


def test_time_follows_from_lengths_replicas_and_the_deadline(dataset: Dataset, tiny_root: Path) -> None:
    found = estimated(dataset, tiny_root)
    assert found.seconds_of_one_replica == pytest.approx(found.tokens * 0.01 / 8, rel=1e-3)
    many = replace(found, replicas=4)
    assert many.hours == pytest.approx(found.seconds_of_one_replica / 4 / 3600)
    assert found.replicas_within(found.seconds_of_one_replica / 3600 / 3.5) == 4
    assert found.replicas_within(1000) == 1


def test_without_a_calibration_the_teacher_is_measured_here(dataset: Dataset, tiny_root: Path) -> None:
    found = estimated(dataset, tiny_root, calibration=None)
    assert found.calibration.lengths[-1] == 48
    assert found.pairs_per_second > 0
    # A quarter of a core is slower than one by more than any noise.
    half = estimated(dataset, tiny_root, calibration=None, teacher={"backend": "torch", "cpus_per_replica": 0.25})
    assert half.pairs_per_second < found.pairs_per_second


def test_a_teacher_that_is_yet_to_be_trained_is_measured_all_the_same(dataset: Dataset, tiny_root: Path) -> None:
    teacher = {"model": {"id": "encoder"}, "train": {"max_steps": 2}}
    assert estimated(dataset, tiny_root, calibration=None, teacher=teacher).pairs_per_second > 0


def test_gpus_that_are_not_here_need_a_calibration_from_where_they_are(dataset: Dataset, tiny_root: Path) -> None:
    with pytest.raises(ModelError, match="gpus_per_replica is 1, and this machine has no GPU"):
        estimated(dataset, tiny_root, calibration=None, teacher={"gpus_per_replica": 1.0})
    there = replace(MEASURED, workload="torch bf16 on cuda, bert 2x32x64, 48 tokens")
    found = estimated(dataset, tiny_root, calibration=there, teacher={"gpus_per_replica": 1.0, "dtype": "auto"})
    assert (found.gpus_per_replica, found.contract.dtype) == (1.0, "bf16")
    with pytest.raises(ContractError, match="calibration is of 'torch fp32 on cpu, bert 2x32x64, 48 tokens'"):
        estimated(dataset, tiny_root, teacher={"backend": "torch", "max_length": 40})


def test_labels_of_queries_and_documents_outside_the_sample_are_no_error(
    dataset: Dataset, tiny_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Few labels, many queries, many documents: none of the sampled queries may have a label.
    monkeypatch.setattr(sample, "_QUERIES", 2)
    monkeypatch.setattr(sample, "_DOCUMENTS", 12)
    pool = [query for query in training_queries(tiny_spec(), dataset) if query.startswith("pool")]
    found = sample_candidates(tiny_spec(), dataset, pool, model_roots=(tiny_root,))
    assert found.num_queries == 2
    assert found.pairs


def test_nothing_to_score_is_an_error_that_says_so(dataset: Dataset, tiny_root: Path) -> None:
    with pytest.raises(DataError, match="no query is left to train on"):
        sample_candidates(tiny_spec(), dataset, [], model_roots=(tiny_root,))
    queries = pa.table({"query_id": ["alone"], "text": ["zzz"]}, schema=dataset.queries.schema)
    strange = Dataset("strange", dataset.documents, queries, dataset.qrels.slice(0, 0))
    spec = tiny_spec(candidates={"dense": None}, dataset={"train_split": None})
    with pytest.raises(DataError, match="nothing was found for any of 1 queries"):
        sample_candidates(spec, strange, ["alone"], model_roots=(tiny_root,))


def test_the_command_prints_lines_and_json(tiny_root: Path, tmp_path: Path) -> None:
    job = tmp_path / "job.yaml"
    job.write_text(json.dumps(tiny_spec().model_dump(mode="json")), encoding="utf-8")
    kept = tmp_path / "kept.json"
    there = replace(MEASURED, workload="torch fp32 on cuda, bert 2x32x64, 48 tokens")
    kept.write_text(json.dumps(there.__dict__), encoding="utf-8")
    command = ["estimate", str(job), "--data-root", str(tiny_root), "--calibration", str(kept)]
    printed = CliRunner().invoke(app, [*command, "--within", "0.001", "--set", "teacher.gpus_per_replica=0.5"])
    assert printed.exit_code == 0, printed.output
    assert "on a node of the cluster" in printed.output
    assert "1 replica, 0.5 GPUs" in printed.output
    as_json = CliRunner().invoke(app, [*command, "--json", "--set", "teacher.gpus_per_replica=0.5"])
    found = json.loads(as_json.output)
    assert found["pairs"] > 0
    assert found["contract"]["max_length"] == 48
    refused = CliRunner().invoke(app, ["estimate", str(job), "--data-root", str(tmp_path)])
    assert refused.exit_code == 1
    assert "dataset.path" in refused.output
