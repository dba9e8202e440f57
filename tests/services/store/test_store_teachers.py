"""Teachers as desired state: who holds a pool, whose size counts, and what races between jobs, users and scaler do."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from services.errors import ServiceError, StaleDriver, StateConflict, TeacherNotFound
from services.store import Demand, DriverSession, ReconcilerSession, Store, Teacher, TeacherTable
from services.store.models import DemandRow, JobRow, TeacherRow

CONTRACT = {"model_id": "m", "weights_hash": "ab"}
OTHER = {"model_id": "m", "weights_hash": "cd"}
AUTO = {"mode": "auto", "min_replicas": 0, "max_replicas": 4}


def a_teacher(name="t", **fields):
    return Teacher(name=name, **({"model_dir": "d", "contract": CONTRACT} | fields))


@pytest.fixture
def table(store):
    return TeacherTable(store)


@pytest.fixture
def driver(store, new_job, reconciler):
    """A running job: (its id, its driver)."""

    def start(teacher=None):
        job_id = new_job().id
        session = DriverSession(store, job_id, reconciler.claim_for_start(job_id, 10))
        session.start()
        if teacher is not None:
            session.use_teacher(teacher)
        return job_id, session

    return start


def names(teachers):
    return [teacher.name for teacher in teachers]


# ---- reading


def test_an_unknown_teacher_is_told_everywhere(table):
    for call in (
        table.get,
        table.unpin,
        table.touch,
        lambda name: table.resize(name, replicas=1),
        lambda name: table.resize_by(name, lambda _: {"replicas": 1}),
    ):
        with pytest.raises(TeacherNotFound, match="'none'"):
            call("none")
    assert table.all() == table.wanted() == table.demands("none") == []
    assert table.uses() == {}


def test_a_record_comes_back_as_it_was_written(store, table, database_url, clock):
    """Every field, through another connection: what is lost here is lost for Serve."""
    written = a_teacher(
        contract={"template": "ü", "max_length": 64},
        **AUTO,
        replicas=2,
        cpus_per_replica=0.5,
        gpus_per_replica=0.25,
        tokens_per_batch=512,
        calibrations_dir="/c",
        weights_version=3,
    )
    pinned = table.pin(written)
    other = Store(database_url, clock=clock)
    read = TeacherTable(other).get("t")
    other.close()
    assert read == pinned
    for field in ("model_dir", "contract", "mode", "replicas", "min_replicas", "max_replicas", "cpus_per_replica"):
        assert getattr(read, field) == getattr(written, field)
    for field in ("gpus_per_replica", "tokens_per_batch", "calibrations_dir", "weights_version"):
        assert getattr(read, field) == getattr(written, field)
    assert (read.pinned, read.scaled_by_user, read.scaled_at, read.used_at) == (True, True, clock(), clock())


def test_reading_waits_for_nobody(store, table):
    """A request that shows a teacher must not queue behind a transaction that changes it."""
    table.pin(a_teacher())
    with ThreadPoolExecutor(1) as pool, store.writing() as session:
        session.get_one(TeacherRow, "t", with_for_update=True).replicas = 9
        session.flush()
        assert pool.submit(table.get, "t").result(timeout=20).replicas == 1


# ---- who holds a pool


def test_a_pool_is_wanted_while_it_is_pinned_or_an_unfinished_job_names_it(table, store, driver, reconciler):
    table.pin(a_teacher("pinned"))
    job_id, session = driver(a_teacher("used"))
    assert names(table.wanted()) == ["pinned", "used"]
    reconciler.requeue(job_id, 1, "lost")
    assert names(table.wanted()) == ["pinned", "used"], "a job between two drivers keeps its teacher"
    session = DriverSession(store, job_id, reconciler.claim_for_start(job_id, 10))
    store.request_cancel(job_id)
    assert names(table.wanted()) == ["pinned", "used"]
    session.mark_cancelled()
    assert names(table.wanted()) == ["pinned"]
    table.unpin("pinned")
    assert table.wanted() == []
    assert names(table.all()) == ["pinned", "used"], "what was is still known"


@pytest.mark.parametrize("end", ["succeed", "fail", "mark_cancelled", "lost"])
def test_every_end_of_the_last_job_lets_the_pool_go(table, store, driver, reconciler, end):
    job_id, session = driver(a_teacher())
    _, second = driver(a_teacher())
    second.succeed({})
    assert names(table.wanted()) == ["t"]
    match end:
        case "succeed":
            session.succeed({})
        case "fail":
            session.fail("x", "y")
        case "mark_cancelled":
            store.request_cancel(job_id)
            session.mark_cancelled()
        case "lost":
            reconciler.fail_job(job_id, 1, "driver_lost", "silent")
    assert table.wanted() == []


def test_a_pool_that_nobody_holds_becomes_what_the_next_job_asks_for(table, driver):
    """Its last user wanted other resources, another size, and had given it other weights."""
    _, session = driver(a_teacher(replicas=8, cpus_per_replica=4.0, tokens_per_batch=64))
    session.publish_weights(model_dir="trained", contract=OTHER, weights_version=1)
    session.succeed({})
    driver(a_teacher(**AUTO, replicas=2, gpus_per_replica=0.5))
    teacher = table.get("t")
    assert (teacher.mode, teacher.replicas, teacher.max_replicas) == ("auto", 2, 4)
    assert (teacher.cpus_per_replica, teacher.gpus_per_replica, teacher.tokens_per_batch) == (1.0, 0.5, None)
    assert (teacher.model_dir, teacher.contract, teacher.weights_version) == ("d", CONTRACT, 0)


def test_a_pool_that_another_job_needs_keeps_its_resources_and_grows(table, driver, clock):
    driver(a_teacher(replicas=2, max_replicas=2, cpus_per_replica=4.0))
    clock.advance(5)
    driver(a_teacher(replicas=3, max_replicas=3, cpus_per_replica=1.0, model_dir="elsewhere"))
    teacher = table.get("t")
    assert (teacher.replicas, teacher.max_replicas, teacher.cpus_per_replica) == (3, 3, 4.0)
    assert (teacher.model_dir, teacher.used_at) == ("d", clock())
    driver(a_teacher(replicas=1, max_replicas=1))
    assert table.get("t").replicas == 3, "a smaller wish takes nothing from the others"


def test_a_job_of_the_other_mode_does_not_change_the_size(table, driver):
    """Fixed and auto cannot both be true: the one that was there first stays."""
    driver(a_teacher(replicas=2, max_replicas=2))
    driver(a_teacher(**(AUTO | {"max_replicas": 9}), replicas=9))
    teacher = table.get("t")
    assert (teacher.mode, teacher.replicas, teacher.max_replicas) == ("fixed", 2, 2)


def test_a_job_that_asks_again_does_not_undo_what_was_scaled_since(table, driver, store, reconciler):
    """The next driver of a job asks for its first size; the autoscaler may have taken the pool down since."""
    job_id, session = driver(a_teacher(**AUTO, replicas=3))
    assert table.set_replicas("t", 1, seen=3)
    session.use_teacher(a_teacher(**AUTO, replicas=3))
    assert table.get("t").replicas == 1
    reconciler.requeue(job_id, 1, "lost")
    again = DriverSession(store, job_id, reconciler.claim_for_start(job_id, 10))
    again.use_teacher(a_teacher(**AUTO, replicas=3))
    assert table.get("t").replicas == 1


def test_a_job_that_changes_its_teacher_lets_the_first_one_go(table, driver):
    _, session = driver(a_teacher("first"))
    session.use_teacher(a_teacher("second"))
    assert names(table.wanted()) == ["second"]


def test_a_user_s_size_is_not_changed_by_jobs_until_it_is_unpinned(table, driver):
    table.pin(a_teacher(replicas=2, max_replicas=2))
    driver(a_teacher(replicas=5, max_replicas=5))
    assert table.get("t").replicas == 2
    table.unpin("t")
    driver(a_teacher(replicas=5, max_replicas=5))
    assert table.get("t").replicas == 5


def test_a_stale_driver_holds_nothing(table, driver, reconciler):
    job_id, session = driver()
    reconciler.requeue(job_id, 1, "silent")
    with pytest.raises(StaleDriver):
        session.use_teacher(a_teacher())
    assert table.all() == []


# ---- pin, unpin


def test_pinning_again_resizes_and_keeps(table, clock):
    table.pin(a_teacher(cpus_per_replica=4.0, replicas=2, max_replicas=2))
    clock.advance(7)
    again = table.pin(a_teacher(**AUTO, cpus_per_replica=1.0, replicas=3))
    assert (again.mode, again.replicas, again.max_replicas, again.cpus_per_replica) == ("auto", 3, 4, 4.0)
    assert (again.used_at, again.scaled_at) == (clock(), clock())
    assert table.all() == [again]


def test_pinning_a_pool_in_use_keeps_its_weights(table, driver):
    """The pool of a running job that has trained it: the same contract, so it is the same teacher."""
    _, session = driver(a_teacher(replicas=2, tokens_per_batch=64))
    session.publish_weights(model_dir="trained", contract=OTHER, weights_version=1)
    with pytest.raises(StateConflict, match="another contract"):
        table.pin(a_teacher())
    assert not table.get("t").pinned
    pinned = table.pin(a_teacher(contract=OTHER, model_dir="copy", replicas=1))
    assert (pinned.model_dir, pinned.weights_version, pinned.tokens_per_batch) == ("trained", 1, 64)
    assert (pinned.pinned, pinned.replicas) == (True, 1)


def test_a_ranker_that_still_learns_is_not_pinned(table, driver):
    """Its job's next weights would be refused then, and the job would fail."""
    job_id, session = driver()
    learning = a_teacher(contract={**CONTRACT, "owner": job_id})
    session.use_teacher(learning)
    with pytest.raises(StateConflict, match=f"learns in job {job_id}, which gives it new weights"):
        table.pin(learning)
    session.publish_weights(model_dir="newer", contract=learning.contract, weights_version=1)
    session.succeed({})
    assert table.pin(learning).pinned


