"""Virtual time for code that does real I/O on loopback and in threads.

The clock jumps to the next timer only when nothing has come in for a moment of real time.
"""

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

from tests.chat.virtual_time import TURN_S, VirtualLoop

T = TypeVar("T")

MOMENT_S = 0.001
"""Longer than bytes on loopback take, or a thread that ends."""


class _PatientSelector(selectors.DefaultSelector):
    loop: "PatientLoop"

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        self.loop.now += TURN_S
        found = super().select(0)
        if found or timeout == 0:
            return found
        found = super().select(MOMENT_S if timeout is not None else None)
        if not found and timeout is not None:
            self.loop.now += timeout
        return found


class PatientLoop(VirtualLoop):
    """Its clock begins at 1000 s."""

    def __init__(self) -> None:
        self.now = 1000.0
        selector = _PatientSelector()
        selector.loop = self
        asyncio.SelectorEventLoop.__init__(self, selector)


def run(main: Coroutine[Any, Any, T]) -> T:
    """Like asyncio.run, in virtual time."""
    with asyncio.Runner(loop_factory=PatientLoop) as runner:
        return runner.run(main)
