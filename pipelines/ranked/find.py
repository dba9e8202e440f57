"""Find lists below a root: which tables there are, which one holds a job, where one query's list is.

Enters: a root (a folder or an `s3://` URL) and what the user knows: a job, a data set, the beginning of a contract.
Leaves: exactly one table, round or list, or an error that names all that it could have been. Nothing is guessed: scores
of two contracts are not comparable, and an export of the wrong ones would train without a complaint.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import pyarrow.compute as pc

from pipelines.errors import RankedListsError
from pipelines.ranked.columns import ListColumns
from pipelines.ranked.storage import Location
from pipelines.ranked.table import RankedLists, RoundOfLists

__all__ = ["FoundList", "FoundTable", "all_tables", "dataset_of", "find_list", "find_lists", "pick_round"]

_LISTS = "ranked_lists"
_LOG = "_delta_log"


@dataclass(frozen=True)
class FoundTable:
    """One table, and the data set whose texts were scored."""

    lists: RankedLists
    dataset_fingerprint: str

    def __str__(self) -> str:
        contract = self.lists.contract
        jobs = ", ".join(dict.fromkeys(each.job_id for each in self.lists.rounds())) or "no job"
        return (
            f"contract {contract.fingerprint[:12]} ({contract.model_id}) "
            f"of data set {self.dataset_fingerprint[:12]}: {jobs}"
        )


def dataset_of(lists: RankedLists) -> str:
    """The fingerprint of the data set whose texts were scored: as the table says it, else as its folder is named."""
    return lists.dataset_fingerprint or lists.location.url.rsplit("/", 2)[-2]


@dataclass(frozen=True)
class FoundList:
    """One query's list: list number `place` of `columns`."""

    columns: ListColumns
    place: int
    round: RoundOfLists


def all_tables(root: Path | str, *, unreadable: Callable[[RankedListsError], None]) -> list[FoundTable]:
    """Every table below `root`, by data set and contract; none where nothing was scored yet.

    Args:
        root: a folder or an `s3://` URL.
        unreadable: told of each table that cannot be read (a later version's, one that is just being made): the
            others are found all the same.

    Raises:
        RankedListsError: the store cannot be read.
    """
    top = Location.of(root) / _LISTS
    try:
        places = [
            (dataset, top / dataset / contract)
            for dataset in top.folders()
            for contract in (top / dataset).folders()
            if _LOG in (top / dataset / contract).folders()  # a folder without a log is of a job that died at once
        ]
    except OSError as error:
        raise RankedListsError(f"{root}: cannot be read: {error}") from error
    found = []
    for dataset, place in places:
        try:
            found.append(FoundTable(RankedLists.existing(place), dataset))
        except RankedListsError as error:
            unreadable(error)
    return found


def find_lists(
    root: Path | str,
    job_id: str | None = None,
    *,
    dataset_fingerprint: str | None = None,
    contract: str | None = None,
) -> RankedLists:
    """The one table that fits.

    Args:
        root: what the job's `--root` was.
        job_id: the table must hold lists of this job.
        dataset_fingerprint: of the data set whose texts are at hand.
        contract: the first characters of the contract's fingerprint.

    Raises:
        RankedListsError: no table fits, or several do; the message lists them with their jobs.
    """
    errors: list[RankedListsError] = []
    tables = all_tables(root, unreadable=errors.append)
    if not tables and errors:
        raise errors[0]
    if not tables:
        raise RankedListsError(f"there are no ranked lists below {str(root)!r}")
    fitting = [
        table
        for table in tables
        if dataset_fingerprint in (None, table.dataset_fingerprint)
        and table.lists.contract.fingerprint.startswith(contract or "")
        and (job_id is None or any(each.job_id == job_id for each in table.lists.rounds()))
    ]
    if len(fitting) == 1:
        return fitting[0].lists
    wanted = _sought(job_id, dataset_fingerprint, contract)
    if not fitting:
        broken = "".join(f"\n  unreadable: {error}" for error in errors)
        raise RankedListsError(f"no ranked lists{wanted} below {str(root)!r}; there are:{_each(tables)}{broken}")
    raise RankedListsError(
        f"{len(fitting)} tables of ranked lists{wanted} below {str(root)!r}; name a job, a data set or a contract:"
        f"{_each(fitting)}"
    )


def pick_round(lists: RankedLists, job_id: str | None = None, round_number: int | None = None) -> RoundOfLists:
    """One round of one job: the job if there is only one, its last round if none is named.

    Raises:
        RankedListsError: there is none, or several jobs could be meant; the message lists what there is.
    """
    rounds = lists.rounds()
    jobs = list(dict.fromkeys(each.job_id for each in rounds))
    if job_id is None and len(jobs) > 1:
        raise RankedListsError(f"the table holds lists of {len(jobs)} jobs; name one of: {', '.join(jobs)}")
    fitting = [each for each in rounds if job_id in (None, each.job_id) and round_number in (None, each.round_number)]
    if not fitting:
        there = ", ".join(f"{each.job_id} round {each.round_number}" for each in rounds) or "nothing yet"
        raise RankedListsError(f"no lists{_sought(job_id, None, None, round_number)}; the table holds: {there}")
    return max(fitting, key=lambda each: each.round_number)


def find_list(
    lists: RankedLists, query_id: str, *, job_id: str | None = None, round_number: int | None = None
) -> FoundList:
    """The newest list of one query. Reads the job's rounds, the last one first, until the query is found.

    Raises:
        RankedListsError: the job has no list of that query, or several jobs could be meant.
    """
    job = pick_round(lists, job_id, round_number).job_id
    rounds = [each for each in lists.rounds() if each.job_id == job and round_number in (None, each.round_number)]
    for each in sorted(rounds, key=lambda each: -each.round_number):
        for rows in lists.chunks(job, each.round_number):
            mine = rows.filter(pc.equal(rows["query_id"], query_id))
            if len(mine):
                return FoundList(ListColumns(mine), 0, each)
    numbers = ", ".join(str(each.round_number) for each in rounds)
    raise RankedListsError(f"job {job!r} has no list of query {query_id!r} (rounds searched: {numbers})")


def _sought(
    job_id: str | None, dataset_fingerprint: str | None, contract: str | None, round_number: int | None = None
) -> str:
    parts = [
        f" of job {job_id!r}" if job_id is not None else "",
        f" in round {round_number}" if round_number is not None else "",
        f" of data set {dataset_fingerprint[:12]}" if dataset_fingerprint is not None else "",
        f" under a contract {contract!r}..." if contract is not None else "",
    ]
    return "".join(parts)


def _each(tables: Iterable[FoundTable]) -> str:
    return "".join(f"\n  {table}" for table in tables)
