"""A whole run in this process and in virtual time: the engine as it is, an endpoint that answers
as the simulator does, and a disk that writes down what is done to it.

What stands in for something real: the connection (a call's fate is drawn, and the bytes of the
answer go through the client's own `settle`), the clock, and the thread that an fsync waits in.
"""

import asyncio
import os
import random
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from functools import cache
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self

import anyio
import anyio.to_thread
import pytest
from msgspec import Struct

from targen_async import Data, Delivery, RunConfig, generate
from targen_async.chat.reply import Reply, broken, place_of, settle
from targen_async.chat.wire import OPENAI, encode_request
from targen_async.config import Budget, Correction, Limits
from targen_async.control import RunControl
from targen_async.distinct import DistinctGate
from targen_async.manifest import Manifest
from targen_async.records import ChatRequest, ChatResult
from targen_async.simulator import SimulatorSettings, answer, wire
from targen_async.stats import Stats
from targen_async.tasks import load_task
from targen_async.verify import Check
from tests.chat import virtual_time
from tests.durability.disk import Disk

URL = "http://127.0.0.1:9/v1"
FSYNC_S = (0.001, 0.03)
"""How long an fsync takes."""
ENDLESS_S = 40_000.0
"""Virtual seconds after which a run is taken to hang: more than ten times `--give-up-after`."""


class Fates(Struct, frozen=True, kw_only=True):
    """How often what happens to a call, and for how long the endpoint is away."""

    error: float = 0.0
    """A 500 or a 503: nothing is served."""
    busy: float = 0.0
    """A 429 that asks to wait."""
    refused: float = 0.0
    """The connection cannot be opened."""
    reset_before: float = 0.0
    """The connection breaks before the answer is made."""
    reset_after: float = 0.0
    """The answer is made, and charged for, and never arrives."""
    no_page: float = 0.0
    """200 with HTML."""
    rejected: float = 0.0
    """This request is refused for good (400), whenever it is sent."""
    outages: tuple[tuple[float, float], ...] = ()
    """(begin, end) in seconds since the server was begun."""
    denied_after: int | None = None
    """From so many answers on the key is refused (401)."""


class Server:
    """An endpoint and what it counts. One for all starts of a run."""

    def __init__(
        self,
        seed: int = 0,
        fates: Fates | None = None,
        *,
        latency_s: float = 0.05,
        **settings: Any,
    ) -> None:
        self.fates = fates or Fates()
        self.settings = SimulatorSettings(**settings)
        self.latency_s = latency_s
        self._luck = random.Random(seed)
        self.served = 0
        self.prompt_tokens = self.completion_tokens = 0
        self.sent: dict[bytes, int] = {}
        """By memo, how often a call was served."""
        self.asked: set[int] = set()
        """Tickets of calls that may still be served."""
        self.away = False
        """Nobody listens."""
        self._went_s = 0.0

    def draw(self, span: tuple[float, float]) -> float:
        return self._luck.uniform(*span)

    @property
    def perhaps_served(self) -> int:
        """Calls that were served, or may yet be if their caller is gone."""
        return self.served + len(self.asked)

    async def reply(self, request: ChatRequest, ticket: int) -> Reply:
        """What comes back. Raises OSError or TimeoutError for a connection that breaks."""
        fates, began = self.fates, virtual_time.now()
        latency = self.latency_s * self._luck.lognormvariate(0, 0.8)
        if self.away or any(a <= self._went_s < b for a, b in fates.outages):
            self._went_s += 0.05
            await anyio.sleep(0.05)
            raise Unopened("connection refused")
        self._went_s += latency
        if self._luck.random() < fates.refused:
            raise Unopened("connection refused")
        await anyio.sleep(latency / 2)
        turned_away = self._turned_away(request)
        if turned_away is not None:
            return turned_away
        if self._luck.random() < fates.reset_before:
            raise ConnectionResetError("connection reset")
        body = self._serve(request)
        self.asked.discard(ticket)
        if self._luck.random() < fates.reset_after:
            raise ConnectionResetError("connection reset")
        await anyio.sleep(latency / 2)
        if self._luck.random() < fates.no_page:
            body = b"<html>Sorry</html>"
        return _reply(200, body, virtual_time.now() - began)

    def _turned_away(self, request: ChatRequest) -> Reply | None:
        fates, luck = self.fates, self._luck
        if fates.denied_after is not None and self.served >= fates.denied_after:
            return _reply(401, b'{"error": {"message": "wrong key"}}')
        if luck.random() < fates.error:
            return _reply(luck.choice([500, 503]), b'{"error": {"message": "no"}}')
        if luck.random() < fates.busy:
            return _reply(429, b'{"error": {"message": "slow down"}}', **{"Retry-After": "1"})
        never = random.Random(request.memo).random() < fates.rejected
        if never and not request.key.endswith("/probe"):
            return _reply(400, b'{"error": {"message": "too spicy"}}')
        return None

    def _serve(self, request: ChatRequest) -> bytes:
        asked = wire.read_request(encode_request(request, OPENAI, stream=False)).request
        said = answer(asked, self.settings)
        self.served += 1
        self.sent[request.memo] = self.sent.get(request.memo, 0) + 1
        self.prompt_tokens += said.usage.prompt_tokens
        self.completion_tokens += said.usage.completion_tokens
        return wire.completion(self.served, 0, said)


class Unopened(ConnectionRefusedError):
    """The request never left."""


