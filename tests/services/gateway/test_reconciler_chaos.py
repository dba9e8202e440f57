"""Anything at any moment: reconcilers die mid-request, pause, overlap; drivers crash; Ray vanishes or forgets.

After every step a driver that counts is the only one; at the end, with everything healthy, every job ends.
"""

import tempfile
from pathlib import Path

import httpx
import hypothesis.strategies as st
from gateway_doubles import Clock, Pools, RayDouble
from hypothesis import settings as hypothesis_settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from services.errors import StaleDriver, StateConflict
from services.gateway.reconciler import Reconciler
from services.settings import Settings
from services.store import TERMINAL, DriverSession, ReconcilerSession, Store

MAX_ATTEMPTS = 3


class Killed(BaseException):
    """kill -9: nothing catches it."""


class Chaos(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        root = Path(self.folder.name)
        self.clock, self.ray, self.pools = Clock(), RayDouble(), Pools()
        self.settings = Settings(
            root=root,
            database_url=f"sqlite:///{root / 's.db'}",
            data_roots=(root,),
            ray_dashboard_url="http://ray.test",
            ray_token=None,
            heartbeat_timeout_s=120,
            cancel_grace_s=20,
            max_attempts=MAX_ATTEMPTS,
            max_running_jobs=100,
            driver_cpus=1,
            driver_gpus=0,
        )
        self.store = Store(self.settings.database_url, clock=self.clock)
        self.store.migrate()
        self.births = 0
        self.reconcilers = [self.born(), self.born()]
        self.job_ids = [self.store.create_job({"name": "x"}).id for _ in range(2)]
        self.cancelled = set()

    def born(self):
        self.births += 1
        return Reconciler(
            session=ReconcilerSession(self.store, f"r{self.births}"),
            ray=self.ray.client(),
            teachers=self.pools,
            settings=self.settings,
        )

    def teardown(self):
        self.heal()
        self.store.close()
        self.folder.cleanup()

    def at_request(self, number, when, action):
        """Do `action` before or after Ray handles the n-th request from now."""
        countdown = [number]

        def hook(_):
            countdown[0] -= 1
            if countdown[0] < 0:
                setattr(self.ray, when, lambda _: None)
                action()

        setattr(self.ray, when, hook)

    def calm(self):
        self.ray.before = self.ray.after = lambda _: None

    # ---- what happens

    @rule(who=st.integers(0, 1))
    def tick(self, who):
        self.reconcilers[who].tick()

    @rule(who=st.integers(0, 1), number=st.integers(0, 6), when=st.sampled_from(["before", "after"]))
    def killed_tick(self, who, number, when):
        def kill():
            raise Killed

        self.at_request(number, when, kill)
        try:
            self.reconcilers[who].tick()
        except Killed:
            self.reconcilers[who] = self.born()
        self.calm()

    @rule(who=st.integers(0, 1), number=st.integers(0, 6), when=st.sampled_from(["before", "after"]))
    def unanswered_tick(self, who, number, when):
        def cut():
            raise httpx.ReadTimeout("cut")

        self.at_request(number, when, cut)
        self.reconcilers[who].tick()
        self.calm()

    @rule(
        number=st.integers(0, 6),
        when=st.sampled_from(["before", "after"]),
        pause=st.sampled_from([0, 11, 31, 200]),
    )
    def paused_tick(self, number, when, pause):
        """The first reconciler sleeps in the middle of a request; the other one, and drivers, go on."""

        def meanwhile():
            self.clock.advance(pause)
            self.reconcilers[1].tick()
            self.drivers_work()

        self.at_request(number, when, meanwhile)
        self.reconcilers[0].tick()
        self.calm()

    @rule(seconds=st.sampled_from([1, 12, 31, 130, 200]))
    def time_passes(self, seconds):
        self.clock.advance(seconds)

    @rule()
    def drivers_work(self):
        """Each driver process says hello; one that is refused exits, as the real one does."""
        for name in self.ray.running():
            try:
                self.driver(name).start()
            except StaleDriver:
                self.ray.end(name, "FAILED", "stale")

    @rule(pick=st.integers(0, 3))
    def a_driver_crashes(self, pick):
        for name in self.ray.running()[pick : pick + 1]:
            self.ray.end(name, "FAILED", "killed")

    @rule(pick=st.integers(0, 3))
    def a_driver_finishes(self, pick):
        for name in self.ray.running()[pick : pick + 1]:
            self.finish(name)

    @rule()
    def ray_goes(self):
        self.ray.down = True

    @rule()
    def ray_comes(self):
        self.ray.down = False

    @rule()
    def ray_forgets(self):
        """The cluster is restarted without its state: its processes are gone too."""
        self.ray.jobs.clear()

    @rule(which=st.integers(0, 1))
    def cancel(self, which):
        job_id = self.job_ids[which]
        try:
            self.store.request_cancel(job_id)
        except StateConflict:
            assert self.store.get_job(job_id).terminal
        else:
            self.cancelled.add(job_id)

    def driver(self, name):
        job_id, _, token = name.rpartition("-")
        return DriverSession(self.store, job_id, int(token))

    def finish(self, name):
        try:
            self.driver(name).start()
            self.driver(name).succeed({"by": name})
            self.ray.end(name, "SUCCEEDED")
        except StaleDriver:
            self.ray.end(name, "FAILED", "stale")

    # ---- what must hold

    @invariant()
    def promises(self):
        for job_id in self.job_ids:
            job = self.store.get_job(job_id)
            names = [body["submission_id"] for body in self.ray.submitted if job_id in body["submission_id"]]
            assert len(names) == len(set(names)), "one fencing token is never given to two drivers"
            assert all(int(name.rpartition("-")[2]) <= job.fencing_token for name in names)
            assert job.attempt <= MAX_ATTEMPTS
            if job.status == "failed":
                assert job.reason == "driver_lost"
                assert len(names) >= MAX_ATTEMPTS, "given up only after that many real drivers"
            if job.status == "succeeded":
                assert job.result == {"by": f"{job_id}-{job.fencing_token}"}, "the newest driver's result"
            if job_id in self.cancelled:
                assert job.status in {"cancelling", "cancelled"}

    def heal(self):
        """With everything healthy again, every job ends and no process is left."""
        self.calm()
        self.ray.down = False
        for _ in range(12):
            self.clock.advance(31)
            for reconciler in self.reconcilers:
                reconciler.tick()
            for name in self.ray.running():
                self.finish(name)
        jobs = [self.store.get_job(job_id) for job_id in self.job_ids]
        assert all(job.status in TERMINAL for job in jobs), [job.status for job in jobs]
        assert self.ray.running() == []
        self.promises()


TestChaos = Chaos.TestCase
TestChaos.settings = hypothesis_settings(max_examples=20, stateful_step_count=20, deadline=None)
