"""An OpenAI-compatible endpoint that costs far less than any client, so that clients are measured.

One process, one asyncio protocol on uvloop, requests taken apart by hand. Answers are short, made
of random words and all different, in the form that the engine's step asks for (told by the name of
the JSON schema; an instance where there is none). Not part of the library, and no model of one:
what an answer says has no meaning, but for the mark by which the judge knows the label again.

    python bench/chat_server.py --latency-ms 20 [--sigma 1] [--rpm 3000 --burst-requests 50] ...

The first line of the output is `{"port": …}`. `GET /stats` gives the counters since the start, and
the most calls in flight since it was last asked.
"""

import argparse
import asyncio
import json
import math
import os
import random
import re
import sys
import time
from collections import defaultdict
from dataclasses import dataclass, field
from typing import cast

import uvloop

TICK_S = 0.001
COMPLETION_TOKENS = 48
BYTES_PER_TOKEN = 4
STEP = re.compile(rb'"name": ?"\w+-(contexts|seeds|instances|correction|probe)')
ITEM = re.compile(rb'\\"id\\": \\"(\w+)\\"[^}]*?\\"text\\": \\"(\w+)')
MARKS = {b"gain": b"sunlit", b"loss": b"moonlit"}
"""A word of the prompt that tells the planned label, and the first word of a text that has it."""
LABELS = {mark: label for label, mark in MARKS.items()}
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n%s\r\n"
BODY = (
    b'{"id":"chatcmpl-1","object":"chat.completion","created":1767225600,"model":"bench",'
    b'"choices":[{"index":0,"message":{"role":"assistant","content":"%s","refusal":null},'
    b'"logprobs":null,"finish_reason":"stop"}],"usage":{"prompt_tokens":%d,"completion_tokens":'
    b'%d,"total_tokens":%d}}'
)


class Bucket:
    """A token bucket that may be overdrawn by what an admitted request turns out to cost."""

    def __init__(self, name: str, per_minute: float, size: float, now_s: float) -> None:
        self.name = name
        self.per_s = per_minute / 60
        self.size = self.level = size
        self._at_s = now_s

    def wait_s(self, amount: float, now_s: float) -> float:
        """Seconds until `amount` is there; what exceeds the size waits for a full bucket."""
        self.level = min(self.size, self.level + (now_s - self._at_s) * self.per_s)
        self._at_s = now_s
        return max(0.0, (min(amount, self.size) - self.level) / self.per_s)

    def headers(self) -> bytes:
        full_s = (self.size - self.level) / self.per_s
        return (
            f"x-ratelimit-limit-{self.name}: {int(self.size)}\r\n"
            f"x-ratelimit-remaining-{self.name}: {max(0, int(self.level))}\r\n"
            f"x-ratelimit-reset-{self.name}: {full_s:.3f}s\r\n"
        ).encode()


@dataclass
class Counters:
    """What the server saw. Seconds are of latency as drawn."""

    served: int = 0
    refused: int = 0
    """429s."""
    overloaded: int = 0
    """503s."""
    lost: int = 0
    """Answers whose client was gone."""
    tokens: int = 0
    latency_sum_s: float = 0.0
    latency_max_s: float = 0.0
    in_flight: int = 0
    most_in_flight: int = 0
    steps: dict[str, int] = field(default_factory=lambda: defaultdict(int))


class Words:
    """Answers: random words, so that no two texts are alike or nearly so."""

    def __init__(self, items: int) -> None:
        self._luck = random.Random(1)
        syllables = [a + b for a in "bcdfglmnprstv" for b in "aeiou"]
        choose = self._luck.choice
        self._words = ["".join(choose(syllables) for _ in range(3)) for _ in range(20_000)]
        self._items = items

    def text(self, count: int = 10) -> bytes:
        return " ".join(self._luck.choices(self._words, k=count)).encode()

    def answer(self, step: bytes, body: bytes) -> bytes:
        """The content, escaped as it stands in the completion."""
        if step in (b"contexts", b"seeds"):
            texts = b", ".join(b'\\"%s\\"' % self.text() for _ in range(self._items))
            return b'{\\"%s\\": [%s]}' % (step, texts)
        if step == b"correction":
            found = ITEM.findall(body)
            one = b'{\\"id\\": \\"%s\\", \\"explanation\\": \\"So it is.\\", \\"label\\": \\"%s\\"}'
            return b'{\\"items\\": [%s]}' % b", ".join(
                one % (item, LABELS.get(mark, b"none")) for item, mark in found
            )
        if step == b"probe":
            return b'{\\"words\\": [\\"Hello.\\"]}'
        mark = MARKS[b"loss" if b"ends in a loss" in body else b"gain"]
        return b'{\\"text\\": \\"%s %s\\", \\"explanation\\": \\"The first word shows it.\\"}' % (
            mark,
            self.text(),
        )


