"""The first two ordered points: contexts and seeds pass in key order, and are made distinct there.

Calls are sent and come back in any order; what they bring is looked at in the order of their
index, so which of two equal seeds is kept never depends on the network.
"""

from math import ceil

from msgspec import Struct

from targen_async.config import Data
from targen_async.control import Demand
from targen_async.distinct import DistinctGate, normalised
from targen_async.errors import Starved
from targen_async.journal import NEEDS_CALL
from targen_async.pipeline import Incoming, Send
from targen_async.plan import cell, context_key, seed_key
from targen_async.records import (
    Context,
    ContextAnswer,
    ContextCall,
    Failure,
    Note,
    Rejection,
    Seed,
    SeedAnswer,
    SeedCall,
    StageName,
    Usage,
    add_usage,
)
from targen_async.rows import Rows
from targen_async.taskspec import Words
from targen_async.validators import UNFIT

MAX_PER_CALL = 10_000
"""Texts of one seed call that are looked at; also the stride of seed ids."""
BARREN_CALLS = 25
"""So many answers with seeds in a row without a new one stop the run."""


class SeedStart(Struct, frozen=True, kw_only=True):
    """Where the seeds of a resumed run begin: at a call, with the index of its first seed."""

    call: int = 0
    index: int = 0


def text_problem(text: str, words: Words) -> str | None:
    """Why a context or a seed cannot be used, or None."""
    least, most = words
    count = len(text.split())
    if not least <= count <= most:
        return f"{count} words, wanted {least} to {most}"
    unfit = UNFIT.search(text)
    return f"has the character U+{ord(unfit[0]):04X}" if unfit else None


def _refusal(stage: StageName, key: str, text: str, problem: str | None) -> Rejection:
    """Why a text is not passed on: its problem, or else that there was one like it before."""
    return Rejection(
        key=key,
        stage=stage,
        reason="invalid" if problem else "duplicate",
        detail=problem or "an earlier one reads the same",
        text=text,
    )


class Contexts:
    """Asks for contexts, and accepts them in order until there are enough."""

    def __init__(self, rows: Rows, data: Data, demand: Demand) -> None:
        self._rows = rows
        self._spec = rows.task.contexts
        self._data = data
        self._demand = demand
        self._most_calls = 3 * ceil(data.contexts / self._spec.per_call) + 10
        self.accepted = 0
        self.notes: list[Note] = []
        """What was refused since the last context that was passed on."""
        self.wasted = Usage()
        """Likewise, the tokens of answers that were of no use."""
        self.shortfall = 0
        """How many contexts fewer than asked for the run has to live with."""

    async def calls(self, _incoming: Incoming, send: Send) -> None:
        index = 0
        while index < self._most_calls and await self._demand.next_call():
            axes = cell(self._spec.axes, index, self._data.random_seed)
            await send(ContextCall(index=index, axes=axes))
            index += 1

    async def point(self, incoming: Incoming, send: Send) -> None:
        window: dict[int, ContextAnswer] = {}
        seen: set[str] = set()
        due = 0
        async for answer in incoming:
            window[answer.call.index] = answer
            while due in window:
                answer = window.pop(due)
                self.wasted = add_usage(self.wasted, answer.wasted)
                fresh = self._fresh(answer, seen)
                self._demand.settle(len(fresh))
                for text in fresh:
                    await send(
                        Context(
                            index=self.accepted,
                            text=text,
                            axes=answer.call.axes,
                            notes=tuple(self.notes),
                            wasted=self.wasted,
                        )
                    )
                    self.notes, self.wasted = [], Usage()
                    self.accepted += 1
                    if self.accepted == self._data.contexts:
                        self._demand.close()
                        return
                due += 1
                if due == self._most_calls:
                    self._run_short()
                    return

    def _fresh(self, answer: ContextAnswer, seen: set[str]) -> list[str]:
        if answer.failure is not None:
            self.notes.append(answer.failure)
            return []
        fresh: list[str] = []
        for position, text in enumerate(self._rows.contexts(answer.offset)):
            problem = text_problem(text, self._spec.words)
            same = normalised(text)
            if problem is None and same not in seen:
                seen.add(same)
                fresh.append(text)
                continue
            key = f"{context_key(self._rows.task.name, answer.call.index)}/{position}"
            self.notes.append(_refusal("contexts", key, text, problem))
        return fresh

    def _run_short(self) -> None:
        self.shortfall = self._data.contexts - self.accepted
        self._demand.close()
        if not self.accepted:
            last = self.notes[-1] if self.notes else None
            failed = last if isinstance(last, Failure) else None
            answered = failed is None or failed.text is not None
            raise Starved(
                f"{self._most_calls} questions for contexts"
                + (", each put up to three times," if answered else "")
                + " brought none that can be used"
                + (f" (the last: {failed.message})" if failed else "")
                + (
                    "; look at `targen render` and at what the model answers in failures.jsonl"
                    if answered
                    else "; see to the endpoint, and start again with a new --out"
                )
            )


