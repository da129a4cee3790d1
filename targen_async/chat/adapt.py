"""How many calls at a time serve best, found out from how long answers take. No I/O.

A server that works on P calls at a time answers more calls no sooner: up to P, latency is what it
is; beyond, it grows as the number of calls under way does (the asymptotic bounds of a closed queue;
Denning and Buzen, 1978). So that is the model which is fitted to what was seen, in logarithms, as a
few answers take ten times as long: flat up to a knee, then with slope 1 (two-phase regression;
Quandt, 1958). TCP Vegas (Brakmo and Peterson, 1995) and the gradient limits of Netflix'
concurrency-limits look at the latency against the least ever seen; with answers whose length varies
as much as a language model's that says little, while the many answers of a start that goes through
all numbers of calls say much. Where only one number was seen for a while, another is tried.

What is compared are changes of our own: where latency follows them it is a queue we made, and where
it does not it is the server's own, and no reason to ask for less. Refusals and failures are the
brake: less by a part at once, more again step by step (AIMD; Chiu and Jain, 1989).
"""

import math

_START = 10
_HOLD = 1.1
"""Calls under way against the knee: a few in line keep the server busy."""
_STEP = 1.4
_SURE = 10.0
"""Twice the logarithm of the likelihood ratio from which one model is believed."""
_LEVELS = 4
"""Numbers of calls that are told apart, from one to its double."""
_COUNTED = 300
"""Answers a mean is taken of; and a try that decides nothing is decided after so many."""
_FEWEST = (8, 16)
"""Answers of a round at least: at the start, later."""
_LEAST_VARIANCE = 0.005
"""Of a latency's logarithm: one that never varied tells less than it seems to."""
_SETTLE = 2.0
"""Latencies for which a change is let work before its effect is measured."""
_SLOWER = 2.0
"""Latency against the first one at the same number, from which fewer are tried."""
_REST = (4, 16, 64)
"""Rounds between two tries: after a start that failed, usually, at most. It doubles with each try
that finds nothing."""
_FOLLOW = 0.1
_BRAKE = 0.7
_BELOW_TOP = 0.85
_PAST_TOP = 1.2
_STRIDE = 4
"""Near the place of the last refusal: one more for this many rounds of answers."""
_FAILED = 0.2
"""Part of calls that fail before it is put down to load."""
_FAILED_FEWEST = (3, 10)
"""At the start, later."""
_FAILED_OF = 100
_FAILED_FLOOR = 4


def _level(calls: float) -> int:
    return round(math.log2(calls) * _LEVELS)


class _Cell:
    """What answers of one stage took with about so many calls under way: logarithms of seconds."""

    __slots__ = ("count", "first", "mean", "out", "squares")

    def __init__(self) -> None:
        self.count = 0.0
        self.out = 0.0
        """Mean logarithm of the calls under way."""
        self.mean = 0.0
        self.squares = 0.0
        """Sum of the squares around the mean."""
        self.first: float | None = None
        """The mean when there was enough for one."""

    def add(self, out: float, latency: float) -> None:
        if self.count < _COUNTED:
            self.count += 1
        else:
            self.squares *= 1 - 1 / _COUNTED
        off = latency - self.mean
        self.mean += off / self.count
        self.squares += off * (latency - self.mean)
        self.out += (out - self.out) / self.count
        if self.first is None and self.count >= _COUNTED:
            self.first = self.mean


