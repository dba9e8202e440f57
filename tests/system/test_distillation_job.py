"""A whole job through REST on real Ray: what users do, and what they must be able to rely on."""

import json
from collections import Counter
from pathlib import Path

import httpx
import pytest
from miniature import finished, miniature, ranked_rows
from rich.console import Console
from safetensors.torch import load_file

from pipelines.spec import parse_spec
from services.cli.client import GatewayClient, RequestRefused
from services.cli.run import run_in_process
from services.cli.stack import Stack


@pytest.fixture(scope="module")
def first_job(stack: Stack) -> dict[str, object]:
    """The miniature with its control, run once for the tests that look at its outcome."""
    with GatewayClient(stack.gateway_url) as client:
        created = client.submit(
            miniature(evaluation={"max_queries": 40, "rerank_depth": 5, "label_only_control": True})
        )
        return finished(client, created["id"])


def test_the_job_succeeds_and_compares_all_five_systems(first_job: dict) -> None:
    assert first_job["status"] == "succeeded", first_job["error"]
    systems = first_job["result"]["evaluation"]["systems"]
    assert list(systems) == ["bm25", "student_before", "label_only", "student_after", "teacher_rerank"]
    assert systems["bm25"]["R@100"] > 0.9  # real data, real BM25: a broken evaluation would not get there
    assert first_job["result"]["evaluation"]["num_queries"] == 40


def test_training_begins_before_scoring_ends(first_job: dict, client: GatewayClient) -> None:
    """The point of streaming: the student learns while the teacher still scores."""
    order = [event["type"] for event in client.events(first_job["id"])]
    assert order.index("scoring.started") < order.index("training.started") < order.index("scoring.finished")


def test_every_query_is_in_exactly_one_committed_row(first_job: dict, stack: Stack) -> None:
    rows = ranked_rows(stack.root, first_job["id"])
    seen = Counter((row["round"], row["query_id"]) for row in rows)
    assert max(seen.values()) == 1
    assert Counter(round_ for round_, _ in seen) == {0: 240, -1: 40}


def test_unlabelled_queries_keep_a_null_relevance(first_job: dict, stack: Stack, data_root: Path) -> None:
    labelled = {line.split("\t")[0] for line in (data_root / "medquad/qrels/train.tsv").read_text().splitlines()[1:]}
    for row in ranked_rows(stack.root, first_job["id"]):
        judged = [item["relevance"] for item in row["candidates"] if item["relevance"] is not None]
        assert bool(judged) == (row["query_id"] in labelled)


def test_lists_are_in_teacher_order(first_job: dict, stack: Stack) -> None:
    for row in ranked_rows(stack.root, first_job["id"]):
        logits = [item["teacher_logit"] for item in row["candidates"]]
        assert logits == sorted(logits, reverse=True)


