"""How a job and the workers that train its student talk: through files in the job's own folder, which all can reach.

    messages.jsonl   first worker -> job: events, progress, metrics, and what made training fail, a line each
    stop             job -> workers: end now
    scored           job -> workers: every list of the round is committed

Files, because they are there whoever starts the workers (Ray, torchrun, this machine), and because a worker that is
started again finds what was said before it lived.
"""

import json
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.errors import Cancelled, RankedListsError

__all__ = ["JobSide", "Message", "WorkerSide"]

_LOOK_EVERY_S = 0.1


@dataclass(frozen=True)
class Message:
    """One line: `kind` is phase, event, progress, metrics or failed, `data` what its receiver takes."""

    kind: str
    data: dict[str, Any]


class JobSide:
    """The job's end. A new one forgets what an earlier attempt said and was told.

    Args:
        folder: of this round.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        for name in ("stop", "scored", "messages.jsonl"):
            (folder / name).unlink(missing_ok=True)
        self._read = 0

    def stop(self) -> None:
        """Tell the workers to end."""
        (self._folder / "stop").touch()

    def every_list_is_there(self) -> None:
        """Tell the workers that whatever they miss now will never come."""
        (self._folder / "scored").touch()

    def messages(self) -> Iterator[Message]:
        """What was said since the last call; a line that is still being written waits for the next one."""
        path = self._folder / "messages.jsonl"
        if not path.is_file():
            return
        with path.open("rb") as stream:
            stream.seek(self._read)
            for line in stream:
                if not line.endswith(b"\n"):
                    return
                self._read += len(line)
                yield Message(**json.loads(line))


class WorkerSide:
    """A worker's end: the journal of its training. Only the first worker speaks."""

    def __init__(self, folder: Path, *, speaks: bool) -> None:
        self._folder = folder
        self._speaks = speaks
        self._missing_since: float | None = None
        self._looked_at = 0.0

    def phase(self, name: str) -> None:
        """A phase of the job."""
        self._say("phase", {"name": name})

    def progress(self, **numbers: float | str) -> None:
        """Counters of the job."""
        self._say("progress", numbers)

    def event(self, type_: str, message: str, **data: Any) -> None:
        """An event of the job."""
        self._say("event", {"type_": type_, "message": message, **data})

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Training's numbers of one step, for the job's own sinks."""
        self._say("metrics", {"step": step, "values": dict(values)})

    def close(self) -> None:
        """Nothing is open."""

    def failed(self, error: Exception) -> None:
        """What made training end, to be raised in the job's process."""
        self._say("failed", {"kind": type(error).__name__, "message": str(error)})

    def check_cancelled(self) -> None:
        """Raise `Cancelled` once the job has said stop."""
        if time.monotonic() - self._looked_at >= _LOOK_EVERY_S:
            self._looked_at = time.monotonic()
            if (self._folder / "stop").exists():
                raise Cancelled("the job told its workers to stop")

    def wait_for_lists(self) -> None:
        """Called while a chunk is missing.

        Raises:
            RankedListsError: it will never come: every list is committed.
            Cancelled: the job has said stop.
        """
        self.check_cancelled()
        scored = (self._folder / "scored").exists()
        if scored and self._missing_since is not None:
            raise RankedListsError("scoring has finished, but a chunk of the round's lists is missing")
        self._missing_since = time.monotonic() if scored else None
        time.sleep(_LOOK_EVERY_S)  # files do not wake anybody up

    def _say(self, kind: str, data: Mapping[str, Any]) -> None:
        if self._speaks:
            line = json.dumps({"kind": kind, "data": dict(data)}) + "\n"
            with (self._folder / "messages.jsonl").open("ab") as stream:
                stream.write(line.encode())
                stream.flush()
                os.fsync(stream.fileno())
