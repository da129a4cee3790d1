"""Rows laid out once more from the journal's answers, and compared with those on disk."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import orjson
from msgspec.structs import replace

from targen_async.audit import Audit, number_of, place_of
from targen_async.chat.wire import decode_completion
from targen_async.config import Data
from targen_async.corpus import Corpus
from targen_async.errors import ChatError, ParseError
from targen_async.parse import Form, answer_text, read
from targen_async.plan import Grouping, RowPlan, RowPlanState, cell
from targen_async.records import Context, Instance, Seed, SeedCall, SlotCall, Usage
from targen_async.rows import Forms, Material, Rows, decide, flat
from targen_async.rundir import to_line
from targen_async.tasks import Task

_ANY = Form(type=dict[str, str | list[str]], schema={}, example="")
"""Outputs of any names."""
_SHOWN = 40


class Reread:
    """Compares rows with what the journal says they are.

    With the run's task a row is laid out again and must come out the same, byte for byte. Without
    it (its folder is gone, or its prompts were changed) every text must stand in the answer.
    """

    def __init__(
        self,
        audit: Audit,
        data: Data,
        task: Task | None,
        corpus: Corpus | None,
        labels: Sequence[str],
    ) -> None:
        """`labels`: what labels there are, or other names where the label is open."""
        self.task = task
        self._labels = labels
        self._audit = audit
        self._data = data
        self._corpus = corpus
        self._rows: Rows | None = None
        self._plan: RowPlan | None = None
        self._size = self.rows_per_seed = 1
        if task is not None:
            self._size = task.rows_per_call
            self.rows_per_seed = data.rows_per_seed or task.instances.rows_per_seed
            self._rows = Rows(audit.journal, task, Forms(task), data, _material(corpus))
            self._plan = _plan_of(task, data, audit)

    def faults(self, row: Mapping[str, Any], instance: Instance, *, judged: bool) -> Iterator[str]:
        """What the journal does not bear out of a row (as decoded, and as typed).

        `judged`: it came as far as the judge.
        """
        number = number_of(instance.key)
        if number is None:
            yield "this is no key of a row"
            return
        seed, place = place_of(number)
        first = number - place % self._size if self.task else number
        offsets = list(self._audit.answers_of(first))
        while not offsets and self.task is None and first > number - place:
            # How many rows a call writes is not known: the call is that of an earlier row.
            first -= 1
            offsets = list(self._audit.answers_of(first))
        if not offsets:
            yield "the journal has no answer to its instance call"
            return
        yield from self._origin(instance)
        judged = judged and self._data.correction.mode != "off"
        slot = seed * self.rows_per_seed + place
        for vote in instance.provenance.votes:
            if not self._audit.voted(slot, vote.label, vote.explanation, vote.model):
                yield f"its vote {_short(vote.label)} is in no stored judgement of it"
        if self._rows is None:
            yield from self._without_task(instance, offsets, judged=judged)
            return
        call = self._call(instance, seed, place)
        if call is not None:
            yield from self._laid_out(row, instance, call, offsets, judged=judged)

    def _origin(self, instance: Instance) -> Iterator[str]:
        """Are context and seed what the journal, or the run's copy of the corpus, holds?"""
        told = instance.provenance
        if told.seed_source == "corpus":
            return
        if hash(told.context) not in self._audit.contexts:
            yield "its context is in no stored answer"
        if hash(told.seed) not in self._audit.seeds:
            yield "its seed is in no stored answer"

    # ---- with the task

    def _call(self, instance: Instance, seed: int, place: int) -> SlotCall | None:
        """The call that the row answers, from the plan; None: its seed is not to be had."""
        assert self.task is not None and self._plan is not None
        told, slot = instance.provenance, seed * self.rows_per_seed + place
        origin = self._seed(instance, seed)
        if origin is None:
            return None
        group = self.task.group
        planned = instance.label_before_correction
        axes: Mapping[str, str] = told.axes
        if group and group.labels:
            planned = group.labels[self._plan.member(slot)]
        if slot < self._plan.planned:
            planned = self._plan.label(slot)
            turn = self._plan.turn(slot - place % self._size)
            axes = cell(self.task.instances.axes, turn, self._data.random_seed)
        return SlotCall(
            slot=slot,
            key=instance.key,
            label=planned,
            member=self._plan.member(slot),
            axes=axes,
            seed=origin,
        )

    def _seed(self, instance: Instance, index: int) -> Seed | None:
        told = instance.provenance
        offset, position, line = -1, index, 0
        if told.seed_source == "corpus":
            if self._corpus is None or not len(self._corpus):
                return None
            line = self._corpus.read(index)[0]
        elif (found := self._audit.seeds.get(hash(told.seed))) is None:
            return None
        else:
            offset, position = found
        context = Context(index=0, text=told.context, axes=told.context_axes)
        return Seed(
            index=index,
            call=SeedCall(index=0, context=context, axes=told.seed_axes),
            first_index=0,
            offset=offset,
            position=position,
            notes=(),
            wasted=Usage(),
            line=line,
        )

    def _laid_out(
        self,
        row: Mapping[str, Any],
        instance: Instance,
        call: SlotCall,
        offsets: Sequence[int],
        *,
        judged: bool,
    ) -> Iterator[str]:
        line = to_line(row)
        closest: list[str] | None = None
        for offset in offsets:
            try:
                expected = self._expected(instance, call, offset, judged=judged)
            except (ParseError, ChatError, LookupError, ValueError):
                continue
            if expected == line:
                return
            found = list(_differences(row, orjson.loads(expected)))
            if closest is None or len(found) < len(closest):
                closest = found
        if closest is None:
            yield "no answer to its instance call can be read"
        else:
            yield "; ".join(closest) or "its parts stand in another order than a run writes them"

    def _expected(self, instance: Instance, call: SlotCall, offset: int, *, judged: bool) -> bytes:
        rows, told = self._rows, instance.provenance
        assert rows is not None
        draft = rows.draft(offset)
        planned, fields = rows.label(call, draft.outputs), rows.fields(call, draft.outputs)
        said = [rows.task.reading(fields, planned, vote.label) for vote in told.votes]
        decision = decide(planned, said, self._data.correction.votes if judged else 0)
        made = rows.instance(call, draft, fields, told.votes, decision)
        # The version in task.toml may be raised without a change of what is sent.
        provenance = replace(made.provenance, task_version=told.task_version)
        return to_line(flat(replace(made, provenance=provenance)))

    # ---- without it

    def _without_task(
        self, instance: Instance, offsets: Sequence[int], *, judged: bool
    ) -> Iterator[str]:
        told, planned = instance.provenance, instance.label_before_correction
        elsewhere = {told.seed, *told.axes.values(), *told.seed_axes.values()}
        texts = {name: text for name, text in instance.fields.items() if text not in elsewhere}
        texts["provenance.explanation"] = told.explanation
        if planned in self._labels:
            said = [vote.label for vote in told.votes]
            wanted = decide(planned, said, self._data.correction.votes if judged else 0)
            if (told.outcome, instance.label) != wanted:
                found = f"{told.outcome}, {_short(instance.label)}"
                yield f"label is {found}, and by its votes {wanted[0]}, {_short(wanted[1])}"
        else:
            texts["label_before_correction"] = planned
        least: list[str] | None = None
        for offset in offsets:
            missing = [name for name, text in texts.items() if not self._holds(offset, text)]
            if least is None or len(missing) < len(least):
                least = missing
        for name in least or ():
            yield f"{name} {_short(texts[name])} is not in the answer to its instance call"

    def _holds(self, offset: int, text: str) -> bool:
        """Is this one of the outputs of an answer?"""
        body = self._audit.journal.read_answer(offset)
        try:
            said = answer_text(decode_completion(body, key="", offset=offset))
        except (ParseError, ChatError):
            return False
        try:
            values = read(said, _ANY).values()
        except ParseError:
            return text in said
        return any(_plain(text) == _plain(value) for value in values)


