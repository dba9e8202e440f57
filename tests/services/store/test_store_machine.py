"""Everything that can happen to one job, in any order, by any actor: the promises that hold after each step."""

import contextlib
import tempfile
from pathlib import Path

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from services.errors import StaleDriver, StateConflict
from services.store import ACTIVE, TERMINAL, DriverSession, ReconcilerSession, Store
from services.store.statuses import STATUSES, may_follow

TOKENS = st.integers(0, 4)
ENDS = {
    "succeed": lambda driver: driver.succeed({"ok": True}),
    "fail": lambda driver: driver.fail("broken", "it broke"),
    "mark_cancelled": lambda driver: driver.mark_cancelled(),
}


class JobLife(RuleBasedStateMachine):
    """One job; drivers of every generation, two reconcilers and a user act on it."""

    def __init__(self):
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.now = 1000.0
        self.store = Store(f"sqlite:///{Path(self.folder.name) / 's.db'}", clock=lambda: self.now)
        self.store.migrate()
        self.job_id = self.store.create_job({"name": "x"}).id
        self.reconcilers = [ReconcilerSession(self.store, owner) for owner in "ab"]
        self.cancel_accepted = False
        self.last = self.store.get_job(self.job_id)

    def teardown(self):
        self.store.close()
        self.folder.cleanup()

    @rule(who=st.integers(0, 1))
    def claim(self, who):
        token = self.reconcilers[who].claim_for_start(self.job_id, 10)
        assert (token is not None) == (self.last.status == "queued")
        if token is not None:
            assert token == self.last.fencing_token + 1

    @rule(who=st.integers(0, 1), token=TOKENS, started=st.booleans())
    def requeue(self, who, token, started):
        done = self.reconcilers[who].requeue(self.job_id, token, "lost", started=started)
        assert done == (self.last.status == "running" and self.last.fencing_token == token)

    @rule(who=st.integers(0, 1), token=TOKENS)
    def give_up(self, who, token):
        done = self.reconcilers[who].fail_job(self.job_id, token, "driver_lost", "lost")
        assert done == (self.last.status == "running" and self.last.fencing_token == token)

    @rule(who=st.integers(0, 1), token=TOKENS)
    def hard_cancel(self, who, token):
        done = self.reconcilers[who].cancel_job(self.job_id, token)
        assert done == (self.last.status == "cancelling" and self.last.fencing_token == token)

    @rule(token=TOKENS)
    def work(self, token):
        owns = self.last.status in ACTIVE and self.last.fencing_token == token
        try:
            DriverSession(self.store, self.job_id, token).set_progress({"by": token})
        except StaleDriver:
            assert not owns
        else:
            assert owns

    @rule(token=TOKENS, end=st.sampled_from(sorted(ENDS)))
    def end(self, token, end):
        with contextlib.suppress(StaleDriver, StateConflict):
            assert ENDS[end](DriverSession(self.store, self.job_id, token)) in TERMINAL
            assert self.last.fencing_token == token

    @rule()
    def cancel(self):
        try:
            self.store.request_cancel(self.job_id)
        except StateConflict:
            assert self.last.status in TERMINAL
        else:
            self.cancel_accepted = True

    @invariant()
    def promises(self):
        self.now += 1
        job = self.store.get_job(self.job_id)
        assert job.status == self.last.status or may_follow(self.last.status, job.status)
        assert job.fencing_token >= self.last.fencing_token
        assert 0 <= job.attempt <= job.fencing_token
        if self.last.status in TERMINAL:
            assert job == self.last, "a job that has ended must not change"
        if self.cancel_accepted:
            assert job.status in {"cancelling", "cancelled"}
        assert (job.finished_at is not None) == (job.status in TERMINAL)
        open_phases = [entry for entry in job.phase_history if entry["finished_at"] is None]
        assert len(open_phases) == (job.status in ACTIVE)
        moves = [event.data for event in self.store.list_events(self.job_id) if event.type == "job.status"]
        assert [move["from"] for move in moves] == [None, *(move["to"] for move in moves[:-1])]
        assert moves[-1]["to"] == job.status, "every transition has its event"
        self.last = job


TestJobLife = JobLife.TestCase
TestJobLife.settings = settings(max_examples=25, stateful_step_count=20, deadline=None)


def test_every_status_leads_to_an_end():
    """No status may be a trap: from each one some terminal status can be reached."""
    for start in STATUSES:
        reached, frontier = {start}, [start]
        while frontier:
            current = frontier.pop()
            new = {status for status in STATUSES if may_follow(current, status)} - reached
            reached |= new
            frontier += new
        assert reached & TERMINAL
