"""What to ask for next: keys, axes, quotas, waves and correction blocks. Pure: no I/O, no clock.

A row *slot* is a position in key order. Slots are planned in waves: each slot has a label, and
wave k+1 is planned at a slot fixed when wave k was, from what has been committed up to there. So
the plan never depends on which answer came first.
"""

from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from math import ceil
from random import Random

from msgspec import Struct, field

from targen_async.errors import Starved

STARVED_TRIES = 200
STARVED_YIELD = 0.02
_BLOCKS_PER_WINDOW = 4
_ROUNDS = 30
_LAST_SLOTS = 16
"""A wave with fewer slots left than this is waited for to its end before the next is planned."""


def cell(axes: Mapping[str, Sequence[str]], index: int, random_seed: int) -> dict[str, str]:
    """The attribute values of call `index`.

    Each axis runs through a fresh permutation of its values again and again, so every value has the
    same share and the axes do not march in step.
    """
    values: dict[str, str] = {}
    for name, choices in axes.items():
        turn, place = divmod(index, len(choices))
        values[name] = choices[_order(len(choices), f"{random_seed}:{name}:{turn}")[place]]
    return values


@lru_cache(256)
def _order(length: int, random_seed: str) -> tuple[int, ...]:
    order = list(range(length))
    Random(random_seed).shuffle(order)
    return tuple(order)


