"""Instruction tuning: definition, labels and worked examples around the instance.

The layout is that of Super-NaturalInstructions (Wang et al. 2022, arXiv 2204.07705): `Definition:`,
then `Positive Example k-` with `Input:` and `Output:`, then `Now complete the following example-`.
It is the same for synthetic and original examples, so that these differ in nothing but content.
"""

import random
from collections.abc import Mapping, Sequence
from hashlib import sha256

import msgspec
from msgspec import Struct

from targen_async.errors import UserError
from targen_async.finetune.forms import probe_example
from targen_async.finetune.posed import Posed, marked, plain_paragraph, plain_passage, posed
from targen_async.finetune.schema import Example, labels_of
from targen_async.layouts import layout_of

_ENTAILMENT = "Tell whether the {second} follows from the {first}."
DEFINITIONS: Mapping[str, str] = {
    "axb": _ENTAILMENT.format(first="first sentence", second="second sentence"),
    "axg": _ENTAILMENT.format(first="premise", second="hypothesis"),
    "boolq": "Read the passage and tell whether the answer to the question is yes (True) or no "
    "(False).",
    "cb": "Tell whether the author of the premise is committed to the truth of the hypothesis "
    "(entailment), to its falsehood (contradiction), or to neither (neutral).",
    "copa": "Tell which of the two choices is the more plausible cause or effect of the premise, "
    "whichever the question asks for.",
    "multirc": "Read the paragraph and tell whether the answer to the question is right (True) or "
    "wrong (False).",
    "record": "Read the passage and tell which of the entities belongs in the place of "
    "@placeholder in the query.",
    "rte": _ENTAILMENT.format(first="premise", second="hypothesis"),
    "wic": "Tell whether the word has the same sense in both sentences (True) or not (False).",
    "wsc": "Tell whether the pronoun between # marks stands for the phrase between * marks (True) "
    "or not (False).",
}


class Instruction(Struct, frozen=True, kw_only=True):
    """What is put before every instance of a task."""

    task: str
    demonstrations: tuple[Example, ...] = ()

    @property
    def digest(self) -> str:
        """First 16 hex digits of the SHA-256 of the instruction around an instance whose fields
        hold their own names: demonstrations included."""
        text = pose_instructed(probe_example(self.task), self).source
        return sha256(text.encode()).hexdigest()[:16]

    @property
    def template_digest(self) -> str:
        """The digest without demonstrations: equal for synthetic and original training sets."""
        return Instruction(task=self.task).digest


def take_demonstrations(
    train: Sequence[Example], per_label: int, random_seed: int
) -> tuple[Instruction, list[Example]]:
    """An instruction with `per_label` examples of each label, and the rest of the training set.

    What is shown is taken out of training, or its answer would stand in its own input. Where the
    label is open there are `per_label` in all. Raises UserError where a label has too few, and for
    a mixture of tasks.
    """
    tasks = {one.task for one in train}
    if len(tasks) != 1:
        raise UserError("the examples of an instruction come from the training set of one task")
    task = tasks.pop()
    labels: tuple[str | None, ...] = labels_of(task) or (None,)
    order = list(range(len(train)))
    random.Random(f"demonstrations:{random_seed}").shuffle(order)
    taken: list[int] = []
    for label in labels:
        fitting = [n for n in order if label is None or train[n].label == label]
        if len(fitting) < per_label:
            raise UserError(
                f"the instruction of {task} wants {per_label} examples of {label or 'it'}, and the "
                f"training set has {len(fitting)}"
            )
        taken += fitting[:per_label]
    # One of each label in turn, so that the last ones shown are not all of one label.
    turns = [taken[n::per_label] for n in range(per_label)]
    shown = tuple(train[n] for turn in turns for n in turn)
    left = [one for n, one in enumerate(train) if n not in set(taken)]
    return Instruction(task=task, demonstrations=shown), left


def pose_instructed(example: Example, instruction: Instruction) -> Posed:
    """The example for an encoder-decoder or a decoder, with its instruction.

    Raises UserError where the instruction is another task's.
    """
    if instruction.task != example.task:
        raise UserError(f"the instruction of {instruction.task} does not fit {example.task}")
    choices = _choices(example)
    told = f" Answer with one of: {', '.join(choices)}." if choices else " Answer with its name."
    parts = [f"Definition: {DEFINITIONS[example.task]}{told}"]
    for number, shown in enumerate(instruction.demonstrations, 1):
        answer = posed(shown, "", _choices(shown))
        right = answer.choices[answer.right[0]]
        parts.append(f"Positive Example {number}-\nInput: {_input(shown)}\nOutput: {right}")
    parts.append(f"Now complete the following example-\nInput: {_input(example)}\nOutput:")
    return posed(example, "\n\n".join(parts), choices, by_length=not choices)


def instruction_digest(instructions: Sequence[Instruction]) -> str:
    """One digest for the instructions of a multi-task run, whatever their order."""
    digests = sorted((one.task, one.digest) for one in instructions)
    return sha256(msgspec.json.encode(digests)).hexdigest()[:16]


def _choices(example: Example) -> tuple[str, ...]:
    """The hub's class names; none where the label is open."""
    return tuple(layout_of(example.task).classes.values())


def _input(example: Example) -> str:
    """`name: value`, a line a field; the texts are those of the plain forms."""
    fields = {name: example.fields[name] for name in layout_of(example.task).fields}
    if example.task == "record":
        fields["passage"] = plain_passage(fields["passage"])
        fields["entities"] = ", ".join(fields["entities"].split("\n"))
    elif example.task == "multirc":
        fields["paragraph"] = plain_paragraph(fields["paragraph"])
    elif example.task == "wsc":
        spans = ((example.spans.get("span1"), "*"), (example.spans.get("span2"), "#"))
        fields["text"] = marked(fields["text"], *spans)
    return "\n".join(f"{name}: {value}" for name, value in fields.items())
