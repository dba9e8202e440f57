"""The reconciler, killed, paused, doubled and cut off from Ray: every job keeps exactly one driver that counts."""

import dataclasses
import logging
import threading

import httpx
import pytest
from starlette.testclient import TestClient

from services.errors import StaleDriver, TeacherPoolError
from services.gateway.app import create_app
from services.gateway.reconciler import Reconciler
from services.store import DriverSession, ReconcilerSession, Store, Teacher, TeacherTable
from services.teacher_pool.autoscale import IDLE_S


class Killed(BaseException):
    """kill -9: nothing catches it."""


@pytest.fixture
def make(store, ray, pools, settings):
    """Another reconciler process on the same database and cluster."""
    return lambda owner="a": Reconciler(
        session=ReconcilerSession(store, owner), ray=ray.client(), teachers=pools, settings=settings
    )


@pytest.fixture
def reconciler(make):
    return make()


@pytest.fixture
def job_id(store):
    return store.create_job({"name": "x"}).id


def on(ray, when, what, action):
    """Do `action` once, before or after Ray handles the first request that starts with `what`."""

    def hook(request):
        if f"{request.method} {request.url.path}".startswith(what):
            setattr(ray, when, lambda _: None)
            action()

    setattr(ray, when, hook)


def kill():
    raise Killed


def test_no_more_drivers_run_than_the_operator_allows(store, ray, pools, settings):
    """Drivers book CPUs; two on a small cluster would leave none for the pools that both wait for."""
    limited = Reconciler(
        session=ReconcilerSession(store, "a"),
        ray=ray.client(),
        teachers=pools,
        settings=dataclasses.replace(settings, max_running_jobs=1),
    )
    first, second = store.create_job({"name": "x"}).id, store.create_job({"name": "y"}).id
    limited.tick()
    limited.tick()
    statuses = {store.get_job(job).status: job for job in (first, second)}
    assert set(statuses) == {"running", "queued"}
    DriverSession(store, statuses["running"], 1).fail("invalid_dataset", "there is no such folder")
    limited.tick()
    assert store.get_job(statuses["queued"]).status == "running"


def test_a_queued_job_gets_a_driver(reconciler, ray, store, job_id, pools):
    reconciler.tick()
    job = store.get_job(job_id)
    assert (job.status, job.phase, job.attempt, job.fencing_token) == ("running", "provisioning", 1, 1)
    assert ray.submitted == [
        {
            "entrypoint": f"python -m services.driver {job_id} 1",
            "submission_id": f"{job_id}-1",
            "entrypoint_num_cpus": 1.5,
            "entrypoint_num_gpus": 0.5,
            "metadata": {"submitted_by": "dualdistill"},
        }
    ]
    for _ in range(3):
        reconciler.tick()
    assert len(ray.submitted) == 1
    assert store.get_job(job_id).attempt == 1
    assert pools.asked == [[]] * 4


def test_killed_between_claim_and_submit(make, ray, store, job_id, clock):
    """The claim is in the database, Ray was never asked: when the lease is over, a new token starts the driver."""
    on(ray, "before", f"GET /api/jobs/{job_id}-1", kill)
    with pytest.raises(Killed):
        make("a").tick()
    assert store.get_job(job_id).status == "running"
    clock.advance(15)
    reborn = make("b")
    reborn.tick()
    assert ray.submitted == [], "while the lease lasts, its holder may still be about to submit"
    clock.advance(20)
    reborn.tick()
    job = store.get_job(job_id)
    assert (job.fencing_token, job.attempt) == (2, 1), "a new token; the attempt was never made, so it is not counted"
    assert list(ray.jobs) == [f"{job_id}-2"]
    with pytest.raises(StaleDriver):
        DriverSession(store, job_id, 1).start()
    assert DriverSession(store, job_id, 2).start().status == "running"


def test_killed_between_submit_and_noting_it(make, ray, store, job_id, clock):
    """Ray has the driver, the database does not know: the next one finds it in Ray and starts no second."""
    on(ray, "after", "POST /api/jobs/", kill)
    with pytest.raises(Killed):
        make("a").tick()
    assert store.get_job(job_id).ray_submission_id is None
    clock.advance(31)
    make("b").tick()
    job = store.get_job(job_id)
    assert (job.ray_submission_id, job.fencing_token, job.attempt) == (f"{job_id}-1", 1, 1)
    assert len(ray.submitted) == 1


