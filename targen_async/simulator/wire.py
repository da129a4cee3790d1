"""OpenAI's JSON on the wire: request bodies in, completions and errors out."""

from typing import Any

import msgspec
import orjson
from msgspec import Struct, field

from targen_async.config import SIMULATED_MODEL
from targen_async.records import ChatRequest, Message
from targen_async.simulator.answers import SimulatedAnswer


class BadRequest(Exception):
    """A body that no chat completion can be made of. The message goes into the 400."""


class _Part(Struct):
    type: str = "text"
    text: str = ""


class _Message(Struct):
    role: str
    content: str | list[_Part] | None = None


class _Schema(Struct):
    name: str | None = None
    schema: dict[str, Any] | None = None


class _Format(Struct):
    type: str = "text"
    json_schema: _Schema | None = None
    schema: dict[str, Any] | None = None
    """Some endpoints take a schema beside `json_object`."""


class _StreamOptions(Struct):
    include_usage: bool = False


class _Body(Struct):
    model: str
    messages: list[_Message]
    temperature: float | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    seed: int | None = None
    n: int | None = None
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    response_format: _Format = field(default_factory=_Format)


class Asked(Struct, frozen=True, kw_only=True):
    """A request, and how its answer is wanted."""

    request: ChatRequest
    stream: bool
    stream_usage: bool
    """The last piece of a stream tells the usage."""


_decoder = msgspec.json.Decoder(_Body)
_PIECE_CHARACTERS = 24
_ROLES = {"user": "user", "assistant": "assistant", "system": "system", "developer": "system"}


def read_request(raw: bytes) -> Asked:
    """The request of a body. Raises BadRequest."""
    try:
        body = _decoder.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadRequest(str(error)) from error
    if not body.messages:
        raise BadRequest("`messages` is empty")
    if (body.n or 1) != 1:
        raise BadRequest("the simulator gives one choice")
    if body.stream_options is not None and not body.stream:
        raise BadRequest("`stream_options` is only allowed when `stream` is on")
    limit = body.max_completion_tokens or body.max_tokens
    if limit is not None and limit < 1:
        raise BadRequest("`max_tokens` must be at least 1")
    schema = body.response_format.json_schema
    request = ChatRequest(
        key="",
        model=body.model,
        messages=tuple(_message(message) for message in body.messages),
        temperature=1.0 if body.temperature is None else body.temperature,
        max_tokens=limit or 0,
        seed=body.seed or 0,
        schema_name=schema.name if schema else None,
        json_schema=schema.schema if schema else body.response_format.schema,
    )
    options = body.stream_options
    return Asked(
        request=request,
        stream=bool(body.stream),
        stream_usage=options is not None and options.include_usage,
    )


def _message(message: _Message) -> Message:
    role = _ROLES.get(message.role)
    if role is None:
        raise BadRequest(f"unknown role {message.role!r}")
    text = message.content or ""
    if not isinstance(text, str):
        text = "".join(part.text for part in text)
    return msgspec.convert({"role": role, "content": text}, Message)


def completion(number: int, created: int, answer: SimulatedAnswer, cached_tokens: int = 0) -> bytes:
    """The body of a 200. Whatever model was asked for, it says which one served."""
    message = {
        "role": "assistant",
        "content": None if answer.refusal else answer.text,
        "refusal": answer.refusal,
    }
    if answer.thought_tokens:
        message["reasoning_content"] = _thoughts(answer)
    choice = {
        "index": 0,
        "message": message,
        "finish_reason": answer.finish_reason,
        "logprobs": None,
    }
    head = _head(number, created, "chat.completion")
    return orjson.dumps({**head, "choices": [choice], "usage": _usage(answer, cached_tokens)})


def pieces(
    number: int, created: int, answer: SimulatedAnswer, cached_tokens: int, *, usage: bool
) -> list[bytes]:
    """The events of a stream, as OpenAI sends them. Without `usage` there is none in it."""
    head = _head(number, created, "chat.completion.chunk")
    name, text = ("refusal", answer.refusal) if answer.refusal else ("content", answer.text)
    steps = range(0, len(text or ""), _PIECE_CHARACTERS)
    deltas: list[dict[str, Any]] = [{"role": "assistant", "content": "", "refusal": None}]
    if answer.thought_tokens:
        deltas.append({"reasoning_content": _thoughts(answer)})
    deltas += [{name: (text or "")[at : at + _PIECE_CHARACTERS]} for at in steps]
    events: list[dict[str, Any]] = [
        {**head, "choices": [{"index": 0, "delta": delta, "finish_reason": None}]}
        for delta in deltas
    ]
    last = {"index": 0, "delta": {}, "finish_reason": answer.finish_reason}
    events.append({**head, "choices": [last]})
    if usage:
        events = [{**event, "usage": None} for event in events]
        events.append({**head, "choices": [], "usage": _usage(answer, cached_tokens)})
    return [b"data: " + orjson.dumps(event) + b"\n\n" for event in events] + [b"data: [DONE]\n\n"]


def _head(number: int, created: int, kind: str) -> dict[str, Any]:
    id_ = f"chatcmpl-simulated-{number}"
    return {"id": id_, "object": kind, "created": created, "model": SIMULATED_MODEL}


def _thoughts(answer: SimulatedAnswer) -> str:
    return "Hm. " * answer.thought_tokens


def _usage(answer: SimulatedAnswer, cached_tokens: int) -> dict[str, Any]:
    usage = answer.usage
    told: dict[str, Any] = {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": cached_tokens},
    }
    if answer.thought_tokens:
        told["completion_tokens_details"] = {"reasoning_tokens": answer.thought_tokens}
    return told


def error(message: str, kind: str, code: str | None = None) -> bytes:
    """An error body in OpenAI's form."""
    return orjson.dumps({"error": {"message": message, "type": kind, "param": None, "code": code}})


def model_list(models: tuple[str, ...]) -> bytes:
    """The body of GET /v1/models."""
    entries = [
        {"id": name, "object": "model", "created": 0, "owned_by": "simulated"} for name in models
    ]
    return orjson.dumps({"object": "list", "data": entries})
