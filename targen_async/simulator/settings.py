"""What the simulator does wrong on purpose, and how fast it is: settings and their flags."""

import argparse
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct

from targen_async.errors import UserError

Rate = Annotated[float, Meta(ge=0.0, le=1.0)]
Amount = Annotated[float, Meta(ge=0.0)]
Lexicon = Literal["full", "small"]


class Outage(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A span in which nothing is answered, counted from the first request."""

    start_s: Amount
    duration_s: Amount


class LimitChange(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """New rates from `at_s` on, counted from the first request; a rate left out stays as it is."""

    at_s: Amount
    requests_per_minute: Annotated[float, Meta(gt=0.0)] | None = None
    tokens_per_minute: Annotated[float, Meta(gt=0.0)] | None = None


class SimulatorSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """By default a fast and honest model. Outside data is decoded into it, which validates it."""

    random_seed: int = 0
    """Of the transport faults, and mixed into every answer."""
    lexicon: Lexicon = "full"
    """`small`: few words and frames, so that a tiny model can learn the label."""

    task_folders: tuple[str, ...] = ()
    """Task folders of the user's own; the shipped tasks are known without."""

    label_noise: Rate = 0.0
    corrector_error: Rate = 0.0
    malformed: Rate = 0.0
    missing_ids: Rate = 0.0
    refusals: Rate = 0.0
    truncation: Rate = 0.0
    free_text: Rate = 0.0
    hostile: Rate = 0.0
    thinking_tokens: Annotated[int, Meta(ge=0)] = 0
    """Thought before each answer; they count, and of `max_tokens` they come first."""

    latency_ms: Amount = 0.0
    latency_sigma: Amount = 0.0
    error_rate: Rate = 0.0
    stall_rate: Rate = 0.0
    stall_s: Amount = 30.0
    reset_rate: Rate = 0.0
    requests_per_minute: Annotated[float, Meta(gt=0.0)] | None = None
    tokens_per_minute: Annotated[float, Meta(gt=0.0)] | None = None
    burst_s: Annotated[float, Meta(gt=0.0)] = 60.0
    """How many seconds' worth of each rate an idle client may spend at once."""
    limit_changes: tuple[LimitChange, ...] = ()
    """Only of rates that are set from the start."""
    prefix_cache: bool = False
    """Report the part of a prompt that a provider's prefix cache would hold. What it holds hangs on
    what was asked before, so usage then differs from run to run."""
    rate_headers: bool = True
    """Say in headers what is left, as OpenAI does, and after a 429 when to come again."""
    outages: tuple[Outage, ...] = ()

    api_key: str | None = None
    models: tuple[str, ...] = ()
    """Models that exist; any name will do where this is empty."""


_HELP = {
    "random_seed": "seed of the transport faults, also mixed into every answer",
    "lexicon": "small: few words and frames, so that a tiny model can learn the labels",
    "task_folders": "a task folder of your own, so that its prompts are read exactly (repeatable)",
    "label_noise": "share of instances that contradict the label asked for",
    "corrector_error": "share of the judge's labels that are wrong",
    "malformed": "share of answers with broken JSON or prose around it",
    "missing_ids": "share of correction answers that lack, double or invent an id",
    "refusals": "share of answers that refuse, in `refusal` or in the text",
    "truncation": "share of answers cut short with finish_reason length",
    "free_text": "share of answers in prose although JSON was asked for",
    "hostile": "share of answers with HTML, control and bidi characters, {{ name }} or huge values",
    "thinking_tokens": "tokens to think with before each answer, which count against max_tokens",
    "latency_ms": "median of the log-normal time to an answer",
    "latency_sigma": "sigma of the log-normal time to an answer",
    "error_rate": "share of arrivals answered with 500, 502 or 503",
    "stall_rate": "share of arrivals that are answered only after --stall-s",
    "stall_s": "length of a stall",
    "reset_rate": "share of arrivals whose connection is closed, half of them inside the body",
    "requests_per_minute": "token bucket of requests; above it 429 with Retry-After",
    "tokens_per_minute": "token bucket of tokens; above it 429 with Retry-After",
    "burst_s": "how many seconds' worth of the rates may be spent at once",
    "prefix_cache": "on: count cached prompt tokens in usage, as providers do",
    "rate_headers": "off: say nothing of limits in headers",
    "api_key": "answer 401 to any other key",
    "models": "a model that exists, all others being 404 (repeatable)",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds one flag a setting, and `--settings`, which the flags override."""
    parser.add_argument("--settings", metavar="JSON", help="all settings as JSON, or @FILE")
    group = parser.add_argument_group("simulated behaviour")
    defaults = SimulatorSettings()
    for name, about in _HELP.items():
        flag = "--" + name.replace("_", "-")
        default = getattr(defaults, name)
        shown = f"{about} (default: {default})" if default not in (None, ()) else about
        # argparse formats help with %.
        shown = shown.replace("%", "%%")
        if default == ():
            flag = flag.removesuffix("s")
            group.add_argument(flag, dest=name, action="append", metavar="NAME", help=shown)
        elif name == "lexicon":
            group.add_argument(flag, choices=["full", "small"], help=shown)
        elif name in ("rate_headers", "prefix_cache"):
            group.add_argument(
                flag, choices=["on", "off"], help=f"{about} (default: {'on' if default else 'off'})"
            )
        elif name in ("random_seed", "thinking_tokens"):
            group.add_argument(flag, type=int, metavar="N", help=shown)
        elif name == "api_key":
            group.add_argument(flag, metavar="KEY", help=shown)
        else:
            group.add_argument(flag, type=float, metavar="X", help=shown)
    group.add_argument(
        "--outage",
        action="append",
        metavar="START_S:DURATION_S",
        help="nothing is answered in this span after the first request (repeatable)",
    )
    group.add_argument(
        "--limit-change",
        action="append",
        metavar="AT_S:REQUESTS:TOKENS",
        help="new rates a minute this long after the first request; an empty one stays "
        "(repeatable)",
    )


def settings_from(namespace: argparse.Namespace) -> SimulatorSettings:
    """The settings that the flags of `add_arguments` name. Raises UserError for a bad value."""
    try:
        chosen = _decode_settings(namespace.settings)
        for name in _HELP:
            value = getattr(namespace, name)
            if value is not None:
                on_or_off = name in ("rate_headers", "prefix_cache")
                chosen[name] = value == "on" if on_or_off else value
        if namespace.limit_change:
            chosen["limit_changes"] = [_limit_change(text) for text in namespace.limit_change]
        if namespace.outage:
            chosen["outages"] = [_outage(text) for text in namespace.outage]
        return msgspec.convert(chosen, SimulatorSettings)
    except (msgspec.ValidationError, msgspec.DecodeError) as error:
        raise UserError(f"simulator settings: {error}") from error


def _decode_settings(text: str | None) -> dict[str, object]:
    if not text:
        return {}
    if text.startswith("@"):
        try:
            text = Path(text[1:]).read_text(encoding="utf-8")
        except OSError as error:
            raise UserError(f"simulator settings: {error}") from error
    return msgspec.json.decode(text, type=dict[str, object])


def _outage(text: str) -> dict[str, float]:
    start, _, duration = text.partition(":")
    try:
        return {"start_s": float(start), "duration_s": float(duration)}
    except ValueError as error:
        raise UserError(f"--outage wants START_S:DURATION_S, not {text!r}") from error


def _limit_change(text: str) -> dict[str, float]:
    at, _, rates = text.partition(":")
    requests, _, tokens = rates.partition(":")
    said = {"at_s": at, "requests_per_minute": requests, "tokens_per_minute": tokens}
    try:
        return {name: float(value) for name, value in said.items() if value or name == "at_s"}
    except ValueError as error:
        raise UserError(f"--limit-change wants AT_S:REQUESTS:TOKENS, not {text!r}") from error
