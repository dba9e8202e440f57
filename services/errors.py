"""Every error that `services` raises on purpose, as one tree.

ServiceError
├── JobNotFound          no job of that id
├── TeacherNotFound      no teacher of that name
├── StateConflict        the state of a job or teacher does not allow what was asked
├── StaleDriver          this driver was replaced: its fencing token is no longer the job's
├── TeacherPoolError     the pool does not answer; another attempt may help
│   └── TeacherNotDeployable  Serve gave up on the teacher; another attempt would not help
├── RayUnavailable       the Ray cluster's HTTP API does not answer
└── OutsideDataRoots     a path of a job does not lie below a data root
"""

__all__ = [
    "JobNotFound",
    "OutsideDataRoots",
    "RayUnavailable",
    "ServiceError",
    "StaleDriver",
    "StateConflict",
    "TeacherNotDeployable",
    "TeacherNotFound",
    "TeacherPoolError",
]


class ServiceError(Exception):
    """Base of all deliberate errors of `services`."""

    reason = "service_error"


class JobNotFound(ServiceError):  # noqa: N818 - read as a state of the world, like KeyError's kin
    """There is no job of that id."""

    reason = "job_not_found"


class TeacherNotFound(ServiceError):  # noqa: N818
    """There is no teacher of that name."""

    reason = "teacher_not_found"


class StateConflict(ServiceError):  # noqa: N818
    """The state of a job or a teacher does not allow what was asked for."""

    reason = "state_conflict"


class StaleDriver(ServiceError):  # noqa: N818
    """A newer driver owns the job; this one must stop without writing anything."""

    reason = "stale_driver"


class TeacherPoolError(ServiceError):
    """The teacher pool cannot be deployed, or does not answer within its deadline."""

    reason = "teacher_pool_unavailable"


class TeacherNotDeployable(TeacherPoolError):  # noqa: N818
    """Serve gave up on deploying the teacher; the message says why."""

    reason = "teacher_not_deployable"


class RayUnavailable(ServiceError):  # noqa: N818
    """The Ray dashboard's HTTP API cannot be reached or refuses the token."""

    reason = "ray_unavailable"


class OutsideDataRoots(ServiceError):  # noqa: N818
    """A path of a job does not lie below a data root."""

    reason = "path_outside_data_roots"