def test_pinning_a_pool_that_nobody_holds_makes_it_anew(table, driver):
    """Or a teacher that was once pinned with too few CPUs could never get more."""
    table.pin(a_teacher(cpus_per_replica=4.0))
    table.unpin("t")
    _, session = driver(a_teacher(cpus_per_replica=2.0))
    session.publish_weights(model_dir="trained", contract=OTHER, weights_version=1)
    session.succeed({})
    pinned = table.pin(a_teacher(cpus_per_replica=1.0))
    assert (pinned.cpus_per_replica, pinned.contract, pinned.weights_version) == (1.0, CONTRACT, 0)


def test_unpinning_lets_jobs_decide_again(table, driver):
    table.pin(a_teacher(replicas=2, max_replicas=2))
    for _ in range(2):
        unpinned = table.unpin("t")
        assert (unpinned.pinned, unpinned.scaled_by_user) == (False, False)
    driver(a_teacher(replicas=1, max_replicas=1))
    assert table.get("t").replicas == 1


# ---- sizes


def test_a_resize_is_the_user_s(table, driver, clock):
    driver(a_teacher(replicas=2, max_replicas=2))
    clock.advance(3)
    resized = table.resize("t", **AUTO, replicas=4)
    assert (resized.mode, resized.replicas, resized.min_replicas, resized.max_replicas) == ("auto", 4, 0, 4)
    assert (resized.scaled_by_user, resized.scaled_at) == (True, clock())
    driver(a_teacher(**(AUTO | {"max_replicas": 9}), replicas=9))
    assert table.get("t").replicas == 4


