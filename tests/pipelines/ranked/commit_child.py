"""A writer in a process of its own, that can be killed at a step of a commit: `commit_child.py TABLE STEP [COUNT]`.

Steps: `file` (before the data file), `half` (while it is written), `log` (before the log entry), `done` (after it,
before anybody is told), `never` (commits chunks until it is killed from outside), `full` (until the
disk refuses; says so); `half a compaction`, `compaction before its log entry` (after COUNT chunks).
"""

import os
import signal
import sys

from chunks_for_tests import CONTRACT, ranked_chunk

from pipelines.errors import RankedListsError
from pipelines.ranked import data_file, table
from pipelines.ranked.table import RankedLists
from pipelines.ranked.upkeep import compact


def die(*_: object, **__: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def main(path: str, step: str, count: int) -> None:
    lists = RankedLists(path, CONTRACT)
    if step == "file":
        table.write_data_file = die
    if step == "half":
        data_file.pq.ParquetWriter.close = die
    if step == "log":
        RankedLists._commit = die
    for chunk_id in range(count):
        rows = ranked_chunk(chunk_id, [f"q{chunk_id}-{i}" for i in range(3)])
        try:
            lists.commit_chunk(rows, job_id="job", round_number=0, chunk_id=chunk_id)
        except RankedListsError as error:
            print(f"refused at {chunk_id}: {error}", flush=True)
            return
        if step == "done":
            die()
        print(chunk_id, flush=True)
    if "compaction" in step:
        if step.startswith("half"):
            data_file.pq.ParquetWriter.close = die
        else:
            RankedLists._commit = die
        compact(lists, "job", 0)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]) if len(sys.argv) > 3 else 1)
