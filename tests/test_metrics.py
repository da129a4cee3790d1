"""A run's figures as Prometheus reads them, over a real socket on the loopback."""

import re
import socket
from collections.abc import Callable
from pathlib import Path

import anyio
import anyio.to_thread
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from targen_async.errors import UserError
from targen_async.metrics import exposition, serve_metrics
from targen_async.stats import Stats
from tests.scenes import COST, STATES, healthy

GET = b"GET /metrics HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"


def scrape(port: int, request: bytes = GET) -> tuple[str, str]:
    """Head and body of an answer, read to its end."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(request)
        data = b""
        while piece := connection.recv(65536):
            data += piece
    head, _, body = data.decode().partition("\r\n\r\n")
    return head, body


def serving(stats: Stats, act: Callable[[int], object], port: int = 0) -> object:
    """What `act(port)` returns, called in a thread while the metrics are served."""

    async def main() -> object:
        async with serve_metrics(stats, port) as given:
            return await anyio.to_thread.run_sync(act, given)

    return anyio.run(main)


def families(text: str) -> dict[str, Metric]:
    return {family.name: family for family in text_string_to_metric_families(text)}


def values(text: str) -> dict[tuple[str, tuple[str, ...]], float]:
    return {
        (sample.name, tuple(sample.labels.values())): sample.value
        for family in families(text).values()
        for sample in family.samples
    }


def test_a_scrape_brings_what_the_run_knows() -> None:
    head, body = serving(healthy(), scrape)  # type: ignore[misc]
    assert head.startswith("HTTP/1.1 200 OK\r\n")
    assert "Content-Type: text/plain; version=0.0.4; charset=utf-8" in head
    found = values(body)
    for name, labels, value in (
        ("targen_rows_wanted", (), 3000),
        ("targen_rows_delivered_total", (), 1500),
        ("targen_rows_by_label", ("neutral",), 501),
        ("targen_rows_waiting", (), 29),
        ("targen_rejected_total", ("instances", "near_duplicate"), 44),
        ("targen_rejected_total", ("seeds", "duplicate"), 12),
        ("targen_failures_total", (), 3),
        ("targen_transitions_total", ("entailment", "neutral"), 21),
        ("targen_calls_total", ("instances", "unreadable"), 21),
        ("targen_calls_total", ("instances", "done"), 1465),
        ("targen_calls_under_way", ("instances",), 52),
        ("targen_in_flight", (), 47),
        ("targen_queue_items", ("instances",), 9),
        ("targen_queue_capacity", ("instances",), 16),
        ("targen_endpoint_in_flight", ("generator",), 41),
        ("targen_endpoint_in_flight_limit", ("generator",), 48),
        ("targen_endpoint_waiting", ("generator",), 12),
        ("targen_endpoint_requests_per_minute", ("generator",), 584),
        ("targen_endpoint_requests_per_minute_limit", ("generator",), 600),
        ("targen_endpoint_tokens_per_minute_limit", ("generator",), 200_000),
        ("targen_rate_limited_total", ("generator",), 38),
        ("targen_tokens_total", ("prompt",), 1_204_331),
        ("targen_tokens_total", ("cached_prompt",), 811_400),
        ("targen_tokens_total", ("completion",), 160_922),
        ("targen_cost_usd", (), 0.2165),
        ("targen_cost_usd_projected", (), 0.512),
        ("targen_moving", (), 1),
    ):
        assert found[name, labels] == value, name
    assert families(body)["targen_run_info"].samples[0].labels["task"] == "cb"


def test_names_and_types_are_as_prometheus_wants_them() -> None:
    for name, family in families(exposition(healthy())).items():
        assert re.fullmatch(r"targen_[a-z0-9_]+", name)
        assert family.documentation.endswith(".")
        for sample in family.samples:
            assert (family.type == "counter") == sample.name.endswith("_total"), sample.name


def test_a_run_that_has_hardly_begun_has_metrics_too() -> None:
    found = families(exposition(Stats()))
    assert found["targen_rows_wanted"].samples[0].value == 0
    assert "targen_cost_usd" not in found


@pytest.mark.parametrize("name", STATES)
def test_a_run_that_waits_does_not_move(name: str) -> None:
    stats = healthy()
    STATES[name](stats)
    assert values(exposition(stats))["targen_moving", ()] == 0


@given(st.text())
def test_a_label_may_be_any_text(label: str) -> None:
    # A line of the format ends at a line feed; the parser of the client splits at others too.
    label = re.sub("[\r\x0b\x0c\x1c-\x1e\x85\u2028\u2029]", "", label)
    if not label.isprintable() and "\n" not in label:
        return
    found = families(exposition(healthy(balance={label: 7})))["targen_rows_by_label"]
    assert [(sample.labels["label"], sample.value) for sample in found.samples] == [(label, 7)]


def test_hostile_labels_make_no_metrics_of_their_own() -> None:
    label = 'x"} 1\ntargen_cost_usd 99\n# TYPE y counter\\'
    text = exposition(healthy(balance={label: 7}))
    assert values(text)["targen_cost_usd", ()] == 0.2165
    assert values(text)["targen_rows_by_label", (label,)] == 7


def test_nothing_else_is_served() -> None:
    def act(port: int) -> list[str]:
        requests = (
            b"GET / HTTP/1.1\r\n\r\n",
            b"POST /metrics HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc",
            b"HEAD /metrics HTTP/1.0\r\n\r\n",
            b"GET /metrics?name=x HTTP/1.1\r\n\r\n",
            b"\x00\xff\r\n\r\n",
        )
        return [scrape(port, request)[0].split("\r\n")[0][9:12] for request in requests]

    assert serving(healthy(), act) == ["404", "405", "200", "200", "405"]


def test_clients_that_dawdle_or_flood_or_leave_keep_nobody_waiting() -> None:
    def act(port: int) -> int:
        idle = [socket.create_connection(("127.0.0.1", port)) for _ in range(20)]
        left = socket.create_connection(("127.0.0.1", port))
        left.sendall(GET)
        left.close()
        flood = socket.create_connection(("127.0.0.1", port))
        flood.sendall(b"G" * 17_000)
        found = sum(scrape(port)[0].startswith("HTTP/1.1 200") for _ in range(5))
        for connection in (*idle, flood):
            connection.close()
        return found

    assert serving(healthy(), act) == 5


def test_the_port_is_on_one_address_of_the_loopback_only() -> None:
    def act(port: int) -> None:
        # All of 127.0.0.0/8 is this host; only a listener on every address hears this one.
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.2", port), timeout=5)

    serving(healthy(), act)


def test_a_port_that_is_taken_is_a_sentence() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=rf"127\.0\.0\.1:{port}: .*in use; choose another"):
            serving(healthy(), lambda _: None, port)


def test_every_metric_is_documented() -> None:
    page = (Path(__file__).parents[1] / "docs" / "terminal.md").read_text("utf-8")
    names = {s.name for f in families(exposition(healthy())).values() for s in f.samples}
    assert names - set(re.findall(r"`(targen_\w+)[`{]", page)) == set()


def test_a_cost_that_is_not_known_is_no_zero() -> None:
    blind = replace(COST, usd=None, usd_projected=None, usd_at_most=0.25)
    found = values(exposition(healthy(cost=lambda: blind)))
    assert found["targen_cost_usd_at_most", ()] == 0.25
    assert ("targen_cost_usd", ()) not in found