def test_two_reconcilers_one_asleep_before_its_submit(make, ray, store, job_id, clock):
    """A pauses longer than its lease right before the POST; B starts the job anew; A's late driver is ended."""
    other = make("b")

    def sleep_while_b_works():
        clock.advance(31)
        other.tick()

    on(ray, "before", "POST /api/jobs/", sleep_while_b_works)
    make("a").tick()
    job = store.get_job(job_id)
    assert (job.fencing_token, job.ray_submission_id) == (2, f"{job_id}-2")
    assert ray.jobs[f"{job_id}-1"]["status"] == "STOPPED"
    assert ray.running() == [f"{job_id}-2"]


def test_cancelled_while_the_submit_is_under_way(reconciler, ray, store, job_id):
    on(ray, "before", "POST /api/jobs/", lambda: (store.request_cancel(job_id), _tick_other(reconciler)))
    reconciler.tick()
    assert store.get_job(job_id).status == "cancelled"
    assert ray.running() == []


def _tick_other(reconciler):
    for job in reconciler.session.active_jobs():
        reconciler._watch(job)


def test_only_one_leads_and_the_next_takes_over(make, ray, store, job_id, clock):
    first, second = make("a"), make("b")
    first.tick()
    asked = len(ray.requests)
    second.tick()
    assert len(ray.requests) == asked, "a second gateway must not double the traffic"
    clock.advance(11)
    second.tick()
    assert len(ray.requests) > asked


def test_both_leading_at_once_is_safe_too(make, ray, store, clock):
    """The leader's lease may run out in the middle of a tick: claims alone must keep it right."""
    jobs = [store.create_job({"name": "x"}).id for _ in range(4)]
    other = make("b")
    on(ray, "before", f"GET /api/jobs/{jobs[1]}", lambda: (clock.advance(11), other.tick()))
    make("a").tick()
    assert sorted(body["submission_id"] for body in ray.submitted) == sorted(f"{job}-1" for job in jobs)


def test_ray_away_changes_nothing(reconciler, ray, store, job_id, clock, caplog):
    """Hours without Ray must cost no attempt, fail no job, and not fill the log."""
    ray.down = True
    running = store.create_job({"name": "y"}).id
    token = reconciler.session.claim_for_start(running, 30)
    reconciler.session.mark_submitted(running, token, f"{running}-1")
    before = store.get_job(job_id), store.get_job(running)
    with caplog.at_level(logging.WARNING):
        for _ in range(50):
            clock.advance(600)
            reconciler.tick()
    assert (store.get_job(job_id), store.get_job(running)) == before
    assert len(caplog.records) == 1
    ray.down = False
    ray.jobs[f"{running}-1"] = {"status": "RUNNING", "message": ""}
    DriverSession(store, running, token).heartbeat()
    reconciler.tick()
    assert store.get_job(job_id).ray_submission_id == f"{job_id}-1"
    assert store.get_job(running).attempt == 1


def test_ray_failing_at_the_submit_is_tried_again_with_the_same_token(reconciler, ray, store, job_id):
    """No answer to a POST means nobody knows whether it happened; asking by id tells."""

    def fail():
        raise httpx.ReadTimeout("slow")

    on(ray, "before", "POST /api/jobs/", fail)
    reconciler.tick()
    assert ray.submitted == []
    on(ray, "after", "POST /api/jobs/", fail)
    reconciler.tick()
    assert len(ray.submitted) == 1
    reconciler.tick()
    job = store.get_job(job_id)
    assert (job.fencing_token, job.attempt, job.ray_submission_id) == (1, 1, f"{job_id}-1")
    assert len(ray.submitted) == 1


@pytest.mark.parametrize("status", ["FAILED", "STOPPED", "SUCCEEDED", "missing"])
def test_a_lost_driver_is_replaced_and_finally_given_up(reconciler, ray, store, job_id, status):
    """SUCCEEDED counts as lost too: a driver that exits without ending its job has not done its work."""
    for attempt in (1, 2, 3):
        reconciler.tick()
        name = f"{job_id}-{attempt}"
        assert ray.running() == [name]
        DriverSession(store, job_id, attempt).start()
        if status == "missing":
            del ray.jobs[name]
        else:
            ray.end(name, status, "exit code 137: " + "log " * 1000 + "out of memory")
    reconciler.tick()
    job = store.get_job(job_id)
    assert (job.status, job.reason, job.attempt) == ("failed", "driver_lost", 3)
    assert job.error["code"] == "driver_lost"
    assert job.message.startswith("3 drivers were lost; the last time: ")
    assert ("was the cluster restarted" if status == "missing" else "out of memory") in job.message
    assert len(job.message) < 2000
    moves = [event.data["to"] for event in store.list_events(job_id) if event.type == "job.status"]
    assert moves == ["queued", *(["running", "queued"] * 2), "running", "failed"]