class _Latencies:
    """Latency by stage and by calls under way, and the knee that fits. Stages differ in length, so
    only answers of the same one are compared."""

    def __init__(self) -> None:
        self._stages: dict[str, dict[int, _Cell]] = {}

    def add(self, stage: str, calls: int, latency_s: float) -> None:
        cells = self._stages.setdefault(stage, {})
        level = _level(calls)
        cell = cells.get(level)
        if cell is None:
            cell = cells[level] = _Cell()
        cell.add(math.log(calls), math.log(max(latency_s, 1e-6)))

    def forget(self) -> None:
        self._stages.clear()

    def keep(self, calls: int, part: float) -> None:
        """Forget what was seen with more under way; with fewer it counts by this part only."""
        here = _level(calls)
        kept: dict[str, dict[int, _Cell]] = {}
        for stage, cells in self._stages.items():
            for level, cell in cells.items():
                if level != here:
                    cell.count *= part if level < here else 0.0
                    cell.squares *= part
                if cell.count:
                    kept.setdefault(stage, {})[level] = cell
        self._stages = kept

    def count(self, calls: int) -> float:
        """Answers seen with so many calls under way."""
        return sum(cell.count for cell in self._at(calls))

    def slower(self, calls: int) -> float:
        """Latency now, with so many under way, against the first one: a factor."""
        known = [
            (cell.count, cell.mean - cell.first)
            for cell in self._at(calls)
            if cell.first is not None
        ]
        count = sum(each for each, _ in known)
        return math.exp(sum(each * off for each, off in known) / count) if count else 1.0

    def rises(self, calls: int) -> float:
        """Evidence that latency rises in proportion from so many calls on, and not at all where it
        is negative: twice the logarithm of the likelihood ratio."""
        rising, flat = self._left(math.log(calls)), self._left(math.inf)
        return (flat - rising) / self._variance(min(flat, rising))

    def knee(self) -> tuple[float, bool] | None:
        """The calls from which latency rises, and whether fewer were seen at all; None where it
        need not rise."""
        seen = [cell.out for cell in self._cells()]
        lowest = min(seen)
        steps = math.ceil((max(seen) - lowest) * _LEVELS / math.log(2))
        places = [lowest + step * math.log(2) / _LEVELS for step in range(steps + 1)]
        left = [(self._left(place), place) for place in places]
        least = min(left)[0]
        variance = self._variance(least)
        if self._left(math.inf) - least < _SURE * variance:
            return None
        # The lowest that fits about as well.
        knee = next(place for each, place in left if each <= least + variance)
        return math.exp(knee), knee > lowest

    def _cells(self) -> list[_Cell]:
        return [cell for cells in self._stages.values() for cell in cells.values()]

    def _at(self, calls: int) -> list[_Cell]:
        level = _level(calls)
        return [cells[level] for cells in self._stages.values() if level in cells]

    def _left(self, knee: float) -> float:
        """Squares that are left between the means once the rise from the knee on is taken off."""
        left = 0.0
        for cells in self._stages.values():
            count = total = squares = 0.0
            for cell in cells.values():
                rest = cell.mean - max(0.0, cell.out - knee)
                count += cell.count
                total += cell.count * rest
                squares += cell.count * rest * rest
            left += squares - total * total / count
        return left

    def _variance(self, left: float) -> float:
        """Of one answer, given what a model leaves; with one answer's worth of doubt."""
        cells = self._cells()
        squares = sum(cell.squares for cell in cells)
        return max((1 + squares + left) / (1 + sum(cell.count for cell in cells)), _LEAST_VARIANCE)


