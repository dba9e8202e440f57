"""The pool's numbers as Ray exports them, to the dashboard and to Prometheus (there as `ray_dualdistill_...`).

Each has the tags `teacher` (the Serve application) and `job`; docs/operations.md says what they mean and what to watch.
"""

from ray.util.metrics import Counter, Gauge, Histogram

__all__ = ["ClientMetrics", "ReplicaMetrics"]

_TAGS = ("teacher", "job")
_SECONDS = [0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0]


class ReplicaMetrics:
    """What a replica knows of itself."""

    def __init__(self, teacher: str) -> None:
        self._teacher = teacher
        self._pairs = Counter("dualdistill_pairs_scored", "Pairs scored.", _TAGS)
        self._tokens = Counter("dualdistill_tokens_scored", "Tokens of scored pairs, padding excluded.", _TAGS)
        self._forward = Histogram("dualdistill_forward_seconds", "Time of one call in the engine.", _SECONDS, _TAGS)
        self._fill = Gauge("dualdistill_batch_fill", "Tokens of a batch over its budget, mean of a call.", _TAGS)
        self._waste = Gauge("dualdistill_padding_waste", "Share of padding in a call's batches.", _TAGS)
        self._ties = Gauge("dualdistill_tie_rate", "Share of a call's pairs with the logit of another one.", _TAGS)
        self._depth = Gauge("dualdistill_queue_depth", "Batch calls that wait for the replica's engine.", _TAGS)
        self._version = Gauge("dualdistill_weights_version", "Version of the weights in use.", _TAGS)

    def scored(
        self, job: str, *, pairs: int, tokens: int, seconds: float, fill: float, waste: float, tie_rate: float
    ) -> None:
        """A call is done. Shares are between 0 and 1."""
        tags = self._tags(job)
        self._pairs.inc(pairs, tags)
        self._tokens.inc(tokens, tags)
        self._forward.observe(seconds, tags)
        self._fill.set(fill, tags)
        self._waste.set(waste, tags)
        self._ties.set(tie_rate, tags)

    def queued(self, job: str, depth: int) -> None:
        """How many batch calls wait now, as a call of `job` came or went."""
        self._depth.set(depth, self._tags(job))

    def weights(self, version: int) -> None:
        """The replica computes with this version."""
        self._version.set(version, self._tags(""))

    def _tags(self, job: str) -> dict[str, str]:
        return {"teacher": self._teacher, "job": job}


class ClientMetrics:
    """What a driver knows of its calls."""

    def __init__(self, teacher: str, job: str) -> None:
        self._tags = {"teacher": teacher, "job": job}
        self._retries = Counter("dualdistill_retries", "Calls that were repeated.", (*_TAGS, "cause"))
        self._quarantined = Counter("dualdistill_quarantined_pairs", "Pairs given up as poison.", _TAGS)
        self._backlog = Gauge("dualdistill_backlog_tokens", "Tokens that the job still wants scored.", _TAGS)
        self._in_flight = Gauge("dualdistill_calls_in_flight", "Calls that the job has on their way.", _TAGS)

    def retried(self, cause: BaseException) -> None:
        """A call is repeated because of `cause`."""
        self._retries.inc(1, self._tags | {"cause": type(cause).__name__})

    def quarantined(self, pairs: int) -> None:
        """So many pairs were given up."""
        self._quarantined.inc(pairs, self._tags)

    def state(self, *, backlog_tokens: int, in_flight: int) -> None:
        """Where the job stands."""
        self._backlog.set(backlog_tokens, self._tags)
        self._in_flight.set(in_flight, self._tags)