def test_a_replacement_starts_in_the_same_tick(reconciler, ray, store, job_id):
    """Between two drivers the job still names its teacher, and waits as short as possible."""
    reconciler.tick()
    DriverSession(store, job_id, 1).use_teacher(Teacher(name="t", model_dir="d", contract={}))
    ray.end(f"{job_id}-1", "FAILED", "killed")
    reconciler.tick()
    assert ray.running() == [f"{job_id}-2"]
    assert reconciler.teachers.asked[-1] == ["t"]


def test_a_driver_that_finishes_while_ray_is_asked(reconciler, ray, store, job_id):
    """Ray says it exited; it had just written its success."""
    reconciler.tick()
    driver = DriverSession(store, job_id, 1)

    def finish():
        driver.succeed({"ndcg": 0.7})
        ray.end(f"{job_id}-1", "SUCCEEDED")

    on(ray, "before", f"GET /api/jobs/{job_id}-1", finish)
    reconciler.tick()
    assert store.get_job(job_id).status == "succeeded"
    assert len(ray.submitted) == 1


def test_a_silent_driver_is_stopped_first_and_replaced_when_it_is_gone(reconciler, ray, store, job_id, clock):
    """Two drivers must not write the same checkpoints: the new one starts when Ray says that the old one ended."""
    reconciler.tick()
    DriverSession(store, job_id, 1).start()
    clock.advance(119)
    reconciler.tick()
    assert ray.running() == [f"{job_id}-1"]
    clock.advance(2)
    reconciler.tick()
    assert ray.jobs[f"{job_id}-1"]["status"] == "STOPPED"
    assert store.get_job(job_id).fencing_token == 1, "not yet replaced: Ray has only been asked"
    reconciler.tick()
    assert ray.running() == [f"{job_id}-2"]
    with pytest.raises(StaleDriver):
        DriverSession(store, job_id, 1).heartbeat()


def test_a_driver_that_cannot_be_stopped_is_fenced_off(reconciler, ray, store, job_id, clock):
    reconciler.tick()
    clock.advance(121)
    original = ray.end
    ray.end = lambda *_: None  # a dead node: Ray accepts the stop and nothing happens
    reconciler.tick()
    assert store.get_job(job_id).fencing_token == 1
    clock.advance(20)
    reconciler.tick()
    assert store.get_job(job_id).fencing_token == 2
    assert sorted(ray.running()) == [f"{job_id}-1", f"{job_id}-2"]
    with pytest.raises(StaleDriver):
        DriverSession(store, job_id, 1).heartbeat()
    ray.end = original


def test_waiting_for_resources_is_not_silence(reconciler, ray, store, job_id, clock):
    """A cluster that scales up takes minutes to start a driver; that costs no attempt."""
    reconciler.tick()
    ray.end(f"{job_id}-1", "PENDING", "Waiting for resources")
    for _ in range(100):
        clock.advance(60)
        reconciler.tick()
    assert store.get_job(job_id).attempt == 1
    ray.end(f"{job_id}-1", "RUNNING")
    clock.advance(60)
    reconciler.tick()
    assert ray.running() == [f"{job_id}-1"]


def test_a_cluster_without_room_costs_no_attempt(reconciler, ray, store, job_id):
    """Ray 2.60 fails a submission that waited 15 minutes for CPUs; behind a long job that is nobody's fault."""
    for _ in range(10):
        reconciler.tick()
        (name,) = ray.running()
        ray.jobs[name] = {
            "status": "FAILED",
            "message": "Job supervisor actor failed to start within 900.0 seconds.",
            "error_type": "JOB_SUPERVISOR_ACTOR_START_TIMEOUT",
        }
    reconciler.tick()
    job = store.get_job(job_id)
    assert (job.status, job.attempt, job.fencing_token) == ("running", 1, 11)


def test_a_driver_that_never_says_hello_is_silent(reconciler, ray, store, job_id, clock):
    """It hangs while importing: Ray says RUNNING, no heartbeat ever came."""
    reconciler.tick()
    clock.advance(121)
    reconciler.tick()
    reconciler.tick()
    assert ray.running() == [f"{job_id}-2"]


def test_cancel_waits_for_the_driver_then_stops_it(reconciler, ray, store, job_id, clock):
    reconciler.tick()
    driver = DriverSession(store, job_id, 1)
    driver.start()
    store.request_cancel(job_id)
    clock.advance(19)
    reconciler.tick()
    assert store.get_job(job_id).status == "cancelling"
    driver.event("note", "still tidying up")
    clock.advance(2)
    reconciler.tick()
    job = store.get_job(job_id)
    assert job.status == "cancelled"
    assert "its Ray Job was stopped" in job.message
    assert ray.running() == []
    with pytest.raises(StaleDriver):
        driver.mark_cancelled()