def quotas(n: int, labels: Sequence[str], random_seed: int, step: int = 1) -> dict[str, int]:
    """n rows over the labels, equal within `step` (rows that come together, all of one label).

    Which labels get more is drawn by the seed.
    """
    share, rest = divmod(n // step, len(labels))
    lucky = set(Random(f"{random_seed}:quota").sample(list(labels), rest))
    return {label: (share + (label in lucky)) * step for label in labels}


def shares(n: int, labels: Sequence[str], group: Sequence[str], random_seed: int) -> dict[str, int]:
    """n rows over the labels as the members of a group have them, each within one of its share."""
    share = {label: n * group.count(label) // len(group) for label in labels}
    rest = n - sum(share.values())
    lucky = Random(f"{random_seed}:quota").sample(list(labels), rest)
    return {label: count + (label in lucky) for label, count in share.items()}


def deal(counts: Mapping[str, int], random_seed: int, wave: int) -> Iterator[str]:
    """The labels of a wave in order: shuffled rounds, so that rows of one seed differ."""
    random = Random(f"{random_seed}:wave:{wave}")
    left = dict(counts)
    while any(left.values()):
        turn = [label for label in sorted(left) if left[label]]
        random.shuffle(turn)
        for label in turn:
            left[label] -= 1
        yield from turn


# Asked for once a row: the plan's view of the same few values of n.
_quotas = lru_cache(16)(quotas)
_shares = lru_cache(16)(shares)


def context_key(task_name: str, call: int) -> str:
    """The key of a call for contexts. Keys hold plan indices, never labels or text."""
    return f"{task_name}/c{call:04d}"


def seed_key(task_name: str, call: int) -> str:
    """The key of a call for seeds."""
    return f"{task_name}/s{call:06d}"


def row_key(task_name: str, slot: int, rows_per_seed: int) -> str:
    """The key of a row: number of the seed, number of the row within the seed."""
    seed, place = divmod(slot, rows_per_seed)
    return f"{task_name}/{seed:06d}/{place}"


@lru_cache(1024)
def members(size: int, call: int, random_seed: int) -> tuple[int, ...]:
    """Which member of its group stands at each place of the rows of instance call `call`."""
    return _order(size, f"{random_seed}:members:{call}") if size > 1 else (0,)


class Grouping(Struct, frozen=True, kw_only=True):
    """How rows come: `size` a call; `labels` of the members, or () where all have the planned one.

    `whole`: those of a call are accepted or dropped together.
    """

    size: int = 1
    whole: bool = False
    labels: tuple[str, ...] = ()


class Wave(Struct, frozen=True, kw_only=True):
    """Slots [start, start + sum of counts). Correction blocks never reach over a wave's end."""

    start: int
    counts: Mapping[str, int]

    @property
    def end(self) -> int:
        return self.start + sum(self.counts.values())


class RowPlanState(Struct, kw_only=True):
    """All that a RowPlan must remember between two starts of a run."""

    n: int = 0
    waves: list[Wave] = field(default_factory=list)
    watermark: int = 0
    """Slots below it are committed."""
    replan_at: int = 0
    accepted: dict[str, int] = field(default_factory=dict)
    tried: dict[str, int] = field(default_factory=dict)
    """Slots committed, by the label they were planned with."""
    moved: dict[str, dict[str, int]] = field(default_factory=dict)
    """Rows usable by planned label and label after correction, over-quota rows included."""


class RowPlan:
    """Quotas of accepted rows and the waves that fill them.

    `labels` are the classes that are balanced: a task's labels, or what stands in for them where
    the label is open.
    """

    def __init__(
        self,
        labels: Sequence[str],
        random_seed: int,
        state: RowPlanState,
        grouping: Grouping = Grouping(),  # noqa: B008 - frozen
    ) -> None:
        self.labels = tuple(labels)
        self.grouping = grouping
        # Twins of one label fill a quota two by two.
        self._step = grouping.size if grouping.whole and not grouping.labels else 1
        self.random_seed = random_seed
        self.state = state
        self._dealt: dict[int, tuple[array[int], array[int]]] = {}
        """Of a wave: the label of each call by its place in `labels`, and how many calls of that
        label came before. A wave may be as long as the run."""
        self.planned = state.waves[-1].end if state.waves else 0
        """Slots planned so far."""

    def aim(self, n: int) -> None:
        """Aim at n rows from the watermark on, and plan what is missing."""
        self.state.n = n
        self._plan_wave()

    @property
    def quota(self) -> Mapping[str, int]:
        """Rows wanted of each label."""
        if self.grouping.labels:
            return _shares(self.state.n, self.labels, self.grouping.labels, self.random_seed)
        return _quotas(self.state.n, self.labels, self.random_seed, self._step)

    @property
    def delivered(self) -> int:
        return sum(self.state.accepted.values())

    @property
    def done(self) -> bool:
        return self.delivered >= self.state.n

    def label(self, slot: int) -> str:
        """The label that the instance in `slot` is to be written for."""
        group = self.grouping
        return group.labels[self.member(slot)] if group.labels else self._call(slot)[0]

    def turn(self, slot: int) -> int:
        """How many calls before that of `slot` were made for the same label.

        Attributes go by it, so that they are balanced within every label.
        """
        group = self.grouping
        return slot // group.size if group.labels else self._call(slot)[1]

    def _call(self, slot: int) -> tuple[str, int]:
        index, wave = self.wave_of(slot)
        size = self.grouping.size
        if index not in self._dealt:
            waves, watermark = self.state.waves, self.state.watermark
            for old in [i for i in self._dealt if waves[i].end <= watermark]:
                del self._dealt[old]
            calls = {label: rows // size for label, rows in wave.counts.items()}
            turns = {
                label: sum(old.counts.get(label, 0) for old in waves[:index]) // size
                for label in calls
            }
            places = {label: place for place, label in enumerate(self.labels)}
            self._dealt[index] = dealt, before = array("I"), array("I")
            for label in deal(calls, self.random_seed, index):
                dealt.append(places[label])
                before.append(turns[label])
                turns[label] += 1
        dealt, before = self._dealt[index]
        call = (slot - wave.start) // size
        return self.labels[dealt[call]], before[call]

    def member(self, slot: int) -> int:
        """Which member of its group the row in `slot` is."""
        size = self.grouping.size
        if size == 1:
            return 0
        call, place = divmod(slot, size)
        return members(size, call, self.random_seed)[place]

    def wave_of(self, slot: int) -> tuple[int, Wave]:
        for index in range(len(self.state.waves) - 1, -1, -1):
            wave = self.state.waves[index]
            if slot >= wave.start:
                return index, wave
        raise IndexError(slot)

    def starts_window(self, slot: int, block_size: int) -> bool:
        """Does a window of correction blocks begin at `slot`?"""
        if slot >= self.planned:
            return True
        wave = self.wave_of(slot)[1]
        return (slot - wave.start) % _window(block_size, self.grouping.size) == 0

    def wants(self, *labels: str) -> bool:
        """Is there room in the quotas for rows of all these labels?"""
        return all(
            self.state.accepted.get(label, 0) + labels.count(label) <= self.quota[label]
            for label in set(labels)
        )

    def accept(self, label: str) -> None:
        self.state.accepted[label] = self.state.accepted.get(label, 0) + 1

    def commit(self, slot: int, planned: str, usable: str | None) -> None:
        """Slot by slot in order: what came of it (None: no usable row). May plan a wave.

        Raises Starved when a label's yield shows that it will never be filled.
        """
        state = self.state
        state.watermark = slot + 1
        state.tried[planned] = state.tried.get(planned, 0) + 1
        if usable is not None:
            row = state.moved.setdefault(planned, {})
            row[usable] = row.get(usable, 0) + 1
        if state.watermark >= state.replan_at and not self.done:
            self._plan_wave()
        self._refuse_starving(planned)

    def _refuse_starving(self, label: str) -> None:
        tried = self.state.tried[label]
        got = sum(row.get(label, 0) for row in self.state.moved.values())
        if tried >= STARVED_TRIES and got < STARVED_YIELD * tried and self.wants(label):
            raise Starved(
                f"label {label!r} starves: {tried} tries gave {got} usable rows; read "
                "rejected.jsonl and failures.jsonl, then mend the task's templates or choose "
                "another model"
            )

    def _plan_wave(self) -> None:
        """Plan the slots that the accepted rows and those under way will leave missing."""
        state = self.state
        expected = {label: float(state.accepted.get(label, 0)) for label in self.labels}
        for planned, slots in self._outstanding().items():
            for label in self.labels:
                expected[label] += slots * self._rate(planned, label)
        missing = {label: quota - expected[label] for label, quota in self.quota.items()}
        counts = {label: ceil(slots - 1e-9) for label, slots in self._slots_for(missing).items()}
        if not any(counts.values()) and state.watermark >= self.planned and not self.done:
            counts = {label: int(self.wants(label)) for label in self.labels}
        counts = self._in_calls(counts)
        if any(counts.values()):
            state.waves.append(Wave(start=self.planned, counts=counts))
            self.planned = state.waves[-1].end
        left = self.planned - state.watermark
        state.replan_at = self.planned if left < _LAST_SLOTS else state.watermark + left // 2

    def _slots_for(self, missing: Mapping[str, float]) -> dict[str, float]:
        """Slots by label that should bring what is missing of each (Gauss-Seidel).

        Rows that change their label in correction count where they will come to.
        """
        slots = {label: max(0.0, rows) for label, rows in missing.items()}
        for _ in range(_ROUNDS):
            for label, rows in missing.items():
                others = sum(slots[o] * self._rate(o, label) for o in slots if o != label)
                slots[label] = max(0.0, rows - others) / self._rate(label, label)
        return slots

    def _in_calls(self, counts: Mapping[str, int]) -> dict[str, int]:
        """At least these rows, in whole calls."""
        size, fixed = self.grouping.size, self.grouping.labels
        if not fixed:
            return {label: -(-rows // size) * size for label, rows in counts.items()}
        calls = max(-(-rows // fixed.count(label)) for label, rows in counts.items())
        return {label: calls * fixed.count(label) for label in counts}

    def _outstanding(self) -> dict[str, int]:
        """Planned and uncommitted slots by label."""
        waves, tried = self.state.waves, self.state.tried
        return {
            label: sum(wave.counts.get(label, 0) for wave in waves) - tried.get(label, 0)
            for label in self.labels
        }

    def _rate(self, planned: str, label: str) -> float:
        """Share of rows planned as one label that came out as another; one good row is assumed."""
        got = self.state.moved.get(planned, {}).get(label, 0)
        return (got + (planned == label)) / (self.state.tried.get(planned, 0) + 1)


def blocks(
    start: int, end: int, *, size: int, seed_of: Callable[[int], int], random_seed: int
) -> list[list[int]]:
    """Cut slots [start, end) into correction blocks of at most `size`, in a seeded permutation.

    Slots of one seed (`seed_of(slot)`) never share a block: a judge that sees siblings could guess
    one's label from the other's.
    """
    random = Random(f"{random_seed}:block:{start}")
    groups: dict[int, list[int]] = {}
    for slot in range(start, end):
        groups.setdefault(seed_of(slot), []).append(slot)
    order = list(groups.values())
    random.shuffle(order)
    many = max(ceil((end - start) / size), max(map(len, order), default=1))
    dealt: list[list[int]] = [[] for _ in range(many)]
    for place, slot in enumerate(slot for members in order for slot in members):
        dealt[place % many].append(slot)
    for block in dealt:
        random.shuffle(block)
    return [block for block in dealt if block]


def _window(size: int, group: int) -> int:
    """Rows of a window, where the wave does not end in it."""
    return -(-_BLOCKS_PER_WINDOW * size // group) * group


def window_of(wave: Wave, slot: int, size: int, group: int = 1) -> tuple[int, int]:
    """The stretch of `wave` around `slot` within which blocks are drawn: short, to fill early.

    It holds whole groups of `group` rows.
    """
    step = _window(size, group)
    start = slot - (slot - wave.start) % step
    return start, min(start + step, wave.end)
