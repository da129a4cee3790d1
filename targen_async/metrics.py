"""A run's figures for Prometheus: its text format, on a port of this host's loopback only."""

from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager, suppress
from importlib import metadata

import anyio
import anyio.abc

from targen_async.errors import UserError
from targen_async.progress import STAGES, why
from targen_async.stats import Stats

HOST = "127.0.0.1"
_CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_MOST_HEAD_BYTES = 16_384
_PATIENCE_S = 5.0
"""How long a client may take to say what it wants, and to take it."""

Labels = Mapping[str, str]
Values = Iterable[tuple[Labels, float]]


@asynccontextmanager
async def serve_metrics(stats: Stats, port: int) -> AsyncIterator[int]:
    """Answer GET /metrics while the block runs; yields the port, which `port` 0 leaves to the host.

    Raises UserError when the port cannot be had. Nothing a client does ends the run.
    """
    try:
        listener = await anyio.create_tcp_listener(local_host=HOST, local_port=port)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise UserError(
            f"cannot serve metrics on {HOST}:{port}: {reason}; choose another --metrics-port, "
            "or 0 for any that is free"
        ) from error

    async def answer(stream: anyio.abc.SocketStream) -> None:
        broken = (anyio.BrokenResourceError, anyio.ClosedResourceError, anyio.EndOfStream, OSError)
        with suppress(*broken), anyio.move_on_after(_PATIENCE_S):
            async with stream:
                await stream.send(_response(await _request_line(stream), stats))

    async with listener, anyio.create_task_group() as group:
        group.start_soon(listener.serve, answer)
        yield int(listener.extra(anyio.abc.SocketAttribute.local_port))
        group.cancel_scope.cancel()


async def _request_line(stream: anyio.abc.SocketStream) -> str:
    head = b""
    while b"\r\n\r\n" not in head and b"\n\n" not in head:
        if len(head) > _MOST_HEAD_BYTES:
            return ""
        head += await stream.receive()
    return head.split(b"\n", 1)[0].decode("latin-1").strip()


def _response(request_line: str, stats: Stats) -> bytes:
    method, _, rest = request_line.partition(" ")
    path = rest.partition(" ")[0].partition("?")[0]
    status, body = "200 OK", ""
    if method not in ("GET", "HEAD"):
        status, body = "405 Method Not Allowed", "only GET\n"
    elif path == "/metrics":
        body = exposition(stats)
    else:
        status, body = "404 Not Found", "the metrics are at /metrics\n"
    data = body.encode()
    head = (
        f"HTTP/1.1 {status}\r\nContent-Type: {_CONTENT_TYPE}\r\nContent-Length: {len(data)}\r\n"
        "Connection: close\r\n\r\n"
    )
    return head.encode() + (b"" if method == "HEAD" else data)


# ---- the text


def exposition(stats: Stats) -> str:
    """All metrics in Prometheus' text format; their names and meanings are in docs/terminal.md."""
    parts = [*_run(stats), *_rows(stats), *_stages(stats), *_limits(stats), *_cost(stats)]
    return "".join(parts)


def _metric(name: str, kind: str, about: str, values: Values) -> str:
    lines = [f"# HELP targen_{name} {about}", f"# TYPE targen_{name} {kind}"]
    lines += [f"targen_{name}{_labels(labels)} {_number(value)}" for labels, value in values]
    return "\n".join(lines) + "\n" if len(lines) > 2 else ""


def _labels(labels: Labels) -> str:
    if not labels:
        return ""
    pairs = (f'{name}="{_escaped(value)}"' for name, value in labels.items())
    return "{" + ",".join(pairs) + "}"


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else repr(float(value))


def _run(stats: Stats) -> Iterable[str]:
    info = {
        "version": metadata.version("targen-async"),
        "task": stats.task,
        "model": stats.model,
        "simulated": str(stats.simulated).lower(),
    }
    yield _metric("run_info", "gauge", "What this run makes, in its labels.", [(info, 1)])
    moving = not why(stats, stats.limits(), 0.0)
    yield _metric("moving", "gauge", "1 while calls go out, 0 while the run waits.", [({}, moving)])


