"""Judgements that the journal holds, row by row: for the day a block has other members than it had.

A block is judged in one call, and that call's memo covers all of its rows. When a validator was
changed, or a failed row was had after all, the block is another one, but what the judge said of the
rows that stayed still stands.
"""

from hashlib import blake2b
from pathlib import Path
from typing import Any

import msgspec

from targen_async.journal import Items, Kind, frames, parse_intent, plan_key, ticket_of


class Verdicts:
    """Row slot and vote to what was said of the row, newest first."""

    def __init__(self) -> None:
        self._found: dict[tuple[int, int], list[tuple[bytes, int, int, str, int]]] = {}

    @classmethod
    def scan(cls, path: Path, before: int) -> "Verdicts":
        """Read a journal up to the offset `before` and note which answer judged which row.

        What a generation finds there does not depend on when it is looked for.
        """
        known = cls()
        shown: dict[str, Items] = {}
        asked: dict[int, str] = {}
        for frame in frames(path):
            if frame.offset >= before:
                break
            if frame.kind == Kind.ITEMS:
                items = msgspec.msgpack.decode(frame.payload, type=Items)
                shown[items.key] = items
            elif frame.kind == Kind.INTENT:
                key = plan_key(parse_intent(frame.payload).key)
                if key in shown:
                    asked[frame.offset] = key
            elif frame.kind == Kind.ANSWER and (key := asked.pop(ticket_of(frame.payload), "")):
                known._note(shown[key], frame.offset)
        return known

    def _note(self, items: Items, offset: int) -> None:
        for place, (slot, digest) in enumerate(items.rows):
            found = self._found.setdefault((slot, items.vote), [])
            found.insert(0, (digest, offset, place, items.key, len(items.rows)))

    def of(self, slot: int, vote: int, digest: bytes) -> list[tuple[int, str, int, int]]:
        """(offset of the answer, key of the block, its rows, place in it), the newest first."""
        return [
            (offset, key, count, place)
            for known, offset, place, key, count in self._found.get((slot, vote), ())
            if known == digest
        ]


def digest_of(*parts: Any) -> bytes:  # noqa: ANN401
    """8 bytes for all that a judge is told of one row."""
    return blake2b(msgspec.msgpack.encode(parts), digest_size=8).digest()
