"""Completion text to values: the forms we ask for, as types, as JSON schemas, and as read back.

A form is one msgspec type; the schema that is sent and the check of what comes back are both made
from it, so they cannot disagree.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import msgspec
from msgspec import Struct

from targen_async.errors import ParseError
from targen_async.records import ChatResult
from targen_async.tasks import NO_LABEL

_BULLET = re.compile(r"\s*(?:\d{1,4}[.)]|[-*\u2022])\s+(.*\S)")
_DECLINES = re.compile(
    r"\W*(?:(?:oh|hi|hello|unfortunately)\W+)?(?:"
    r"(?:i\W?m|i am|we are|we\W?re)?\s*(?:\w+ )?(?:sorry|afraid)\b"
    r"|i (?:must |have to )?(?:apologi[sz]e|decline|refuse)\b"
    r"|my apologies|as an ai\b"
    r"|(?:i|we)\s?(?:can ?not|can\W?t|could not|will not|won\W?t)\b"
    r"|(?:i\W?m|i am|we\W?re|we are) (?:unable|not able|not allowed)\b)",
    re.I,
)
_FENCE = re.compile(r"^```[a-zA-Z]*\s*\n(.*?)\n?```\s*$", re.DOTALL)


class Form(Struct, frozen=True, kw_only=True):
    """What an answer must look like: a type, its strict JSON schema, and an example in words."""

    type: Any
    schema: Mapping[str, Any]
    example: str
    list_key: str | None = None
    """The one key that holds a list of texts, where that is the whole form."""
    text_keys: tuple[str, ...] = ()
    """The keys that hold one text each, where that is the whole form."""


class Verdict(Struct, frozen=True, kw_only=True):
    """A judge's answer on one item of a batch."""

    id: str
    explanation: str
    label: str


def list_form(key: str) -> Form:
    """`{key: [text, …]}`: contexts and seeds."""
    type_ = msgspec.defstruct("Texts", [(key, list[str])])
    return _form(type_, f'{{"{key}": ["…", "…"]}}', list_key=key)


def outputs_form(outputs: Sequence[str], lists: Sequence[str] = ()) -> Form:
    """`{output: text, …}`: an instance. `lists` are the outputs that are lists of texts."""
    kinds = [(name, list[str] if name in lists else str) for name in outputs]
    type_ = msgspec.defstruct("Outputs", kinds)
    texts = {name: '["…", "…"]' if name in lists else '"…"' for name in outputs}
    example = "{" + ", ".join(f'"{name}": {text}' for name, text in texts.items()) + "}"
    return _form(type_, example, text_keys=() if lists else tuple(outputs))


def verdicts_form(labels: Sequence[str]) -> Form:
    """`{items: [{id, explanation, label}, …]}`: a batch of judgements.

    Any text is a label where there are no `labels`.
    """
    choice: Any = Literal[(*labels, NO_LABEL)] if labels else str
    item = msgspec.defstruct("Item", [("id", str), ("explanation", str), ("label", choice)])
    type_ = msgspec.defstruct("Items", [("items", list[item])])  # type: ignore[valid-type]
    names = " or ".join(f'"{label}"' for label in (*labels, NO_LABEL)) if labels else '"…"'
    return _form(type_, f'{{"items": [{{"id": "…", "explanation": "…", "label": {names}}}]}}')


def _form(
    type_: type[Struct],
    example: str,
    *,
    list_key: str | None = None,
    text_keys: tuple[str, ...] = (),
) -> Form:
    (root,), parts = msgspec.json.schema_components([type_], ref_template="{name}")
    schema = _inline(root, parts)
    return Form(type=type_, schema=schema, example=example, list_key=list_key, text_keys=text_keys)


def _inline(node: Any, parts: Mapping[str, Any]) -> Any:  # noqa: ANN401
    """Put referenced parts in place, close objects, drop titles: strict mode wants it so."""
    if isinstance(node, list):
        return [_inline(item, parts) for item in node]
    if not isinstance(node, dict):
        return node
    if "$ref" in node:
        return _inline(parts[node["$ref"]], parts)
    # A schema's title is a text; an output may be called "title" too, and that is a schema.
    plain = {
        key: _inline(value, parts)
        for key, value in node.items()
        if not (key == "title" and isinstance(value, str))
    }
    if "enum" in plain:
        plain["type"] = "string"
    if plain.get("type") == "object":
        plain["additionalProperties"] = False
    return plain


