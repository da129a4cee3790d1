"""What a run's journal tells of its calls, stage by stage: the ground of an estimate."""

import re
from pathlib import Path

import msgspec
from msgspec import Struct, field

from targen_async.chat.wire import decode_completion
from targen_async.distinct import normalised
from targen_async.errors import ChatError, ParseError
from targen_async.journal import Items, Kind, body_of, frames, parse_intent, plan_key, ticket_of
from targen_async.ledger import Role, role_of
from targen_async.parse import answer_text, list_form, read_list
from targen_async.plan import RowPlanState
from targen_async.points import text_problem
from targen_async.records import ChatResult, StageName, Usage
from targen_async.state import CommitState
from targen_async.tasks import Task

_HALVED = re.compile(r"(?:\.[01])+$")


class Call(Struct, frozen=True, kw_only=True):
    """One call that was served, or may have been."""

    role: Role
    usage: Usage | None
    """None: it is in doubt, or the endpoint reported none."""
    items: int
    """Rows that a call for judgement shows; else 0."""
    again: bool
    """It repeats a question, or puts a part of it."""


class Seen(Struct, kw_only=True):
    """One stage: its calls, and what came of them."""

    calls: list[Call] = field(default_factory=list)
    refused: int = 0
    useful: list[int] = field(default_factory=list)
    """Of questions for contexts or seeds that were answered: how many new texts each brought."""

    @property
    def questions(self) -> int:
        """How many different ones were asked."""
        return sum(not call.again for call in self.calls)


def stage_of(key: str) -> StageName:
    """The stage of a call, by its plan key."""
    place = key.partition("/")[2].partition("@")[0]
    if place.startswith("probe"):
        return "probe"
    return {"c": "contexts", "s": "seeds", "x": "correction"}.get(place[:1], "instances")  # type: ignore[return-value]


class Pilot(Struct, kw_only=True):
    """All of it: the stages, and how the rows were planned and what came of them."""

    stages: dict[StageName, Seen] = field(default_factory=dict)
    plan: RowPlanState = field(default_factory=RowPlanState)

    def stage(self, name: StageName) -> Seen:
        return self.stages.get(name, Seen())


def read_pilot(path: Path, task: Task) -> Pilot:
    """Every stage's calls, of all starts of the run whose journal this is."""
    pilot = Pilot()
    seen = pilot.stages
    keys: dict[int, str] = {}
    answers: dict[int, Usage | None] = {}
    shown: dict[str, int] = {}
    texts: dict[StageName, set[str]] = {"contexts": set(), "seeds": set()}
    for frame in frames(path):
        if frame.kind == Kind.INTENT:
            keys[frame.offset] = parse_intent(frame.payload).key
        elif frame.kind == Kind.ITEMS:
            items = msgspec.msgpack.decode(frame.payload, type=Items)
            shown[items.key] = len(items.rows)
        elif frame.kind == Kind.CHECKPOINT:
            pilot.plan = msgspec.msgpack.decode(frame.payload, type=CommitState).plan
        elif frame.kind == Kind.VOID:
            key = keys.pop(ticket_of(frame.payload))
            seen.setdefault(stage_of(key), Seen()).refused += 1
        elif frame.kind == Kind.ANSWER:
            ticket = ticket_of(frame.payload)
            result = _result(body_of(frame.payload))
            answers[ticket] = result.usage if result else None
            stage = stage_of(keys[ticket])
            if result and stage in texts:
                new = _new_texts(result, stage, task, texts[stage])
                if new is not None:
                    seen.setdefault(stage, Seen()).useful.append(new)
    asked: set[str] = set()
    for ticket, key in keys.items():
        question = plan_key(key)
        again = question in asked or "~" in key or _HALVED.search(question) is not None
        asked.add(question)
        call = Call(
            role=role_of(key), usage=answers.get(ticket), items=shown.get(question, 0), again=again
        )
        seen.setdefault(stage_of(key), Seen()).calls.append(call)
    return pilot


def _result(body: bytes) -> ChatResult | None:
    try:
        return decode_completion(body, key="", offset=-1)
    except (ParseError, ChatError):
        return None


def _new_texts(result: ChatResult, stage: StageName, task: Task, known: set[str]) -> int | None:
    """How many texts the run had not yet; None where the answer cannot be read."""
    try:
        texts = read_list(answer_text(result), list_form(stage))
    except ParseError:
        return None
    words = task.contexts.words if stage == "contexts" else task.seeds.words
    new = {normalised(text) for text in texts if text_problem(text, words) is None} - known
    known |= new
    return len(new)
