"""How an example is put to a model of each family, and how its answer is read back: one table.

Encoders get pairs of texts, encoder-decoders a source text, decoders a prompt. Every form lists the
`options` it asks to choose from, in our terms: labels, or the entities of ReCoRD. What a model
prefers is an index into them, or a text that `read_answer` finds among them.
"""

from collections.abc import Callable, Mapping
from hashlib import sha256
from typing import Literal

import msgspec
from msgspec import Struct

from targen_async.finetune.completions import COMPLETIONS
from targen_async.finetune.pairs import PAIRS
from targen_async.finetune.posed import Pairs, Posed, read_answer
from targen_async.finetune.schema import Example
from targen_async.finetune.text2text import TEXT2TEXT
from targen_async.layouts import layout_of

__all__ = ["FORMS", "Family", "Pairs", "Posed", "form_digest", "pose", "pose_pairs", "read_answer"]

Family = Literal["encoder", "encoder-decoder", "decoder"]


class Forms(Struct, frozen=True):
    """The three forms of one task."""

    encoder: Callable[[Example], Pairs]
    encoder_decoder: Callable[[Example], Posed]
    decoder: Callable[[Example], Posed]


FORMS: Mapping[str, Forms] = {
    task: Forms(PAIRS[task], TEXT2TEXT[task], COMPLETIONS[task])
    for task in ("axb", "axg", "boolq", "cb", "copa", "multirc", "record", "rte", "wic", "wsc")
}


def pose_pairs(example: Example) -> Pairs:
    """The example for an encoder. Raises UserError for a task without a form."""
    return _forms(example.task).encoder(example)


def pose(example: Example, family: Literal["encoder-decoder", "decoder"]) -> Posed:
    """The example for a model that writes text. Raises UserError for a task without a form."""
    forms = _forms(example.task)
    return (forms.encoder_decoder if family == "encoder-decoder" else forms.decoder)(example)


def _forms(task: str) -> Forms:
    layout_of(task)
    return FORMS[task]


def form_digest(task: str, family: Family) -> str:
    """First 16 hex digits of the SHA-256 of how the form lays out an example whose fields hold
    their own names: another template, another digest."""
    probe = probe_example(task)
    posed = pose_pairs(probe) if family == "encoder" else pose(probe, family)
    return sha256(msgspec.json.encode(posed)).hexdigest()[:16]


def probe_example(task: str) -> Example:
    """An example whose every field holds its own name; of copa it asks for the cause."""
    fields = {name: name for name in layout_of(task).fields}
    if task == "copa":
        fields["question"] = "cause"
    if task == "record":
        fields |= {"query": "query @placeholder", "entities": "entity1\nentity2"}
    return Example(task=task, key="probe", fields=fields, label=None, idx=0, unit="probe")
