"""Teachers over REST: what is pinned, sized and let go, what is refused, and that a reply tells what Serve does."""

import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from ray.serve import schema
from tiny import save_cross_encoder, tiny_spec

from pipelines.job_teacher import teacher_contract
from services.gateway.pool_states import PoolState
from services.store import DriverSession, ReconcilerSession, Teacher, TeacherTable
from services.teacher_pool.control import application_name

TEACHERS = "/v1/teachers"
CONTRACT = {
    "model_id": "org/reranker",
    "revision": "main",
    "weights_hash": "ab",
    "max_length": 128,
    "dtype": "fp32",
    "template": "pair",
    "truncation": "passage_end",
    "head": "one_label",
    "backend": "torch",
}
AUTO = {"mode": "auto", "min_replicas": 0, "max_replicas": 4}


@pytest.fixture(scope="session")
def saved(tmp_path_factory):
    return save_cross_encoder(tmp_path_factory.mktemp("models") / "teacher", seed=1)


@pytest.fixture
def model(settings, saved):
    """Id of a real cross-encoder below the data root."""
    shutil.copytree(saved, settings.data_roots[0] / "reranker")
    return "./reranker"


@pytest.fixture
def table(store):
    return TeacherTable(store)


def a_teacher(name="reranker-0123abcd", **fields):
    return Teacher(name=name, model_dir="/models/it", contract=CONTRACT, **fields)


@pytest.fixture
def job(store):
    """A running job that uses `teacher`, and its driver."""

    def start(teacher=None):
        job_id = store.create_job({"name": "j"}).id
        driver = DriverSession(store, job_id, ReconcilerSession(store, "r").claim_for_start(job_id, 30))
        driver.start()
        if teacher:
            driver.use_teacher(teacher)
        return job_id, driver

    return start


# ---- POST


def test_a_teacher_is_pinned_under_the_contract_that_a_job_would_give_it(client, table, model, settings):
    """The same section in a job must share the pool, so name and contract are made by the same function."""
    section = {"max_length": 96, "dtype": "fp32", "replicas": 2, "cpus_per_replica": 0.5, "tokens_per_batch": 512}
    answer = client.post(TEACHERS, json={"model": {"id": model}, **section})
    assert answer.status_code == 201, answer.text
    spec = tiny_spec(teacher={"model": {"id": model}, **section}).teacher
    folder = settings.data_roots[0] / "reranker"
    contract = teacher_contract(spec, folder, model_id=model, revision=None, device_type="cpu")
    reply = answer.json()
    assert reply["id"] == reply["name"] == application_name(contract)
    assert answer.headers["location"] == f"{TEACHERS}/{reply['id']}"
    assert (reply["object"], reply["model"], reply["revision"]) == ("teacher", model, None)
    assert reply["contract"] == contract.to_dict()
    assert reply["contract_fingerprint"] == contract.fingerprint
    assert (reply["backend"], reply["dtype"], reply["max_length"]) == (contract.backend, "fp32", 96)
    assert (reply["mode"], reply["pinned"], reply["jobs"], reply["backlog_tokens"]) == ("fixed", True, [], 0)
    assert reply["replicas"] == {"target": 2, "running": 0, "min": None, "max": None}
    assert reply["resources_per_replica"] == {"cpus": 0.5, "gpus": 0}
    assert (reply["status"], reply["weights_version"]) == ("starting", 0)
    (pinned,) = table.wanted()
    assert (pinned.name, pinned.model_dir, pinned.tokens_per_batch) == (reply["id"], str(folder), 512)
    assert pinned.calibrations_dir == str(settings.root / "calibrations")
    assert client.get(answer.headers["location"]).json() == reply


def test_the_same_request_again_changes_nothing(client, table, model):
    body = {"model": {"id": model}, "dtype": "fp32", "autoscale": {"max_replicas": 4}}
    first = client.post(TEACHERS, json=body)
    again = client.post(TEACHERS, json=body)
    assert (again.status_code, again.json()["id"]) == (201, first.json()["id"])
    assert again.json()["replicas"] == {"target": 1, "running": 0, "min": 0, "max": 4}
    assert len(table.all()) == 1


