"""The simulator's buckets: rates that change at a given second, headers that can be left out."""

from targen_async.simulator.settings import LimitChange, SimulatorSettings
from targen_async.simulator.transport import Limits


def admitted(limits: Limits, since_s: float, until_s: float, tokens: int = 0) -> int:
    """Calls let in when one asks every tenth of a second."""
    steps = range(round(since_s * 10), round(until_s * 10))
    return sum(limits.admit(100 + step / 10, tokens) <= 0 for step in steps)


def test_rates_change_at_their_second_after_the_first_request() -> None:
    changes = (
        LimitChange(at_s=40, requests_per_minute=60),
        LimitChange(at_s=20, requests_per_minute=120),
    )
    limits = Limits(SimulatorSettings(requests_per_minute=300, burst_s=1, limit_changes=changes))
    assert 100 <= admitted(limits, 0, 20) <= 105
    assert 40 <= admitted(limits, 20, 40) <= 42
    assert 20 <= admitted(limits, 40, 60) <= 21
    assert limits.headers()["x-ratelimit-limit-requests"] == "1"


def test_a_rate_that_is_left_out_stays() -> None:
    change = LimitChange(at_s=10, tokens_per_minute=600)
    settings = SimulatorSettings(
        requests_per_minute=6000, tokens_per_minute=6000, burst_s=1, limit_changes=(change,)
    )
    limits = Limits(settings)
    assert 10 <= admitted(limits, 0, 10, tokens=100) <= 11
    assert admitted(limits, 10, 30, tokens=10) == 20
    assert limits.headers()["x-ratelimit-limit-requests"] == "100"
    assert limits.headers()["x-ratelimit-limit-tokens"] == "10"


def test_headers_are_of_the_time_they_are_asked_for() -> None:
    limits = Limits(SimulatorSettings(requests_per_minute=60, burst_s=10))
    for _ in range(10):
        assert limits.admit(50.0, 0) == 0
    assert limits.admit(50.0, 0) == 1
    assert limits.headers(54.0)["x-ratelimit-remaining-requests"] == "4"
    assert limits.headers(54.0)["x-ratelimit-reset-requests"] == "6.000s"


def test_headers_can_be_left_out() -> None:
    limits = Limits(SimulatorSettings(requests_per_minute=60, rate_headers=False))
    limits.admit(50.0, 0)
    assert limits.headers(50.0) == limits.retry_headers(3.0) == {}


def test_a_refusal_says_when_to_come_again() -> None:
    limits = Limits(SimulatorSettings(requests_per_minute=60, burst_s=1))
    limits.admit(50.0, 0)
    said = limits.retry_headers(limits.admit(50.5, 0))
    assert (said["Retry-After"], said["retry-after-ms"]) == ("1", "500")
    assert said["x-ratelimit-remaining-requests"] == "0"
