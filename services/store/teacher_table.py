"""TeacherTable: the wanted state of every teacher pool, and what unfinished jobs still want of each.

Enters: what a job, a user or the autoscaler decided. Leaves: frozen records; the reconciler renders them to Serve. A
pool is wanted while it is pinned or an unfinished job names it.
"""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from sqlalchemy import ColumnElement, and_, func, or_, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from services.errors import StateConflict, TeacherNotFound
from services.store.models import DemandRow, JobRow, TeacherRow
from services.store.records import Demand, Teacher
from services.store.statuses import TERMINAL
from services.store.store import Store

__all__ = ["TeacherTable", "join_teacher"]

_SIZE = frozenset({"mode", "replicas", "min_replicas", "max_replicas"})
_NO_OWNER = {"owner": ""}
"""What contracts that were stored before rankers had an owner do not say."""


@dataclass(frozen=True)
class TeacherTable:
    """The teachers of one store."""

    store: Store

    def get(self, name: str) -> Teacher:
        """One teacher.

        Raises:
            TeacherNotFound: there is none of that name.
        """
        with self.store.reading() as session:
            return _record(_row(session, name, lock=False))

    def all(self) -> list[Teacher]:
        """Every teacher that ever was, by name."""
        return self._select()

    def wanted(self) -> list[Teacher]:
        """Teachers that are pinned or that unfinished jobs name, by name.

        A job that waits for its next driver keeps its teacher: otherwise every lost driver would also tear down and
        reload the pool.
        """
        return self._select(_is_wanted())

    def pin(self, teacher: Teacher) -> Teacher:
        """Create a teacher that stays until it is unpinned.

        One that is in use under that name and contract is kept, with its resources and weights, and resized. One that
        nobody holds becomes what is asked for.

        Raises:
            StateConflict: the name belongs to a teacher that is in use under another contract, or to a ranker whose
                job still gives it new weights.
        """
        now = self.store.clock()
        with self.store.writing() as session:
            row, made = _locked(session, teacher, now)
            if not made and not _held(session, row):
                row = _write(session, teacher, now)
            if _NO_OWNER | row.contract != _NO_OWNER | teacher.contract:
                raise StateConflict(f"teacher {teacher.name!r} exists, and scores under another contract")
            if (owner := row.contract.get("owner")) and _is_unfinished(session, owner):
                raise StateConflict(
                    f"teacher {teacher.name!r} learns in job {owner}, which gives it new weights; pin it after that"
                )
            for field in _SIZE:
                setattr(row, field, getattr(teacher, field))
            row.pinned = row.scaled_by_user = True
            row.used_at = row.scaled_at = row.updated_at = now
            session.flush()
            return _record(row)

    def unpin(self, name: str) -> Teacher:
        """Let the pool go as soon as no job needs it.

        Raises:
            TeacherNotFound: there is none of that name.
        """
        return self._change(name, lambda _: {"pinned": False, "scaled_by_user": False})

    def resize(self, name: str, **size: Any) -> Teacher:
        """What a user wants: any of `mode`, `replicas`, `min_replicas`, `max_replicas`; jobs leave it alone then.

        Raises:
            TeacherNotFound: there is none of that name.
        """
        return self.resize_by(name, lambda _: size)

    def resize_by(self, name: str, decide: Callable[[Teacher], Mapping[str, Any]]) -> Teacher:
        """As `resize`, to what `decide` makes of the teacher as it is; nobody changes it in between.

        Whatever `decide` raises goes through, and nothing is changed.
        """

        def sized(teacher: Teacher) -> dict[str, Any]:
            size = decide(teacher)
            if unknown := size.keys() - _SIZE:
                raise TypeError(f"not part of a size: {sorted(unknown)}")
            return {**size, "scaled_by_user": True, "scaled_at": self.store.clock()}

        return self._change(name, sized)

    def set_replicas(self, name: str, replicas: int, *, seen: int) -> bool:
        """What the autoscaler decided on seeing `seen` replicas; nothing if somebody was faster or fixed the size."""
        now = self.store.clock()
        with self.store.writing() as session:
            row = session.get(TeacherRow, name, with_for_update=True)
            if row is None or row.mode != "auto" or row.replicas != seen:
                return False
            row.replicas, row.scaled_at, row.updated_at = replicas, now, now
            return True

    def touch(self, name: str) -> None:
        """Note that somebody uses the pool now: an idle one wakes up, a busy one does not fall asleep."""
        self._change(name, lambda _: {"used_at": self.store.clock()})

    def demands(self, name: str) -> list[Demand]:
        """What unfinished jobs still want of one pool, oldest job first."""
        query = (
            select(DemandRow)
            .join(JobRow, JobRow.id == DemandRow.job_id)
            .where(DemandRow.teacher_name == name, JobRow.teacher_name == name, JobRow.status.not_in(TERMINAL))
            .order_by(DemandRow.job_id)
        )
        with self.store.reading() as session:
            return [
                Demand(**{field.name: getattr(row, field.name) for field in fields(Demand)})
                for row in session.scalars(query)
            ]

    def uses(self) -> dict[str, dict[str, int]]:
        """Teacher -> the unfinished jobs that name it, oldest first, each with the tokens it still wants of it."""
        demand = and_(DemandRow.job_id == JobRow.id, DemandRow.teacher_name == JobRow.teacher_name)
        query = (
            select(JobRow.teacher_name, JobRow.id, func.coalesce(DemandRow.backlog_tokens, 0))
            .outerjoin(DemandRow, demand)
            .where(JobRow.status.not_in(TERMINAL))
            .order_by(JobRow.id)
        )
        found: dict[str, dict[str, int]] = {}
        with self.store.reading() as session:
            for name, job_id, backlog_tokens in session.execute(query):
                if name is not None:
                    found.setdefault(name, {})[job_id] = backlog_tokens
        return found

    def _select(self, *conditions: ColumnElement[bool]) -> list[Teacher]:
        with self.store.reading() as session:
            query = select(TeacherRow).where(*conditions).order_by(TeacherRow.name)
            return [_record(row) for row in session.scalars(query)]

    def _change(self, name: str, changes: Callable[[Teacher], Mapping[str, Any]]) -> Teacher:
        with self.store.writing() as session:
            row = _row(session, name)
            for field, value in changes(_record(row)).items():
                setattr(row, field, value)
            row.updated_at = self.store.clock()
            session.flush()
            return _record(row)


