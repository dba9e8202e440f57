"""ShortestQueue: which replica gets the next call: the one with the fewest calls.

Enters: the replicas that Serve knows. Leaves: all of them as candidates, of which Serve takes the one whose queue is
shortest. Its default looks at two at random, so that with two calls per replica on their way some replicas idle while
others queue. A slow replica keeps its queue, so it is given less: the effect of pulling.
"""

import random

from ray.serve.request_router import FIFOMixin, PendingRequest, RequestRouter, RunningReplica

__all__ = ["ShortestQueue"]


class ShortestQueue(FIFOMixin, RequestRouter):  # type: ignore[misc] # Ray's types are not exported
    """Serve's request router for teacher replicas."""

    async def choose_replicas(
        self,
        candidate_replicas: list[RunningReplica],
        pending_request: PendingRequest | None = None,  # noqa: ARG002 - Serve's signature
    ) -> list[list[RunningReplica]]:
        """All candidates in random order, so that equals are taken equally often."""
        return [random.sample(candidate_replicas, len(candidate_replicas))] if candidate_replicas else []
