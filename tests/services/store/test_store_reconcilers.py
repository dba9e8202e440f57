"""Several reconcilers on one database: every decision is bound to the token it was made for."""

from concurrent.futures import ThreadPoolExecutor

from services.store import DriverSession, ReconcilerSession


def test_racing_reconcilers_claim_each_job_once(store, new_job):
    jobs = [new_job().id for _ in range(6)]
    rivals = [ReconcilerSession(store, f"r{n}") for n in range(4)]

    def claim_all(rival):
        return {job_id: rival.claim_for_start(job_id, 10) for job_id in jobs}

    with ThreadPoolExecutor(4) as pool:
        claims = list(pool.map(claim_all, rivals))
    for job_id in jobs:
        assert sorted(str(claim[job_id]) for claim in claims) == ["1", "None", "None", "None"]
        assert store.get_job(job_id).attempt == 1


def test_decisions_on_an_old_token_do_nothing(store, new_job, reconciler):
    """A reconciler that slept between asking Ray and writing must not hit the next driver."""
    job_id = new_job().id
    reconciler.claim_for_start(job_id, 10)
    reconciler.requeue(job_id, 1, "lost")
    assert reconciler.claim_for_start(job_id, 10) == 2
    before = store.get_job(job_id)
    assert not reconciler.requeue(job_id, 1, "late")
    assert not reconciler.fail_job(job_id, 1, "driver_lost", "late")
    assert not reconciler.mark_submitted(job_id, 1, "late")
    assert not reconciler.excuse_silence(job_id, 1)
    assert not reconciler.cancel_job(job_id, 2)  # nobody asked for a cancel
    assert store.get_job(job_id) == before


def test_a_driver_that_ended_well_is_not_requeued(store, new_job, reconciler):
    """The race that matters most: the driver succeeds between `Ray says it exited` and our UPDATE."""
    job_id = new_job().id
    token = reconciler.claim_for_start(job_id, 10)
    DriverSession(store, job_id, token).succeed({"ok": True})
    assert not reconciler.requeue(job_id, token, "Ray says: exited")
    assert not reconciler.fail_job(job_id, token, "driver_lost", "Ray says: exited")
    assert store.get_job(job_id).status == "succeeded"


def test_an_unused_claim_gives_its_attempt_back_but_not_its_token(store, new_job, reconciler):
    job_id = new_job().id
    reconciler.claim_for_start(job_id, 10)
    assert reconciler.requeue(job_id, 1, "never submitted", started=False)
    assert store.get_job(job_id).attempt == 0
    assert reconciler.claim_for_start(job_id, 10) == 2
    assert store.get_job(job_id).attempt == 1


def test_start_proves_submission(store, new_job, reconciler):
    """The submitter died after Ray took the job and before it could note so; the driver's start notes it."""
    job_id = new_job().id
    token = reconciler.claim_for_start(job_id, 10)
    assert store.get_job(job_id).ray_submission_id is None
    DriverSession(store, job_id, token).start()
    job = store.get_job(job_id)
    assert job.ray_submission_id == f"{job_id}-{token}"
    assert job.lease_owner is None


def test_one_leader_at_a_time_and_a_dead_one_is_succeeded(store, clock):
    first, second = ReconcilerSession(store, "a"), ReconcilerSession(store, "b")
    assert first.lead(10)
    assert not second.lead(10)
    clock.advance(6)
    assert first.lead(10)
    clock.advance(6)
    assert not second.lead(10)
    clock.advance(5)
    assert second.lead(10)
    assert not first.lead(10)
    first.resign()  # not the leader: nothing to give up
    assert not first.lead(10)
    second.resign()
    assert first.lead(10)


def test_lists_are_oldest_first(store, new_job, reconciler, clock):
    jobs = []
    for _ in range(3):
        jobs.append(new_job().id)
        clock.advance(1)
    assert [job.id for job in reconciler.queued_jobs()] == jobs
    reconciler.claim_for_start(jobs[1], 10)
    assert [job.id for job in reconciler.queued_jobs()] == [jobs[0], jobs[2]]
    assert [job.id for job in reconciler.active_jobs()] == [jobs[1]]