def test_another_size_in_a_second_request_is_the_new_size(client, model):
    for replicas in (2, 5):
        reply = client.post(TEACHERS, json={"model": {"id": model}, "replicas": replicas}).json()
    assert reply["replicas"]["target"] == 5


def test_what_a_gpu_teacher_computes_in_is_not_what_this_machine_has(client, model):
    """The contract is for the replicas' device: bf16 on CUDA, whatever the gateway runs on."""
    reply = client.post(TEACHERS, json={"model": {"id": model}, "gpus_per_replica": 1}).json()
    assert (reply["dtype"], reply["backend"]) == ("bf16", "torch")


@pytest.mark.parametrize(
    ("body", "pointer", "code"),
    [
        ({"model": {"id": "/etc"}}, "#/model/id", "path_outside_data_roots"),
        ({"model": {"id": "../secret"}}, "#/model/id", "path_outside_data_roots"),
        ({"model": {"id": "~/model"}}, "#/model/id", "path_outside_data_roots"),
        ({"model": {"id": "./nowhere"}}, "#/model/id", "invalid_model"),
        ({"model": {"id": "package:no_such_package"}}, "#/model/id", "invalid_model"),
        ({"model": {"id": "./empty"}}, "#/model/id", "invalid_model"),
        ({"model": {"id": "./broken"}}, "#/model/id", "invalid_model"),
        ({"model": {"id": "./reranker", "revision": "v1"}}, "#/model/id", "invalid_model"),
        ({"model": {"id": "./reranker"}, "dtype": "tf32"}, "#/dtype", "invalid_model"),
        ({"model": {"id": "./reranker"}, "backend": "openvino", "gpus_per_replica": 1}, "#/backend", "invalid_model"),
        ({"model": {"id": "./reranker"}, "train": {}}, "#/train", "invalid_request"),
        ({"model": {"id": "./reranker"}, "replicas": 0}, "#/replicas", "invalid_request"),
        ({"model": {"id": "./reranker"}, "cpus_per_replica": -1}, "#/cpus_per_replica", "invalid_request"),
        ({"model": {"id": "./reranker"}, "replica": 2}, "#/replica", "invalid_request"),
        ({"model": {"id": "./reranker"}, "template": "no places"}, "#/template", "invalid_request"),
        (
            {"model": {"id": "./reranker"}, "autoscale": {"min_replicas": 3, "max_replicas": 2}},
            "#/autoscale",
            "invalid_request",
        ),
        ({"model": "./reranker"}, "#/model", "invalid_request"),
        ({}, "#/model", "invalid_request"),
        ([], "#", "invalid_request"),
        ({"job": ""}, "#/job", "invalid_request"),
        ({"job": "ddjob-x", "model": {"id": "./reranker"}}, "#/model", "invalid_request"),
        ({"job": "ddjob-x", "autoscale": {"max_replicas": 2}, "replicas": 3}, "#", "invalid_request"),
    ],
)
def test_a_bad_teacher_is_refused_with_the_field_named(client, table, model, settings, body, pointer, code):
    (settings.data_roots[0] / "empty").mkdir()
    (settings.data_roots[0] / "broken").mkdir()
    (settings.data_roots[0] / "broken" / "config.json").write_text("{")
    answer = client.post(TEACHERS, json=body)
    assert answer.status_code == 422, answer.text
    problem = answer.json()
    assert pointer in [error["pointer"] for error in problem["errors"]]
    assert problem["error"]["code"] == code
    assert problem["error"]["param"] == (pointer.removeprefix("#/").replace("/", ".") if pointer != "#" else None)
    assert table.all() == []


def test_a_model_is_not_reached_through_a_symlink_that_leads_out(client, settings, saved):
    (settings.data_roots[0] / "out").symlink_to(saved)
    answer = client.post(TEACHERS, json={"model": {"id": "out"}})
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, "path_outside_data_roots")


def test_training_is_refused_in_words_that_help(client, model):
    answer = client.post(TEACHERS, json={"model": {"id": model}, "train": {"max_steps": 3}})
    assert "train a teacher in a job" in answer.json()["detail"]


