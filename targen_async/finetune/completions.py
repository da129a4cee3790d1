"""Decoders: a prompt and the answer that completes it, after Brown et al. 2020, appendix G.

Two of its forms are ours: ReCoRD asks for the name and not for the whole filled-in query, so that
the loss is on the answer only; MultiRC and WSC ask of one answer whether it is right.
"""

from collections.abc import Callable, Mapping

from targen_async.finetune.posed import (
    Posed,
    marked,
    options_of,
    plain_paragraph,
    plain_passage,
    posed,
)
from targen_async.finetune.schema import Example

_WORDS: Mapping[str, str] = {
    "entailment": "true",
    "not_entailment": "false",
    "contradiction": "false",
    "neutral": "neither",
    "true": "yes",
    "false": "no",
}
_LINKS: Mapping[str, str] = {"cause": "because", "effect": "so"}


def _worded(example: Example, source: str) -> Posed:
    return posed(example, source, tuple(_WORDS[option] for option in options_of(example)))


def _entailment(premise: str, hypothesis: str, ask: str) -> Callable[[Example], Posed]:
    def form(example: Example) -> Posed:
        first, second = example.fields[premise], example.fields[hypothesis]
        return _worded(example, f"{first}\nquestion: {second} {ask}\nanswer:")

    return form


def _boolq(example: Example) -> Posed:
    fields = example.fields
    return _worded(example, f"{fields['passage']}\nquestion: {fields['question']}?\nanswer:")


def _copa(example: Example) -> Posed:
    fields = example.fields
    premise, link = fields["premise"].rstrip(" ."), _LINKS[fields["question"]]
    return posed(
        example, f"{premise} {link}", (fields["choice1"], fields["choice2"]), by_length=True
    )


def _multirc(example: Example) -> Posed:
    fields = example.fields
    paragraph = plain_paragraph(fields["paragraph"])
    asked = f"question: {fields['question']}\nanswer: {fields['answer']}\nis this right?"
    return _worded(example, f"{paragraph}\n{asked}")


def _record(example: Example) -> Posed:
    fields = example.fields
    source = f"{plain_passage(fields['passage'])}\n{fields['query']}\n@placeholder is"
    return posed(example, source, by_length=True)


def _wic(example: Example) -> Posed:
    fields = example.fields
    asked = f"is the word '{fields['word']}' used in the same sense in both?"
    return _worded(
        example, f"{fields['sentence1']}\n{fields['sentence2']}\nquestion: {asked}\nanswer:"
    )


def _wsc(example: Example) -> Posed:
    fields = example.fields
    text = marked(fields["text"], (example.spans.get("span2"), "*"))
    asked = f"does the pronoun * {fields['span2']} * stand for {fields['span1']}?"
    return _worded(example, f"{text}\nquestion: {asked}\nanswer:")


COMPLETIONS: Mapping[str, Callable[[Example], Posed]] = {
    "axb": _entailment("sentence1", "sentence2", "true or false?"),
    "axg": _entailment("premise", "hypothesis", "true or false?"),
    "boolq": _boolq,
    "cb": _entailment("premise", "hypothesis", "true, false or neither?"),
    "copa": _copa,
    "multirc": _multirc,
    "record": _record,
    "rte": _entailment("premise", "hypothesis", "true or false?"),
    "wic": _wic,
    "wsc": _wsc,
}