@pytest.mark.parametrize("field", ["replica", "pinned", "model_dir", "weights_version"])
def test_a_resize_changes_nothing_but_sizes(table, field):
    table.pin(a_teacher())
    before = table.get("t")
    with pytest.raises(TypeError, match=field):
        table.resize("t", **{field: 1})
    assert table.get("t") == before


def test_a_decision_that_raises_changes_nothing(table):
    table.pin(a_teacher())
    before = table.get("t")

    def refuse(_):
        raise StateConflict("no")

    with pytest.raises(StateConflict, match="no"):
        table.resize_by("t", refuse)
    assert table.get("t") == before


def test_decisions_see_one_another(table):
    """Two people who each add a replica at once: two more, not one."""
    table.pin(a_teacher(replicas=1))
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda _: table.resize_by("t", lambda now: {"replicas": now.replicas + 1}), range(12)))
    assert table.get("t").replicas == 13


def test_the_autoscaler_writes_only_what_it_decided_on(table, clock):
    table.pin(a_teacher(**AUTO, replicas=2))
    clock.advance(9)
    assert not table.set_replicas("t", 4, seen=1), "somebody was faster"
    assert table.set_replicas("t", 4, seen=2)
    assert (table.get("t").replicas, table.get("t").scaled_at) == (4, clock())
    table.resize("t", mode="fixed")
    assert not table.set_replicas("t", 0, seen=4), "a fixed size is the user's"
    assert not table.set_replicas("none", 1, seen=0)
    assert table.get("t").replicas == 4


