"""How many calls at a time serve best, found out from how long answers take. No I/O.

A server that works on P calls at a time answers more calls no sooner: beyond P, latency grows as
the number of calls under way does. TCP Vegas (Brakmo and Peterson, 1995) and the gradient limits of
Netflix' concurrency-limits look at the latency against the least ever seen; with answers whose
length varies as much as a language model's that least says little. So what is compared here are
means (of logarithms, as a few answers take ten times as long) before and after a change of our own:
where latency follows the change it is a queue we made, and where it does not it is the server's
own, and no reason to ask for less. Refusals and failures
are the brake: less by a part at once, more again step by step (AIMD; Chiu and Jain, 1989).
"""

import math

_START = 4
_FEWEST = 16
"""Answers of a stage before its latency is taken to be known: the quick ones come first."""
_START_SAMPLE = 16
_SAMPLE = (16, 150)
"""Fewest and most answers that a mean must be taken of, by how much they scatter."""
_ERROR = 0.1
"""Error of a mean that is good enough."""
_SETTLE = 2.0
"""Latencies for which a change is let work before its effect is measured."""
_STEP = 1.5
_CALM = 1.2
"""Latency against the reference up to which more is tried at once."""
_QUEUED = 1.5
"""Latency against the reference above which less is tried."""
_OURS = 0.5
"""Elasticity (log of latency by log of calls under way) from which a queue is taken to be ours."""
_REST = 8
"""Means taken between two tries that found nothing."""
_FOLLOW = 0.1
_BRAKE = 0.7
_BELOW_TOP = 0.85
_STRIDE = 4
"""Near the place of the last refusal: one more for this many rounds of answers."""
_FAILED = 0.2
"""Part of calls that fail before it is put down to load."""
_FAILED_FEWEST = 10
_FAILED_OF = 100
_FAILED_FLOOR = 4


class _Stage:
    """Latency of one kind of call: stages differ in length, so each has its own reference."""

    __slots__ = ("count", "reference")

    def __init__(self) -> None:
        self.reference = 0.0
        """Logarithm of seconds."""
        self.count = 0


