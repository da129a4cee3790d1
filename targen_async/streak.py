"""Questions of a stage that fail one after another: when that ends a run, and what helps."""

from targen_async.chat.thinking import LEAST_ROOM
from targen_async.errors import Starved
from targen_async.records import Failure, StageName

MOST_FAILED = 25
"""So many questions of a stage in a row without an answer that can be used stop the run."""
_ASKED_FOR: dict[StageName, str] = {
    "contexts": "contexts",
    "seeds": "seeds",
    "instances": "rows",
    "correction": "judgements",
}


class Streaks:
    """Counts what is asked in this start, and not what the journal knows to have failed: a start
    after the mend goes on."""

    def __init__(self) -> None:
        self._failed: dict[StageName, int] = {}

    def end(self, stage: StageName) -> None:
        """A question was answered."""
        self._failed[stage] = 0

    def fail(self, stage: StageName, failure: Failure) -> Starved | None:
        """A question failed: what to stop the run with, if it is to stop."""
        if stage == "correction" and failure.text is not None:
            # The row goes to review, and the plan says when too many do.
            return None
        self._failed[stage] = self._failed.get(stage, 0) + 1
        if self._failed[stage] < MOST_FAILED:
            return None
        return Starved(
            f"{MOST_FAILED} questions for {_ASKED_FOR.get(stage, stage)} in a row failed, the last "
            f"as `{failure.kind}`: {failure.message}; {_mend(failure)}"
        )


def _mend(failure: Failure) -> str:
    if failure.text is None:
        return (
            "see to the endpoint, and start the same command again; `targen retry` then asks again "
            "for rows and judgements that failed"
        )
    if failure.kind == "truncated":
        return (
            "give answers more room: start the same command again with --thinking-tokens "
            f"{LEAST_ROOM}, or raise max_tokens in the task"
        )
    if failure.kind == "refused":
        return (
            "choose another model, which wants a new --out, or put the task's templates in other "
            "words"
        )
    return (
        "what it says is in failures.jsonl: choose another model, which wants a new --out, or mend "
        "the task's templates"
    )
