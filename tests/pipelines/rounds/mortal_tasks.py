"""Workers that die at a given step, once: `mortal` has a job start such ones.

The wish is a file in the job's root, because workers are processes of their own: `deaths/ranker_step=7`.
"""

import os
import signal
from pathlib import Path

import pytest

from pipelines import job_teacher
from pipelines.job_teacher import TeacherTask
from pipelines.rounds import one_round, ranker_round
from pipelines.rounds.ranker_round import RankerTask
from pipelines.training.group_task import GroupTask
from pipelines.training.student_task import StudentTask
from pipelines.training.worker_channel import WorkerSide
from pipelines.training.workers import Workers


class MortalChannel(WorkerSide):
    """Of the first worker: kills its process when a step is done at which it is to die."""

    def __init__(self, task: GroupTask, workers: Workers) -> None:
        super().__init__(task.channel, speaks=workers.leads)
        self._deaths = next(folder / "deaths" for folder in task.work.parents if (folder / "deaths").is_dir())
        self._mortal = workers.leads

    def progress(self, **numbers: float | str) -> None:
        super().progress(**numbers)
        for name, value in numbers.items():
            wish = self._deaths / f"{name}={value}"
            if self._mortal and wish.is_file():
                wish.unlink()
                os.kill(os.getpid(), signal.SIGKILL)


class MortalTeacherTask(TeacherTask):
    def train(self, channel: WorkerSide, workers: Workers) -> None:
        super().train(MortalChannel(self, workers), workers)


class MortalRankerTask(RankerTask):
    def train(self, channel: WorkerSide, workers: Workers) -> None:
        super().train(MortalChannel(self, workers), workers)


class MortalStudentTask(StudentTask):
    def train(self, channel: WorkerSide, workers: Workers) -> None:
        super().train(MortalChannel(self, workers), workers)


def mortal(patch: pytest.MonkeyPatch, root: Path, **steps: int) -> None:
    """Jobs below `root` lose a worker at each of these steps: `step`, `ranker_step`, `teacher_step`."""
    (root / "deaths").mkdir(parents=True)
    for name, step in steps.items():
        (root / "deaths" / f"{name}={step}").touch()
    patch.setattr(job_teacher, "TeacherTask", MortalTeacherTask)
    patch.setattr(ranker_round, "RankerTask", MortalRankerTask)
    patch.setattr(one_round, "StudentTask", MortalStudentTask)


def still_to_die(root: Path) -> list[str]:
    return [path.name for path in (root / "deaths").iterdir()]