def _plain(value: str | Sequence[str]) -> str:
    return " ".join((value if isinstance(value, str) else " ".join(value)).split())


def _material(corpus: Corpus | None) -> Material:
    def no_text(index: int) -> str:
        raise LookupError(index)

    return Material(corpus_text=corpus.text if corpus else no_text, objection=lambda _text: None)


def _plan_of(task: Task, data: Data, audit: Audit) -> RowPlan:
    checkpoint = audit.standing.checkpoint
    state = checkpoint.plan if checkpoint else RowPlanState()
    grouping = Grouping()
    if task.group:
        grouping = Grouping(size=task.group.size, whole=task.group.whole, labels=task.group.labels)
    return RowPlan(task.classes, data.random_seed, state, grouping)


def _differences(row: Mapping[str, Any], expected: Mapping[str, Any]) -> Iterator[str]:
    """What is other than it should be, named and shown."""
    for name in dict.fromkeys((*expected, *row)):
        found, wanted = row.get(name), expected.get(name)
        if found == wanted:
            continue
        if name == "provenance" and isinstance(found, Mapping) and isinstance(wanted, Mapping):
            parts = [part for part in {**wanted, **found} if found.get(part) != wanted.get(part)]
            yield "provenance is not what the journal says: " + ", ".join(parts)
        else:
            yield f"{name} is {_short(found)}, and by the journal {_short(wanted)}"


def _short(value: Any) -> str:  # noqa: ANN401
    text = orjson.dumps(value).decode()
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "…"