def join_teacher(session: Session, job: JobRow, teacher: Teacher, *, now: float) -> TeacherRow:
    """Make the locked `job` one of those that need `teacher`; returns the row as it is wanted from now on.

    A pool that nobody holds becomes what the job asks for. One that is pinned, or that another unfinished job needs,
    keeps its resources and whatever size a user gave it; it grows if the job asks for more replicas.

    Raises:
        StateConflict: another job, which alone used this pool so far, has given it newer weights.
    """
    teacher = dataclasses.replace(teacher, scaled_at=now)
    row, made = _locked(session, teacher, now)
    if not made and not _held(session, row):
        row = _write(session, teacher, now)
    elif job.teacher_name != teacher.name and row.weights_version != teacher.weights_version:
        raise StateConflict(
            f"teacher {teacher.name} has weights version {row.weights_version} by now, job {job.id} needs "
            f"{teacher.weights_version}; another job trains it"
        )
    elif not made and job.teacher_name != teacher.name and row.mode == teacher.mode and not row.scaled_by_user:
        row.replicas = max(row.replicas, teacher.replicas)
        row.max_replicas = max(row.max_replicas, teacher.max_replicas)
    row.used_at = row.updated_at = now
    session.flush()  # the teacher before the job that refers to it
    job.teacher_name = teacher.name
    return row


def _held(session: Session, row: TeacherRow) -> bool:
    users = select(JobRow.id).where(JobRow.teacher_name == row.name, JobRow.status.not_in(TERMINAL))
    return row.pinned or session.scalars(users.limit(1)).first() is not None


def _is_unfinished(session: Session, job_id: str) -> bool:
    job = session.get(JobRow, job_id)
    return job is not None and job.status not in TERMINAL


def _is_wanted() -> ColumnElement[bool]:
    named = select(JobRow.teacher_name).where(JobRow.status.not_in(TERMINAL), JobRow.teacher_name.is_not(None))
    return or_(TeacherRow.pinned, TeacherRow.name.in_(named))


def _row(session: Session, name: str, *, lock: bool = True) -> TeacherRow:
    row = session.get(TeacherRow, name, with_for_update=lock or None)
    if row is None:
        raise TeacherNotFound(f"there is no teacher {name!r}")
    return row


def _locked(session: Session, teacher: Teacher, now: float) -> tuple[TeacherRow, bool]:
    """The row of that name, locked, and whether it had to be made: then it is `teacher`."""
    row = session.get(TeacherRow, teacher.name, with_for_update=True)
    if row is not None:
        return row, False
    try:
        with session.begin_nested():
            row = TeacherRow(**asdict(teacher), updated_at=now)
            session.add(row)
    except IntegrityError:  # somebody made it in the same moment, and has committed by now
        return session.get_one(TeacherRow, teacher.name, with_for_update=True), False
    return row, True


def _write(session: Session, teacher: Teacher, now: float) -> TeacherRow:
    return session.merge(TeacherRow(**asdict(teacher), updated_at=now))


def _record(row: TeacherRow) -> Teacher:
    return Teacher(**{field.name: getattr(row, field.name) for field in fields(Teacher)})
