"""Splitting rows so that nothing stands on both sides: by group first, then by label.

A group is all rows of one seed and all rows that share a seed's text or a passage, however many
steps apart: twins, the answers to one question, the questions to one passage.
"""

import random
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from targen_async.errors import UserError
from targen_async.records import Instance

SHARED_FIELDS = ("passage", "paragraph", "premise", "text")
"""Fields whose text makes two rows one group, as the seed's text does."""
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")
_WHOLE = 1e-6
"""How far shares may be from 1 in sum."""


def parse_shares(text: str) -> dict[str, float]:
    """`train=0.8,validation=0.2` as name to share. Raises UserError that shows the right form."""
    shares: dict[str, float] = {}
    for part in text.split(","):
        name, _, share = (piece.strip() for piece in part.partition("="))
        try:
            value = float(share)
        except ValueError:
            value = 0.0
        if not _NAME.fullmatch(name) or not 0 < value <= 1 or name in shares:
            raise UserError(
                f"--split {text!r}: {part.strip()!r} is no share of its own; write it as "
                "train=0.8,validation=0.1,test=0.1"
            )
        shares[name] = value
    if abs(sum(shares.values()) - 1) > _WHOLE:
        raise UserError(f"--split {text!r}: the shares make {sum(shares.values()):g}, not 1")
    return shares


def split_rows(
    rows: Sequence[Instance],
    shares: Mapping[str, float],
    random_seed: int = 0,
    *,
    runs: Sequence[str] = (),
) -> dict[str, list[int]]:
    """Split name to the numbers of its rows, ascending.

    No group lies in two splits. Every split has its share of the rows to within the size of the
    largest group, and of each label as nearly as groups allow. `runs` names the run of each row
    where rows come from several, whose keys say nothing about each other. Equal input gives equal
    splits. Raises UserError where a split would have no row.
    """
    names = [(runs[number] if runs else "", row.key) for number, row in enumerate(rows)]
    groups = group_rows(rows, runs)
    return share_out(groups, names, [row.label for row in rows], shares, random_seed)


def share_out(
    groups: Sequence[Sequence[int]],
    names: Sequence[tuple[str, str]],
    labels: Sequence[str],
    shares: Mapping[str, float],
    random_seed: int,
) -> dict[str, list[int]]:
    """What `split_rows` says, for rows of any kind: `names` and `labels` have one entry a row.

    The order of the names, and not that of the rows, decides with the seed what goes where.
    """
    # A label with fewer rows than there are splits, as open labels are, cannot be shared out.
    often = Counter(labels)
    strata = [label if often[label] >= len(shares) else "" for label in labels]
    wanted = Counter(strata)
    ordered = sorted(groups, key=lambda group: min(names[number] for number in group))
    random.Random(f"split:{random_seed}").shuffle(ordered)
    # Large groups first: the small ones even out what they leave. Among equals rare labels first:
    # while every split still has room for them.
    ordered.sort(key=lambda group: (-len(group), min(wanted[strata[n]] for n in group)))
    room = {name: share * len(labels) for name, share in shares.items()}
    label_room = {
        name: {label: share * count for label, count in wanted.items()}
        for name, share in shares.items()
    }
    parts: dict[str, list[int]] = {name: [] for name in shares}
    for group in ordered:
        held = Counter(strata[number] for number in group)
        fitting = [name for name in shares if room[name] >= len(group) - _WHOLE]
        # Where it fits nowhere, all room is smaller than the group: any split may go over once.
        fitting = fitting or [name for name in shares if room[name] > _WHOLE] or list(shares)
        name = max(fitting, key=lambda name: _need(label_room[name], held))
        parts[name] += group
        room[name] -= len(group)
        for label, count in held.items():
            label_room[name][label] -= count
    for name, numbers in parts.items():
        if not numbers:
            raise UserError(
                f"the split {name!r} would have no row: its share of {len(labels)} rows in "
                f"{len(groups)} groups is too small"
            )
        numbers.sort()
    return parts


def _need(room: Mapping[str, float], labels: Mapping[str, int]) -> float:
    """How much a split still lacks of a group's labels: rows, weighted by the group's own."""
    return sum(count * room[label] for label, count in labels.items())


def group_rows(rows: Sequence[Instance], runs: Sequence[str] = ()) -> list[list[int]]:
    """The groups: numbers of rows that must not be separated, ascending, by first row."""
    return group_marked(
        [row_marks(row, runs[number] if runs else "") for number, row in enumerate(rows)]
    )


def row_marks(row: Instance, run: str = "") -> tuple[str, ...]:
    """What a row has in common with those it must not be separated from."""
    texts = (plain_text(row.provenance.seed), *text_marks(row.fields))
    return (f"seed {run} {row.key.rpartition('/')[0]}", *(text for text in texts if text))


def text_marks(fields: Mapping[str, str]) -> tuple[str, ...]:
    """The texts of a row that make rows one group, in one spelling."""
    shared = (plain_text(fields.get(name, "")) for name in SHARED_FIELDS)
    return tuple(text for text in shared if text)


def group_marked(marks: Sequence[Iterable[str]]) -> list[list[int]]:
    """Rows that have a mark in common, however many steps apart, are one group."""
    parent = list(range(len(marks)))

    def root(number: int) -> int:
        while parent[number] != number:
            parent[number] = parent[parent[number]]
            number = parent[number]
        return number

    first: dict[str, int] = {}
    for number, held in enumerate(marks):
        for mark in held:
            a, b = root(first.setdefault(mark, number)), root(number)
            parent[max(a, b)] = min(a, b)
    groups: dict[int, list[int]] = {}
    for number in range(len(marks)):
        groups.setdefault(root(number), []).append(number)
    return list(groups.values())


def plain_text(text: str) -> str:
    """The letters and digits of a text in one case: what two spellings of one text share.

    It holds no blank where it holds a letter, so it is never the mark of a seed.
    """
    folded = unicodedata.normalize("NFKC", text).casefold()
    return "".join(char for char in folded if char.isalnum()) or text.strip()
