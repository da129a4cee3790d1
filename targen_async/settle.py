"""What becomes of a judged row, as far as the row itself decides: valid or not, and its label."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from targen_async.records import Failure, Judged, Outcome, Reason, SlotCall, Usage, Vote
from targen_async.rows import Rows, decide, flat, share

OPEN_LABEL = "answer"
"""What transitions are counted under where the label is open."""


class Settled(Struct, frozen=True, kw_only=True, gc=False):
    """A row before quotas and the distinct gate. `reason`: why it is no use; None: it is."""

    call: SlotCall
    row: Mapping[str, Any]
    """As it stands on disk."""
    quota_class: str
    texts: list[str]
    """What is compared between rows."""
    usage: Usage
    failures: tuple[Failure, ...]
    """Judgements that failed."""
    transition: tuple[str, str] | None
    """Label before correction, and what came of it; None where the row was not valid."""
    reason: Reason | None = None
    detail: str = ""


def settle(rows: Rows, judged: Judged, voters: int) -> Settled:
    """Read a row and its votes back from the journal and decide its label."""
    answer, call = judged.answer, judged.answer.call
    draft = rows.draft(answer.offset)
    result, outputs = draft.result, draft.outputs
    votes: list[Vote] = []
    failures: list[Failure] = []
    for ballot in judged.ballots:
        vote = rows.vote(ballot)
        if vote is not None:
            votes.append(vote)
        elif ballot.failure is not None:
            failures.append(replace(ballot.failure, key=call.key))
    planned = rows.label(call, outputs)
    fields = rows.fields(call, outputs)
    said = [rows.task.reading(fields, planned, vote.label) for vote in votes]
    outcome, label = decide(planned, said, voters if judged.ballots else 0)
    reason: Reason | None = None
    detail = ""
    if answer.invalid is not None:
        reason, detail = "invalid", answer.invalid
    elif outcome == "drop":
        reason, detail = "dropped", "the judge finds that no label fits"
    elif outcome == "review":
        named = ", ".join(vote.label for vote in votes) or "nothing"
        reason, detail = "review", f"no majority of {voters}: the judges said {named}"
    return Settled(
        call=call,
        row=flat(rows.instance(call, draft, fields, votes, (outcome, label))),
        quota_class="" if reason else rows.task.class_of(fields, label),
        texts=rows.distinct_texts(call, outputs),
        usage=share(result.usage, rows.task.rows_per_call),
        failures=tuple(failures),
        transition=None if answer.invalid else _transition(rows, planned, outcome, label),
        reason=reason,
        detail=detail,
    )


def _transition(rows: Rows, planned: str, outcome: Outcome, label: str) -> tuple[str, str]:
    if rows.task.answer is None:
        return planned, label if outcome in ("keep", "relabel") else outcome
    return OPEN_LABEL, {"keep": "kept", "relabel": "changed"}.get(outcome, outcome)


def settle_together(rows: Rows, settled: Sequence[Settled]) -> list[Settled]:
    """Twins: what one of them is refused for costs the other too, and so do labels that clash."""
    first = next((one for one in settled if one.reason), None)
    if first is not None:
        detail = f"its twin {first.call.key} was refused: {first.reason}"
        return [one if one.reason else _parted(one, detail) for one in settled]
    group = rows.task.group
    labels = [one.row["label"] for one in settled]
    wanted = group.labels if group and group.labels else labels[:1] * len(labels)
    if Counter(labels) == Counter(wanted):
        return list(settled)
    detail = f"the judge's labels do not go together: {', '.join(labels)}"
    return [_parted(one, detail) for one in settled]


def _parted(one: Settled, detail: str) -> Settled:
    return replace(one, reason="twin", detail=detail)