class Adaptive:
    """The number of calls that may be out, between 1 and `most`."""

    def __init__(self, most: int) -> None:
        self.limit = min(_START, most)
        self._most = most
        self._starting = True
        self._stages: dict[str, _Stage] = {}
        self._slow = 1.0
        """Latency now against the reference."""
        self._changed_s = -math.inf
        self._mean_s = 0.0
        self._scatter = 0.0
        """Variance of the logarithms."""
        # Of the mean that is being taken.
        self._sum = 0.0
        self._count = 0
        self._out = 0
        self._used = 0
        # Of a try: the limit, the latency and the calls under way before it.
        self._before: tuple[int, float, float] | None = None
        self._begin_again = False
        self._rest = 0
        self._doubted = False
        # Of the brake.
        self._top: int | None = None
        self._braked_s = -math.inf
        self._served_since = True
        self._failures = 0
        self._ended = 0
        self._steps = 0

    # ---- told by the limiter

    def answered(
        self, stage: str, latency_s: float, in_flight: int, out: int, now_s: float
    ) -> None:
        """A call came back `latency_s` after it was sent.

        `in_flight`: calls that are out now, with it; `out`: those that were when it was sent, which
        is what it may have waited for.
        """
        self._served_since = True
        self._ended += 1
        if self._ended > _FAILED_OF:
            self._forget_failures()
        self._mean_s += (latency_s - self._mean_s) * (_FOLLOW if self._mean_s else 1.0)
        used = in_flight >= 0.75 * self.limit
        if self._top is not None:
            if used:
                self._climb(self._top)
        elif self._starting and used:
            self.limit = min(self.limit + 1, self._most)
        latency = math.log(max(latency_s, 1e-6))
        known = self._stages.get(stage)
        if known is None:
            known = self._stages[stage] = _Stage()
        if known.count < _FEWEST:
            known.count += 1
            neutral = latency - math.log(self._slow)
            known.reference += (neutral - known.reference) / known.count
            return
        if not self._starting and now_s - self._changed_s < _SETTLE * self._mean_s:
            return
        off = latency - known.reference
        self._scatter += 0.02 * ((off - math.log(self._slow)) ** 2 - self._scatter)
        self._sum += off
        self._count += 1
        self._used += in_flight
        self._out += out
        if self._count >= self._enough():
            self._judge(now_s)

    def _enough(self) -> int:
        if self._starting:
            return max(_START_SAMPLE, self.limit // 4)
        fewest, most = _SAMPLE
        return int(min(max(fewest, self._scatter / _ERROR**2), most))

    def refused(self, now_s: float) -> None:
        """A 429: fewer, at most once a round."""
        self._brake(now_s, 1)

    def failed(self, now_s: float) -> None:
        """A 5xx or a broken connection: fewer when there are many, and never very few, as some
        servers fail whatever the load."""
        self._failures += 1
        self._ended += 1
        if self._failures >= max(_FAILED_FEWEST, _FAILED * self._ended):
            self._forget_failures()
            self._brake(now_s, min(_FAILED_FLOOR, self.limit))

    def _forget_failures(self) -> None:
        self._failures = self._ended = 0

    # ---- the brake

    def _brake(self, now_s: float, floor: int) -> None:
        if now_s - self._braked_s < self._mean_s:
            return
        self._braked_s = now_s
        if self._served_since:
            self._top = self.limit
        self._served_since = False
        self._starting = False
        self._before = None
        self._change(max(int(self.limit * _BRAKE), floor), now_s)

    def _climb(self, top: int) -> None:
        """After a brake: back quickly to somewhat below where it happened, then step by step."""
        if self.limit < top * _BELOW_TOP:
            self.limit += 1
            return
        self._steps += 1
        if self._steps < _STRIDE * self.limit:
            return
        self._steps = 0
        self.limit = min(self.limit + 1, self._most)
        if self.limit > _CALM * top:
            self._top = None

    # ---- the search

    def _judge(self, now_s: float) -> None:
        slow = math.exp(self._sum / self._count)
        out = self._out / self._count
        used = self._used >= 0.75 * self.limit * self._count
        self._clear()
        self._slow = slow
        if self._starting:
            if slow > _QUEUED:
                # It may be chance, or long answers: begin anew unless fewer calls are quicker.
                self._starting = False
                fewer = max(int(out * max(_CALM / slow, 0.5)), 1)
                if fewer < out:
                    self._begin_again = True
                    self._try(fewer, slow, now_s, out)
            elif self.limit >= self._most:
                self._starting = False
            return
        if self._before is not None:
            self._judge_try(*self._before, slow, now_s)
            return
        if slow < _CALM:
            self._shift(slow**_FOLLOW)
        self._rest -= 1
        again, self._doubted = self._doubted, slow > _QUEUED
        if slow > _QUEUED and self.limit > 1 and used:
            # Only the second mean in a row starts a try: a chance high would be followed by a
            # lower one whatever we do.
            if again:
                self._doubted = False
                self._try(max(int(self.limit * max(_CALM / slow, 0.5)), 1), slow, now_s)
        elif (
            used
            and self.limit < self._most
            and self._top is None
            and (slow <= _CALM or self._rest <= 0)
        ):
            self._try(min(math.ceil(self.limit * _STEP), self._most), slow, now_s)

    def _judge_try(
        self, limit: int, slow_before: float, out: float, slow: float, now_s: float
    ) -> None:
        """Keep what was tried if it is better, else go back."""
        self._before = None
        again, self._begin_again = self._begin_again, False
        change = math.log(slow / slow_before) / math.log(self.limit / out)
        if (change >= _OURS) == (self.limit < limit):
            if change < _OURS:
                self._settle_at(slow)
            return
        if self.limit < limit:
            # Fewer calls were no quicker: that is how long this server takes.
            self._settle_at(slow)
        self._rest = _REST
        self._slow = 1.0 if self.limit < limit else slow_before
        self._starting = self.limit < limit and again
        self._change(limit, now_s)

    def _settle_at(self, slow: float) -> None:
        """The latency of now is the reference."""
        self._shift(slow)
        self._slow = 1.0

    def _shift(self, factor: float) -> None:
        for stage in self._stages.values():
            stage.reference += math.log(factor)

    def _try(self, limit: int, slow: float, now_s: float, out: float | None = None) -> None:
        self._before = (self.limit, slow, out or self.limit)
        self._change(limit, now_s)

    def _change(self, limit: int, now_s: float) -> None:
        self.limit = limit
        self._changed_s = now_s
        self._clear()

    def _clear(self) -> None:
        self._sum = 0.0
        self._count = self._out = self._used = 0