def _reply(status: int, body: bytes, latency_s: float = 0.0, **headers: str) -> Reply:
    return Reply(status=status, headers=headers, body=body, whole=True, latency_s=latency_s)


class Line:
    """Stands in for HttpChat: the same arguments, the same reports to the recorder."""

    server: Server
    dead: bool

    def __init__(self, base_url: str, api_key: str | None, **options: Any) -> None:
        self.dialect = options["dialect"]
        self.stream = False
        self._place = place_of(base_url, api_key, None, None)
        self._recorder = options["recorder"]

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        pass

    async def complete(self, request: ChatRequest) -> ChatResult:
        if self.dead:
            await anyio.sleep_forever()
        server = self.server
        ticket = self._recorder.intent(request)
        server.asked.add(ticket)
        try:
            reply = await server.reply(request, ticket)
        except OSError as error:
            server.asked.discard(ticket)
            opened = not isinstance(error, Unopened)
            if not opened and not self.dead:
                self._recorder.void(ticket, "the connection could not be opened")
            raise broken(error, self._place, opened=opened) from error
        finally:
            server.asked.discard(ticket)
        return settle(reply, request, self._place, self._recorder, ticket)


def _unsynced(opened: Callable[..., None]) -> Callable[..., None]:
    def begin(gate: DistinctGate, *arguments: Any) -> None:
        opened(gate, *arguments)
        gate._db.execute("COMMIT")
        gate._db.execute("PRAGMA synchronous=OFF")
        gate._db.execute("BEGIN")

    return begin


_task, _version = cache(load_task), cache(metadata.version)


def faults(folder: Path) -> list[str]:
    """What `targen verify` says of a folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("targen_async.verify.load_task", _task)
        return list(Check(folder).faults())


class Killed(Exception):
    """The process is gone."""


Moment = Callable[[], Awaitable[None]]
"""Returns when the process is to be killed."""


def configured(task: str = "copa", n: int = 16, **delivery: Any) -> RunConfig:
    """A small run, of few and short calls."""
    data = delivery.pop("data", {})
    budget = delivery.pop("budget", Budget())
    flight = delivery.pop("max_in_flight", 8)
    return RunConfig(
        data=Data(
            task=task,
            model="m",
            **{"contexts": 4, "correction": Correction(mode="blind", votes=1), **data},
        ),
        delivery=Delivery(
            n=n, base_url=URL, limits=Limits(max_in_flight=flight), budget=budget, **delivery
        ),
    )


def run(
    server: Server,
    config: RunConfig,
    folder: Path,
    *,
    killed: Moment | None = None,
    at_kill: Callable[[], None] = lambda: None,
    control: RunControl | None = None,
    disk: Disk | None = None,
    **options: Any,
) -> Manifest:
    """One start. Raises what `generate` raises, or Killed; then `at_kill` was called just before.

    What a killed process does while it is wound up reaches neither the endpoint nor, as the caller
    copies the folder in `at_kill`, the disk that counts.
    """

    gone: list[bool] = []

    async def main() -> Manifest:
        loop = asyncio.get_running_loop()
        line = type("Line", (Line,), {"server": server, "dead": False})
        ended: list[Manifest] = []
        with _in_place(line, loop, server, disk):
            async with anyio.create_task_group() as group:

                async def kill() -> None:
                    assert killed is not None
                    await killed()
                    at_kill()
                    gone.append(True)
                    line.dead = True
                    group.cancel_scope.cancel()

                if killed is not None:
                    group.start_soon(kill)
                with anyio.fail_after(ENDLESS_S):
                    ended.append(
                        await generate(config, folder, control=control, stats=Stats(), **options)
                    )
                group.cancel_scope.cancel()
        if gone:
            raise Killed
        return ended[0]

    try:
        return virtual_time.run(main())
    except BaseException as caught:
        error = caught
        if gone:
            raise Killed from None
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        raise error from None


@contextmanager
def _in_place(
    line: type[Line], loop: asyncio.AbstractEventLoop, server: Server, disk: Disk | None
) -> Iterator[None]:
    async def on_the_loop(function: Callable[..., Any], *arguments: Any) -> Any:
        """An fsync takes its time, in which other tasks go on; what it covers is what was written
        when it began. Like a thread, it is not cancelled."""
        upto = len(disk.log) if disk else 0
        with anyio.CancelScope(shield=True):
            await anyio.sleep(server.draw(FSYNC_S))
        with disk.covering(upto) if disk else nullcontext():
            return function(*arguments)

    with pytest.MonkeyPatch.context() as patch, ExitStack() as stack:
        patch.setattr("targen_async.chains.HttpChat", line)
        # Nobody pulls the plug of this machine: what an fsync is for is the business of `disk`.
        for name in ("fsync", "fdatasync"):
            patch.setattr(os, name, lambda _fd: None)
        patch.setattr(DistinctGate, "__init__", _unsynced(DistinctGate.__init__))
        # What never changes between the starts of one test is read once.
        patch.setattr("targen_async.engine.load_task", _task)
        patch.setattr("targen_async.manifest.metadata", SimpleNamespace(version=_version))
        patch.setattr("targen_async.commit.time", SimpleNamespace(monotonic=loop.time))
        patch.setattr(anyio.to_thread, "run_sync", on_the_loop)
        if disk is not None:
            stack.enter_context(disk.watching())
        yield
