"""The simulated model: a pure function of a request and the settings."""

import random
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import Any

import orjson
from msgspec import Struct

from targen_async.records import ChatRequest, Usage
from targen_async.simulator import (
    axb,
    axg,
    boolq,
    cb,
    copa,
    faults,
    filler,
    multirc,
    record,
    rte,
    wic,
    wsc,
)
from targen_async.simulator.contexts import contexts
from targen_async.simulator.recognise import Ask, items_of, recognise
from targen_async.simulator.settings import SimulatorSettings
from targen_async.simulator.wish import Grammar, Wish
from targen_async.tasks import NO_LABEL, answer_form

_BYTES_PER_TOKEN = 4
_MESSAGE_TOKENS = 4
_CHAT = "I am a simulated model: I answer the prompts of targen's tasks and know nothing else."
GRAMMARS: Mapping[str, Grammar] = {
    "axb": axb,
    "axg": axg,
    "boolq": boolq,
    "cb": cb,
    "copa": copa,
    "multirc": multirc,
    "record": record,
    "rte": rte,
    "wic": wic,
    "wsc": wsc,
}
"""Task to the module that writes and judges its rows. Other tasks get filler."""


class SimulatedAnswer(Struct, frozen=True, kw_only=True):
    """What the model says. `faults` names what was done wrong on purpose, such as `label_noise`."""

    text: str
    finish_reason: str
    refusal: str | None
    usage: Usage
    stage: str
    """A stage, or `other` for a prompt of no task."""
    faults: tuple[str, ...] = ()
    thought_tokens: int = 0
    """Of the completion."""


def answer(request: ChatRequest, settings: SimulatorSettings) -> SimulatedAnswer:
    """The answer to a request: equal requests under equal settings get equal answers."""
    digest = _digest(request, settings)
    # Two streams, so that a fault's rate does not change what the other answers say.
    wording, luck = random.Random(digest), random.Random(digest ^ 1)
    ask = recognise(request, settings.task_folders)
    if ask is None:
        return _chat(request, settings, wording, luck)
    done: list[str] = []
    if ask.stage == "correction":
        content: dict[str, Any] = {"items": _verdicts(ask, settings, luck, done)}
    elif ask.stage == "instances":
        noisy = luck.random() < settings.label_noise
        if noisy:
            done.append("label_noise")
        content = dict(_instance(ask, settings, wording, noisy))
    else:
        content = {ask.stage: _texts(ask, settings, wording)}
    return _finish(request, settings, luck, ask, content, done)


def gold(instance: Mapping[str, Any], lexicon: str = "full") -> str | None:
    """The true label of a row, recomputed from its fields alone; None if no grammar wrote it.

    `instance` is a row as it stands in a shard: its `task` and the task's fields are looked at.
    """
    return gold_of(instance["task"], instance, lexicon)


def gold_of(task: str, row: Mapping[str, Any], lexicon: str) -> str | None:
    """`gold` of bare fields."""
    grammar = GRAMMARS.get(task)
    return grammar.gold(row, lexicon == "small") if grammar else None


