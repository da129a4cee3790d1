"""The journalled calls before the stream opens: which dialect does the endpoint speak?

One call where everything is understood. Otherwise the endpoint's own words decide what the next
one leaves out; each call's outcome is in the journal, so that a resumed run asks nothing.
"""

import re
from collections.abc import Callable, Iterator
from hashlib import blake2b
from typing import Any, Protocol, get_args

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from targen_async.ask import Asker, memo_of
from targen_async.chat.thinking import LEAST_ROOM
from targen_async.chat.wire import OPENAI, Dialect, SchemaKind, cut_in_thought, request_fields
from targen_async.config import SIMULATED_MODEL, Data
from targen_async.errors import RunStopped
from targen_async.journal import NO_SCHEMA
from targen_async.parse import list_form
from targen_async.records import ChatRequest, ChatResult, Failure, Message

# Wide enough for a model that thinks a little before it speaks.
_MAX_TOKENS = 512
# A greeting takes few thoughts, a task more.
_ROOM_PER_THOUGHT = 4
_ROOM_STEP = 1024
_MOST_ROOM = 32_768
_MOST_CALLS = 12
_SYSTEM = "You are polite."
# In prose this is no JSON: a model that gives JSON all the same was held to the schema.
_PROMPT = "Greet me in one short sentence."
_FORM = list_form("words")
_OPTIONAL = ("stream_options", "temperature", "top_p", "seed", "stop")
_LIMITS = ("max_tokens", "max_completion_tokens")
_SCHEMA = re.compile(r"response_format|json_schema|json_object|\bschema\b", re.I)
_SYSTEM_ROLE = re.compile(
    r"\bsystem\b.{0,40}\b(?:role|message|prompt)|\brole\b.{0,60}\bsystem\b|roles must alternate",
    re.I,
)
_NOT_KNOWN = re.compile(
    r"unsupported|not supported|not support|unrecogni|unknown|unexpected|extra|not permitted"
    r"|not allowed|instead|deprecated|no longer",
    re.I,
)
_TOLD = re.compile(r"\(HTTP \d+\)")


class Speaker(Protocol):
    """The client whose dialect is to be fixed, which the asker asks."""

    dialect: Dialect

    @property
    def stream(self) -> bool: ...


class Probed(Struct, frozen=True, kw_only=True):
    """What the endpoint can do."""

    dialect: Dialect
    model: str
    """As served."""
    thinking_tokens: int = 0
    """Room for thoughts that each call should have; 0 where it does not think, or where it is
    configured how much."""

    @property
    def plain(self) -> bool:
        """It takes no JSON schema: answers are asked for in words and read with tolerance."""
        return self.dialect.plain

    @property
    def simulated(self) -> bool:
        return self.model == SIMULATED_MODEL

    @property
    def notes(self) -> tuple[str, ...]:
        """What a person should know: one line for each thing the endpoint does not take."""
        lines = [f"the endpoint does not take `{name}`: left out" for name in sorted(_wanted(self))]
        if self.plain:
            lines.append("the endpoint takes no JSON schema: answers are asked for in words")
        if self.dialect.system == "user":
            lines.append("the endpoint takes no system message: its text goes into the user's")
        if self.thinking_tokens:
            lines.append(
                f"the model thinks before it answers: {self.thinking_tokens:,} tokens are added to "
                "max_tokens in each call; --thinking-tokens sets another number"
            )
        return tuple(lines)


def _wanted(probed: Probed) -> frozenset[str]:
    """Of what is left out, that which decides what the model says."""
    return probed.dialect.omit - {"stream_options"}


async def probe(
    asker: Asker,
    speaker: Speaker,
    task_name: str,
    data: Data,
    *,
    model: str | None = None,
    role: str = "",
    place: str = "",
    start: Dialect = OPENAI,
    thinking_tokens: int | None = None,
) -> Probed | None:
    """Find the dialect, beginning with `start`, and leave it in `speaker`. None: the run stopped.

    `model` is asked for instead of the generator's; `role` tells endpoints of one run apart
    (`judge`, `fallback`), and `place` the addresses that one of them had: another is asked anew. A
    schema is asked for in the ways of `SchemaKind`, one after another where one is refused; where
    it is taken and ignored (200 and prose), in words. Fields that a refusal names are left out, or
    called by their other name. `thinking_tokens`: room for thoughts, as configured. An answer that
    was cut in thought is asked for once more, with room. Raises RunStopped when even the plain call
    is refused.
    """
    search = _Search(start, stream=speaker.stream)
    told = [role] if role else []
    if place:
        told.append(blake2b(place.encode(), digest_size=4).hexdigest())
    if speaker.stream:
        told.append("stream")

    def question(room: int) -> ChatRequest:
        key = f"{task_name}/probe"
        return _question(key, data, model or data.model, told, search.dialect, room)

    refused: list[tuple[ChatRequest, Failure]] = []
    served = await _served(asker, speaker, search, lambda: question(thinking_tokens or 0), refused)
    if served is None:
        return None
    found = _room_for(served)
    if cut_in_thought(served):
        told.append("room")
        asked = question(thinking_tokens or LEAST_ROOM)
        answer = await asker.answer("probe", asked, bury=False)
        if answer is None:
            return None
        if isinstance(answer, ChatResult):
            served = answer
            found = _room_for(served)
        else:
            found = 0
            if not asker.offline:
                refused.append((asked, answer))
    if not search.dialect.plain and not _obeys(served):
        search.dialect = replace(search.dialect, schema="plain")
    speaker.dialect = search.dialect
    for asked, failure in refused:
        # Remembered only now: an endpoint that refused them all may be mended, and is asked again.
        if failure.kind != NO_SCHEMA:
            asker.bury(asked, replace(failure, kind=NO_SCHEMA))
    room = found if thinking_tokens is None else 0
    return Probed(dialect=search.dialect, model=served.model, thinking_tokens=room)


