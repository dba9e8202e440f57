"""Jobs, events and teachers: the one place where a job's state lives, on SQLite or PostgreSQL.

Store               what the API reads and writes
TeacherTable        the wanted state of teacher pools: what users and the autoscaler write
DriverSession       what a driver writes, fenced by its token
ReconcilerSession   what a reconciler writes, decided on a token
"""

from services.store.driver_session import DriverSession
from services.store.reconciler_session import ReconcilerSession
from services.store.records import Demand, Event, Job, Teacher
from services.store.statuses import ACTIVE, STATUSES, TERMINAL
from services.store.store import Store
from services.store.teacher_table import TeacherTable

__all__ = [
    "ACTIVE",
    "STATUSES",
    "TERMINAL",
    "Demand",
    "DriverSession",
    "Event",
    "Job",
    "ReconcilerSession",
    "Store",
    "Teacher",
    "TeacherTable",
]
