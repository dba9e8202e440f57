"""`python -m services.driver <job id> <fencing token>`: the fixed entrypoint of every Ray Job.

Enters: the id of a committed job and the token that makes this driver its only writer. Leaves: a finished job, or an
exit status that tells the reconciler to start another driver. Errors that the user can mend end the job; all others end
only this attempt.
"""

import sys
import traceback
from typing import TYPE_CHECKING, Any

import ray
import structlog
from ray.exceptions import RayTaskError

from pipelines.control import ControlTask
from pipelines.devices import use_threads
from pipelines.errors import Cancelled, PipelineError
from pipelines.job import run_job
from pipelines.job_context import JobContext
from pipelines.pretrained import quiet_loading
from pipelines.spec import parse_spec
from pipelines.training.metric_loggers import JournalMetrics
from services.data_roots import offences, resolve_dataset
from services.driver.hosting import PoolHost
from services.driver.journal import StoreJournal
from services.driver.training_metrics import RayMetrics
from services.errors import OutsideDataRoots, StaleDriver, StateConflict, TeacherNotDeployable
from services.settings import Settings
from services.store import DriverSession, Job, Store
from services.trainer.ray_workers import RayWorkers

if TYPE_CHECKING:
    from concurrent.futures import Future

    from pipelines.evaluation.metrics import PerQuery

log = structlog.get_logger()


def main(job_id: str, fencing_token: int) -> int:
    """Drive one attempt; returns the process's exit status (0: the job reached an end)."""
    settings = Settings.from_environment()
    structlog.contextvars.bind_contextvars(job_id=job_id, fencing_token=fencing_token)
    quiet_loading()
    use_threads(settings.driver_cpus)
    store = Store(settings.database_url)
    session = DriverSession(store, job_id, fencing_token)
    journal = StoreJournal(session)
    try:
        return _attempt(settings, session, journal)
    except StaleDriver as error:
        log.warning("replaced by a newer driver", error=str(error))
        return 3


def _attempt(settings: Settings, session: DriverSession, journal: StoreJournal) -> int:
    try:
        job = session.start()
        context = _context(settings, session, job, journal)
        ray.init(log_to_driver=False)
        with journal.alive():
            result = run_job(context)
            journal.flush()
        session.succeed(result)
    except Cancelled:
        session.mark_cancelled()
    except (PipelineError, OutsideDataRoots, StateConflict, TeacherNotDeployable) as error:
        log.warning("job failed", reason=error.reason, error=str(error))
        session.fail(error.reason, _sentence(error))
    except StaleDriver:
        raise
    except Exception as error:
        log.exception("attempt failed")
        trace = "".join(traceback.format_exception(error))
        session.event("driver.error", f"{type(error).__name__}: {error}", {"traceback": trace[-4000:]}, level="error")
        return 1
    return 0


def _sentence(error: Exception) -> str:
    """What an error says to the user; Ray's text of one that was raised in another process is a traceback."""
    return str(error.cause if isinstance(error, RayTaskError) else error)


def _context(settings: Settings, session: DriverSession, job: Job, journal: StoreJournal) -> JobContext:
    spec = parse_spec(job.spec)

    def side_task(function: Any, task: ControlTask) -> "Future[PerQuery]":
        remote = ray.remote(num_cpus=settings.driver_cpus, num_gpus=settings.driver_gpus, max_retries=2)(function)
        future: Future[PerQuery] = remote.remote(task).future()
        return future

    roots = settings.data_roots
    for field, why in offences(spec, roots):
        raise OutsideDataRoots(f"{field}: {why}")
    return JobContext(
        job_id=job.id,
        spec=spec,
        root=settings.root,
        dataset_folder=resolve_dataset(spec.dataset.path, roots),
        model_roots=roots,
        host=PoolHost(
            session,
            job.id,
            spec.teacher,
            journal,
            calibrations=settings.root / "calibrations",
            hang_after_s=settings.hang_after_s,
        ),
        side_task=side_task,
        side_task_cpus=settings.driver_cpus,
        journal=journal,
        lists_url=settings.lists_url,
        launcher=RayWorkers(),
        metric_sinks=(RayMetrics(job.id), JournalMetrics(journal)),
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2])))