class Endpoint:
    """What all connections share: limits, latency, counters."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.count = Counters()
        self.words = Words(options.items)
        self.loop = asyncio.get_running_loop()
        self._luck = random.Random(options.random_seed)
        self._first_s = math.nan
        now_s = self.loop.time()
        rates = (
            ("requests", options.rpm, options.burst_requests),
            ("tokens", options.tpm, options.burst_tokens),
        )
        self._buckets = [
            Bucket(name, rate, burst or rate, now_s) for name, rate, burst in rates if rate
        ]
        self._changed = not options.change_at_s
        self._due: dict[int, list[tuple[Connection, bytes]]] = defaultdict(list)
        self._next = 0
        self._start_cpu_s = time.process_time()

    def arrive(self, connection: "Connection", body: bytes) -> None:
        """Answer now or later; limits count on arrival."""
        count, options, now_s = self.count, self.options, self.loop.time()
        prompt = len(body) // BYTES_PER_TOKEN
        shown = b""
        if self._buckets:
            wait_s = self._admit(now_s, prompt)
            if options.rate_headers:
                shown = b"".join(bucket.headers() for bucket in self._buckets)
            if wait_s > 0:
                count.refused += 1
                if options.rate_headers:
                    shown += b"retry-after-ms: %d\r\n" % math.ceil(wait_s * 1000)
                connection.transport.write(fault(b"429 Too Many Requests", shown))
                return
        if options.capacity and count.in_flight >= 2 * options.capacity:
            count.overloaded += 1
            connection.transport.write(fault(b"503 Service Unavailable", b""))
            return
        found = STEP.search(body)
        step = found[1] if found else b"instances"
        count.steps[step.decode()] += 1
        content = self.words.answer(step, body)
        completion = max(COMPLETION_TOKENS, len(content) // BYTES_PER_TOKEN)
        total = prompt + completion
        count.tokens += total
        text = BODY % (content, prompt, completion, total)
        count.in_flight += 1
        count.most_in_flight = max(count.most_in_flight, count.in_flight)
        self._answer(connection, HEAD % (len(text), shown) + text, now_s)

    def _answer(self, connection: "Connection", data: bytes, now_s: float) -> None:
        latency_s = self._latency_s()
        self.count.latency_sum_s += latency_s
        self.count.latency_max_s = max(self.count.latency_max_s, latency_s)
        if latency_s < TICK_S:
            self._deliver(connection, data)
            return
        tick = int((now_s + latency_s) / TICK_S)
        if not self._due:
            self._next = int(now_s / TICK_S)
            self.loop.call_later(TICK_S, self._turn)
        self._due[tick].append((connection, data))

    def _turn(self) -> None:
        """Send all that is due: one timer for all answers."""
        last = int(self.loop.time() / TICK_S)
        for tick in range(self._next, last):
            for connection, data in self._due.pop(tick, ()):
                self._deliver(connection, data)
        self._next = last
        if self._due:
            self.loop.call_later(TICK_S, self._turn)

    def _deliver(self, connection: "Connection", data: bytes) -> None:
        self.count.in_flight -= 1
        self.count.served += 1
        if connection.transport.is_closing():
            self.count.lost += 1
        else:
            connection.transport.write(data)

    def _latency_s(self) -> float:
        options = self.options
        latency_s: float = options.latency_ms / 1000
        if options.sigma and latency_s:
            latency_s *= self._luck.lognormvariate(0.0, options.sigma)
        if options.capacity:
            latency_s *= max(1.0, self.count.in_flight / options.capacity)
        return latency_s

    def _admit(self, now_s: float, prompt: int) -> float:
        """Take one request and its tokens from the buckets; else the seconds to wait."""
        if math.isnan(self._first_s):
            self._first_s = now_s
        if not self._changed and now_s - self._first_s >= self.options.change_at_s:
            self._changed = True
            for bucket in self._buckets:
                bucket.wait_s(0, now_s)
                bucket.per_s *= self.options.change_by
        costs = [1 if b.name == "requests" else prompt for b in self._buckets]
        wait_s = max(b.wait_s(cost, now_s) for b, cost in zip(self._buckets, costs, strict=True))
        if wait_s <= 0:
            for bucket, cost in zip(self._buckets, costs, strict=True):
                # The answer's length is known here, so it is taken at once.
                bucket.level -= cost + (COMPLETION_TOKENS if bucket.name == "tokens" else 0)
        return wait_s

    def stats(self) -> bytes:
        used = time.process_time() - self._start_cpu_s
        told = json.dumps({**vars(self.count), "cpu_s": used}).encode()
        self.count.most_in_flight = self.count.in_flight
        return HEAD % (len(told), b"") + told


def fault(status: bytes, headers: bytes) -> bytes:
    body = b'{"error": {"message": "%s", "type": "bench", "code": null}}' % status
    head = b"HTTP/1.1 %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\n%s\r\n"
    return head % (status, len(body), headers) + body


class Connection(asyncio.Protocol):
    """Takes whole requests out of the stream; no chunked bodies."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        data = self._buffer + data if self._buffer else data
        while (end := data.find(b"\r\n\r\n")) >= 0:
            head = data[:end].lower()
            at = head.find(b"content-length:")
            # int() takes the blanks around a number.
            length = int(head[at + 15 : end].partition(b"\r")[0]) if at > 0 else 0
            whole = end + 4 + length
            if len(data) < whole:
                break
            self._handle(head, data[end + 4 : whole])
            data = data[whole:]
        self._buffer = data

    def _handle(self, head: bytes, body: bytes) -> None:
        line = head[: head.find(b"\r")]
        if line.startswith(b"post ") and b"/chat/completions" in line:
            self._endpoint.arrive(self, body)
        elif line.startswith(b"get /stats"):
            self.transport.write(self._endpoint.stats())
        elif line.startswith(b"get ") and b"/models" in line:
            told = b'{"object": "list", "data": [{"id": "bench", "object": "model"}]}'
            self.transport.write(HEAD % (len(told), b"") + told)
        else:
            self.transport.write(fault(b"404 Not Found", b""))


