"""What the journal's answers say: seeds, instances, judgements and the finished row.

Everything here is read back by offset, so a row on disk is a pure function of the journal.
"""

from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

from msgspec import Struct, to_builtins
from msgspec.structs import replace

from targen_async.chat.wire import decode_completion
from targen_async.config import SIMULATED_MODEL, Data
from targen_async.errors import ParseError
from targen_async.journal import Journal
from targen_async.parse import (
    Form,
    Verdict,
    answer_text,
    list_form,
    outputs_form,
    read,
    read_list,
    read_verdicts,
    verdicts_form,
)
from targen_async.records import (
    Ballot,
    ChatResult,
    Instance,
    Outcome,
    Provenance,
    Seed,
    SlotCall,
    Usage,
    Vote,
)
from targen_async.tasks import GOOD, NO_LABEL, Task

EXPLANATION = "explanation"
_CACHED_ANSWERS = 1024
_KEPT_DRAFTS = 2048
"""More than are in flight as a rule; a row whose draft is no longer kept is read again."""


class Forms:
    """The answer forms of a task's four stages."""

    def __init__(self, task: Task) -> None:
        self.contexts = list_form("contexts")
        self.seeds = list_form("seeds")
        self.instances = outputs_form(tuple(task.instances.outputs), task.instances.lists)
        free = task.answer is not None and task.answer.kind == "free"
        self.correction = verdicts_form((GOOD,) if free else tuple(task.labels))


class Material(Struct, frozen=True, kw_only=True):
    """What a run takes from files of the user's: texts to use, and texts to keep out."""

    corpus_text: Callable[[int], str]
    """The text of the index-th seed of a corpus."""
    objection: Callable[[str], str | None]
    """Why a text must stay out, or None."""


class Draft(Struct, frozen=True, gc=False):
    """An instance call's answer, and the outputs in it."""

    result: ChatResult
    outputs: dict[str, str]