async def _served(
    asker: Asker,
    speaker: Speaker,
    search: "_Search",
    question: Callable[[], ChatRequest],
    refused: list[tuple[ChatRequest, Failure]],
) -> ChatResult | None:
    """Ask in one dialect after another until one is answered; the others go into `refused`."""
    while True:
        speaker.dialect = search.dialect
        asked = question()
        answer = await asker.answer("probe", asked, bury=False)
        if answer is None or isinstance(answer, ChatResult):
            return answer
        refused.append((asked, answer))
        if len(refused) == _MOST_CALLS or not search.learn(asked, answer.message):
            raise RunStopped(
                f"the endpoint refuses the simplest call: {answer.message}; check --base-url "
                "and start again, or check --model (another model wants a new --out)"
            )


def _room_for(answer: ChatResult) -> int:
    """What calls should have beside their answers, by what this one thought."""
    thought = answer.thought_tokens
    if cut_in_thought(answer):
        thought = max(thought, answer.usage.completion_tokens if answer.usage else 0, _MAX_TOKENS)
    if not thought:
        return 0
    wanted = -(-_ROOM_PER_THOUGHT * thought // _ROOM_STEP) * _ROOM_STEP
    return min(max(wanted, LEAST_ROOM), _MOST_ROOM)


def _question(
    key: str, data: Data, model: str, told: list[str], dialect: Dialect, room: int
) -> ChatRequest:
    """A call as the run will make them. Its key names whom it is put to (`told`) and the dialect,
    as its memo must differ; `room` is no part of it."""
    parts = list(told)
    if dialect.schema != OPENAI.schema:
        parts.append(dialect.schema)
    if dialect.max_tokens_field != OPENAI.max_tokens_field:
        parts.append(dialect.max_tokens_field)
    if dialect.system != OPENAI.system:
        parts.append("no_system")
    parts += [f"no_{name}" for name in sorted(dialect.omit)]
    request = ChatRequest(
        key="-".join((key, *parts)),
        model=model,
        messages=(
            Message(role="system", content=_SYSTEM),
            Message(role="user", content=_PROMPT),
        ),
        # Models that take one temperature only take 1: zero shows it.
        temperature=0.0,
        top_p=data.top_p,
        max_tokens=_MAX_TOKENS,
        seed=0,
        schema_name=None if dialect.plain else f"{key.partition('/')[0]}-probe",
        json_schema=None if dialect.plain else _FORM.schema,
    )
    return replace(request, memo=memo_of(request), max_tokens=_MAX_TOKENS + room)


class _Search:
    """From one dialect to the next, by what the endpoint said of the last."""

    def __init__(self, start: Dialect, *, stream: bool) -> None:
        self.dialect = start
        self._stream = stream
        self._kinds: set[SchemaKind] = {start.schema}
        self._limits = {start.max_tokens_field}

    def learn(self, asked: ChatRequest, message: str) -> bool:
        """Change the dialect after a refusal; False where nothing is left to change.

        What was named first is what was stumbled over first. A refusal that names nothing is taken
        to be about the schema, which is what servers lack most often.
        """
        told = _TOLD.search(message)
        # The address before it may hold any word.
        said = message[told.end() :] if told else ""
        for _, name in sorted(self._named(asked, said)):
            if name in _OPTIONAL:
                self.dialect = replace(self.dialect, omit=self.dialect.omit | {name})
                return True
            if name == "system":
                self.dialect = replace(self.dialect, system="user")
                return True
            if name in _LIMITS:
                self.dialect = replace(self.dialect, max_tokens_field=_other(name))
                self._limits.add(self.dialect.max_tokens_field)
                return True
            break
        for kind in get_args(SchemaKind):
            if kind not in self._kinds:
                self._kinds.add(kind)
                self.dialect = replace(self.dialect, schema=kind)
                return True
        return False

    def _named(self, asked: ChatRequest, said: str) -> Iterator[tuple[int, str]]:
        """What we sent and `said` names, with the place where it does."""
        sent = request_fields(asked, self.dialect, stream=self._stream)
        for name in (*_OPTIONAL, *_LIMITS):
            found = re.search(rf"(?<![\w-]){name}(?![\w-])", said, re.I)
            if found is None or name not in sent:
                continue
            if name in _OPTIONAL or (_other(name) not in self._limits and _NOT_KNOWN.search(said)):
                yield found.start(), name
        if self.dialect.system == "system" and (found := _SYSTEM_ROLE.search(said)):
            yield found.start(), "system"
        if "response_format" in sent and (found := _SCHEMA.search(said)):
            yield found.start(), "response_format"


def _other(limit: str) -> Any:  # noqa: ANN401
    return _LIMITS[1 - _LIMITS.index(limit)]


def _obeys(answer: ChatResult) -> bool:
    start = answer.text.lstrip()
    if answer.finish_reason == "length" and (not start or start.startswith(("{", "<think>"))):
        return True  # Cut while it thought or wrote JSON; other words show an ignored schema.
    try:
        msgspec.json.decode(answer.text, type=_FORM.type)
    except (msgspec.DecodeError, RecursionError):
        return False
    return True
