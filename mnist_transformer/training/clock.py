"""The time of a run: how long it has taken, and when something is due."""

from collections.abc import Callable
from dataclasses import dataclass


class Clock:
    """Seconds of a run, without pauses and the time between its parts.

    Args:
        now: a clock that never goes back, in seconds.
    """

    def __init__(self, now: Callable[[], float]) -> None:
        self.now, self._zero = now, now()

    def read(self) -> float:
        return self.now() - self._zero

    def set(self, seconds: float) -> None:
        """Make this moment so many seconds of the run."""
        self._zero = self.now() - seconds


@dataclass
class Timer:
    """Is due every so many seconds of the run, counted from ``last``."""

    every: float
    last: float

    def due(self, seconds: float) -> bool:
        if seconds - self.last < self.every:
            return False
        self.last = seconds
        return True