def test_two_autoscalers_do_not_scale_twice(table):
    table.pin(a_teacher(**(AUTO | {"max_replicas": 99}), replicas=1))
    with ThreadPoolExecutor(4) as pool:
        done = list(pool.map(lambda _: table.set_replicas("t", 5, seen=1), range(8)))
    assert sorted(done) == [False] * 7 + [True]


def test_a_touch_is_a_use_and_nothing_else(table, clock):
    before = table.pin(a_teacher(**AUTO, replicas=2))
    clock.advance(50)
    table.touch("t")
    after = table.get("t")
    assert after.used_at == clock()
    assert after.scaled_at == before.scaled_at
    assert (after.mode, after.replicas) == ("auto", 2)


# ---- demands


def test_a_demand_is_the_newest_and_of_unfinished_jobs_only(table, driver, clock):
    first_id, first = driver(a_teacher())
    second_id, second = driver(a_teacher())
    driver(a_teacher())  # wants nothing yet
    first.report_demand(backlog_tokens=9, tokens_per_second=None, deadline_at=None)
    second.report_demand(backlog_tokens=5, tokens_per_second=2.5, deadline_at=clock() + 60)
    first.report_demand(backlog_tokens=7, tokens_per_second=1.5, deadline_at=None)
    expected = {
        first_id: Demand(job_id=first_id, backlog_tokens=7, tokens_per_second=1.5, deadline_at=None),
        second_id: Demand(job_id=second_id, backlog_tokens=5, tokens_per_second=2.5, deadline_at=clock() + 60),
    }
    assert table.demands("t") == [expected[job_id] for job_id in sorted(expected)]
    first.succeed({})
    assert table.demands("t") == [expected[second_id]]


def test_a_backlog_of_billions_is_a_number(table, driver):
    """8.8 million passages for 500,000 queries: more than 32 bits."""
    _, session = driver(a_teacher())
    session.report_demand(backlog_tokens=2**41, tokens_per_second=None, deadline_at=None)
    assert table.demands("t")[0].backlog_tokens == 2**41


def test_only_a_backlog_counts_as_a_use(table, driver, clock):
    """A job that has nothing left for its teacher must not keep it awake by saying so."""
    _, session = driver(a_teacher())
    clock.advance(10)
    session.report_demand(backlog_tokens=1, tokens_per_second=None, deadline_at=None)
    used_at = table.get("t").used_at
    assert used_at == clock()
    clock.advance(10)
    session.report_demand(backlog_tokens=0, tokens_per_second=None, deadline_at=None)
    assert table.get("t").used_at == used_at


def test_uses_are_the_unfinished_jobs_with_what_they_want(table, driver):
    first_id, first = driver(a_teacher("a"))
    first.report_demand(backlog_tokens=9, tokens_per_second=None, deadline_at=None)
    second_id, _ = driver(a_teacher("a"))
    third_id, third = driver(a_teacher("b"))
    _, over = driver(a_teacher("b"))
    over.report_demand(backlog_tokens=4, tokens_per_second=None, deadline_at=None)
    over.succeed({})
    driver()
    assert table.uses() == {"a": {first_id: 9, second_id: 0}, "b": {third_id: 0}}
    assert list(table.uses()["a"]) == sorted([first_id, second_id])
    third.use_teacher(a_teacher("c"))
    first.use_teacher(a_teacher("c"))
    assert table.uses()["c"] == {first_id: 0, third_id: 0}, "what it wanted of the first is not wanted of the second"


def test_a_demand_needs_a_teacher(driver):
    _, session = driver()
    with pytest.raises(ServiceError, match="use_teacher comes first"):
        session.report_demand(backlog_tokens=1, tokens_per_second=None, deadline_at=None)


# ---- weights


def test_weights_come_one_version_after_the_other(table, store, driver):
    job_id, session = driver(a_teacher(replicas=3))
    session.publish_weights(model_dir="v1", contract=OTHER, weights_version=1)
    with pytest.raises(StateConflict, match="has weights version 1, 3 is not next"):
        session.publish_weights(model_dir="v3", contract=OTHER, weights_version=3)
    with pytest.raises(StateConflict, match="0 is not next"):
        session.publish_weights(model_dir="v0", contract=OTHER, weights_version=0)
    teacher = table.get("t")
    assert (teacher.model_dir, teacher.contract, teacher.weights_version, teacher.replicas) == ("v1", OTHER, 1, 3)
    (event,) = [event for event in store.list_events(job_id) if event.type == "teacher_pool.weights"]
    assert event.data == {"teacher": "t", "weights_version": 1}


def test_weights_that_others_rely_on_are_nobody_s_to_change(table, driver):
    """A user pinned the teacher, or another job scores by it: both know it by its contract."""
    _, session = driver(a_teacher())
    _, other = driver(a_teacher())
    for publisher in (session, other):
        with pytest.raises(StateConflict, match="not this job's alone"):
            publisher.publish_weights(model_dir="v1", contract=OTHER, weights_version=1)
    other.succeed({})
    table.pin(a_teacher())
    with pytest.raises(StateConflict, match="not this job's alone"):
        session.publish_weights(model_dir="v1", contract=OTHER, weights_version=1)
    table.unpin("t")
    session.publish_weights(model_dir="v1", contract=OTHER, weights_version=1)
    assert table.get("t").weights_version == 1


def test_the_last_version_may_be_said_twice(table, driver):
    """The commit went through, its answer was lost, the driver says it again."""
    _, session = driver(a_teacher())
    for _ in range(2):
        session.publish_weights(model_dir="v1", contract=OTHER, weights_version=1)
    assert table.get("t").weights_version == 1


# ---- races and references


def test_jobs_and_users_that_meet_a_new_teacher_at_once_all_get_it(table, driver):
    """On PostgreSQL two can find that there is none yet; the second must not fail on the first one's row."""
    sessions = [driver()[1] for _ in range(8)]
    teachers = [a_teacher(replicas=number + 1, max_replicas=number + 1) for number in range(8)]
    with ThreadPoolExecutor(12) as pool:
        joined = [pool.submit(DriverSession.use_teacher, *pair) for pair in zip(sessions, teachers, strict=True)]
        pinned = [pool.submit(table.pin, a_teacher("p", replicas=2)) for _ in range(4)]
        for future in (*joined, *pinned):
            future.result()
    assert names(table.wanted()) == ["p", "t"]
    assert table.get("t").replicas == 8, "the largest wish"
    assert len(table.uses()["t"]) == 8