def test_artifacts_download_and_the_student_loads(first_job: dict, stack: Stack, tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer

    base = f"{stack.gateway_url}/v1/distillation/jobs/{first_job['id']}/artifacts"
    names = [item["name"] for item in httpx.get(base).json()["data"]]
    assert {"report.html", "metrics.json", "student/model.safetensors"} <= set(names)
    for name in names:
        target = tmp_path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(httpx.get(f"{base}/{name}").raise_for_status().content)
    assert "<svg" in (tmp_path / "report.html").read_text()
    student = SentenceTransformer(str(tmp_path / "student"), device="cpu")
    assert student.encode_query(["what is flu?"]).shape == (1, 32)


def test_another_loss_and_other_heads_cost_no_teacher_call(
    first_job: dict, client: GatewayClient, stack: Stack
) -> None:
    """Teacher and scores are reused; objectives that want the batch's teacher matrix get it."""
    from sentence_transformers import SentenceTransformer

    spec = miniature(
        student={"heads": {"serve": "interpolated", "alpha": 0.3}},
        training={
            "objective": [
                {"name": "cprd", "max_valid": 2, "easy_negatives": True},
                {"name": "info_nce", "teacher_margin": 0.5, "learn": ["temperature"]},
                {"name": "mochi", "weight": 0.1},
            ],
            "negatives": {"strategy": "simans"},
        },
    )
    job = finished(client, client.submit(spec)["id"])
    assert job["status"] == "succeeded", job["error"]
    types = [event["type"] for event in client.events(job["id"])]
    assert "teacher.reused" in types
    assert "teacher_pool.requested" not in types
    assert job["progress"]["pairs_scored"] == 0
    assert job["progress"]["pairs_reused"] == job["progress"]["pairs_total"] > 0
    folder = stack.root / "jobs" / job["id"]
    curve = [json.loads(line) for line in (folder / "work" / "learning_curve.jsonl").read_text().splitlines()]
    assert {"loss.cprd", "loss.info_nce", "loss.mochi", "info_nce.temperature"} <= set(curve[-1])
    assert curve[-1]["info_nce.temperature"] != curve[0]["info_nce.temperature"]
    student = SentenceTransformer(str(folder / "artifacts" / "student"), device="cpu")
    assert student.encode_query(["what is flu?"]).shape == (1, 64), "two heads of 32 in one vector"


def test_run_and_the_service_give_the_same_student(
    first_job: dict, stack: Stack, data_root: Path, tmp_path: Path
) -> None:
    """One process without Ray and the cluster are two ways to the same weights, bit for bit."""
    spec = parse_spec(miniature())
    artifacts, result = run_in_process(
        spec, root=tmp_path / "root", data_root=data_root, console=Console(quiet=True), num_cpus=2
    )
    served = load_file(stack.root / "jobs" / str(first_job["id"]) / "artifacts/student/model.safetensors")
    local = load_file(artifacts / "student/model.safetensors")
    assert served.keys() == local.keys()
    assert all(served[name].equal(local[name]) for name in served)
    after = first_job["result"]["evaluation"]["systems"]["student_after"]
    assert result["evaluation"]["systems"]["student_after"] == after


def test_no_process_computes_with_more_threads_than_cpus_it_booked(first_job: dict) -> None:
    assert first_job["result"]["facts"]["torch threads per process"] == "1"


def test_a_bad_spec_is_refused_with_its_field(client: GatewayClient) -> None:
    with pytest.raises(RequestRefused) as refused:
        client.submit(miniature(training={"learning_rate": -1, "queries_per_stepp": 8}))
    assert refused.value.status == 422
    fields = [field for field, _ in refused.value.problems]
    assert fields == ["spec.training.queries_per_stepp", "spec.training.learning_rate"] or set(fields) == {
        "spec.training.learning_rate",
        "spec.training.queries_per_stepp",
    }


def test_a_missing_data_set_fails_the_job_in_words(client: GatewayClient) -> None:
    job = finished(client, client.submit(miniature(dataset={"path": "not-there"}))["id"])
    assert (job["status"], job["reason"]) == ("failed", "invalid_dataset")
    assert "there is no folder 'not-there'" in job["error"]["message"]
    assert job["attempt"] == 1  # what a user must mend is not tried again


def test_a_broken_data_set_names_file_line_and_id(client: GatewayClient, data_root: Path) -> None:
    broken = data_root / "broken"
    (broken / "qrels").mkdir(parents=True)
    line = json.dumps({"_id": "d1", "title": "", "text": "a passage"}) + "\n"
    (broken / "corpus.jsonl").write_text(line + line)
    (broken / "queries.jsonl").write_text(json.dumps({"_id": "q1", "text": "a question"}) + "\n")
    for split in ("train", "test"):
        (broken / "qrels" / f"{split}.tsv").write_text("query-id\tcorpus-id\tscore\nq1\td1\t1\n")
    job = finished(client, client.submit(miniature(dataset={"path": "broken"}))["id"])
    assert job["status"] == "failed"
    for part in ("corpus.jsonl", "2", "d1"):
        assert part in job["error"]["message"]