def _rows(stats: Stats) -> Iterable[str]:
    yield _metric("rows_wanted", "gauge", "Rows asked for.", [({}, stats.n)])
    yield _metric("rows_delivered_total", "counter", "Rows in the shards.", [({}, stats.delivered)])
    by_label = [({"label": label}, count) for label, count in stats.balance.items()]
    yield _metric("rows_by_label", "gauge", "Rows in the shards, by label.", by_label)
    yield _metric(
        "rows_waiting", "gauge", "Rows that wait for one before them.", [({}, stats.waiting)]
    )
    rejected = []
    for name, count in stats.rejected.items():
        stage, _, reason = name.partition(".")
        rejected.append(({"stage": stage, "reason": reason}, count))
    about = "Contexts, seeds and rows that were paid for and not delivered."
    yield _metric("rejected_total", "counter", about, rejected)
    about = "Questions that ended without an answer that can be used."
    yield _metric("failures_total", "counter", about, [({}, stats.failed)])
    changes = [
        ({"before": before, "after": after}, count)
        for before, row in stats.transitions.items()
        for after, count in row.items()
    ]
    yield _metric("transitions_total", "counter", "What self-correction made of labels.", changes)


def _stages(stats: Stats) -> Iterable[str]:
    calls: list[tuple[Labels, float]] = []
    under_way: list[tuple[Labels, float]] = []
    for name, stage in stats.stages.items():
        # Each useless answer was a call that is done, but not the other way round.
        unreadable = min(stage.useless, stage.done)
        calls.append(({"stage": name, "outcome": "unreadable"}, unreadable))
        calls.append(({"stage": name, "outcome": "done"}, stage.done - unreadable))
        under_way.append(({"stage": name}, stage.sent - stage.done))
    yield _metric("calls_total", "counter", "Calls that came back, since this start.", calls)
    yield _metric("calls_under_way", "gauge", "Calls in line, out, or backing off.", under_way)
    yield _metric("in_flight", "gauge", "Calls that are out.", [({}, stats.in_flight())])
    queues = {name: queue for name, queue in stats.queues().items() if name in STAGES}
    waiting = [({"stage": name}, queue[0]) for name, queue in queues.items()]
    room = [({"stage": name}, queue[1]) for name, queue in queues.items()]
    yield _metric("queue_items", "gauge", "What waits before a stage.", waiting)
    yield _metric("queue_capacity", "gauge", "How much may wait before a stage.", room)


def _limits(stats: Stats) -> Iterable[str]:
    views = stats.limits()

    def each(values: Iterable[float | None]) -> Values:
        pairs = zip(views, values, strict=True)
        return [({"endpoint": view.name}, value) for view, value in pairs if value is not None]

    of = "of one endpoint."
    yield _metric(
        "endpoint_in_flight", "gauge", f"Calls out {of}", each(v.in_flight for v in views)
    )
    yield _metric(
        "endpoint_in_flight_limit",
        "gauge",
        f"Calls that may be out {of}",
        each(v.most_in_flight for v in views),
    )
    yield _metric(
        "endpoint_waiting", "gauge", f"Calls in line {of}", each(v.waiting for v in views)
    )
    yield _metric(
        "rate_limited_total", "counter", f"Answers 429 {of}", each(v.refused for v in views)
    )
    for name in ("requests_per_minute", "tokens_per_minute"):
        yield _metric(
            f"endpoint_{name}",
            "gauge",
            f"{name.replace('_', ' ').capitalize()}, over the last minute, {of}",
            each(getattr(v, name) for v in views),
        )
    for name in ("requests", "tokens"):
        yield _metric(
            f"endpoint_{name}_per_minute_limit",
            "gauge",
            f"{name.capitalize()} a minute that are allowed, {of}",
            each(getattr(v, f"{name}_limit") for v in views),
        )


def _cost(stats: Stats) -> Iterable[str]:
    cost = stats.cost()
    if cost is None:
        return
    tokens = [
        ({"kind": "prompt"}, cost.prompt_tokens),
        ({"kind": "cached_prompt"}, cost.cached_prompt_tokens),
        ({"kind": "completion"}, cost.completion_tokens),
    ]
    about = "Tokens over all starts; cached_prompt is part of prompt."
    yield _metric("tokens_total", "counter", about, tokens)
    if cost.usd is not None:
        yield _metric("cost_usd", "gauge", "US dollars over all starts.", [({}, cost.usd)])
    if cost.usd_at_most is not None:
        about = "US dollars, with the worst case of what was not counted or is still out."
        yield _metric("cost_usd_at_most", "gauge", about, [({}, cost.usd_at_most)])
    if cost.usd_projected is not None:
        about = "US dollars at the end of the run, at what rows have cost so far."
        yield _metric("cost_usd_projected", "gauge", about, [({}, cost.usd_projected)])
