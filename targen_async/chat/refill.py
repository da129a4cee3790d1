"""How an endpoint's bucket is filled again, by its headers. No I/O, no clock of its own."""

import math

_SMOOTH = 0.1


class Refill:
    """All the time at a rate, or at once when a window begins anew. Times in seconds."""

    def __init__(self) -> None:
        self.per_s: float | None = None
        """The rate of a bucket that fills all the time, where it was told."""
        self.is_window = False
        self._end_s = -math.inf
        self._length_s = 0.0
        """Longest time to a new window that was told."""
        self._mark: tuple[float, float, float] | None = None

    def wait_s(self, now_s: float) -> float:
        """Seconds until the window begins anew; 0.0 where there is none."""
        return max(self._end_s - now_s, 0.0)

    def begins_anew(self, now_s: float) -> bool:
        """Whether a window ended since this was last asked."""
        if now_s < self._end_s:
            return False
        self._end_s += ((now_s - self._end_s) // self._length_s + 1) * self._length_s
        return True

    def told(
        self, limit: float, remaining: float, reset_s: float, *, spent: float, now_s: float
    ) -> bool:
        """Returns whether it says something; `spent`: what was paid so far.

        A bucket that lacks `limit - remaining` and is full in `reset_s` names its own rate. A
        window that begins anew at a fixed time does not: it is known by a time that does not move
        while calls are counted.
        """
        used = limit - remaining
        if used < 2 or remaining <= 0 or reset_s <= 0 or (reset_s < 5 and reset_s == int(reset_s)):
            return False
        # What remains is rounded down.
        seen = (used - 0.5) / reset_s
        if self._mark is None:
            self._mark = (now_s, now_s + reset_s, spent)
        then_s, end_s, spent_then = self._mark
        expected_s = (spent - spent_then) / seen
        if now_s - then_s >= 2 and expected_s >= 4:
            self.is_window = abs(now_s + reset_s - end_s) < 0.25 * expected_s
            self._mark = (now_s, now_s + reset_s, spent)
        if self.is_window:
            self._end_s = now_s + reset_s
            self._length_s = max(self._length_s, reset_s)
            self.per_s = None
        else:
            self.per_s = seen if self.per_s is None else self.per_s + _SMOOTH * (seen - self.per_s)
        return True