@pytest.mark.parametrize("ending", ["STOPPED", "FAILED", "SUCCEEDED", "missing"])
def test_cancel_of_a_driver_that_died_needs_no_grace(reconciler, ray, store, job_id, ending):
    reconciler.tick()
    store.request_cancel(job_id)
    ray.end(f"{job_id}-1", ending)
    if ending == "missing":
        ray.jobs.clear()
    reconciler.tick()
    assert store.get_job(job_id).status == "cancelled"


def test_one_broken_job_does_not_stop_the_others(reconciler, ray, store, job_id, caplog, pools):
    """Whatever goes wrong with one job, or with the pools, the rest is still looked after."""
    second = store.create_job({"name": "y"}).id
    on(ray, "before", f"GET /api/jobs/{job_id}-1", lambda: 1 / 0)
    pools.apply = lambda _: (_ for _ in ()).throw(TeacherPoolError("Serve does not answer"))
    reconciler.tick()
    assert list(ray.jobs) == [f"{second}-1"]
    assert {"division by zero" in (record.exc_text or "") for record in caplog.records} == {True, False}
    reconciler.tick()
    assert set(ray.jobs) == {f"{job_id}-1", f"{second}-1"}


def test_the_gateway_runs_it(settings, ray, pools, spec):
    """In the real app: a posted job reaches Ray by itself, and a stopped gateway leaves the lead to the next."""
    submitted = threading.Event()
    ray.after = lambda request: submitted.set() if request.method == "POST" else None
    app = create_app(settings, ray=ray.client(), teachers=pools)
    with TestClient(app) as client:
        job_id = client.post("/v1/distillation/jobs", json={"spec": spec}).json()["id"]
        assert submitted.wait(20)
    assert ray.submitted[0]["entrypoint"] == f"python -m services.driver {job_id} 1"
    store = Store(settings.database_url)
    assert store.get_job(job_id).ray_submission_id == f"{job_id}-1", "the tick under way was finished"
    assert ReconcilerSession(store, "next").lead(10)
    store.close()


def test_the_gateway_builds_from_settings_alone(settings):
    """As uvicorn builds it: with the real Ray client and the real Serve control, and no network before it starts."""
    assert create_app(settings).state.context.settings == settings


def test_the_gateway_survives_a_tick_that_raises(settings, ray, pools, monkeypatch):
    """A database that is away for a while must not end the reconciler for good."""
    ticks = threading.Semaphore(0)

    def tick(_):
        ticks.release()
        raise RuntimeError("database is away")

    monkeypatch.setattr(Reconciler, "tick", tick)
    monkeypatch.setattr("services.gateway.app._TICK_S", 0.001)
    with TestClient(create_app(settings, ray=ray.client(), teachers=pools)):
        for _ in range(3):
            assert ticks.acquire(timeout=20)


# ---- sizes of teacher pools

AUTO = Teacher(name="auto", model_dir="d", contract={}, mode="auto", max_replicas=4)
FIXED = Teacher(name="fixed", model_dir="d", contract={}, replicas=2, max_replicas=2)


@pytest.fixture
def table(store):
    return TeacherTable(store)


@pytest.fixture
def scaling(store, ray, serve, settings):
    """A reconciler with the real Serve control, Serve itself played."""
    session = ReconcilerSession(store, "a")
    return Reconciler(session=session, ray=ray.client(), teachers=serve.control(), settings=settings)


@pytest.fixture
def driver(scaling, store, job_id):
    """Of a job that runs."""
    scaling.tick()
    started = DriverSession(store, job_id, 1)
    started.start()
    return started


def served(serve):
    """Replicas by application, as Serve was told last."""
    return {
        application["name"]: application["deployments"][0]["num_replicas"]
        for application in serve.puts[-1]["applications"]
    }


def scalings(store, job_id):
    return [event.data for event in store.list_events(job_id) if event.type == "teacher_pool.scaled"]


def test_a_pool_grows_with_its_backlog_and_the_job_is_told(scaling, driver, store, job_id, table, serve):
    """10 hours of work for one replica, within the hour: all four that are allowed."""
    driver.use_teacher(AUTO)
    scaling.tick()
    assert served(serve) == {"auto": 1}
    driver.report_demand(backlog_tokens=36_000 * 100, tokens_per_second=100.0, deadline_at=None)
    scaling.tick()
    assert (table.get("auto").replicas, served(serve)) == (4, {"auto": 4})
    assert scalings(store, job_id) == [{"teacher": "auto", "from": 1, "to": 4}]
    (event,) = [event for event in store.list_events(job_id) if event.type == "teacher_pool.scaled"]
    assert event.message == "auto: 1 -> 4 replicas, 3600000 tokens of this job to go"


