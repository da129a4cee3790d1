"""What models cost: the table that is shipped, a user's own over it, and `delivery.prices`."""

import re
import tomllib
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from targen_async.config import Price, Prices, RunConfig
from targen_async.errors import UserError
from targen_async.ledger import Role

SHIPPED = Path(__file__).with_name("prices.toml")
_AT_MODEL = re.compile(r"\$\.model\[(\d+)\](?:\.(\w+))?")


class Entry(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One `[[model]]` of a price table: US dollars for a million tokens."""

    names: Annotated[tuple[Annotated[str, Meta(pattern=r"^[^*]+\*?$")], ...], Meta(min_length=1)]
    """As asked for; one that ends in `*` stands for every name that begins so."""
    prompt: Price
    completion: Price
    cached_prompt: Price | None = None
    """Of prompt tokens that the provider's cache held; as `prompt` where unset."""
    known: date
    """The day on which the price was last known to hold."""
    page: str = ""
    """Where the provider tells its prices."""

    @property
    def prices(self) -> Prices:
        return Prices(
            usd_per_million_prompt_tokens=self.prompt,
            usd_per_million_cached_prompt_tokens=self.cached_prompt,
            usd_per_million_completion_tokens=self.completion,
        )


class _File(Struct, frozen=True, forbid_unknown_fields=True):
    model: tuple[Entry, ...] = ()


Table = tuple[tuple[Entry, ...], ...]
"""The entries of one or more files; those of an earlier file come first."""


def load_table(own: Path | None = None) -> Table:
    """The shipped table, and `own` before it.

    Raises UserError with the file and its line or the model and key.
    """
    shipped = _read(SHIPPED)
    return (shipped,) if own is None else (_read(own), shipped)


def entry_of(model: str, table: Table) -> Entry | None:
    """The entry for `model`: of the first file that has one, its exact name before a beginning.

    Gateways write the maker before the name: what no file has as it stands is looked up by the
    part after its last `/`, as gpt-4o-mini for openai/gpt-4o-mini.
    """
    found = _entry_named(model, table)
    if found is None and "/" in model:
        found = _entry_named(model.rpartition("/")[2], table)
    return found


def _entry_named(model: str, table: Table) -> Entry | None:
    for entries in table:
        for entry in entries:
            if model in entry.names:
                return entry
        fitting = [
            (len(name), entry)
            for entry in entries
            for name in entry.names
            if name.endswith("*") and model.startswith(name[:-1])
        ]
        if fitting:
            return max(fitting, key=lambda pair: pair[0])[1]
    return None


def price_of(model: str, table: Table) -> Prices | None:
    """US dollars for a million tokens of `model`; None where the table does not know it."""
    entry = entry_of(model, table)
    return entry.prices if entry else None


def models_of(config: RunConfig) -> dict[Role, str]:
    """Role to the model that plays it: generator, judge and, where there is one, fallback."""
    data = config.data
    models: dict[Role, str] = {"generator": data.model}
    if data.correction.mode != "off":
        models["judge"] = data.correction.model or data.model
    if data.fallback_model is not None:
        models["fallback"] = data.fallback_model
    return models


def prices_of(config: RunConfig) -> dict[Role, Prices]:
    """Role to its price, where it is known. `delivery.prices` are those of the generator's model;
    where they tell only a part, its price is not known.

    Raises UserError for a table that cannot be read, and where `max_usd` is to bind a model of
    which no price is known.
    """
    delivery = config.delivery
    own = delivery.prices
    table = load_table(Path(delivery.prices_file) if delivery.prices_file else None)
    prices: dict[Role, Prices] = {}
    for role, model in models_of(config).items():
        ours = own != Prices() and model == config.data.model
        price = price_of(model, table) if not ours else None if _missing(own) else own
        if price is not None:
            prices[role] = price
        elif delivery.budget.max_usd is not None:
            raise UserError(f"`max_usd` cannot bind: {_unpriced(model, config)}")
    return prices


def _missing(own: Prices) -> list[str]:
    """Which of the two prices that everybody pays are not told."""
    names = ("usd_per_million_prompt_tokens", "usd_per_million_completion_tokens")
    return [name for name in names if not getattr(own, name)]


def _unpriced(model: str, config: RunConfig) -> str:
    """Why the price of `model` is not known, and the mend."""
    own, ours = config.delivery.prices, model == config.data.model
    if ours and own != Prices():
        lacking = " and ".join(f"`{name}`" for name in _missing(own))
        return f"`delivery.prices` tells only a part of what {model!r} costs; add {lacking}"
    return (
        f"what {model!r} costs is not known; name it in a table of your own "
        "(`--set delivery.prices_file=FILE`; docs/endpoints.md shows its form)"
        + (" or in `delivery.prices`" if ours else "")
    )


def _read(path: Path) -> tuple[Entry, ...]:
    text = ""
    try:
        text = path.read_text("utf-8")
        raw = tomllib.loads(text)
        file = msgspec.convert(raw, _File)
    except OSError as error:
        raise UserError(f"cannot read the price table {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"the price table {path} is not UTF-8 text: {error.reason}") from error
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"the price table {path} is not valid TOML: {error}") from error
    except msgspec.ValidationError as error:
        raise UserError(f"the price table {_fault(path, text, raw, str(error))}") from error
    seen: set[str] = set()
    for number, entry in enumerate(file.model):
        for name in entry.names:
            if name in seen:
                raise UserError(
                    f"the price table {path}, line {_line(text, number)}: {name!r} stands in it "
                    "twice"
                )
            seen.add(name)
    return file.model


def _fault(path: Path, text: str, raw: Mapping[str, object], message: str) -> str:
    """Where a table is wrong and how: file, line of the `[[model]]`, its name and the key."""
    found = _AT_MODEL.search(message)
    if found is None:
        return f"{path}: {message}"
    number, key = int(found[1]), found[2]
    what = message.partition(" - at `")[0]
    models = raw["model"]
    entry = models[number] if isinstance(models, list) else None
    names = entry.get("names") if isinstance(entry, dict) else None
    shown = f", model {names[0]!r}" if isinstance(names, list) and names else ""
    named = f": `{key}`" if key else ""
    return f"{path}, line {_line(text, number)}{shown}{named}: {what}"


def _line(text: str, number: int) -> int:
    """The line of the `number`-th `[[model]]`, from 1; 0 where the table is laid out otherwise."""
    heads = [
        line
        for line, content in enumerate(text.splitlines(), 1)
        if re.match(r"\s*\[\[\s*model\s*\]\]", content)
    ]
    return heads[number] if number < len(heads) else 0
