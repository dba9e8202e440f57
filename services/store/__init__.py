"""Jobs, events and teachers: the one place where a job's state lives, on SQLite or PostgreSQL.

Store               what the API reads and writes
DriverSession       what a driver writes, fenced by its token
ReconcilerSession   what a reconciler writes, decided on a token
"""

from services.store.driver_session import DriverSession
from services.store.reconciler_session import ReconcilerSession
from services.store.records import Event, Job, Teacher
from services.store.statuses import ACTIVE, STATUSES, TERMINAL
from services.store.store import Store

__all__ = [
    "ACTIVE",
    "STATUSES",
    "TERMINAL",
    "DriverSession",
    "Event",
    "Job",
    "ReconcilerSession",
    "Store",
    "Teacher",
]
