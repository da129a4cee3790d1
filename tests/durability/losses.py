"""What a power loss left of a journal, and what it took."""

from pathlib import Path

from targen_async.journal import Kind, frames, parse_intent, ticket_of
from tests.durability.disk import Disk, Write


def known_memos(folder: Path) -> tuple[set[bytes], dict[int, bytes]]:
    """What the journal has answers to, and the intents that it holds, by their place."""
    intents: dict[int, bytes] = {}
    known: set[bytes] = set()
    journal = folder / "journal"
    for frame in frames(journal) if journal.exists() else ():
        if frame.kind == Kind.INTENT:
            intents[frame.offset] = parse_intent(frame.payload).memo
        elif frame.kind == Kind.ANSWER:
            known.add(intents[ticket_of(frame.payload)])
    return known, intents


def lost_intents(before: Path, after: Path) -> int:
    """How many intents of one journal another does not hold, which is what a loss left of it."""
    return len(known_memos(before)[1].items() - known_memos(after)[1].items())


def journal_node(disk: Disk) -> int:
    return next(one.node for one in disk.log if isinstance(one, Write) and one.data[:3] == b"tJ1")


def intents_written(disk: Disk, upto: int) -> int:
    """How many intents a run that was not interrupted had written before an operation."""
    node = journal_node(disk)
    ends = [
        one.offset + len(one.data)
        for one in disk.log[:upto]
        if isinstance(one, Write) and one.node == node
    ]
    size = max(ends, default=0)
    journal = Path(disk.root) / "run" / "journal"
    return sum(one.kind == Kind.INTENT and one.offset < size for one in frames(journal))