def test_a_row_that_appears_between_the_look_and_the_insert_is_joined(store, table, driver, monkeypatch):
    """The same race, made to happen: the look finds nothing, though somebody has committed the row."""
    driver(a_teacher(replicas=2, max_replicas=2))
    _, session = driver()
    look, blind = Session.get, [True]

    def get(self, entity, key, **options):
        if entity is TeacherRow and blind:
            return blind.clear()
        return look(self, entity, key, **options)

    monkeypatch.setattr(Session, "get", get)
    session.use_teacher(a_teacher(replicas=3, max_replicas=3, cpus_per_replica=9.0))
    assert blind == []
    assert (table.get("t").replicas, table.get("t").cpus_per_replica) == (3, 1.0)


def test_a_job_cannot_name_a_teacher_that_is_not_there(store, driver, table):
    """The foreign keys hold on SQLite too, where they are off unless each connection asks."""
    job_id, _ = driver()
    with pytest.raises(IntegrityError), store.writing() as session:
        session.get_one(JobRow, job_id).teacher_name = "none"
    with pytest.raises(IntegrityError), store.writing() as session:
        session.add(DemandRow(job_id=job_id, teacher_name="none", backlog_tokens=1, updated_at=0.0))
    table.pin(a_teacher())
    with pytest.raises(IntegrityError), store.writing() as session:
        session.add(DemandRow(job_id="ddjob-none", teacher_name="t", backlog_tokens=1, updated_at=0.0))


def test_demands_and_sizes_written_at_once_lose_nothing(store, table, driver, database_url):
    """The driver reports, a user resizes, the scaler scales: different columns of one row."""
    _, session = driver(a_teacher(**AUTO, replicas=1))

    def report(number):
        session.report_demand(backlog_tokens=number + 1, tokens_per_second=None, deadline_at=None)

    def bound(number):
        table.resize("t", max_replicas=number + 5)

    def scale(_):
        seen = table.get("t").replicas
        table.set_replicas("t", seen + 1, seen=seen)

    with ThreadPoolExecutor(6) as pool:
        done = [pool.submit(step, number) for number in range(8) for step in (report, bound, scale)]
        for future in done:
            future.result()
    teacher = table.get("t")
    assert teacher.max_replicas in range(5, 13)
    assert 2 <= teacher.replicas <= 9
    assert table.demands("t")[0].backlog_tokens in range(1, 9)


def test_a_lost_leader_s_late_decision_is_refused(store, table):
    """Two reconcilers, one asleep between look and write: bounded by what it saw."""
    table.pin(a_teacher(**AUTO, replicas=1))
    late = TeacherTable(store)
    seen = late.get("t").replicas
    assert ReconcilerSession(store, "next").lead(10)
    assert table.set_replicas("t", 3, seen=1)
    assert not late.set_replicas("t", 2, seen=seen)
    assert table.get("t").replicas == 3


def test_a_job_does_not_join_a_pool_that_another_one_trains(table, driver):
    """Its contract is that of the first weights; scores of any others would be filed wrongly."""
    _, trainer = driver(a_teacher())
    trainer.publish_weights(model_dir="d1", contract=OTHER, weights_version=1)
    _, late = driver()
    with pytest.raises(StateConflict, match="weights version 1 by now"):
        late.use_teacher(a_teacher())
    trainer.use_teacher(a_teacher())  # its own next driver goes on with what there is
    assert table.get("t").weights_version == 1


def test_what_a_job_wanted_of_an_earlier_teacher_does_not_count(table, driver):
    _, session = driver(a_teacher("first"))
    session.report_demand(backlog_tokens=7, tokens_per_second=None, deadline_at=None)
    session.use_teacher(a_teacher("second"))
    assert table.demands("first") == []
