"""Requests, answers, a recorder and a loopback server for the chat tests."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import orjson
from aiohttp import web

from targen_async.chat.http import HttpChat
from targen_async.records import ChatRequest, ChatResult, Message, Usage

KEY = "sk-secret-0123456789"


def request(key: str = "copa/000001/0", **changes: Any) -> ChatRequest:
    fields: dict[str, Any] = {
        "key": key,
        "model": "m",
        "messages": (Message(role="user", content="Write a premise."),),
        "temperature": 0.5,
        "max_tokens": 64,
        "seed": 7,
    }
    return ChatRequest(**{**fields, **changes})


def completion(text: Any = "hello", **changes: Any) -> dict[str, Any]:
    return {
        "id": "r1",
        "model": "m@main",
        "choices": [{"index": 0, "message": {"content": text}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 11, "completion_tokens": 3},
        **changes,
    }


def answer_bytes(text: str = "hello") -> bytes:
    return orjson.dumps(completion(text))


def result(key: str = "k", text: str = "hello") -> ChatResult:
    usage = Usage(prompt_tokens=11, completion_tokens=3)
    return ChatResult(key=key, text=text, finish_reason="stop", model="m", usage=usage)


class Notes:
    """A recorder that keeps everything in one list, in order."""

    def __init__(self) -> None:
        self.events: list[tuple[str, Any]] = []

    def intent(self, request: ChatRequest) -> int:
        self.events.append(("intent", request.key))
        return len(self.events) - 1

    def answer(self, ticket: int, body: bytes) -> int:
        self.events.append(("answer", body))
        return 4000 + ticket

    def void(self, ticket: int, reason: str) -> None:
        self.events.append(("void", reason))

    @property
    def kinds(self) -> list[str]:
        return [kind for kind, _ in self.events]


def chat(url: str, notes: Notes | None = None, **changes: Any) -> HttpChat:
    options: dict[str, Any] = {
        "recorder": notes,
        "connect_timeout_s": 5.0,
        "read_timeout_s": 5.0,
        "total_timeout_s": 10.0,
        "max_in_flight": 8,
    }
    return HttpChat(url, KEY, **{**options, **changes})


Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@asynccontextmanager
async def serving(handler: Handler) -> AsyncIterator[str]:
    """A real server on a port of the system's choice; yields its base URL."""
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handler)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        port = runner.addresses[0][1]
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        await runner.cleanup()


@asynccontextmanager
async def raw_serving(
    talk: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
) -> AsyncIterator[str]:
    """A server that writes bytes as it pleases, for broken connections."""

    async def conversation(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await talk(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(conversation, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    finally:
        server.close()


def constant(body: bytes, status: int = 200, **headers: str) -> Handler:
    async def handler(_: web.Request) -> web.Response:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        named.setdefault("Content-Type", "application/json")
        return web.Response(body=body, status=status, headers=named)

    return handler
