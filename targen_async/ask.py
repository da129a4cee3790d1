"""Putting one question to a model: the journal answers when it can, else the client."""

import itertools
from collections.abc import Callable
from hashlib import blake2b
from typing import Any

import msgspec
from msgspec import Struct

from targen_async.chat import ChatClient
from targen_async.chat.retry import Drained
from targen_async.chat.wire import decode_completion
from targen_async.control import RunControl
from targen_async.errors import (
    ChatError,
    Denied,
    ParseError,
    Rejected,
    RunStopped,
    ServerFault,
    UserError,
)
from targen_async.journal import NEEDS_CALL, NO_SCHEMA, Dead, Items, Journal, Kind, body_of
from targen_async.ledger import Ledger
from targen_async.parse import declines
from targen_async.records import ChatRequest, ChatResult, Failure, StageName, Usage, add_usage
from targen_async.stats import Stats
from targen_async.streak import Streaks

ASKS = 3
"""A question is put at most this often: once, and twice more when the answer is of no use."""
CALL_FAULTS = ("rejected", "exhausted", NEEDS_CALL)
"""Failures of the call itself: asking again in other words would not help."""
RETRIED: tuple[StageName, ...] = ("instances", "correction")
"""Stages whose failures a retry reopens. Contexts and seeds that failed were made up for by others,
and rows hang on them by number."""
REPEATED_TEXT = 200
"""Two useless answers to one question that are equal and at least this long are no chance."""
FAILURE_TEXT = 4000
"""Characters of a useless answer that failures.jsonl shows; the journal has all of it."""


class Asked(Struct, frozen=True, gc=False):
    """An answer that could be read: `value` is what `parse` made of it."""

    value: Any
    result: ChatResult
    wasted: Usage
    """Of earlier answers to the same question that were of no use."""


class Refused(Struct, frozen=True):
    failure: Failure
    wasted: Usage