class Rows:
    """Reads drafts back from the journal and lays out finished rows."""

    def __init__(
        self, journal: Journal, task: Task, forms: Forms, data: Data, material: Material
    ) -> None:
        self.objection = material.objection
        self._corpus_text = material.corpus_text
        self._journal = journal
        self._generator = data.model
        self._fallback = data.fallback_model
        self._drafts: OrderedDict[int, Draft] = OrderedDict()
        self._judge = data.correction.model or data.model
        self.task = task
        self.forms = forms
        self._verdict_form = forms.correction
        # Seeds of a call and verdicts of a batch are asked for one by one, close together.
        self.seeds = lru_cache(_CACHED_ANSWERS)(self._read_seeds)
        self.judges = lru_cache(_CACHED_ANSWERS)(self._judges)
        self._verdicts = lru_cache(_CACHED_ANSWERS)(self._read_verdicts)
        self._places = lru_cache(_CACHED_ANSWERS)(self._find_places)
        shown = task.correction.show or tuple(task.fields)
        self._shown = tuple(name for name in task.fields if name in shown)
        self._templates = {key: template.digest for key, template in task.templates.items()}

    def result(self, offset: int) -> ChatResult:
        """The generator's answer at `offset`. Raises ParseError when it is no chat completion."""
        return self._result(offset, self._generator)

    def _result(self, offset: int, model: str) -> ChatResult:
        body = self._journal.read_answer(offset)
        return decode_completion(body, key="", offset=offset, model=model)

    def _read_texts(self, offset: int, form: Form) -> list[str]:
        return [text.strip() for text in read_list(answer_text(self.result(offset)), form)]

    def contexts(self, offset: int) -> list[str]:
        return self._read_texts(offset, self.forms.contexts)

    def _read_seeds(self, offset: int) -> list[str]:
        return self._read_texts(offset, self.forms.seeds)

    def seed_text(self, seed: Seed) -> str:
        if seed.line:
            return self._corpus_text(seed.position)
        return self.seeds(seed.offset)[seed.position]

    def draft(self, offset: int) -> Draft:
        """The instance call's answer at `offset`. Raises ParseError."""
        kept = self._drafts.get(offset)
        if kept is None:
            result = self.result(offset)
            kept = Draft(result, self.outputs(result))
        return kept

    def keep(self, draft: Draft) -> None:
        """Have a draft at hand that was read just now: it is wanted again when it is judged and
        when it is committed."""
        # One of the fallback's that bears no name is taken for the generator's when it is read.
        if draft.result.model != self._fallback:
            self._drafts[draft.result.offset] = draft
            if len(self._drafts) > _KEPT_DRAFTS:
                self._drafts.popitem(last=False)

    def outputs(self, result: ChatResult) -> dict[str, str]:
        """The outputs of an instance call. Raises ParseError."""
        value = read(answer_text(result), self.forms.instances)
        return {name: _one_text(getattr(value, name)) for name in self.task.instances.outputs}

    def _read_verdicts(self, offset: int) -> tuple[str, dict[str, Verdict]]:
        result = self._result(offset, self._judge)
        items = read(answer_text(result), self.forms.correction).items
        return result.model, {
            item.id: Verdict(id=item.id, explanation=item.explanation, label=item.label)
            for item in items
        }

    def _judges(self, offset: int, ids: tuple[str, ...]) -> bool:
        """Does the answer at `offset` give a verdict on each of `ids`, and on nothing else?"""
        try:
            read_verdicts(answer_text(self._result(offset, self._judge)), self._verdict_form, ids)
        except ParseError:
            return False
        return True

    def vote(self, ballot: Ballot) -> Vote | None:
        """What a judge said; None where the judgement failed."""
        if ballot.failure is not None:
            return None
        model, verdicts = self._verdicts(ballot.offset)
        verdict = verdicts[ballot.id]
        return Vote(label=verdict.label, explanation=verdict.explanation, model=model)

    # ---- rows

    def label(self, call: SlotCall, outputs: Mapping[str, str]) -> str:
        """The label before correction."""
        answer = self.task.answer
        return outputs[answer.output] if answer else call.label

    def fields(self, call: SlotCall, outputs: Mapping[str, str]) -> dict[str, str]:
        """The row's fields in the task's order; the planned label decides the slots."""
        fields: dict[str, str] = {}
        for name, source, key in self._places(call.label, call.member):
            if source == "output":
                fields[name] = outputs[key]
            elif source == "seed":
                fields[name] = self.seed_text(call.seed)
            else:
                axes = call.axes if name in call.axes else call.seed.call.axes
                fields[name] = axes[name]
        return fields

    def _find_places(self, label: str, member: int) -> list[tuple[str, str, str]]:
        """Of each field: its name, whether it is an output, the seed or an axis, and which one."""
        placed: dict[str, str] = {}
        placement = self.task.placement
        if placement is not None:
            rest = iter(placement.wrong)
            right_slot = placement.slots[list(self.task.labels).index(label)]
            for slot in placement.slots:
                placed[slot] = placement.right if slot == right_slot else next(rest)
        places: list[tuple[str, str, str]] = []
        for name, spec in self.task.fields.items():
            if spec.source in ("seed", "axis"):
                places.append((name, spec.source, name))
            elif spec.source == "output":
                places.append((name, "output", spec.outputs[member] if spec.outputs else name))
            else:
                places.append((name, "output", placed[name]))
        return places

    def faults(self, calls: Sequence[SlotCall], outputs: Mapping[str, str]) -> list[str | None]:
        """Why each of the rows of one call is not valid, or None. Twins stand and fall together."""
        rows = [self.fields(call, outputs) for call in calls]
        found = [
            self.task.objection(row, self.label(call, outputs))
            or self._kept_out({**row, "the label": self.label(call, outputs)})
            for call, row in zip(calls, rows, strict=True)
        ]
        if not any(found) and (reason := self.task.group_objection(rows)):
            found = [reason] * len(calls)
        if self.task.group and self.task.group.whole and (first := next(filter(None, found), None)):
            found = [reason or f"its twin: {first}" for reason in found]
        return found

    def _kept_out(self, row: Mapping[str, str]) -> str | None:
        for name, text in row.items():
            if reason := self.objection(text):
                return f"{name} {reason}"
        return None

    def judged_view(self, call: SlotCall, offset: int, *, shown: bool) -> dict[str, str]:
        """What a judge sees of a row: its fields, and label and explanation for a `shown` judge."""
        outputs = self.draft(offset).outputs
        fields = self.fields(call, outputs)
        view = {name: fields[name] for name in self._shown}
        answer = self.task.answer
        if answer and answer.kind == "free":
            view["answer"] = outputs[answer.output]
        if shown:
            view |= {
                "label": self.label(call, outputs),
                EXPLANATION: outputs.get(EXPLANATION, ""),
            }
        return view

    def distinct_texts(self, call: SlotCall, outputs: Mapping[str, str]) -> list[str]:
        """What is compared between rows; of outputs that differ in a group, the row's own."""
        names = self.task.instances.distinct_on or tuple(
            name for name in outputs if name != EXPLANATION
        )
        others = {
            output
            for spec in self.task.fields.values()
            for member, output in enumerate(spec.outputs)
            if member != call.member
        }
        return [outputs[name] for name in names if name not in others]

    def instance(
        self,
        call: SlotCall,
        draft: Draft,
        fields: Mapping[str, str],
        votes: Sequence[Vote],
        decision: tuple[Outcome, str],
    ) -> Instance:
        outcome, label = decision
        result, outputs = draft.result, draft.outputs
        template = "instances"
        if self.task.instances.template_by:
            by = self.task.instances.template_by
            template += "." + (call.label if by == "label" else call.axes[by])
        asked = () if call.seed.line else ("contexts", "seeds")
        used = (*asked, template, *(("correction",) if votes else ()))
        return Instance(
            key=call.key,
            task=self.task.name,
            label=label,
            label_before_correction=self.label(call, outputs),
            fields=fields,
            provenance=Provenance(
                simulated=result.model == SIMULATED_MODEL,
                outcome=outcome,
                context=call.seed.call.context.text,
                context_axes=call.seed.call.context.axes,
                seed=self.seed_text(call.seed),
                seed_source="corpus" if call.seed.line else "generated",
                seed_line=call.seed.line or None,
                seed_axes=call.seed.call.axes,
                axes=call.axes,
                explanation=outputs.get(EXPLANATION, ""),
                votes=tuple(votes),
                model=result.model,
                task_version=self.task.version,
                templates={name: self._templates[name] for name in used},
                # What a cache held hangs on what else was asked just then: no row tells of it.
                usage=replace(share(result.usage, self.task.rows_per_call), cached_prompt_tokens=0),
            ),
        )


