"""What happens to a request on its way: latency, errors, resets, limits and outages."""

import math
import random
from typing import Literal

from msgspec import Struct

from targen_async.simulator.settings import SimulatorSettings

Fate = Literal["answer", "error", "stall", "reset_before", "reset_inside"]


class Plan(Struct, frozen=True, kw_only=True):
    """What shall happen to one arrival."""

    fate: Fate
    delay_s: float
    """Before the answer, the error or the reset."""
    status: int = 200


class Transport:
    """Draws the fates of arrivals from one stream of random numbers."""

    def __init__(self, settings: SimulatorSettings) -> None:
        self._settings = settings
        self._random = random.Random(settings.random_seed)

    def plan(self) -> Plan:
        """The fate of the next arrival."""
        settings, luck = self._settings, self._random
        delay_s = self._latency_s()
        draw = luck.random()
        if draw < settings.error_rate:
            return Plan(fate="error", delay_s=delay_s, status=luck.choice((500, 502, 503)))
        draw -= settings.error_rate
        if draw < settings.reset_rate:
            fate: Fate = "reset_before" if luck.random() < 0.5 else "reset_inside"
            return Plan(fate=fate, delay_s=delay_s)
        draw -= settings.reset_rate
        if draw < settings.stall_rate:
            return Plan(fate="stall", delay_s=delay_s + settings.stall_s)
        return Plan(fate="answer", delay_s=delay_s)

    def closes(self) -> bool:
        """Whether an arrival in an outage finds a closed connection rather than a 503."""
        return self._random.random() < 0.5

    def _latency_s(self) -> float:
        median_s = self._settings.latency_ms / 1000
        if not median_s or not self._settings.latency_sigma:
            return median_s
        return self._random.lognormvariate(math.log(median_s), self._settings.latency_sigma)


class Outages:
    """The spans in which nothing is answered, counted from the first request."""

    def __init__(self, settings: SimulatorSettings) -> None:
        self._spans = settings.outages
        self._first: float | None = None

    def now(self, time_s: float) -> bool:
        """Whether there is an outage at this time of the event loop's clock."""
        if self._first is None:
            self._first = time_s
        since = time_s - self._first
        return any(s.start_s <= since < s.start_s + s.duration_s for s in self._spans)


class Bucket:
    """A token bucket that may be overdrawn by what an admitted request turns out to cost."""

    def __init__(self, per_minute: float, burst_s: float) -> None:
        self._per_s = per_minute / 60
        self.size = max(1.0, self._per_s * burst_s)
        self.level = self.size
        self._time_s: float | None = None

    def refill(self, time_s: float) -> None:
        """Adds what has accrued up to this time."""
        if self._time_s is not None:
            self.level = min(self.size, self.level + (time_s - self._time_s) * self._per_s)
        self._time_s = time_s

    def wait_s(self, amount: float) -> float:
        """Seconds until `amount` is there; what exceeds the size waits for a full bucket."""
        lacking = min(amount, self.size) - self.level
        return max(0.0, lacking / self._per_s)

    def take(self, amount: float) -> None:
        self.level -= amount

    def change(self, per_minute: float, burst_s: float) -> None:
        """Another rate from now on, and as many seconds' worth of it as before."""
        self._per_s = per_minute / 60
        self.size = max(1.0, self._per_s * burst_s)
        self.level = min(self.level, self.size)


class Limits:
    """The request and token buckets of the endpoint."""

    def __init__(self, settings: SimulatorSettings) -> None:
        self._burst_s = settings.burst_s
        self._shown = settings.rate_headers
        self._changes = sorted(settings.limit_changes, key=lambda each: each.at_s)
        self._first_s: float | None = None
        per_minute = {
            "requests": settings.requests_per_minute,
            "tokens": settings.tokens_per_minute,
        }
        self._buckets = {
            name: Bucket(rate, self._burst_s)
            for name, rate in per_minute.items()
            if rate is not None
        }

    def admit(self, time_s: float, prompt_tokens: int) -> float:
        """Takes one request and its prompt from the buckets; else the seconds to wait."""
        self._refill(time_s)
        costs = {"requests": 1, "tokens": prompt_tokens}
        wait_s = max((b.wait_s(costs[name]) for name, b in self._buckets.items()), default=0.0)
        if wait_s <= 0:
            for name, bucket in self._buckets.items():
                bucket.take(costs[name])
        return wait_s

    def spend(self, completion_tokens: int) -> None:
        """Takes the tokens of an answer, which were not known on arrival."""
        if "tokens" in self._buckets:
            self._buckets["tokens"].take(completion_tokens)

    def _refill(self, time_s: float) -> None:
        if self._first_s is None:
            self._first_s = time_s
        while self._changes and self._first_s + self._changes[0].at_s <= time_s:
            change = self._changes.pop(0)
            for name, bucket in self._buckets.items():
                bucket.refill(self._first_s + change.at_s)
                rate = getattr(change, f"{name}_per_minute")
                if rate is not None:
                    bucket.change(rate, self._burst_s)
        for bucket in self._buckets.values():
            bucket.refill(time_s)

    def headers(self, time_s: float | None = None) -> dict[str, str]:
        """How much is left, in OpenAI's header names; nothing where headers are off."""
        shown: dict[str, str] = {}
        if not self._shown:
            return shown
        if time_s is not None:
            self._refill(time_s)
        for name, bucket in self._buckets.items():
            shown[f"x-ratelimit-limit-{name}"] = str(int(bucket.size))
            shown[f"x-ratelimit-remaining-{name}"] = str(max(0, int(bucket.level)))
            shown[f"x-ratelimit-reset-{name}"] = f"{bucket.wait_s(bucket.size):.3f}s"
        return shown

    def retry_headers(self, wait_s: float) -> dict[str, str]:
        """When to come again, beside a 429; nothing where headers are off."""
        if not self._shown:
            return {}
        return {
            "Retry-After": str(math.ceil(wait_s)),
            "retry-after-ms": str(math.ceil(wait_s * 1000)),
            **self.headers(),
        }
