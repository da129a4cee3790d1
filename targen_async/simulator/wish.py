"""The seam between `answer` and the grammars: what a grammar is asked for and what it can do."""

import random
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from msgspec import Struct, field


class Wish(Struct, frozen=True):
    """One instance to write."""

    seed: str = ""
    """The seed's text; empty where the prompt did not tell it."""
    label: str = ""
    """The planned label. Empty where the group fixes its members' labels; a task with an answer for
    a label has the wanted position of it here, such as "third"."""
    variant: str = ""
    """The variant of the instances template, empty if there is but one."""
    axes: tuple[str, ...] = ()
    """The values of the axes in the prompt, in lower case."""
    values: Mapping[str, str] = field(default_factory=dict)
    """All placeholder values by name."""
    noisy: bool = False
    """Write what is wrong: a text whose true label is not the planned one, in a sound form."""


class Grammar(Protocol):
    """A module that writes one task's texts so that their labels can be read back.

    `small` asks for the few words that a tiny model can learn. A grammar may also have
    `contexts(rng, count, axes, small)`, where the common settings do not do, and
    `judge(row, small)`, where the judge knows a label for rows that have no gold.
    """

    @property
    def LABELS(self) -> tuple[str, ...]:
        """The task's labels; none where the label is open."""

    def seeds(
        self, rng: random.Random, count: int, context: str, axes: Sequence[str], small: bool, /
    ) -> list[str]:
        """At most `count` distinct seeds that fit the context. `axes` are values, in lower case."""

    def instance(
        self, rng: random.Random, wish: Wish, small: bool, /
    ) -> Mapping[str, str | list[str]]:
        """The outputs by name."""

    def gold(self, row: Mapping[str, Any], small: bool, /) -> str | None:
        """The true label, read from the row's fields alone; None for text of another's hand."""