def prompt_tokens(request: ChatRequest) -> int:
    """Tokens of the messages: a fourth of their bytes, and a few for each message."""
    size = sum(len(message.content.encode("utf-8", "replace")) for message in request.messages)
    return -(-size // _BYTES_PER_TOKEN) + _MESSAGE_TOKENS * len(request.messages)


def _digest(request: ChatRequest, settings: SimulatorSettings) -> int:
    asked = [
        [message.role + message.content for message in request.messages],
        request.schema_name,
        request.json_schema,
        request.model,
        request.seed,
        request.temperature,
        request.max_tokens,
        settings.random_seed,
    ]
    key = orjson.dumps(asked, option=orjson.OPT_SORT_KEYS)
    return int.from_bytes(blake2b(key, digest_size=16).digest(), "big")


def _texts(ask: Ask, settings: SimulatorSettings, rng: random.Random) -> list[str]:
    """Contexts or seeds."""
    count, small, axes = ask.count(), settings.lexicon == "small", ask.axes()
    grammar = GRAMMARS.get(ask.task)
    if ask.stage == "contexts":
        own = getattr(grammar, "contexts", None)
        texts: list[str] = own(rng, count, axes, small) if own else contexts(rng, count, axes)
        return texts
    if grammar:
        return grammar.seeds(rng, count, ask.values.get("context", ""), axes, small)
    return filler.seeds(rng, count, ask.known.seeds.kind if ask.known else "sentence")


def _instance(
    ask: Ask, settings: SimulatorSettings, rng: random.Random, noisy: bool
) -> Mapping[str, str | list[str]]:
    wish = Wish(
        seed=ask.values.get("seed", "").strip(),
        label=ask.label() or "",
        variant=ask.variant,
        axes=tuple(ask.axes()),
        values=ask.values,
        noisy=noisy,
    )
    grammar = GRAMMARS.get(ask.task)
    if grammar:
        return grammar.instance(rng, wish, settings.lexicon == "small")
    return filler.instance(rng, ask, wish)


def _labels_of(ask: Ask) -> tuple[str, ...]:
    grammar = GRAMMARS.get(ask.task)
    return ask.labels or (grammar.LABELS if grammar else ())


def _verdicts(
    ask: Ask, settings: SimulatorSettings, luck: random.Random, done: list[str]
) -> list[dict[str, str]]:
    verdicts: list[dict[str, str]] = []
    labels = _labels_of(ask)
    for row in items_of(ask):
        label = _judged(ask, settings, row) or NO_LABEL
        if luck.random() < settings.corrector_error:
            label = _another(luck, _choices(ask, labels, row), label)
            done.append("corrector_error")
        verdicts.append({"id": str(row["id"]), "explanation": _reason(label), "label": label})
    if verdicts and luck.random() < settings.missing_ids:
        verdicts, name = faults.missing_ids(luck, verdicts)
        done.append(name)
    return verdicts


def _judged(ask: Ask, settings: SimulatorSettings, row: Mapping[str, Any]) -> str | None:
    grammar = GRAMMARS.get(ask.task)
    if grammar is None:
        return filler.judge(ask, _labels_of(ask), row)
    judge = getattr(grammar, "judge", grammar.gold)
    label: str | None = judge(row, settings.lexicon == "small")
    return label


def _choices(ask: Ask, labels: Sequence[str], row: Mapping[str, Any]) -> Sequence[str]:
    """What a judge could say of the row: the labels or, where they are open, texts of the row."""
    answer_of = ask.known.answer if ask.known else None
    if labels or answer_of is None:
        return labels
    if answer_of.kind == "choice":
        return str(row.get(answer_of.choices, "")).splitlines()
    return str(row.get(answer_of.text, "")).split()


def _another(luck: random.Random, choices: Sequence[str], label: str) -> str:
    """One of the choices that is not the label; where there is none, "none" is one."""
    same = answer_form(label)
    others = [name for name in choices if answer_form(name) != same] or [NO_LABEL]
    return luck.choice(others)


def _reason(label: str) -> str:
    if label == NO_LABEL:
        return "The text does not fit any of the labels."
    return "Reading the texts together, this is the only label that fits."


def _finish(
    request: ChatRequest,
    settings: SimulatorSettings,
    luck: random.Random,
    ask: Ask,
    content: dict[str, Any],
    done: list[str],
) -> SimulatedAnswer:
    """The text of the content, after the faults that concern the whole answer."""
    finish_reason, refusal = "stop", None
    # All are drawn, whatever comes of them: one rate does not shift another's draws.
    draws = {
        name: luck.random() < getattr(settings, name)
        for name in ("hostile", "free_text", "malformed", "refusals", "truncation")
    }
    if draws["hostile"]:
        content = faults.hostile(luck, content)
        done.append("hostile")
    text = faults.dump(content)
    if draws["refusals"]:
        text, refusal, name = _refused(luck)
        done.append(name)
    elif draws["free_text"]:
        text = faults.free_text(content)
        done.append("free_text")
    elif draws["malformed"]:
        text, name = faults.malformed(luck, content)
        done.append(name)
    elif draws["truncation"]:
        text = text[: int(len(text) * luck.uniform(0.2, 0.9))]
        finish_reason = "length"
        done.append("truncation")
    return _limited(request, settings, ask.stage, text, finish_reason, refusal, done)


def _chat(
    request: ChatRequest, settings: SimulatorSettings, wording: random.Random, luck: random.Random
) -> SimulatedAnswer:
    """The answer to a prompt of no task, such as a probe of what the endpoint takes.

    Of the faults it has free text only, which is what a probe is for.
    """
    prose = request.json_schema is None or luck.random() < settings.free_text
    text = _CHAT if prose else faults.dump(filler.of_schema(wording, request.json_schema or {}))
    done = ["free_text"] if prose and request.json_schema is not None else []
    return _limited(request, settings, "other", text, "stop", None, done)


def _limited(
    request: ChatRequest,
    settings: SimulatorSettings,
    stage: str,
    text: str,
    finish_reason: str,
    refusal: str | None,
    done: list[str],
) -> SimulatedAnswer:
    """The answer, cut where it is longer than what thoughts leave of `max_tokens`, with usage."""
    most, thought = request.max_tokens, settings.thinking_tokens
    if most and thought >= most:
        text, finish_reason, refusal, thought = "", "length", None, most
    raw = text.encode("utf-8")
    if most and len(raw) > (most - thought) * _BYTES_PER_TOKEN:
        raw = raw[: (most - thought) * _BYTES_PER_TOKEN]
        text, finish_reason = raw.decode("utf-8", "ignore"), "length"
    said = len(raw) + len((refusal or "").encode())
    usage = Usage(
        prompt_tokens=prompt_tokens(request),
        completion_tokens=thought + -(-said // _BYTES_PER_TOKEN),
    )
    return SimulatedAnswer(
        text=text,
        finish_reason=finish_reason,
        refusal=refusal,
        usage=usage,
        stage=stage,
        faults=tuple(done),
        thought_tokens=thought,
    )


def _refused(luck: random.Random) -> tuple[str, str | None, str]:
    words = luck.choice(faults.REFUSALS)
    if luck.random() < 0.5:
        return "", words, "refusals/field"
    return words, None, "refusals/text"