def answer_text(result: ChatResult) -> str:
    """The text of an answer that ended as it should.

    Raises ParseError for what is an outcome of its own and never success: `refused`, `truncated`,
    `oversized`, `empty`.
    """
    if result.refusal or result.finish_reason == "content_filter":
        raise ParseError(f"the model refused: {(result.refusal or '')[:200]}", kind="refused")
    if result.finish_reason == "oversized":
        raise ParseError("the answer is larger than any we asked for", kind="oversized")
    if result.finish_reason == "length":
        raise ParseError("the answer was cut at max_tokens", kind="truncated")
    if not result.text.strip():
        raise ParseError("the answer is empty", kind="empty")
    return result.text


def declines(text: str) -> bool:
    """Does a text that could not be read begin like the refusal of a model that has no field to
    refuse in? A guess, in English."""
    return _DECLINES.match(text) is not None


def read(text: str, form: Form) -> Any:  # noqa: ANN401
    """The value of `form` in a completion: strict JSON first, then what models wrap it in.

    Tried in order: the text as it is, the inside of a code fence, the first JSON object in it, a
    numbered or bulleted list, `key: value` lines. Raises ParseError.
    """
    try:
        return msgspec.json.decode(text, type=form.type)
    except (msgspec.DecodeError, RecursionError, UnicodeEncodeError) as error:
        reason = _reason(error)
    fence = _FENCE.match(text.strip())
    value = _first_object(fence.group(1) if fence else text)
    if value is not None:
        try:
            return msgspec.json.decode(_scrubbed(value), type=form.type)
        except (msgspec.DecodeError, RecursionError) as error:
            raise ParseError(_reason(error)) from error
    loose = _loose(text, form)
    if loose is None:
        raise ParseError(reason)
    return msgspec.convert(loose, form.type)


def _scrubbed(value: dict[str, Any]) -> str:
    """JSON again, with lone surrogates (legal in JSON escapes, in no encoding) as U+FFFD."""
    text = json.dumps(value, ensure_ascii=False)
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _reason(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "the answer nests too deep"
    return str(error)[:300]


def _first_object(text: str) -> dict[str, Any] | None:
    start = text.find("{")
    if start == -1:
        return None
    try:
        value, _ = json.JSONDecoder().raw_decode(text, start)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _loose(text: str, form: Form) -> dict[str, Any] | None:
    if form.list_key:
        items = [m.group(1) for line in text.splitlines() if (m := _BULLET.fullmatch(line))]
        return {form.list_key: items} if items else None
    if form.text_keys:
        found: dict[str, str] = {}
        for line in text.splitlines():
            name, colon, value = line.partition(":")
            name = name.strip(" *_`\"'-").lower()
            if colon and value.strip() and name in form.text_keys:
                found.setdefault(name, value.strip())
        return found if len(found) == len(form.text_keys) else None
    return None


def read_list(text: str, form: Form) -> list[str]:
    """The texts of a list form. Raises ParseError, also when there is not one."""
    texts: list[str] = getattr(read(text, form), form.list_key or "")
    if not any(text.strip() for text in texts):
        raise ParseError("the list is empty", kind="empty")
    return texts


def read_verdicts(text: str, form: Form, ids: Sequence[str]) -> dict[str, Verdict]:
    """Each id's verdict. Raises ParseError when an id is missing, doubled or unknown."""
    verdicts: dict[str, Verdict] = {}
    for item in read(text, form).items:
        if item.id not in ids:
            raise ParseError(f"unknown id {item.id[:40]!r}", kind="misaligned")
        if item.id in verdicts:
            raise ParseError(f"id {item.id!r} answered twice", kind="misaligned")
        verdicts[item.id] = Verdict(id=item.id, explanation=item.explanation, label=item.label)
    missing = [id_ for id_ in ids if id_ not in verdicts]
    if missing:
        raise ParseError(f"{len(missing)} of {len(ids)} ids unanswered", kind="misaligned")
    return verdicts
