"""One limit of an endpoint, as far as it can be known from outside. No I/O, no clock of its own.

An endpoint counts calls or tokens in a bucket: so much a second flows in, so much it holds at
most, and a call that finds too little is refused. We are told the rate at best, hardly ever the
size. So a meter keeps two levels between which the true one lies: what is *certain* to be there
and what there is *at most*. Both are paid from alike. What is certain goes out at once. What may be
there is tried at a pace that begins at the rate and doubles about every three seconds, so that
finding the bottom costs few refusals however deep it is. A refusal shows that the bucket is empty:
both levels are zero then, and what went out since it was full is its size.
"""

import math
from collections import deque

from targen_async.chat.lease import Lease, Others
from targen_async.chat.refill import Refill
from targen_async.records import RateLimits

PACE = 0.99
"""Part of a rate that is used: the rest covers that two clocks and two counts never quite agree."""
_UNTOLD_BURST_S = 60.0
"""Most that is tried beyond a declared rate, in seconds of it: a rate is declared by the minute,
and no server that says nothing owes more than a minute's worth at once."""
_RAMP_S = 5.0  # Of what is tried, d/5 is refused when a refusal comes back after d seconds.
_SLOW_TRY = 0.1
_GROUP_S = 5.0
"""Refusals closer than this are of one event: the time from its first is what counts."""
_FEWEST = 3  # Accepted calls between two refusals that say something of a rate.
_MANY = 20  # As many that say it well.
_MOVED = 1.1
"""A rate that rose by this factor since it was last measured is still on its way."""
_REMEMBERED = 300  # Refused calls; more will not come back in another order than they went.
_HALVINGS = 6
_UNSURE_S = 0.3  # What other processes take is known but for this time.
_APART = (0.5, 0.1)  # Calls and part of our bucket left: those of several processes come unevenly.
_CALM = (10.0, 25.0, 100.0)
"""Calls after a refusal before more is tried: when the rate is a guess, is measured by a few, or by
many; three times as many when trying fails, up to `_CALMEST`: less than 0.5 % is refused, or 1."""
_CALMEST = {"requests": (210.0, 225.0), "tokens": (140.0, 150.0)}
"""For one process; for several, as a try of one may be refused to another as well."""
_TRY = 1.15  # Times the rate: little is refused until the refusal is known.
_TRY_FOR = 15.0  # Calls after which it doubles every so often, as the rate must have risen.
_DOUBLING_S = 4.0  # No longer than this is tried gently, however few the calls.
_FAR = 1.5
_SMOOTH = 0.1
_TOLERATED = 1.05


