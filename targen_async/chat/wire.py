"""OpenAI's chat completions as bytes: requests out, answers in. No I/O.

The replay of the journal decodes stored answers with the same functions as a live call.
"""

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Annotated, Any, Final, Literal, NamedTuple

import msgspec
import orjson
from msgspec import Meta, Struct

from targen_async.chat.refusals import clean, error_in_answer, load_json
from targen_async.errors import ParseError
from targen_async.records import ChatRequest, ChatResult, Message, Usage

OVERSIZED: Final = b"targen-oversized\n"
"""Put before the stored start of an answer that was longer than we read. No JSON starts so."""
_OVERSIZED_TEXT_BYTES = 16_384
_MOST_LOOKED_AT = 2048
_SHOWN = 80
_THOUGHT = re.compile(r"\s*(?:<(think|thinking|thought|reasoning)>|\[THINK\])")

_LETTERS_PER_TOKEN = 4
_NEARLY_NOTHING = 16
"""Characters: a text that is shorter and was cut says nothing."""

SchemaKind = Literal["json_schema", "json_object", "plain"]


class Dialect(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which of the forms in use an endpoint understands."""

    schema: SchemaKind = "json_schema"
    max_tokens_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    system: Literal["system", "user"] = "system"
    """`user`: the system message's text is put at the head of the user's."""
    omit: frozenset[str] = frozenset()
    """Fields the endpoint refuses: `temperature`, `seed`, `top_p`, `stop` or `stream_options`."""

    @property
    def plain(self) -> bool:
        """It takes no JSON schema: answers are asked for in words and read with tolerance."""
        return self.schema == "plain"


OPENAI = Dialect()


def request_fields(
    request: ChatRequest, dialect: Dialect = OPENAI, *, stream: bool = False
) -> dict[str, object]:
    """The fields of the POST. `key` and `memo` stay here."""
    body: dict[str, object] = {
        "model": request.model,
        "messages": _messages(request.messages, dialect),
        "temperature": request.temperature,
        dialect.max_tokens_field: request.max_tokens,
        "seed": request.seed,
    }
    if request.top_p is not None:
        body["top_p"] = request.top_p
    if request.stop:
        body["stop"] = request.stop
    if request.json_schema is not None and dialect.schema == "json_schema":
        name = request.schema_name or "answer"
        schema = {"name": name, "strict": True, "schema": request.json_schema}
        body["response_format"] = {"type": "json_schema", "json_schema": schema}
    elif request.json_schema is not None and dialect.schema == "json_object":
        body["response_format"] = {"type": "json_object", "schema": request.json_schema}
    if stream:
        body["stream"] = True
        body["stream_options"] = {"include_usage": True}
    for name in dialect.omit:
        body.pop(name, None)
    return body


def _messages(messages: Sequence[Message], dialect: Dialect) -> list[dict[str, str]]:
    if dialect.system == "user" and len(messages) > 1 and messages[0].role == "system":
        system, first, *rest = messages
        first = Message(role=first.role, content=f"{system.content}\n\n{first.content}")
        messages = [first, *rest]
    return [{"role": message.role, "content": message.content} for message in messages]


def encode_request(
    request: ChatRequest, dialect: Dialect = OPENAI, *, stream: bool = False
) -> bytes:
    """The body of the POST."""
    return orjson.dumps(request_fields(request, dialect, stream=stream))


def decode_completion(
    body: bytes,
    key: str,
    offset: int = -1,
    *,
    model: str = "",
    latency_s: float = 0.0,
    url: str = "the endpoint",
    secrets: tuple[str, ...] = (),
) -> ChatResult:
    """Read the body of a 200.

    `model` stands in where the body names none; a missing finish reason is `unknown`. Raises
    ParseError (`malformed`) when the body is no chat completion, and the ChatError that an error
    object sent with a 200 stands for.
    """
    if body.startswith(OVERSIZED):
        start = body[len(OVERSIZED) :][:_OVERSIZED_TEXT_BYTES].decode("utf-8", "replace")
        return ChatResult(
            key=key,
            text=start,
            finish_reason="oversized",
            model=model,
            usage=None,
            offset=offset,
            latency_s=latency_s,
        )
    said = _said_plainly(body) or _said_somehow(body, url, secrets)
    text = _without_thoughts(said.text)
    return ChatResult(
        key=key,
        text=text,
        finish_reason=said.finish_reason or "unknown",
        model=said.model or model,
        usage=said.usage,
        refusal=said.refusal,
        offset=offset,
        latency_s=latency_s,
        thought_tokens=said.thought or _tokens_of(len(said.text) - len(text)),
    )


def decode_usage(body: bytes) -> Usage | None:
    """The `usage` of what `decode_completion` would make of a body. Raises as it does."""
    if body.startswith(OVERSIZED):
        return None
    return (_said_plainly(body) or _said_somehow(body, "", ())).usage


class _Said(NamedTuple):
    """What is read of a completion."""

    text: str
    refusal: str | None
    finish_reason: str | None
    model: str | None
    usage: Usage | None
    thought: int
    """Tokens of what it thought before, beside the text."""


class _Message(Struct, gc=False):
    content: str | None = None
    refusal: str | None = None
    reasoning_content: Any = None
    reasoning: Any = None
    provider_specific_fields: None = None


class _Choice(Struct, gc=False):
    message: _Message
    finish_reason: str | None = None
    error: None = None


_Tokens = Annotated[int, Meta(ge=0, lt=2**53)]


class _Details(Struct, gc=False):
    reasoning_tokens: _Tokens | None = None
    cached_tokens: _Tokens | None = None


class _Counts(Struct, gc=False):
    """A completion's `usage`, under all the names that a count of the prefix cache has."""

    prompt_tokens: _Tokens | None = None
    completion_tokens: _Tokens | None = None
    total_tokens: _Tokens | None = None
    completion_tokens_details: _Details | None = None
    prompt_tokens_details: _Details | None = None
    prompt_cache_hit_tokens: _Tokens | None = None
    cache_read_input_tokens: _Tokens | None = None
    cached_tokens: _Tokens | None = None


class _Completion(Struct, gc=False):
    """A completion as nearly all servers write it. Read so, it takes a third of the time."""

    choices: list[_Choice]
    model: str | None = None
    usage: _Counts | None = None
    error: None = None


_PLAIN = msgspec.json.Decoder(_Completion)
_DETAILS, _COUNTS = _Details.__struct_fields__, _Counts.__struct_fields__


# An answer is read for its usage when it is recorded, and at once again for what it says.
@lru_cache(maxsize=1)
def _said_plainly(body: bytes) -> _Said | None:
    """What a plain completion says; None for one that has to be looked at more closely."""
    try:
        data = _PLAIN.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    if not data.choices:
        return None
    choice, message = data.choices[0], data.choices[0].message
    thought = _thought(data.usage, message.reasoning_content, message.reasoning)
    text, refusal = message.content or "", message.refusal or None
    return _Said(text, refusal, choice.finish_reason, data.model, _usage_of(data.usage), thought)


def _said_somehow(body: bytes, url: str, secrets: tuple[str, ...]) -> _Said:
    """What any completion says, or the error that it holds."""
    choice, data = _first_choice(body, url, secrets)
    message = choice.get("message")
    if not isinstance(message, dict):
        raise ParseError("the answer's first choice holds no message")
    text, refusal = _text_of(message)
    reason, served = choice.get("finish_reason"), data.get("model")
    usage = _counts_of(data.get("usage"))
    return _Said(
        text,
        refusal,
        reason if isinstance(reason, str) else None,
        served if isinstance(served, str) else None,
        _usage_of(usage),
        _thought(usage, message.get("reasoning_content"), message.get("reasoning")),
    )


def cut_in_thought(result: ChatResult) -> bool:
    """Was the answer cut at `max_tokens` before it said anything to speak of?"""
    if result.finish_reason != "length" or result.refusal:
        return False
    return len(result.text.strip()) < _NEARLY_NOTHING or bool(_THOUGHT.match(result.text))


def _thought(usage: _Counts | None, *shown: object) -> int:
    """Tokens as counted, else as many as the thoughts that are shown may be."""
    counted = _reasoning_tokens(usage) if usage else None
    if counted or not any(shown):
        return counted or 0
    return _tokens_of(max(len(text) if isinstance(text, str) else 0 for text in shown))


def _tokens_of(letters: int) -> int:
    return -(-letters // _LETTERS_PER_TOKEN)


def _first_choice(
    body: bytes, url: str, secrets: tuple[str, ...]
) -> tuple[dict[str, object], dict[str, object]]:
    try:
        data = load_json(body)
    except (ValueError, RecursionError) as error:
        came = _beginning(body, secrets)
        raise ParseError(f"{url} did not answer with JSON, but with: {came}") from error
    if not isinstance(data, dict):
        raise ParseError(f"{url} answered with JSON that is no object: {_beginning(body, secrets)}")
    choices = data.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices else None
    fault = choice if isinstance(choice, dict) and choice.get("error") else data
    if fault.get("error"):
        raise error_in_answer(fault, url, secrets)
    if not isinstance(choice, dict):
        came = _beginning(body, secrets)
        raise ParseError(f"{url} answered with JSON that holds no choices: {came}")
    return choice, data


def _beginning(body: bytes, secrets: tuple[str, ...]) -> str:
    """How a body begins, for a person who wonders who answered."""
    # Secrets are looked for in more than is shown: a cut one would not be found.
    start = clean(body[:_MOST_LOOKED_AT].decode("utf-8", "replace"), secrets)
    return start[:_SHOWN] + "…" * (len(start) > _SHOWN) or "nothing"


def _text_of(message: dict[str, object]) -> tuple[str, str | None]:
    """Text and refusal of a message; what it thought (`reasoning_content`) is not looked at."""
    content = message.get("content")
    # litellm's proxy moves what it does not know into a table of its own.
    refusal = message.get("refusal") or _inside(message, "provider_specific_fields", "refusal")
    refused = refusal if isinstance(refusal, str) and refusal else None
    if content is None:
        return "", refused
    if isinstance(content, str):
        return content, refused
    if not isinstance(content, list):
        raise ParseError("the answer's content is neither text nor a list of parts")
    texts: list[str] = []
    for part in content:
        text, no = text_of_part(part)
        texts.append(text)
        refused = refused or no or None
    return "".join(texts), refused


def text_of_part(part: object) -> tuple[str, str]:
    """Text and refusal of one part of a content; a part that is a thought has neither."""
    if isinstance(part, str):
        return part, ""
    if not isinstance(part, dict):
        return "", ""
    text, no = part.get("text"), part.get("refusal")
    if not isinstance(text, str) or part.get("type") in ("thinking", "reasoning"):
        text = ""
    return text, no if isinstance(no, str) else ""


def _without_thoughts(text: str) -> str:
    """Cut `<think>…</think>` at the start. One that never ends stays: it is all there is.

    Some chat templates write the opening mark into the prompt, so that only the closing one comes.
    """
    kept = text
    while found := _THOUGHT.match(kept):
        closing = f"</{found.group(1)}>" if found.group(1) else "[/THINK]"
        _, end, rest = kept.partition(closing)
        if not end:
            return kept
        kept = rest.lstrip()
    if kept is not text:
        return kept
    before, end, rest = text.partition("</think>")
    # In JSON the mark is part of a text.
    if end and "<think>" not in before and not before.lstrip().startswith(("{", "[", "`")):
        return rest.lstrip()
    return text


def _counts_of(value: object) -> _Counts | None:
    """The counts in any `usage`; what is none is left out."""
    if not isinstance(value, dict):
        return None
    counts: dict[str, Any] = {name: _count(value.get(name)) for name in _COUNTS}
    for outer in ("completion_tokens_details", "prompt_tokens_details"):
        inner = {name: _count(_inside(value, outer, name)) for name in _DETAILS}
        counts[outer] = _Details(**inner)
    return _Counts(**counts)


def _usage_of(counts: _Counts | None) -> Usage | None:
    if counts is None or (counts.prompt_tokens is None and counts.completion_tokens is None):
        return None
    prompt, completion = counts.prompt_tokens or 0, counts.completion_tokens or 0
    thought = _reasoning_tokens(counts)
    if thought and counts.total_tokens == prompt + completion + thought:
        # Some count what was thought, and charge for it, beside the completion.
        completion += thought
    return Usage(
        prompt_tokens=prompt,
        completion_tokens=completion,
        cached_prompt_tokens=min(prompt, _cached(counts)),
    )


def _reasoning_tokens(counts: _Counts) -> int | None:
    details = counts.completion_tokens_details
    return details.reasoning_tokens if details else None


def _cached(counts: _Counts) -> int:
    """Prompt tokens that a prefix cache held, under the first of the names that is in use."""
    details = counts.prompt_tokens_details
    for count in (
        details.cached_tokens if details else None,
        counts.prompt_cache_hit_tokens,
        counts.cache_read_input_tokens,
        counts.cached_tokens,
    ):
        if count is not None:
            return count
    return 0


def _inside(value: dict[str, object], outer: str, inner: str) -> object:
    details = value.get(outer)
    return details.get(inner) if isinstance(details, dict) else None


def _count(value: object) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return int(value) if 0 <= value < 2**53 else None