class _Barren:
    """Answers with seeds that brought nothing new, one after another. Questions that failed are
    counted where they are asked."""

    def __init__(self) -> None:
        self._begin()

    def _begin(self) -> None:
        self._answers = self._repeated = self._unfit = 0
        self._problem = ""

    def text(self, problem: str | None) -> None:
        """A text is not passed on: its problem, or else that there was one like it before."""
        if problem is None:
            self._repeated += 1
        else:
            self._unfit += 1
            self._problem = problem

    def answer(self, failure: Failure | None, *, fresh: bool) -> None:
        """Raises Starved where there were too many."""
        if fresh:
            self._begin()
        elif failure is None or failure.kind == NEEDS_CALL:
            self._answers += 1
        if self._answers < BARREN_CALLS:
            return
        brought = f"{BARREN_CALLS} questions for seeds in a row brought nothing"
        if self._repeated > self._unfit:
            raise Starved(
                f"{brought} new: the model repeats itself; ask for more contexts (--contexts) or "
                "with a higher --temperature, in a new --out"
            )
        why = f"the last text: {self._problem}" if self._unfit else "the lists are empty"
        raise Starved(
            f"{brought} that can be used ({why}); read rejected.jsonl, then mend the task's "
            "template for seeds or choose another model"
        )


class Seeds:
    """Asks contexts for seeds in rounds, no further ahead than rows are planned."""

    def __init__(
        self,
        rows: Rows,
        data: Data,
        gate: DistinctGate,
        demand: Demand,
        start: SeedStart,
    ) -> None:
        self._rows = rows
        self._spec = rows.task.seeds
        self._data = data
        self._gate = gate
        self._demand = demand
        self._start = start
        self._barren = _Barren()
        self.notes: list[Note] = []
        """What was refused since the last seed that was passed on."""
        self.wasted = Usage()
        """Likewise, the tokens of answers that were of no use."""

    async def calls(self, incoming: Incoming, send: Send) -> None:
        contexts: list[Context] = []
        index = self._start.call
        async for context in incoming:
            contexts.append(context)
            if context.index == index:
                if not await self._demand.next_call():
                    return
                await send(self._call(index, context))
                index += 1
        while contexts and await self._demand.next_call():
            context = contexts[index % len(contexts)]
            await send(self._call(index, context))
            index += 1

    def _call(self, index: int, context: Context) -> SeedCall:
        axes = cell(self._spec.axes, index, self._data.random_seed)
        return SeedCall(index=index, context=context, axes=axes)

    async def point(self, incoming: Incoming, send: Send) -> None:
        window: dict[int, SeedAnswer] = {}
        due = self._start.call
        made = self._start.index
        async for answer in incoming:
            window[answer.call.index] = answer
            while due in window:
                answer = window.pop(due)
                due += 1
                first = made
                if answer.call.index == answer.call.context.index:
                    self.notes.extend(answer.call.context.notes)
                    self.wasted = add_usage(self.wasted, answer.call.context.wasted)
                self.wasted = add_usage(self.wasted, answer.wasted)
                positions = self._fresh(answer)
                self._demand.settle(len(positions))
                for position in positions:
                    await send(
                        Seed(
                            index=made,
                            call=answer.call,
                            first_index=first,
                            offset=answer.offset,
                            position=position,
                            notes=tuple(self.notes),
                            wasted=self.wasted,
                        )
                    )
                    self.notes, self.wasted = [], Usage()
                    made += 1
                self._barren.answer(answer.failure, fresh=bool(positions))

    def _fresh(self, answer: SeedAnswer) -> list[int]:
        """Positions of the usable new seeds of an answer."""
        if answer.failure is not None:
            self.notes.append(answer.failure)
            return []
        positions: list[int] = []
        texts = self._rows.seeds(answer.offset)[:MAX_PER_CALL]
        for position, text in enumerate(texts):
            problem = text_problem(text, self._spec.words) or self._rows.objection(text)
            id_ = answer.call.index * MAX_PER_CALL + position
            if problem is None and self._gate.new_seed(id_, text):
                positions.append(position)
                continue
            self._barren.text(problem)
            key = f"{seed_key(self._rows.task.name, answer.call.index)}/{position}"
            self.notes.append(_refusal("seeds", key, text, problem))
        return positions