class Adaptive:
    """The number of calls that may be out, between 1 and `most`."""

    def __init__(self, most: int) -> None:
        self.limit = min(_START, most)
        self._most = most
        self._starting = True
        self._seen = _Latencies()
        self._mean_s = 0.0
        self._changed_s = -math.inf
        self._round = 0
        """Answers since the last look."""
        # Of the search.
        self._held = False
        """At a knee."""
        self._before: int | None = None
        """The limit before the try that is on."""
        self._upward = True
        self._rest = self._pause = _REST[1]
        """Rounds left until the next try, and from one to the next."""
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
        is what it may have waited for, or 0 where the limit was not what held others back.
        """
        self._served_since = True
        self._ended += 1
        if self._ended > _FAILED_OF:
            self._forget_failures()
        self._mean_s += (latency_s - self._mean_s) * (_FOLLOW if self._mean_s else 1.0)
        used = in_flight >= 0.75 * self.limit
        if self._starting:
            if used:
                self.limit = min(self.limit + 1, self._most)
            known = out > 0
        else:
            if used and self._top is not None and self._before is None:
                self._climb(self._top)
            # Quick answers come first. Once the change has settled, all that come now stand for
            # the number of now, whenever they were sent: else the slow ones would be missed.
            known = used and now_s - self._changed_s >= _SETTLE * self._mean_s
            out = self.limit
        if not known:
            return
        self._seen.add(stage, out, latency_s)
        self._round += 1
        if self._starting:
            if self._round >= max(_FEWEST[0], self.limit // 4):
                self._judge_start(now_s)
        elif self._round >= max(_FEWEST[1], self.limit):
            self._judge(now_s)

    def refused(self, now_s: float) -> None:
        """A 429: fewer, at most once a round."""
        self._brake(now_s, 1)

    def failed(self, now_s: float) -> None:
        """A 5xx or a broken connection: some are the end of the start; later fewer when there are
        many, and never very few, as some servers fail whatever the load."""
        floor = min(_FAILED_FLOOR, self.limit)
        self._failures += 1
        self._ended += 1
        if self._starting:
            if self._failures < _FAILED_FEWEST[0]:
                return
            self._forget_failures()
            self._starting = False
            self._upward = False
            self._rest, self._pause = 0, _REST[0]
            self._braked_s = now_s
            self._change(max(int(self.limit * _BRAKE), floor), now_s)
            return
        if self._failures >= max(_FAILED_FEWEST[1], _FAILED * self._ended):
            self._forget_failures()
            self._brake(now_s, _FAILED_FLOOR)

    def _forget_failures(self) -> None:
        self._failures = self._ended = 0

    # ---- the brake

    def _brake(self, now_s: float, floor: int) -> None:
        if now_s - self._braked_s < self._mean_s:
            return
        self._braked_s = now_s
        self._upward = False
        before, self._before = self._before, None
        if before is not None and before < self.limit:
            # It was the try; whether fewer would do as well is worth a look.
            self._pause = min(2 * self._pause, _REST[2])
            self._rest = 0
            self._change(before, now_s)
            return
        # Fewer were only tried: it is the number before that was too many, if any was.
        self.limit = before or self.limit
        if self._served_since:
            self._top = self.limit
        self._served_since = False
        self._starting = False
        self._change(max(int(self.limit * _BRAKE), min(floor, self.limit)), now_s)

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
        if self.limit > _PAST_TOP * top:
            self._top = None

    # ---- the search

    def _judge_start(self, now_s: float) -> None:
        self._round = 0
        if self._hold(now_s):
            self._starting = False
        elif self.limit >= self._most:
            self._starting = False
            # Many were sent within one latency, and the quick ones of them came.
            self._seen.forget()
            self._changed_s = now_s

    def _judge(self, now_s: float) -> None:
        self._round = 0
        if self._before is not None:
            self._judge_try(self._before, now_s)
            return
        self._rest -= 1
        if self._held and not self._hold(now_s):
            self._held = False
            self._rest = 0
        if self._seen.slower(self.limit) > _SLOWER:
            # The server is another one now. A round of its answers, then fewer are tried.
            self._seen.forget()
            self._held = self._upward = False
            self._rest = 1
        elif self._rest <= 0:
            if not self._upward:
                self._upward = True
                self._try(max(int(self.limit / _STEP), 1), now_s)
            elif self._top is None:
                self._try(min(math.ceil(self.limit * _STEP), self._most), now_s)

    def _hold(self, now_s: float) -> bool:
        """Stay at the knee, or go lower where it was not seen from below; False if there is none.

        After a brake, only to ask for less.
        """
        found = self._seen.knee()
        if found is None:
            return False
        self._held = True
        knee, below = found
        limit = max(1, min(round(knee * _HOLD if below else knee / _STEP), self._most))
        if self._top is None or limit < self.limit:
            self._top = None
            self._change(limit, now_s)
        return True

    def _try(self, limit: int, now_s: float) -> None:
        if limit == self.limit:
            return
        self._before = self.limit
        # What was seen with fewer still tells where the knee is, but ever less.
        self._seen.keep(self.limit, 0.5 if limit > self.limit else 0.0)
        self._change(limit, now_s)

    def _judge_try(self, before: int, now_s: float) -> None:
        """Is latency in proportion to the calls under way, from the lower number to the higher?"""
        rises = self._seen.rises(min(before, self.limit))
        if abs(rises) < _SURE and self._seen.count(self.limit) < _COUNTED:
            return
        self._before = None
        self._held = False
        if rises > 0:
            self._pause = self._rest = min(2 * self._pause, _REST[2])
            if not self._hold(now_s):
                self._change(min(before, self.limit), now_s)
        elif self.limit > before:
            self._rest, self._pause = 0, _REST[1]
        else:
            # Fewer calls were no quicker: that is how long this server takes.
            self._seen.forget()
            self._rest = self._pause
            self._change(before, now_s)

    def _change(self, limit: int, now_s: float) -> None:
        if not 0.8 < limit / self.limit < 1.25:
            self._changed_s = now_s
            self._round = 0
        self.limit = limit
