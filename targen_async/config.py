"""A run's configuration: [data] is its identity, [delivery] may change between two starts."""

import re
import tomllib
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import msgspec
import tomli_w
from msgspec import Meta, Struct, field
from msgspec.structs import replace

from targen_async.errors import UserError

Count = Annotated[int, Meta(ge=1, le=1_000_000_000)]
# A pattern, so that a key pasted in its place is refused and not repeated on the screen.
EnvironmentName = Annotated[str, Meta(pattern="^[A-Za-z_][A-Za-z0-9_]*$", max_length=100)]
Seconds = Annotated[float, Meta(gt=0)]
Room = Annotated[int, Meta(ge=0, le=1_000_000)]
Price = Annotated[float, Meta(ge=0)]
# Bounded, as a cap or a rate that is infinite is none.
Dollars = Annotated[float, Meta(gt=0, le=1_000_000_000)]
Rate = Annotated[float, Meta(gt=0, le=1_000_000_000_000)]
OPENAI_URL = "https://api.openai.com/v1"
SIMULATED_MODEL = "targen-simulator"
_HOST = re.compile(r"[\w.-]{1,253}|[\da-f]*:[\da-f:.]+(?:%[\w.-]+)?", re.ASCII | re.IGNORECASE)


class Correction(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Step 4. `blind`: the judge sees neither label nor explanation; `shown`: the paper's way."""

    mode: Literal["blind", "shown", "off"] = "blind"
    votes: Literal[1, 3, 5, 7, 9] = 1
    """Judgements a row; each has its own seed and item order."""
    per_call: Annotated[int, Meta(ge=1, le=100)] | None = None
    """Rows a call; the task's own number where unset."""
    model: str | None = None
    """The judge; the generator where unset."""


class Source(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A file of texts: plain text (one a line), JSONL or Parquet."""

    file: Annotated[str, Meta(min_length=1)]
    field: str | None = None
    """JSONL field or Parquet column."""
    sha256: Annotated[str, Meta(pattern="^([0-9a-f]{64})?$")] = ""
    """Filled in when the run is begun."""


class Data(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What decides the rows. Changing it in an existing folder is refused."""

    task: str
    model: str = SIMULATED_MODEL
    fallback_model: str | None = None
    """Asked where the first one refuses a request or is away."""
    temperature: Annotated[float, Meta(ge=0, le=2)] = 1.0
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    random_seed: Annotated[int, Meta(ge=0, lt=2**53)] = 0
    contexts: Count = 40
    seeds_per_context: Count | None = None
    """Seeds asked of a context in one call; the task's own number where unset."""
    rows_per_seed: Annotated[int, Meta(ge=1, le=100)] | None = None
    """The task's own number where unset."""
    corpus: Source | None = None
    """Seeds are taken from here and not generated."""
    exclude: tuple[Source, ...] = ()
    """No seed and no row may repeat a text of these files, or share 13 words in a row with one."""
    near_duplicate: Annotated[float, Meta(ge=0.5, le=1)] = 0.8
    """Rows whose character 5-grams have at least this Jaccard similarity are near duplicates."""
    correction: Correction = field(default_factory=Correction)
    simulator: dict[str, bool | int | float | str] | None = None
    """Settings of the embedded simulator, as in `targen simulate --help`; it shapes the rows."""


class Limits(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the endpoint allows."""

    requests_per_minute: Rate | None = None
    tokens_per_minute: Rate | None = None
    max_in_flight: Count = 64
    adaptive: bool = True
    """Find out below `max_in_flight` how many calls at a time serve best; False: always as many."""
    shared: bool = True
    """Runs on this host that ask the same endpoint with the same key share the declared rates."""


class Timeouts(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    connect_s: Seconds = 10.0
    read_s: Seconds = 120.0
    """Longest silence while an answer is being read."""
    total_s: Seconds = 600.0


Header = Annotated[str, Meta(min_length=1, max_length=4096)]
"""A header's value. One that begins with `$` names an environment variable."""


class Endpoint(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Another place to ask, for a judge or as a fallback; what is unset is as for the generator,
    but for key and headers where `base_url` or `preset` is set."""

    preset: str | None = None
    base_url: str | None = None
    api_key_env: EnvironmentName | None = None
    headers: Mapping[str, Header] = field(default_factory=dict)
    proxy: str | None = None
    stream: bool | None = None
    client: Literal["http", "sdk"] | None = None
    thinking_tokens: Room | None = None
    limits: Limits | None = None


class Budget(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Caps that bind over all starts of a run: calls that might pass them are not made."""

    max_usd: Dollars | None = None
    max_tokens: Count | None = None
    max_requests: Count | None = None


class Prices(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """US dollars for a million tokens. Zero: not known, and without both of prompt and completion
    no cost is."""

    usd_per_million_prompt_tokens: Price = 0.0
    usd_per_million_cached_prompt_tokens: Price | None = None
    """Of prompt tokens that the provider's cache held; as any prompt token where unset."""
    usd_per_million_completion_tokens: Price = 0.0


class Delivery(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How much is wanted and how it is fetched."""

    n: Count = 200
    base_url: str | None = None
    """Where the endpoint is, as http://host:port/v1. Unset: OpenAI, or for the simulated model a
    simulator of our own."""
    preset: str | None = None
    """A kind of server: openai, vllm, llama-cpp, ollama, azure, together, openrouter."""
    api_key_env: EnvironmentName = "OPENAI_API_KEY"
    headers: Mapping[str, Header] = field(default_factory=dict)
    """Sent with each call; a value like `$NAME` is taken from the environment."""
    proxy: str | None = None
    """An HTTP proxy, as http://host:port."""
    stream: bool = False
    """Have answers sent piece by piece, for proxies that cut idle connections."""
    client: Literal["http", "sdk"] = "http"
    """`sdk`: the openai package, for Azure and other ways to sign in."""
    thinking_tokens: Room | None = None
    """Added to the max_tokens of every call, for what a model thinks before it answers. Unset: what
    the probe finds that it takes."""
    judge: Endpoint | None = None
    """Where the judge is, if it is elsewhere."""
    fallback: Endpoint | None = None
    """Where the fallback model is, if it is elsewhere."""
    budget: Budget = field(default_factory=Budget)
    prices_file: str | None = None
    """A price table of your own, in the form of the one that is shipped."""
    metrics_port: Annotated[int, Meta(ge=0, le=65535)] | None = None
    """Serve Prometheus metrics on 127.0.0.1 at this port."""
    limits: Limits = field(default_factory=Limits)
    timeouts: Timeouts = field(default_factory=Timeouts)
    prices: Prices = field(default_factory=Prices)
    hedge: bool | None = None
    """Send a stalled call a second time, and take the first answer. Unset: only where nobody can
    send a bill, which is to say without a key, a known price or a cap."""
    give_up_after_s: Seconds = 3600.0
    """How long the endpoint may give nothing before the run stops."""
    drain_s: Annotated[float, Meta(ge=0)] = 30.0
    """How long calls already sent may take to arrive once nothing more is wanted."""
    rows_per_shard: Count = 10_000
    max_rows_per_seed: Count | None = None
    """How many rows a text of a corpus may be used for; `rows_per_seed` where unset."""
    window: Annotated[int, Meta(ge=1024)] = 65_536
    """Most row slots between the first that is not committed and the last that was sent."""


class RunConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One run: what it makes, and how that is fetched."""

    data: Data
    delivery: Delivery = field(default_factory=Delivery)

    def digest(self) -> str:
        """SHA-256 (hex) of [data]: the identity of a run."""
        return sha256(msgspec.json.encode(self.data, order="deterministic")).hexdigest()


def load(
    path: Path | None,
    overrides: Mapping[str, Any] | Sequence[tuple[str, Any]],
    flags: Mapping[str, str] | None = None,
) -> RunConfig:
    """Read a TOML file (None: nothing but the defaults) and lay `data.x.y = value` overrides on it.

    `flags`: the flag by which an override was given. Raises UserError with the dotted key and the
    flag, or the file.
    """
    raw: dict[str, Any] = {}
    if path is not None:
        try:
            raw = tomllib.loads(path.read_text("utf-8"))
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise UserError(f"{path} is not UTF-8 text: {error.reason}") from error
        except tomllib.TOMLDecodeError as error:
            raise UserError(f"{path} is not valid TOML: {error}") from error
    pairs = overrides.items() if isinstance(overrides, Mapping) else overrides
    for dotted, value in pairs:
        _put(raw, dotted, value)
    return decode(raw, str(path) if path else "the command line", flags)


def _put(raw: dict[str, Any], dotted: str, value: Any) -> None:  # noqa: ANN401
    *parents, last = dotted.split(".")
    table = raw
    for name in parents:
        inner = table.setdefault(name, {})
        if not isinstance(inner, dict):
            raise UserError(f"`{dotted}`: `{name}` is a value, not a table")
        table = inner
    table[last] = value


def decode(
    raw: Mapping[str, Any], source: str, flags: Mapping[str, str] | None = None
) -> RunConfig:
    """Decode and check a configuration. Raises UserError naming the key and `source`, or the one
    of `flags` that set it."""

    def at(key: str) -> str:
        return _flag_of(key, flags or {}) or source

    data = raw.get("data")
    if not (isinstance(data, Mapping) and data.get("task")):
        raise UserError(f"{source}: no task: name one, as in `targen generate copa`")
    corpus = data.get("corpus")
    if isinstance(corpus, Mapping) and not corpus.get("file"):
        raise UserError(
            f"{at('data.corpus.field')}: `data.corpus` names no file: --seeds-field goes with "
            "--seeds FILE"
        )
    try:
        config = msgspec.convert(raw, RunConfig)
    except msgspec.ValidationError as error:
        raise UserError(f"{at(_key_in(str(error)))}: {_fault(str(error))}") from error
    if config.delivery.max_rows_per_seed and config.data.corpus is None:
        key = "delivery.max_rows_per_seed"
        raise UserError(f"{at(key)}: `{key}` is for seeds from a corpus: give --seeds")
    delivery = config.delivery
    _check_url(delivery.base_url, "delivery", at("delivery.base_url"))
    for role, own in (("judge", delivery.judge), ("fallback", delivery.fallback)):
        if own is not None:
            _check_url(own.base_url, f"delivery.{role}", at(f"delivery.{role}.base_url"))
    return config


def _key_in(message: str) -> str:
    """The dotted key that msgspec complains of; where a key is unknown, that one."""
    what, _, key = message.partition(" - at `$.")
    unknown = re.search(r"unknown field `(.+)`", what)
    table = key.removesuffix("`").partition("[")[0]
    return ".".join(filter(None, (table, unknown and unknown[1])))


def _flag_of(key: str, flags: Mapping[str, str]) -> str:
    """The flag that gave the value at a key, or a part of it; empty: none did."""
    for dotted, flag in flags.items():
        if f"{key}.".startswith(f"{dotted}.") or dotted.startswith(f"{key}."):
            return flag
    return ""


def _fault(message: str) -> str:
    """What msgspec says of a value, the place first."""
    what, at, key = message.partition(" - at `$.")
    if not at:
        return message
    key = key.removesuffix("`")
    if key.endswith("api_key_env"):
        return f"`{key}` must be the name of an environment variable, and never a key itself"
    return f"`{key}`: {what[:1].lower()}{what[1:]}"


def _check_url(base_url: str | None, place: str, source: str) -> None:
    if base_url is None:
        return
    try:
        url = urlsplit(base_url)
        complete = url.scheme in ("http", "https") and url.hostname and url.port != 0
    except ValueError:
        complete = False
    if not complete:
        # What stands before an @ may be a password.
        given = "" if "@" in base_url else f", not {base_url!r}"
        raise UserError(
            f"{source}: `{place}.base_url` must be like http://127.0.0.1:8000/v1{given}"
        )
    if url.username or url.password or url.query or url.fragment:
        raise UserError(
            f"{source}: `{place}.base_url` carries credentials, a query or a fragment; put the "
            f"key into an environment variable and name it in `{place}.api_key_env`"
        )
    if not can_be_host(url.hostname or ""):
        raise UserError(
            f"{source}: the host in `{place}.base_url` has a name that no host can have: "
            f"{url.hostname!r}"
        )


def can_be_host(name: str) -> bool:
    """Is this an address, or a name that can be looked up?"""
    try:
        # The clients do the same, where it would end them.
        return bool(_HOST.fullmatch(name.encode("idna").decode()))
    except UnicodeError:
        return False


def anchored(config: RunConfig) -> RunConfig:
    """The same with whole paths, so that a start from another folder finds the files."""
    data, delivery = config.data, config.delivery

    def whole(source: Source) -> Source:
        return replace(source, file=str(Path(source.file).absolute()))

    corpus = data.corpus and whole(data.corpus)
    data = replace(data, corpus=corpus, exclude=tuple(map(whole, data.exclude)))
    if delivery.prices_file:
        prices_file = str(Path(delivery.prices_file).absolute())
        delivery = replace(delivery, prices_file=prices_file)
    return RunConfig(data=data, delivery=delivery)


def dump(config: RunConfig) -> str:
    """The configuration as TOML, complete and without secrets."""
    raw = msgspec.to_builtins(config)
    return tomli_w.dumps(_without_none(raw))


def _without_none(value: Any) -> Any:  # noqa: ANN401
    if isinstance(value, dict):
        return {key: _without_none(item) for key, item in value.items() if item is not None}
    if isinstance(value, list | tuple):
        return [_without_none(item) for item in value]
    return value


def differences(old: Struct, new: Struct, path: str = "data") -> list[str]:
    """Every changed key of two configurations, as ``data.temperature: 1.0 -> 0.7``."""
    lines: list[str] = []
    for name in old.__struct_fields__:
        before, after = getattr(old, name), getattr(new, name)
        if isinstance(before, Struct) and isinstance(after, Struct):
            lines += differences(before, after, f"{path}.{name}")
        elif before != after:
            lines.append(f"{path}.{name}: {before!r} -> {after!r}")
    return lines
