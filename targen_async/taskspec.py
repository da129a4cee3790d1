"""What task.toml may say: its tables as structs, decoded and checked by taskread and taskcheck."""

from collections.abc import Mapping
from typing import Annotated, Literal

from msgspec import Meta, Struct, field

Text = Annotated[str, Meta(min_length=1)]
Words = tuple[Annotated[int, Meta(ge=0)], Annotated[int, Meta(ge=1)]]
"""Least and most words a text may have, both inclusive."""
Axes = Mapping[str, tuple[str, ...]]
"""Attribute name to its values. Every value gets the same share of the calls."""


class FieldSpec(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One field of a row."""

    source: Literal["seed", "output", "slot", "axis"]
    """`seed`: the seed's text. `output`: the model's output of that name. `slot`: filled by
    [placement]. `axis`: the value of the instances or seeds axis of that name."""
    outputs: tuple[str, ...] = ()
    """In a [group], where the members differ: the output of each member."""
    about: str = ""
    words: Words | None = None


class Placement(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A label that is a position: the model returns the right and the wrong text, code places them.

    `slots[i]` is the field that holds the right text when the label is the i-th of [labels].
    """

    slots: tuple[str, ...]
    right: str
    wrong: tuple[str, ...]


class GroupSpec(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Rows that one instance call writes together, such as twins, or the answers to a question."""

    size: Annotated[int, Meta(ge=2, le=20)]
    """Rows a call."""
    whole: bool = False
    """Accepted or dropped together, as twins are; else each row stands by itself."""
    labels: tuple[str, ...] = ()
    """The label of each member; where empty, every member has the label that was planned."""
    validators: tuple[str, ...] = ()
    """Checks that look at all members at once."""


class AnswerSpec(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A label that is no choice of a few: a text of the row's own.

    `choice`: one of the lines of a field. `extract`: a piece of a field. `free`: any text; its
    judge sees it and says whether it is good.
    """

    kind: Literal["choice", "extract", "free"]
    output: Text
    """The output that becomes the label."""
    choices: str = ""
    """The field that lists the choices, one a line."""
    text: str = ""
    """The field in which the answer stands."""
    positions: tuple[Text, ...] = ()
    """Quota classes of a choice: its place among the choices by their first mention in `text`; the
    last class also takes all later places."""


class ContextsSpec(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    per_call: Annotated[int, Meta(ge=1)] = 10
    max_tokens: Annotated[int, Meta(ge=16)] = 1024
    words: Words = (1, 40)
    axes: Axes = field(default_factory=dict)


class SeedsSpec(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    kind: Literal["word", "sentence", "passage", "pair"] = "sentence"
    per_call: Annotated[int, Meta(ge=1)] = 10
    max_tokens: Annotated[int, Meta(ge=16)] = 2048
    words: Words = (1, 60)
    axes: Axes = field(default_factory=dict)


class InstancesSpec(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    outputs: Mapping[str, str]
    """Output name to what it holds. `explanation` is shown to a `shown` judge and kept in the
    provenance; every other output must feed a field or the placement."""
    template_by: str | None = None
    """`label` or the name of an instances axis: which `instances.<value>.txt` is used."""
    rows_per_seed: Annotated[int, Meta(ge=1, le=100)] = 1
    max_tokens: Annotated[int, Meta(ge=16)] = 1024
    lists: tuple[str, ...] = ()
    """Outputs that are lists of texts; in a row they are one text, an entry a line."""
    distinct_on: tuple[str, ...] = ()
    """Outputs (never the seed) that are compared between rows."""
    validators: tuple[str, ...] = ()
    axes: Axes = field(default_factory=dict)


class CorrectionSpec(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    per_call: Annotated[int, Meta(ge=1, le=100)] = 10
    max_tokens_per_item: Annotated[int, Meta(ge=16)] = 160
    show: tuple[str, ...] = ()
    """Fields the judge sees; all of them where empty."""
    axes: Axes = field(default_factory=dict)


class TaskFile(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """task.toml as it is written."""

    name: Text
    version: Annotated[int, Meta(ge=1)]
    description: Text
    system: str = ""
    """The system message of every call; none is sent where empty."""
    labels: Mapping[str, Text] = field(default_factory=dict)
    """Label to its meaning, in the order the judge reads them. Empty: the label is open."""
    answer: AnswerSpec | None = None
    """What the label is where it is open."""
    fields: Mapping[str, FieldSpec]
    placement: Placement | None = None
    group: GroupSpec | None = None
    contexts: ContextsSpec = field(default_factory=ContextsSpec)
    seeds: SeedsSpec = field(default_factory=SeedsSpec)
    instances: InstancesSpec
    correction: CorrectionSpec = field(default_factory=CorrectionSpec)