def options_from(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--core", type=int, help="run on this core only")
    parser.add_argument("--latency-ms", type=float, default=0.0, help="the median, given --sigma")
    parser.add_argument("--sigma", type=float, default=0.0, help="of log-normal latency")
    parser.add_argument("--rpm", type=float, default=0.0, help="requests a minute; 0: no limit")
    parser.add_argument("--tpm", type=float, default=0.0, help="tokens a minute; 0: no limit")
    parser.add_argument("--burst-requests", type=float, default=0.0, help="0: a minute's worth")
    parser.add_argument("--burst-tokens", type=float, default=0.0, help="0: a minute's worth")
    parser.add_argument("--rate-headers", action="store_true")
    parser.add_argument("--change-at-s", type=float, default=0.0, help="after the first request")
    parser.add_argument("--change-by", type=float, default=1.0, help="factor of both rates")
    parser.add_argument(
        "--capacity", type=int, default=0, help="slower past C in flight, 503 past 2C"
    )
    parser.add_argument("--items", type=int, default=10, help="contexts or seeds an answer")
    parser.add_argument("--random-seed", type=int, default=1)
    return parser.parse_args(arguments)


async def serve(options: argparse.Namespace) -> None:
    if options.core is not None:
        os.sched_setaffinity(0, {options.core})
    endpoint = Endpoint(options)
    loop = asyncio.get_running_loop()
    server = await loop.create_server(
        lambda: Connection(endpoint), "127.0.0.1", options.port, backlog=4096
    )
    print(json.dumps({"port": server.sockets[0].getsockname()[1]}), flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(serve(options_from(sys.argv[1:])))
