"""Who may ask how fast: a token bucket for each account."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable

__all__ = ["Throttle"]

_ACCOUNTS = 10_000  # remembered; the one that has been silent longest is forgotten first


class Throttle:
    """Each account has so many tokens at most, gains some every second, and pays one an image.

    Args:
        rate: tokens a second; None for no limit.
        burst: tokens that an account can hold, and has at first.
        clock: seconds.
    """

    def __init__(self, rate: float | None, burst: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.rate, self.burst, self._clock = rate, burst, clock
        self._held: OrderedDict[str, tuple[float, float]] = OrderedDict()  # account -> tokens, when

    def take(self, account: str, images: int) -> float:
        """Pay for so many images, at most `burst`: 0, or the seconds after which it can be paid; then nothing is."""
        if self.rate is None:
            return 0.0
        now = self._clock()
        tokens, when = self._held.pop(account, (float(self.burst), now))
        tokens = min(float(self.burst), tokens + self.rate * (now - when))
        missing = images - tokens
        self._held[account] = (tokens if missing > 0 else tokens - images, now)
        if len(self._held) > _ACCOUNTS:
            self._held.popitem(last=False)
        return missing / self.rate if missing > 0 else 0.0
