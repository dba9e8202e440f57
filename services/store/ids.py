"""Job ids: `ddjob-` and 26 lower-case characters that sort by time of creation (the ULID layout).

48 bits of milliseconds, then 80 random bits: unguessable enough not to collide between gateways, and a list
of jobs ordered by id is ordered by age, which makes the id itself the page cursor.
"""

import secrets

__all__ = ["new_job_id"]

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
_LENGTH = 26


def new_job_id(now: float) -> str:
    """An id for a job created at `now` (Unix seconds)."""
    number = (int(now * 1000) << 80) | secrets.randbits(80)
    digits = [_ALPHABET[(number >> (5 * place)) & 31] for place in reversed(range(_LENGTH))]
    return "ddjob-" + "".join(digits)
