"""Encoders: pairs of texts to classify, or one text an option to compare (Devlin et al. 2019).

What WiC and WSC ask about stands between `*` and `#`, in words every vocabulary has.
"""

from collections.abc import Callable, Mapping

from targen_async.finetune.posed import (
    Pairs,
    long_text,
    marked,
    options_of,
    plain_paragraph,
    plain_passage,
    right_of,
)
from targen_async.finetune.schema import Example, entities_of

COPA_QUESTIONS: Mapping[str, str] = {
    "cause": "What was the cause of this?",
    "effect": "What happened as a result?",
}
"""As COPA asks them (Roemmele et al. 2011)."""


def _pairs(example: Example, *texts: tuple[str, str | None]) -> Pairs:
    return Pairs(
        texts=texts,
        options=options_of(example),
        right=right_of(example),
        longer=int(bool(texts[0][1]) and texts[0][1] == long_text(example)),
    )


def _two(first: str, second: str) -> Callable[[Example], Pairs]:
    """Two fields as they are."""

    def form(example: Example) -> Pairs:
        return _pairs(example, (example.fields[first], example.fields[second]))

    return form


def _copa(example: Example) -> Pairs:
    fields = example.fields
    first = f"{fields['premise']} {COPA_QUESTIONS[fields['question']]}"
    return _pairs(example, (first, fields["choice1"]), (first, fields["choice2"]))


def _multirc(example: Example) -> Pairs:
    fields = example.fields
    first = plain_paragraph(fields["paragraph"])
    return _pairs(example, (first, f"{fields['question']} {fields['answer']}"))


def _record(example: Example) -> Pairs:
    fields = example.fields
    passage, query = plain_passage(fields["passage"]), fields["query"]
    filled = (query.replace("@placeholder", entity) for entity in entities_of(example))
    return _pairs(example, *((passage, text) for text in filled))


def _wic(example: Example) -> Pairs:
    names = ("sentence1", "sentence2")
    first, second = (marked(example.fields[n], (example.spans.get(n), "*")) for n in names)
    return _pairs(example, (first, second))


def _wsc(example: Example) -> Pairs:
    fields, spans = example.fields, example.spans
    text = marked(fields["text"], (spans.get("span1"), "*"), (spans.get("span2"), "#"))
    return _pairs(example, (text, fields["span1"]))


PAIRS: Mapping[str, Callable[[Example], Pairs]] = {
    "axb": _two("sentence1", "sentence2"),
    "axg": _two("premise", "hypothesis"),
    "boolq": _two("question", "passage"),
    "cb": _two("premise", "hypothesis"),
    "copa": _copa,
    "multirc": _multirc,
    "record": _record,
    "rte": _two("premise", "hypothesis"),
    "wic": _wic,
    "wsc": _wsc,
}