class Meter:
    """Requests or tokens of one endpoint. All times are of one monotonic clock, in seconds.

    `share`: the part of the quota that is ours; the rest belongs to other processes.
    """

    def __init__(self, name: str, now_s: float, *, per_s: float, declared: bool) -> None:
        self.name = name
        self.share = 1.0
        self.others: Others | None = None  # What other processes took.
        self._all_refused = 0.0
        self._leads = True
        self.learnt: tuple[float, float] | None = None
        """The whole rate as refusals showed it last, and when."""
        self.spent = 0.0
        """All that was paid so far, less refunds."""
        self.told_by_server = False
        self._ceiling = per_s if declared else math.inf
        self._cap = self._ceiling
        """The declared rate, or the one that headers name if it is lower."""
        self._per_s = per_s
        self._uncertain_rate = not declared
        self._cut = False
        """Whether refusals showed less than the cap."""
        self._time_s = now_s
        self._largest, self._unit = 1.0, 1.0
        self._size = _UNTOLD_BURST_S * per_s if declared else 1.0
        self._proven_size = 1.0
        self._certain, self._at_most = 0.0, self._size
        self._tried, self._try_at_s = 0.0, now_s
        self._asked_s, self._spent_when_asked = now_s, 0.0
        # Of learning from refusals.
        self._begun_s = now_s
        self._anchor_s, self._anchor_mark, self._anchor_amount = -math.inf, 0.0, 1.0
        self._anchor_others = 0.0
        self._refused = 0.0
        """Of calls sent since the anchor."""
        self._latest: deque[tuple[float, float]] = deque(maxlen=_REMEMBERED)
        """The last refused calls: when they were sent, and their size."""
        self._refused_at_s = -math.inf
        self._since_refusal = 0.0
        self._overflowed = False
        self._calm = _CALM[2]
        self._measured = declared
        self._halvings = _HALVINGS
        self._halved_at_s = now_s
        self._refill = Refill()

    @classmethod
    def from_refusal(cls, name: str, now_s: float, *, per_s: float, sent: float) -> "Meter":
        """Of a limit that showed itself by a refusal after `sent`, at no more than `per_s`."""
        meter = cls(name, now_s, per_s=per_s, declared=False)
        meter._size = sent
        meter._at_most = 0.0
        meter._anchor_s = meter._refused_at_s = now_s
        return meter

    # ---- sharing

    def used_since_asked(self, now_s: float) -> float:
        """Which part of the whole rate was used since this was last asked."""
        span_s = now_s - self._asked_s
        used = (self.spent - self._spent_when_asked) / max(span_s * self._per_s, 1e-9)
        self._asked_s, self._spent_when_asked = now_s, self.spent
        return min(max(used, 0.0), 1.0)

    @property
    def taken(self) -> float:
        """As much as the endpoint let us have, or will."""
        return self.spent - self._all_refused

    def set_share(self, lease: Lease, now_s: float) -> None:
        """From now on this part of the quota is ours, and of what it holds just now as well."""
        self._flow(now_s)
        share = lease.share
        self.others = lease.others.get(self.name) if share < 1 else None
        self._leads = lease.leads or share == 1
        part = share / self.share
        if abs(part - 1) > 0.1:
            # What was measured until now was measured with another part of the rate.
            self._anchor_s, self._anchor_mark = -math.inf, 0.0
        self._certain = min(self._certain, self._certain * part)
        if self._at_most > 0:
            self._at_most *= part
        self.share = share

    @property
    def tries(self) -> bool:
        """Whether more is asked for than is known to be allowed."""
        return self.per_s > self._per_s * self.share

    def adopt(self, per_s: float, learnt_s: float, now_s: float) -> None:
        """Another process learnt the rate from a refusal: as good as if it had been ours."""
        if self.learnt is not None and learnt_s <= self.learnt[1]:
            return
        self._flow(now_s)
        self.learnt = (per_s, learnt_s)
        self._calm = self._calm_after(per_s, _CALM[1])
        self._per_s = min(per_s, self._cap)
        self._uncertain_rate = self._cut = True
        self._since_refusal = 0.0
        # The bucket that was empty is ours as well.
        since = (now_s - learnt_s) * self.per_s * PACE - self._apart
        self._at_most = min(self._at_most, since)
        self._certain = min(self._certain, since)

    # ---- paying

    @property
    def per_s(self) -> float:
        """Our part of the rate, as it is believed to be now."""
        rate = self._per_s * self.share
        if self._uncertain_rate and self._leads:
            beyond = self._since_refusal - self._calm * self._unit * self.share
            if beyond > 0:
                gently = min(_TRY_FOR * self._unit, _DOUBLING_S * self._per_s)
                more_s = max(beyond - gently, 0.0) / self._per_s
                more = _TRY * 2.0 ** min(more_s / _DOUBLING_S, 20.0)
                rate += min(self._per_s * more, self._cap) - self._per_s
        return rate

    def wait_s(self, amount: float, now_s: float) -> float:
        """Seconds until `amount` may be paid; 0.0: now."""
        if self._certain >= amount:
            return 0.0
        rate = self._flow(now_s)
        if self._certain >= amount:
            return 0.0
        self._largest = max(self._largest, amount)
        missing = amount - self._at_most
        if missing > 0 and (window_s := self._refill.wait_s(now_s)):
            return window_s
        possible_s = max(missing / rate, self._try_at_s - now_s, 0.0)
        return min(possible_s, (amount - self._certain) / rate)

    def pay(self, amount: float, now_s: float) -> None:
        """Take `amount` out; `wait_s` was zero."""
        if self._certain < amount:
            # Headers raise what is certain with each answer, and others may have had the burst.
            slow = _SLOW_TRY if self.told_by_server or self.others else 1.0
            rate = self.per_s * slow + self._tried / _RAMP_S
            beyond = amount - max(self._certain, 0.0)
            self._tried += beyond
            self._try_at_s = now_s + beyond / rate
            self._proven_size = min(self._proven_size + beyond / self.share, self._size)
            self._certain = min(self._certain, 0.0)
        else:
            self._certain -= amount
        self._at_most -= amount
        # One large call is forgotten after a while, and so is the room made for it.
        self._largest = max(amount, 0.99 * self._largest)
        self._unit += _SMOOTH * (amount - self._unit)
        self.spent += amount
        self._since_refusal += amount

    def give_back(self, amount: float) -> None:
        """`amount` was paid and not taken by the endpoint; negative: it took more."""
        self._certain += amount
        self._at_most += amount
        self.spent -= amount
        self._since_refusal -= amount

    def _flow(self, now_s: float) -> float:
        """Let in what has accrued; returns the rate it flows at."""
        rate = self.per_s * PACE
        passed_s = now_s - self._time_s
        self._time_s = now_s
        if self._refill.is_window:
            if self._refill.begins_anew(now_s):
                self._certain = self._at_most = self._size * self.share
            return rate
        gained = passed_s * rate
        proven = max(self._proven_size * self.share, self._largest)
        self._certain += gained
        if self._certain > proven:
            self._certain = proven
            self._overflowed = True
        room = max(self._size * self.share, self._largest, self.per_s)
        self._at_most = min(self._at_most + gained, max(room, self._certain))
        return rate

    # ---- learning from refusals

    def lacks(self, amount: float, said: RateLimits | None) -> bool:
        """Whether the refusal of a call of this size, which `said` so, may be this meter's."""
        remaining: float | None = getattr(said, f"{self.name}_remaining", None)
        return self._certain < amount or (remaining is not None and remaining < amount)

    def refuse(self, amount: float, sent_s: float, now_s: float) -> None:
        """A call of this size was refused: it takes nothing, but stays in `spent`."""
        self._certain += amount
        self._at_most += amount
        self._since_refusal -= amount
        self._all_refused += amount
        if sent_s > self._anchor_s:
            self._refused += amount
        self._latest.append((sent_s, amount))

    def empty(self, pending: float, now_s: float) -> None:
        """There is not as much as a call that was refused wanted.

        `pending`: paid for calls that are out and only taken when they are answered.
        """
        self._flow(now_s)
        surplus = self._at_most / self.share
        if surplus > 0:
            self._size = max(self._size - surplus, self._largest, self._per_s)
        self._proven_size = min(self._proven_size, self._size)
        self._at_most = min(self._at_most, -self._apart)
        self._certain = min(self._certain, -pending - self._apart)
        self._tried, self._try_at_s = 0.0, now_s

    @property
    def _apart(self) -> float:
        return min(_APART[0] * self._unit, _APART[1] * self._size * self.share) * bool(self.others)

    def pressure(self, now_s: float) -> float:
        """How much of the rate was used since the last refusal: the limit that is hit has most."""
        since_s = max(self._anchor_s, self._begun_s)
        return (self.spent - self._anchor_mark) / max((now_s - since_s) * self._per_s, 1e-9)

    def learn_from_refusal(self, mark: float, amount: float, sent_s: float, now_s: float) -> None:
        """The bucket is empty and was at the last refusal: what went between is the rate.

        `mark`: `spent` before the refused call of `amount` was sent, at `sent_s`. Times are those
        of sending: of calls sent later it is not known yet what becomes of them.
        """
        if self._refill.is_window:
            return
        gap_s = now_s - self._refused_at_s
        anchored = self._anchor_s > -math.inf
        outage = gap_s > _GROUP_S and self._since_refusal <= 0
        # Where less was asked for than flowed in, the bucket may have run over: then what went
        # between says nothing. With no rate but a learnt one, that is not known.
        spilt = self._overflowed and gap_s > _GROUP_S and self._ceiling < math.inf
        stale = not anchored or gap_s > _GROUP_S
        later = sum(size for when_s, size in self._latest if when_s >= sent_s)
        if anchored and not spilt and not outage:
            accepted = mark - self._anchor_mark - (self._refused - later)
            span_s = sent_s - self._anchor_s
            if self.others:
                accepted += self.others.at(sent_s) - self._anchor_others
            if accepted >= _FEWEST * self._unit and span_s > 0.05:
                self._correct(accepted, amount, span_s, now_s)
                stale = stale or sent_s - self._anchor_s > _GROUP_S
            elif not self._measured and sent_s > self._halved_at_s and self._halvings:
                # Nothing to measure by yet, and no idea of the rate.
                self._halvings -= 1
                self._halved_at_s = now_s
                self._per_s /= 2
                self._calm = _CALM[0]
        if stale:
            self._anchor_s, self._anchor_mark, self._anchor_amount = sent_s, mark, amount
            self._anchor_others = self.others.at(sent_s) if self.others else 0.0
            self._refused, self._overflowed = later, False
        self._refused_at_s, self._since_refusal = now_s, 0.0
        if self._measured:
            self.learnt = (self._per_s, now_s)

    def _correct(self, accepted: float, amount: float, span_s: float, now_s: float) -> None:
        """So much went through between two times at which the bucket was empty.

        Empty means less in it than the refused call wanted, `amount` this time: so the rate is
        known but for what may have been left over, which matters where calls are few or large.
        """
        unsure = _UNSURE_S * self.others.per_s if self.others else 0.0
        lowest = (accepted - self._anchor_amount - unsure) / span_s
        # On the lower side: a rate that is too high goes on being refused.
        measured = min(max(self._per_s, lowest), (accepted + 0.5 * (amount + unsure)) / span_s)
        many = accepted >= _MANY * self._unit
        self._measured = True
        # A rate that is higher by far changed in between, so it is likely to be higher still.
        calm = _CALM[2] if many and measured < _MOVED * self._per_s else _CALM[1]
        calm = self._calm_after(measured, calm)
        if measured < self._per_s:
            self._per_s = measured
            self._uncertain_rate = self._cut = True
        elif self._uncertain_rate:
            self._per_s = min(measured, self._cap)
        self._calm = calm

    def _calm_after(self, measured: float, calm: float) -> float:
        if self.per_s - self._per_s * self.share > _FAR * self._per_s:
            # So much went well that the bucket must have run over: what is measured is too low.
            return _CALM[1]
        if abs(measured / self._per_s - 1) < 0.03 and self._uncertain_rate:
            # Nothing new: more was tried, or a little too much was asked for.
            return min(3 * self._calm, _CALMEST[self.name][self.share < 1])
        return calm

    # ---- learning from headers

    def told(
        self,
        limit: float | None,
        remaining: float,
        reset_s: float | None,
        *,
        mark: float,
        pending: float,
        sent_s: float,
        now_s: float,
    ) -> None:
        """The endpoint says how much is left.

        It may have counted when the call came or when it was answered, so both are allowed for.
        `mark`: `spent` before what it may not have counted when the call came that was sent at
        `sent_s`. `pending`: as in `empty`.
        """
        self.told_by_server = True
        rate = self._flow(now_s)
        if limit is not None and limit > 0 and reset_s is not None:
            self._learn_rate(limit, remaining, reset_s, now_s)
        since = self.spent - mark
        low = remaining * self.share - since - pending
        high = remaining * self.share
        if not self._refill.is_window:
            # A bucket's remainder is rounded down, and it has gone on filling.
            high += self.share + max((now_s - sent_s) * rate - since, 0.0)
        if self._as_declared:
            self._size = max(limit or self._size, remaining)
            self._at_most = max(self._at_most, low)
        self._proven_size = min(max(self._proven_size, remaining), self._size)
        self._at_most = min(self._at_most, high)
        if remaining > 0:  # Or else answers may have taken more than there was.
            self._certain = max(self._certain, low)
        self._certain = min(self._certain, self._at_most)
        self._tried = 0.0

    @property
    def _as_declared(self) -> bool:
        """Whether the endpoint's own count may be spent, rather than only the declared rate's."""
        if self._ceiling == math.inf:
            return True
        if self._refill.is_window:
            return self._size <= _UNTOLD_BURST_S * self._ceiling * _TOLERATED
        told = self._refill.per_s
        return told is not None and told <= self._ceiling * _TOLERATED

    def _learn_rate(self, limit: float, remaining: float, reset_s: float, now_s: float) -> None:
        if not self._refill.told(limit, remaining, reset_s, spent=self.spent, now_s=now_s):
            return
        if self._refill.per_s is None:
            self._size = limit
            return
        self._cap = min(self._refill.per_s, self._ceiling)
        self._uncertain_rate = True
        if self._cut and self.per_s < 0.99 * self._cap * self.share:
            # Others take part of it: refusals say how much is left for us.
            return
        self._cut = False
        self._per_s = self._cap
