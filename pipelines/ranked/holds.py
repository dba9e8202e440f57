"""Holds: a reader says that it is at work, so that no vacuum deletes what it may still open.

Enters: a table's location. Leaves: a file below `_holds` whose name says since when, and whose time of change says when
the reader was last heard of. A hold that cannot be written (a read-only store, a full disk) is a warning: reading goes
on, under the retention alone.
"""

import logging
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pyarrow as pa
from pyarrow import fs

from pipelines.ranked.storage import Location, without_file

__all__ = ["HOLD_EXPIRES_S", "Hold", "held", "held_since"]

log = logging.getLogger(__name__)
HOLD_RENEWED_S, HOLD_EXPIRES_S = 60.0, 24 * 3600.0
_FOLDER = "_holds"
"""A vacuum leaves folders alone whose names begin with an underscore."""


class Hold:
    """One reader's word that it is at work."""

    def __init__(self, location: Location, *, clock: Callable[[], float] = time.time) -> None:
        self._location = location
        self._filesystem = location.filesystem()
        self._clock = clock
        self._renewed = clock()
        self._path = f"{_FOLDER}/{int(self._renewed)}-{uuid.uuid4().hex}"
        self._write()

    def renew(self) -> None:
        """Call often; writes once a minute."""
        if self._clock() - self._renewed >= HOLD_RENEWED_S:
            self._renewed = self._clock()
            self._write()

    def release(self) -> None:
        """The reader is done."""
        try:
            without_file(self._filesystem, self._path)
        except OSError as error:
            log.warning("%s: a hold cannot be removed and will expire: %s", self._location, error)

    def _write(self) -> None:
        try:
            self._filesystem.create_dir(_FOLDER, recursive=True)
            # Through a buffer: the stream of a bucket takes bytes only, and Arrow hands it something else directly.
            with self._filesystem.open_output_stream(self._path, buffer_size=64) as stream:
                stream.write(b"held")
        except (OSError, pa.ArrowException) as error:
            log.warning("%s: cannot be held while it is read: %s", self._location, error)


@contextmanager
def held(location: Location) -> Iterator[Hold]:
    """Hold a table while the context is open; renew it now and then."""
    hold = Hold(location)
    try:
        yield hold
    finally:
        hold.release()


def held_since(location: Location, now: float) -> list[float]:
    """When the readers that are alive began, Unix seconds; holds of those that died are removed.

    Raises:
        OSError: the store cannot be read.
    """
    filesystem = location.filesystem()
    found = []
    for item in filesystem.get_file_info(fs.FileSelector(_FOLDER, allow_not_found=True)):
        since = item.base_name.partition("-")[0]
        if not since.isdecimal():
            continue  # not ours
        if now - item.mtime.timestamp() > HOLD_EXPIRES_S:
            log.warning("a reader of %s has not been heard of for a day; its hold is removed", location)
            without_file(filesystem, item.path)
        else:
            found.append(float(since))
    return found
