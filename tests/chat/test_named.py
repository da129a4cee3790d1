"""A model that is exchanged behind its name is told of once."""

import asyncio

from msgspec.structs import replace

from targen_async.chat.named import Named
from targen_async.records import ChatRequest, ChatResult
from tests.chat.helpers import request, result


class Endpoint:
    """Answers under one name after another."""

    def __init__(self, *names: str) -> None:
        self._names = list(names)

    async def complete(self, request: ChatRequest) -> ChatResult:
        return replace(result(request.key), model=self._names.pop(0))


def told(*names: str) -> list[str]:
    """What is said of an endpoint that was called `m-1` at the start."""
    lines: list[str] = []

    async def main() -> None:
        client = Named(Endpoint(*names), "m-1", lines.append, whose="judge: ")
        for name in names:
            assert (await client.complete(request())).model == name

    asyncio.run(main())
    return lines


def test_who_keeps_the_name_is_not_told_of() -> None:
    assert told("m-1", "m-1") == []


def test_another_name_is_told_once_and_whose_it_is() -> None:
    (line,) = told("m-1", "m-2", "m-1", "m-3")
    assert line.startswith("judge: the model calls itself 'm-2' now, and 'm-1' at the start")


def test_a_name_cannot_command_a_terminal_or_fill_it() -> None:
    (line,) = told("m\x1b[2J\n" + "x" * 10_000)
    assert line.isprintable()
    assert len(line) < 500
