"""ShortestQueue: which replica gets the next call: the one that has the fewest of this process's calls.

Enters: the replicas that Serve knows. Leaves: them one by one, the least busy first. Serve's default looks at two at
random, so that with two calls per replica on their way some replicas idle while others queue. A slow replica keeps its
calls, so it is given less: the effect of pulling.

Counted are the calls of this process, exactly; what others have sent breaks ties, where Serve's cache knows it. To ask
every replica instead would be thousands of messages when a driver of many replicas begins.
"""

import random
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, TypeVar

from ray.serve.request_router import FIFOMixin, PendingRequest, ReplicaID, RequestRouter, RunningReplica

__all__ = ["ShortestQueue", "least_busy"]

_CANDIDATES = 3
Replica = TypeVar("Replica")


class ShortestQueue(FIFOMixin, RequestRouter):  # type: ignore[misc] # Ray's types are not exported
    """Serve's request router for teacher replicas."""

    def initialize_state(self, **_: Any) -> None:
        """Serve calls this once."""
        self._calls: Counter[ReplicaID] = Counter()

    async def choose_replicas(
        self,
        candidate_replicas: list[RunningReplica],
        pending_request: PendingRequest | None = None,  # noqa: ARG002 - Serve's signature
    ) -> list[list[RunningReplica]]:
        """The least busy replica; others only in case that it refuses."""
        chosen = least_busy(
            candidate_replicas,
            key=lambda replica: replica.replica_id,
            calls=self._calls,
            queue=self.replica_queue_len_cache.get,
        )
        return [[replica] for replica in chosen]

    def on_send_request(self, replica_id: ReplicaID) -> None:
        """A call leaves this process."""
        super().on_send_request(replica_id)
        self._calls[replica_id] += 1

    def on_request_completed(self, replica_id: ReplicaID, internal_request_id: str) -> None:
        """A call has ended, in whatever way; Serve says so once for each."""
        super().on_request_completed(replica_id, internal_request_id)
        self._calls[replica_id] -= 1
        if self._calls[replica_id] <= 0:  # also: what could not be sent at all
            del self._calls[replica_id]


def least_busy(
    replicas: Sequence[Replica],
    *,
    key: Callable[[Replica], Hashable],
    calls: Mapping[Any, int],
    queue: Callable[[Any], int | None],
) -> list[Replica]:
    """At most three of `replicas`, those with the fewest `calls` first; then by `queue` (if known), then by chance."""
    order = sorted(
        random.sample(replicas, len(replicas)),
        key=lambda replica: (calls.get(key(replica), 0), queue(key(replica)) or 0),
    )
    return order[:_CANDIDATES]