def test_a_job_s_teacher_stays_when_the_job_has_ended(client, table, job):
    """How a fine-tuned teacher comes to be served: no hub and no data root has it."""
    job_id, driver = job(a_teacher(replicas=2, max_replicas=2, weights_version=0))
    driver.publish_weights(model_dir="/trained", contract=CONTRACT, weights_version=1)
    answer = client.post(TEACHERS, json={"job": job_id})
    assert answer.status_code == 201, answer.text
    driver.succeed({})
    (kept,) = table.wanted()
    assert (kept.name, kept.model_dir, kept.weights_version) == ("reranker-0123abcd", "/trained", 1)
    assert (kept.mode, kept.replicas) == ("fixed", 2), "without a size, it keeps the one it has"


@pytest.mark.parametrize(
    ("size", "mode", "replicas"),
    [
        ({"replicas": 3}, "fixed", {"target": 3, "min": None, "max": None}),
        ({"autoscale": {"max_replicas": 4}}, "auto", {"target": 1, "min": 0, "max": 4}),
        ({"autoscale": {"min_replicas": 2, "max_replicas": 4}}, "auto", {"target": 2, "min": 2, "max": 4}),
        ({"autoscale": {"max_replicas": 4}, "replicas": 3}, "auto", {"target": 3, "min": 0, "max": 4}),
    ],
)
def test_a_job_s_teacher_is_pinned_in_the_size_asked_for(client, job, size, mode, replicas):
    """Also when the job is long over: then the pool comes back."""
    job_id, driver = job(a_teacher())
    driver.succeed({})
    reply = client.post(TEACHERS, json={"job": job_id, **size}).json()
    assert (reply["mode"], reply["replicas"]) == (mode, replicas | {"running": 0})


def test_a_job_that_used_no_pool_has_no_teacher_to_pin(client, job):
    job_id, _ = job()
    answer = client.post(TEACHERS, json={"job": job_id})
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "state_conflict")
    assert answer.headers["x-should-retry"] == "false"
    assert client.post(TEACHERS, json={"job": "ddjob-none"}).json()["error"]["code"] == "job_not_found"


def test_a_name_in_use_under_another_contract_is_not_taken_over(client, table, model, job):
    """Its pool got new weights from a running job: pinning the old ones must not take them away from that job."""
    name = client.post(TEACHERS, json={"model": {"id": model}}).json()["id"]
    client.delete(f"{TEACHERS}/{name}")
    _, driver = job(table.get(name))
    driver.publish_weights(model_dir="/new", contract=CONTRACT, weights_version=1)
    answer = client.post(TEACHERS, json={"model": {"id": model}})
    assert answer.status_code == 409
    assert table.get(name).model_dir == "/new"


# ---- GET


def test_pages_are_by_name_and_can_be_narrowed(client, table, job):
    for letter in "cab":
        table.pin(a_teacher(f"t-{letter}"))
    table.unpin("t-b")
    job(a_teacher("t-d"))
    page = client.get(TEACHERS, params={"limit": 2}).json()
    assert (page["object"], [item["id"] for item in page["data"]], page["has_more"]) == ("list", ["t-a", "t-b"], True)
    rest = client.get(TEACHERS, params={"limit": 2, "after": page["last_id"]}).json()
    assert ([item["id"] for item in rest["data"]], rest["has_more"]) == (["t-c", "t-d"], False)
    for wanted, names in ((True, ["t-a", "t-c", "t-d"]), (False, ["t-b"])):
        assert [item["id"] for item in client.get(TEACHERS, params={"wanted": wanted}).json()["data"]] == names


def test_jobs_and_their_backlog_are_summed(client, job):
    ids = []
    for tokens in (1000, 234, None):
        job_id, driver = job(a_teacher())
        if tokens:
            driver.report_demand(backlog_tokens=tokens, tokens_per_second=None, deadline_at=None)
        ids.append(job_id)
    driver.succeed({})
    reply = client.get(f"{TEACHERS}/reranker-0123abcd").json()
    assert (sorted(reply["jobs"]), reply["backlog_tokens"], reply["pinned"]) == (sorted(ids[:2]), 1234, False)
    assert isinstance(reply["used_at"], int)


