"""Time that moves when a test says so."""


class Clock:
    """Stands in for `time.time` in a `Store`."""

    def __init__(self) -> None:
        self.now = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds
