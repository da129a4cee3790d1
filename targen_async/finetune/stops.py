"""Signals that end a run: once a step is done it is saved first, before that nothing is lost."""

import signal
from types import FrameType


class Stops:
    """SIGTERM and SIGINT, from here on. Before a step is done they raise KeyboardInterrupt."""

    def __init__(self) -> None:
        self.heard: list[int] = []
        self._trains = False
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._hear)

    def _hear(self, number: int, _: FrameType | None) -> None:
        self.heard.append(number)
        if not self._trains and len(self.heard) == 1:
            raise KeyboardInterrupt

    def stopped(self) -> bool:
        """Whether to stop; asked after every step."""
        self._trains = True
        return bool(self.heard)