@pytest.mark.parametrize(
    ("fields", "application", "status", "running", "message"),
    [
        ({}, {"running": 2}, "running", 2, None),
        ({}, {"running": 0, "status": "DEPLOYING", "message": "waits for 4 CPUs"}, "starting", 0, "waits for 4 CPUs"),
        ({}, None, "starting", 0, None),
        ({}, {"running": 0, "status": "DEPLOY_FAILED", "message": "no weights"}, "failed", 0, "no weights"),
        ({}, {"running": 1, "status": "DEPLOY_FAILED", "message": "no weights"}, "failed", 1, "no weights"),
        ({**AUTO, "replicas": 0}, None, "scaled_to_zero", 0, None),
        ({"pinned": False}, None, "idle", 0, None),
    ],
)
def test_the_status_is_what_serve_says(client, table, serve, fields, application, status, running, message):
    teacher = a_teacher(**{"replicas": 2, **fields})
    table.pin(teacher)
    if "pinned" in fields:
        table.unpin(teacher.name)
    if application:
        serve.deploy(teacher.name, **application)
    reply = client.get(f"{TEACHERS}/{teacher.name}").json()
    assert (reply["status"], reply["replicas"]["running"], reply["message"]) == (status, running, message)
    assert reply["replicas"]["target"] == (0 if status in {"idle", "scaled_to_zero"} else 2)


def test_teachers_are_shown_while_ray_is_away(client, table, serve):
    """Unknown is not zero: a page that says that nothing runs would call for the wrong help."""
    table.pin(a_teacher())
    serve.down = True
    (reply,) = client.get(TEACHERS).json()["data"]
    assert (reply["status"], reply["replicas"]) == ("unknown", {"target": 1, "running": None, "min": None, "max": None})


def test_serve_is_not_asked_by_everyone_who_looks(serve):
    serve.deploy("t")
    states = serve.states(max_age_s=60)
    assert [states.get()["t"].running for _ in range(5)] == [1] * 5
    assert serve.looks == 1
    states.close()


def test_a_dashboard_that_hangs_holds_one_thread_only(serve):
    """While it hangs, everybody else is shown the last answer; the next look shows the new one."""
    serve.deploy("t", running=1)
    states = serve.states()
    states.get()
    asking, release = threading.Event(), threading.Event()
    serve.before_look = lambda: (serve.deploy("t", running=2), asking.set(), release.wait(30))
    with ThreadPoolExecutor(1) as pool:
        stuck = pool.submit(states.get)
        assert asking.wait(30)
        assert states.get()["t"].running == 1
        release.set()
        assert stuck.result()["t"].running == 2
    states.close()


def test_what_is_read_is_what_ray_writes(serve):
    """The double is our own words; these are Ray's, from the classes that its endpoint answers with."""
    replicas = [schema.ReplicaDetails(replica_id=s, state=s, start_time_s=0.0) for s in ("RUNNING", "STARTING")]
    deployment = schema.DeploymentDetails(
        name="TeacherReplica",
        status="UPDATING",
        status_trigger="CONFIG_UPDATE_STARTED",
        message="1 of 2",
        deployment_config={"name": "TeacherReplica"},
        target_num_replicas=2,
        required_resources={},
        replicas=replicas,
    )
    application = schema.ApplicationDetails(
        name="t",
        route_prefix="/t",
        docs_path=None,
        status="DEPLOYING",
        message="",
        last_deployed_time_s=0.0,
        deployments={"TeacherReplica": deployment},
        source="declarative",
        external_scaler_enabled=False,
    )
    serve.applications = {
        "t": application.model_dump(mode="json", exclude_unset=True),
        "u": {"name": "u", "status": "DELETING"},
    }
    states = serve.states()
    assert states.get() == {
        "t": PoolState(status="DEPLOYING", message="1 of 2", running=1),
        "u": PoolState(status="DELETING", message="", running=0),
    }
    for nonsense in ([], {"t": None}, {"t": {}}):
        serve.applications = nonsense
        assert states.get() is None
    states.close()