def _one_text(value: str | list[str]) -> str:
    """An output as it stands in a row: a list becomes a line an entry."""
    if isinstance(value, str):
        return value.strip()
    entries = (" ".join(entry.split()) for entry in value)
    return "\n".join(entry for entry in entries if entry)


def share(usage: Usage | None, rows: int) -> Usage:
    """A row's share of a call that wrote several."""
    usage = usage or Usage()
    return Usage(
        prompt_tokens=usage.prompt_tokens // rows,
        completion_tokens=usage.completion_tokens // rows,
        cached_prompt_tokens=usage.cached_prompt_tokens // rows,
    )


def decide(planned: str, said: Sequence[str], voters: int) -> tuple[Outcome, str]:
    """Outcome and label after correction. A strict majority of all `voters` decides.

    keep: it confirms the label; relabel: it names another; drop: it finds that none fits;
    review: there is no majority.
    """
    if voters == 0:
        return "keep", planned
    label, count = Counter(said).most_common(1)[0] if said else ("", 0)
    if 2 * count <= voters:
        return "review", planned
    if label == NO_LABEL:
        return "drop", planned
    return ("keep" if label == planned else "relabel"), label


def flat(instance: Instance) -> dict[str, Any]:
    """A row as it stands on disk: key, fields and labels flat, the audit nested."""
    return {
        "key": instance.key,
        "task": instance.task,
        **instance.fields,
        "label": instance.label,
        "label_before_correction": instance.label_before_correction,
        "provenance": to_builtins(instance.provenance),
    }
