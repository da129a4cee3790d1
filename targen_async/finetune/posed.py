"""An example as a model is given it, and an answer read back."""

import re
import string
from collections.abc import Mapping

from msgspec import Struct

from targen_async.finetune.schema import Example, entities_of, labels_of

_HIGHLIGHT_AFTER_STOP = re.compile(r"([.?!\"'])\n@highlight\n")
_HIGHLIGHT = re.compile(r"\n@highlight\n")


class Pairs(Struct, frozen=True, kw_only=True):
    """For an encoder. One text: a logit for each option. A text for each option: one logit each,
    compared across them."""

    texts: tuple[tuple[str, str | None], ...]
    """First and second segment."""
    options: tuple[str, ...]
    right: tuple[int, ...]
    """Which options are right; several in ReCoRD only, none where the label is kept back."""
    longer: int
    """The segment to shorten where a pair is too long for the model: 0 or 1."""

    @property
    def compared(self) -> bool:
        """Are the options texts of their own, as in multiple choice?"""
        return len(self.texts) == len(self.options)


class Posed(Struct, frozen=True, kw_only=True):
    """For a model that writes text: a decoder gets `source`, a blank and one of `choices`."""

    source: str
    choices: tuple[str, ...]
    """What stands for each option in the model's words."""
    options: tuple[str, ...]
    right: tuple[int, ...]
    cut: tuple[int, int] | None = None
    """[start, end) of the passage or premise in `source`: what to shorten where it is too long for
    the model, so that question, examples and `Output:` stay. None: the whole is short."""
    by_length: bool = False
    """Is a choice's log-likelihood divided by its number of tokens, as they differ in length?"""


def options_of(example: Example) -> tuple[str, ...]:
    """What is chosen from: the labels, or the entities."""
    return labels_of(example.task) or entities_of(example)


def right_of(example: Example) -> tuple[int, ...]:
    """The places of the right answers among the options."""
    answers = example.answers or ((example.label,) if example.label is not None else ())
    return tuple(n for n, option in enumerate(options_of(example)) if option in answers)


def posed(
    example: Example, source: str, choices: tuple[str, ...] = (), *, by_length: bool = False
) -> Posed:
    """A text form; `choices` are the options' own names where not given."""
    options, long = options_of(example), long_text(example)
    start = source.rfind(long) if long else -1
    return Posed(
        source=source,
        choices=choices or options,
        options=options,
        right=right_of(example),
        cut=(start, start + len(long)) if start >= 0 else None,
        by_length=by_length,
    )


def read_answer(form: Posed, text: str) -> str | None:
    """The option that a model means by `text`; None: it is none of them.

    Case, blanks and stops at the ends do not count, where that leaves one reading first.
    """
    for same in (str.strip, _bare):
        said = same(text)
        for option, choice in zip(form.options, form.choices, strict=True):
            if said == same(choice):
                return option
    return None


def _bare(text: str) -> str:
    return text.strip(string.whitespace + ".,;:!?\"'").casefold()


_LONG: Mapping[str, str] = {
    "axb": "sentence1",
    "axg": "premise",
    "boolq": "passage",
    "cb": "premise",
    "multirc": "paragraph",
    "record": "passage",
    "rte": "premise",
}
"""The field that may be of any length."""


def long_text(example: Example) -> str:
    """The one text of an example that may be of any length, as the forms show it; or none."""
    text = example.fields[_LONG[example.task]] if example.task in _LONG else ""
    if example.task == "record":
        return plain_passage(text)
    return plain_paragraph(text) if example.task == "multirc" else text


def marked(text: str, *spans: tuple[tuple[int, int] | None, str]) -> str:
    """The text with a mark, set off by blanks, on both sides of each span, as T5 marks WSC."""
    for (start, end), mark in sorted(((s, m) for s, m in spans if s), reverse=True):
        text = f"{text[:start]}{mark} {text[start:end]} {mark}{text[end:]}"
    return text


def plain_passage(text: str) -> str:
    """A passage of ReCoRD without its `@highlight` lines, as T5's `record` preprocessor has it."""
    return _HIGHLIGHT.sub(". ", _HIGHLIGHT_AFTER_STOP.sub(r"\1 ", text))


def plain_paragraph(text: str) -> str:
    """A paragraph of MultiRC without HTML, as T5's `glue` preprocessor has it."""
    return text.replace("<br>", " ").replace("<b>", "").replace("</b>", "")