class Asker:
    """Puts one question: from the journal when it knows the answer, else to the client."""

    def __init__(
        self,
        journal: Journal,
        ledger: Ledger,
        memos: dict[bytes, int],
        control: RunControl,
        stats: Stats,
        *,
        retry_before: int = 0,
        generation_at: int = 0,
        offline: bool = False,
    ) -> None:
        self.client: ChatClient | None = None
        """Who is asked; None: nobody yet."""
        self.judge: ChatClient | None = None
        """Who is asked for judgements."""
        self.fallback: ChatClient | None = None
        """Who is asked in the end where `client` refused; None: nobody else is."""
        self._retry_before = retry_before
        self._generation_at = generation_at
        self.offline = offline
        """Nothing is sent: there is what the journal holds."""
        self._journal = journal
        self._ledger = ledger
        self._memos = memos
        self._control = control
        self._stats = stats
        self._streaks = Streaks()

    async def ask(
        self,
        stage: StageName,
        question: Callable[[int], ChatRequest],
        parse: Callable[[ChatResult], Any],
        asks: int = ASKS,
    ) -> Asked | Refused | None:
        """Ask until an answer can be read, at most `asks` times; None: no new calls are taken.

        `question`: the number-th asking, with its memo.
        A call that failed for good is journalled, so that a resumed run does not repeat it. What
        was asked before a retry does not count, and what the journal knows is always looked at.
        Where the model refused, the last asking goes to the fallback.
        """
        other = self.fallback if self._whom(stage) is self.client else None
        refused = False
        wasted = Usage()
        failure: Failure | None = None
        said = ""
        counted, sent = 0, False
        for number in itertools.count():
            request = question(number)
            known = self._memos.get(request.memo)
            old = known is not None and known < self._retry_before and stage in RETRIED
            if counted >= asks and known is None:
                break
            counted += not old
            sent = known is None and not self.offline
            last = other if refused and counted == asks else None
            answer = await self.answer(stage, request, client=last)
            if answer is None:
                return None
            if isinstance(answer, ChatResult):
                try:
                    asked = Asked(parse(answer), answer, wasted)
                    if sent:
                        self._streaks.end(stage)
                    return asked
                except ParseError as error:
                    wasted = add_usage(wasted, answer.usage)
                    failure = _failure(stage, request, error.kind, str(error), number, answer.text)
                    refused |= error.kind == "refused" or declines(answer.text)
            elif answer.kind in CALL_FAULTS:
                return self._failed(stage, answer, wasted, counts=sent and asks == ASKS)
            else:
                failure = answer
            self._stats.stage(stage).useless += 1
            if isinstance(answer, ChatResult):
                repeated = len(answer.text) >= REPEATED_TEXT and answer.text == said
                if repeated and not old and not (refused and other):
                    break  # It takes neither seed nor temperature: a third would be the same.
                said = answer.text
        assert failure is not None
        # What is not put again in full (a block that can be halved) is not lost yet.
        return self._failed(stage, failure, wasted, counts=sent and asks == ASKS)

    def _failed(
        self, stage: StageName, failure: Failure, wasted: Usage, *, counts: bool
    ) -> Refused:
        if counts and (error := self._streaks.fail(stage, failure)):
            self._control.fail(error)
        return Refused(failure, wasted)

    async def answer(
        self,
        stage: StageName,
        request: ChatRequest,
        *,
        bury: bool = True,
        client: ChatClient | None = None,
    ) -> ChatResult | Failure | None:
        """One asking: the answer or why there is none; None: no new calls are taken.

        With `bury` a call that failed for good is remembered as such, and never sent again.
        `client`: who is asked in place of the stage's own.
        """
        known = self._remembered(stage, request)
        if known is not None:
            return known
        if self.offline:
            message = "the journal does not hold it"
            failure = _failure(stage, request, NEEDS_CALL, message, 0, None)
            if bury and stage in RETRIED:
                self.bury(request, failure)
            return failure
        control, ahead = self._control, stage in ("contexts", "seeds")
        if not (control.calm or await control.may_send(ahead=ahead)):
            return None
        counters = self._stats.stage(stage)
        counters.sent += 1
        try:
            client = client or self._whom(stage)
            assert client is not None
            result = await client.complete(request)
        except ParseError as error:
            return _failure(stage, request, error.kind, str(error), 0, None)
        except (Rejected, ServerFault) as error:
            if isinstance(error, Rejected) and error.status is None:
                # Refused at our own door: a limit that can be raised is no fact about the request.
                self._control.fail(UserError(str(error)))
                return None
            kind = "rejected" if isinstance(error, Rejected) else "exhausted"
            failure = _failure(stage, request, kind, str(error), 0, None)
            if bury:
                self.bury(request, failure)
            return failure
        except Drained:
            return None
        except (Denied, RunStopped) as error:
            self._control.fail(error)
            return None
        finally:
            counters.done += 1
        return result

    def _whom(self, stage: StageName) -> ChatClient | None:
        return self.judge if stage == "correction" else self.client

    def show(self, items: Items, request: ChatRequest) -> None:
        """Write down which rows a call for judgement shows, before it is made."""
        if not self.offline and request.memo not in self._memos:
            self._journal.append(Kind.ITEMS, msgspec.msgpack.encode(items))

    def bury(self, request: ChatRequest, failure: Failure) -> None:
        """Write down that `request` failed for good."""
        dead = Dead(memo=request.memo, kind=failure.kind, message=failure.message)
        self._journal.append(Kind.DEAD, msgspec.msgpack.encode(dead))
        self._ledger.dead += failure.kind not in (NO_SCHEMA, NEEDS_CALL)

    def _remembered(self, stage: StageName, request: ChatRequest) -> ChatResult | Failure | None:
        """What the journal holds for this very request; None where it is to be sent."""
        offset = self._memos.pop(request.memo, None)
        if offset is None:
            return None
        frame = self._journal.read(offset)
        if frame.kind == Kind.DEAD:
            if offset < self._retry_before and stage in RETRIED and not self.offline:
                return None
            dead = msgspec.msgpack.decode(frame.payload, type=Dead)
            if dead.kind == NEEDS_CALL and offset < self._generation_at:
                return None
            return _failure(stage, request, dead.kind, dead.message, 0, None)
        try:
            return decode_completion(
                body_of(frame.payload), key=request.key, offset=offset, model=request.model
            )
        except ParseError as error:
            if stage == "probe":
                # What answered was no model's endpoint; it may have been mended.
                return None
            return _failure(stage, request, error.kind, str(error), 0, None)
        except ChatError:
            # An error object under status 200: it was retried at the time, and is again.
            return None


def _failure(
    stage: StageName, request: ChatRequest, kind: str, message: str, number: int, text: str | None
) -> Failure:
    return Failure(
        key=request.key.partition("~")[0],
        stage=stage,
        kind=kind,
        message=message,
        attempts=number + 1,
        text=None if text is None else text[:FAILURE_TEXT],
    )


def memo_of(request: ChatRequest) -> bytes:
    """Digest (16 bytes) of the plan key with all that is sent.

    Two equal prompts of two plan keys stay two calls; address, key and limits have no part in it,
    and of two dialects the question under a schema is the one that counts.
    """
    return blake2b(msgspec.msgpack.encode(request), digest_size=16).digest()