def test_serve_is_told_only_when_something_changes(scaling, driver, serve, clock):
    """Each PUT makes Serve look at every application anew; a tick comes every second."""
    driver.use_teacher(AUTO)
    driver.report_demand(backlog_tokens=36_000 * 100, tokens_per_second=100.0, deadline_at=None)
    for _ in range(20):
        clock.advance(1)
        scaling.tick()
    assert [len(put["applications"]) for put in serve.puts] == [1]
    serve.applications.clear()  # the cluster was restarted
    scaling.tick()
    assert len(serve.puts) == 2


def test_an_idle_pool_sleeps_and_wakes_up_when_it_is_used(scaling, driver, store, job_id, table, serve, clock):
    """The job still runs, and trains: meanwhile its teacher gives the machine back."""
    driver.use_teacher(AUTO)
    driver.report_demand(backlog_tokens=36_000 * 100, tokens_per_second=100.0, deadline_at=None)
    scaling.tick()
    driver.report_demand(backlog_tokens=0, tokens_per_second=100.0, deadline_at=None)
    clock.advance(IDLE_S - 1)
    driver.heartbeat()
    scaling.tick()
    assert served(serve) == {"auto": 4}, "starting a replica costs about as much as it would save"
    clock.advance(2)
    scaling.tick()
    assert (table.get("auto").replicas, served(serve)) == (0, {})
    table.touch("auto")
    scaling.tick()
    assert (table.get("auto").replicas, served(serve)) == (1, {"auto": 1})
    assert [(data["from"], data["to"]) for data in scalings(store, job_id)] == [(1, 4), (4, 0), (0, 1)]


def test_a_fixed_size_is_nobody_s_to_change(scaling, driver, store, job_id, table, serve, clock):
    driver.use_teacher(FIXED)
    driver.report_demand(backlog_tokens=10**12, tokens_per_second=1.0, deadline_at=clock() + 1)
    scaling.tick()
    driver.report_demand(backlog_tokens=0, tokens_per_second=1.0, deadline_at=None)
    clock.advance(IDLE_S - 1)
    driver.heartbeat()
    clock.advance(IDLE_S - 1)
    driver.heartbeat()
    scaling.tick()
    assert (table.get("fixed").replicas, served(serve)) == (2, {"fixed": 2})
    assert scalings(store, job_id) == []


def test_a_pinned_pool_without_jobs_is_sized_too(scaling, table, serve, clock):
    table.pin(AUTO)
    scaling.tick()
    assert served(serve) == {"auto": 1}
    clock.advance(IDLE_S)
    scaling.tick()
    assert served(serve) == {}
    table.resize("auto", min_replicas=2)
    scaling.tick()
    assert served(serve) == {"auto": 2}
    table.unpin("auto")
    scaling.tick()
    assert served(serve) == {}


def test_a_user_who_is_faster_than_the_autoscaler_wins(scaling, driver, store, job_id, table, serve, monkeypatch):
    """Between the autoscaler's look and its write: the user's size stands, and no event tells of another."""
    driver.use_teacher(AUTO)
    driver.report_demand(backlog_tokens=36_000 * 100, tokens_per_second=100.0, deadline_at=None)
    look = TeacherTable.demands

    def resize_meanwhile(self, name):
        found = look(self, name)
        self.resize(name, mode="fixed", replicas=2)
        return found

    monkeypatch.setattr(TeacherTable, "demands", resize_meanwhile)
    scaling.tick()
    assert (table.get("auto").replicas, served(serve)) == (2, {"auto": 2})
    assert scalings(store, job_id) == []


def test_every_job_of_a_pool_is_told_what_it_still_wants(scaling, driver, store, job_id, table):
    other_id = store.create_job({"name": "y"}).id
    scaling.tick()
    other = DriverSession(store, other_id, 1)
    for session, hours in ((driver, 1), (other, 2)):
        session.use_teacher(AUTO)
        session.report_demand(backlog_tokens=hours * 360_000, tokens_per_second=100.0, deadline_at=None)
    scaling.tick()
    assert table.get("auto").replicas == 3
    told = [
        event.message
        for job in (job_id, other_id)
        for event in store.list_events(job)
        if event.type == "teacher_pool.scaled"
    ]
    assert [message.split(", ")[1] for message in told] == [
        "360000 tokens of this job to go",
        "720000 tokens of this job to go",
    ]