# ---- PATCH and DELETE


@pytest.mark.parametrize(
    ("before", "body", "after"),
    [
        ({"replicas": 2}, {"replicas": 5}, ("fixed", 5, None, None)),
        ({"replicas": 2}, {"mode": "fixed", "replicas": 1}, ("fixed", 1, None, None)),
        ({"replicas": 2}, {"mode": "auto", "max_replicas": 8}, ("auto", 2, 0, 8)),
        ({"replicas": 2}, {"mode": "auto", "min_replicas": 3, "max_replicas": 8}, ("auto", 3, 3, 8)),
        ({"replicas": 9}, {"mode": "auto", "max_replicas": 4}, ("auto", 4, 0, 4)),
        ({"replicas": 3, "max_replicas": 3}, {"mode": "auto"}, ("auto", 3, 0, 3)),
        ({**AUTO, "replicas": 2}, {"max_replicas": 1}, ("auto", 1, 0, 1)),
        ({**AUTO, "replicas": 0}, {"min_replicas": 2}, ("auto", 2, 2, 4)),
        ({**AUTO, "replicas": 0}, {"max_replicas": 9}, ("auto", 0, 0, 9)),
        ({**AUTO, "replicas": 2}, {"mode": "auto"}, ("auto", 2, 0, 4)),
        ({**AUTO, "replicas": 2}, {"mode": "fixed", "replicas": 6}, ("fixed", 6, None, None)),
        ({**AUTO, "replicas": 3}, {"mode": "fixed"}, ("fixed", 3, None, None)),
        ({**AUTO, "replicas": 0}, {"mode": "fixed"}, ("fixed", 1, None, None)),
    ],
)
def test_scaling(client, table, before, body, after):
    name = table.pin(a_teacher(**before)).name
    answer = client.patch(f"{TEACHERS}/{name}/scale", json=body)
    assert answer.status_code == 202, answer.text
    size = answer.json()["replicas"]
    assert (answer.json()["mode"], size["target"], size["min"], size["max"]) == after
    assert client.get(f"{TEACHERS}/{name}").json() == answer.json()


def test_bounds_of_a_fixed_size_are_not_kept_from_an_earlier_mode(client, table):
    """From auto 5 to 8 over fixed 2 back to auto: the old minimum of 5 would be above the new maximum of 2."""
    name = table.pin(a_teacher(mode="auto", replicas=5, min_replicas=5, max_replicas=8)).name
    for body in ({"mode": "fixed", "replicas": 2}, {"mode": "auto"}):
        reply = client.patch(f"{TEACHERS}/{name}/scale", json=body).json()
    assert reply["replicas"] == {"target": 2, "running": 0, "min": 0, "max": 2}


@pytest.mark.parametrize(
    ("before", "body", "told"),
    [
        ({"replicas": 2}, {"max_replicas": 8}, '"mode": "auto" with max_replicas'),
        ({"replicas": 2}, {"min_replicas": 1, "max_replicas": 8}, '"mode": "auto" with min_replicas and max_replicas'),
        ({**AUTO, "replicas": 2}, {"replicas": 3}, '"mode": "fixed" with replicas'),
    ],
)
def test_a_size_of_the_other_mode_is_a_conflict_that_says_what_to_send(client, table, before, body, told):
    teacher = table.pin(a_teacher(**before))
    answer = client.patch(f"{TEACHERS}/{teacher.name}/scale", json=body)
    assert (answer.status_code, answer.headers["x-should-retry"]) == (409, "false")
    assert told in answer.json()["detail"]
    assert table.get(teacher.name) == teacher


@pytest.mark.parametrize(
    ("before", "body", "pointer"),
    [
        ({}, {}, "#"),
        ({}, {"replicas": None}, "#"),
        ({}, {"replicas": 0}, "#/replicas"),
        ({}, {"replicas": 1025}, "#/replicas"),
        ({}, {"mode": "none"}, "#/mode"),
        ({}, {"replica": 1}, "#/replica"),
        ({}, {"mode": "fixed", "max_replicas": 2}, "#"),
        ({}, {"mode": "auto", "replicas": 2}, "#"),
        ({}, {"replicas": 2, "max_replicas": 2}, "#"),
        (AUTO, {"min_replicas": 3, "max_replicas": 2}, "#/min_replicas"),
        (AUTO, {"min_replicas": 5}, "#/min_replicas"),
        ({**AUTO, "min_replicas": 3}, {"max_replicas": 2}, "#/max_replicas"),
        (AUTO, {"max_replicas": 0}, "#/max_replicas"),
    ],
)
def test_a_size_that_makes_no_sense_is_refused(client, table, before, body, pointer):
    teacher = table.pin(a_teacher(**before))
    answer = client.patch(f"{TEACHERS}/{teacher.name}/scale", json=body)
    assert answer.status_code == 422, answer.text
    assert [error["pointer"] for error in answer.json()["errors"]] == [pointer]
    assert table.get(teacher.name) == teacher


def test_a_user_s_size_is_left_alone_by_later_jobs(client, table, job):
    name = table.pin(a_teacher(replicas=2)).name
    client.patch(f"{TEACHERS}/{name}/scale", json={"replicas": 1})
    job(a_teacher(replicas=7))
    assert table.get(name).replicas == 1


def test_delete_lets_the_pool_go_when_no_job_needs_it(client, table, job):
    name = table.pin(a_teacher()).name
    _, driver = job(a_teacher())
    for _ in range(2):
        answer = client.delete(f"{TEACHERS}/{name}")
        assert (answer.status_code, answer.content) == (204, b"")
    reply = client.get(f"{TEACHERS}/{name}").json()
    assert (reply["pinned"], reply["status"]) == (False, "starting"), "the job keeps it"
    driver.succeed({})
    assert table.wanted() == []
    assert client.get(f"{TEACHERS}/{name}").json()["status"] == "idle"


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", f"{TEACHERS}/nope", None),
        ("DELETE", f"{TEACHERS}/nope", None),
        ("PATCH", f"{TEACHERS}/nope/scale", {"replicas": 1}),
    ],
)
def test_an_unknown_name_is_told_everywhere(client, method, path, body):
    answer = client.request(method, path, json=body)
    assert answer.status_code == 404
    assert answer.json()["error"] == {
        "message": "there is no teacher 'nope'",
        "type": "invalid_request_error",
        "param": "name",
        "code": "teacher_not_found",
    }


def test_only_so_many_models_are_read_at_once(client, model, monkeypatch):
    """Each holds a thread, perhaps for a download: without a bound they would be all there are."""
    from services.gateway import new_teachers

    held = [new_teachers._room.acquire(blocking=False) for _ in range(4)]
    assert all(held)
    try:
        answer = client.post(TEACHERS, json={"model": {"id": model}})
    finally:
        for _ in held:
            new_teachers._room.release()
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "5")
    assert client.post(TEACHERS, json={"model": {"id": model}}).status_code == 201


def test_the_gateway_starts_without_torch():
    """It is a web server: a second more to start and half a gigabyte more to hold for what few requests need."""
    seen = "import services.gateway.app, sys; print(*{'torch', 'transformers', 'ray'} & set(sys.modules))"
    root = Path(__file__).parents[3]
    done = subprocess.run([sys.executable, "-c", seen], capture_output=True, text=True, check=True, cwd=root)
    assert done.stdout.strip() == ""


def test_the_openapi_document_shows_both_bodies(client):
    schemas = client.get("/openapi.json").json()["components"]["schemas"]
    assert "max_length" in schemas["NewTeacher"]["properties"]
    assert set(schemas["TeacherOfJob"]["properties"]) == {"job", "replicas", "autoscale"}


def test_places_on_the_server_are_not_told(client, table):
    table.pin(a_teacher(calibrations_dir="/root/calibrations"))
    text = client.get(TEACHERS).text
    assert "reranker-0123abcd" in text
    assert "/models/it" not in text
    assert "/root" not in text
