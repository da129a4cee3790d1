"""What is written down of a run: a few lines for a lab book, made from its manifest."""

from collections.abc import Mapping
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

import orjson

from targen_async.live import matrix_lines, one_line
from targen_async.lock import SOMEBODY, lock_holder
from targen_async.progress import duration, usd
from targen_async.rundir import FAILURES, MANIFEST, REJECTED

_DIGEST_SHOWN = 16
_MOST_LABELS = 24
_MOST_SHARDS = 1000
"""Shards whose first row is looked at for the names of the models that answered."""


def summary_lines(
    raw: Mapping[str, Any],
    folder: Path,
    *,
    when: datetime | None = None,
    wall_s: float | None = None,
) -> list[str]:
    """The summary of a run from its manifest `raw`. No box characters and no markup.

    `when`: the date it bears, now where unset; `wall_s`: seconds of the last start, if known.
    """
    when = when or datetime.now(UTC)
    lines = [_first(raw), _line("date", when.strftime("%Y-%m-%d %H:%M UTC"))]
    if wall_s is not None:
        lines.append(_line("wall time", f"{duration(wall_s)} (this start)"))
    if raw["state"] != "complete":
        lines.append(_line("state", state_of(raw, folder)))
    return [
        *lines,
        *_merged(raw),
        _line("made by", _made_by(raw)),
        _line("task", _task(raw)),
        _line("settings", _settings(raw)),
        _line("model", _models(raw, folder)),
        *transition_lines(raw),
        _line("refused", _refused(raw)),
        _line("calls", _calls(raw["calls"])),
        *_hedged(raw),
        _line("tokens", _tokens(raw)),
        _line("cost", _cost(raw)),
        *_rows(raw, folder),
    ]


def state_of(raw: Mapping[str, Any], folder: Path) -> str:
    """How a run stands."""
    if raw["state"] != "running":
        reason = f": {one_line(raw['reason'])}" if raw["reason"] else ""
        return f"{raw['state']}{reason}"
    waits = f", waits for {one_line(raw['waiting_for'])}" if raw["waiting_for"] else ""
    told = (raw.get("now") or {}).get("why", "")
    why = f"; {one_line(str(told))}" if told else ""
    return f"running: {one_line(lock_holder(folder) or '') or SOMEBODY}{waits}{why}"


def written_at(folder: Path) -> datetime:
    """When the manifest was last written (UTC)."""
    return datetime.fromtimestamp((folder / MANIFEST).stat().st_mtime, UTC)


def _line(name: str, text: str) -> str:
    return f"{name:<12}{text}"


def _first(raw: Mapping[str, Any]) -> str:
    parts = [f"{one_line(label)} {count}" for label, count in raw["balance"].items()]
    balance = f" ({', '.join(parts)})" if len(parts) > 1 else ""
    return f"{simulated(raw)}{raw['task']}: {raw['delivered']} of {raw['n']} rows{balance}"


def simulated(raw: Mapping[str, Any]) -> str:
    """How a run is called before its name; a merged folder may hold rows of both kinds."""
    if not raw["simulated"]:
        return ""
    mixed = not all(one["simulated"] for one in raw.get("sources", ()))
    return "partly SIMULATED " if mixed else "SIMULATED "


def _merged(raw: Mapping[str, Any]) -> list[str]:
    sources = raw.get("sources", ())
    parts = [f"{one['kept']} of {one['rows']} rows of {one_line(one['name'])}" for one in sources]
    return [_line("merged", ", ".join(parts))] if parts else []


def _made_by(raw: Mapping[str, Any]) -> str:
    versions = raw["versions"]
    return f"targen-async {versions.get('targen-async', '?')}, Python {versions.get('python', '?')}"


def _task(raw: Mapping[str, Any]) -> str:
    digest = raw["task_digest"][:_DIGEST_SHOWN]
    return f"{raw['task']}, version {raw['task_version']}, digest {digest}"


def _settings(raw: Mapping[str, Any]) -> str:
    """[data], which decides the rows, by its digest, and what is asked for most."""
    return (
        f"digest {raw['data_digest'][:_DIGEST_SHOWN]}, random seed {_asked(raw, 'random_seed')}, "
        f"temperature {_asked(raw, 'temperature')}"
    )


def _asked(raw: Mapping[str, Any], *keys: str) -> str | None:
    """What [data] has at a key, or a key within a table; None where there is no such value."""
    value = raw["config"].get("data")
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    return str(value) if isinstance(value, str | int | float) else None


def _models(raw: Mapping[str, Any], folder: Path) -> str:
    """Generator, fallback and judge: as asked for, and where they differ as served; of several
    that wrote rows, how many each did."""
    generators, judges = _served(raw, folder)
    judge = _asked(raw, "correction", "model") or raw["model"]
    rows = raw.get("models", {})
    generators = set(rows) or generators
    if fallback := _asked(raw, "fallback_model"):
        text = f"{one_line(raw['model'])}, fallback {one_line(fallback)}"
        text += f"; rows by {_shares(rows)}" if rows else ""
    elif len(rows) > 1:
        text = f"{one_line(raw['model'])}, served by {_shares(rows)}"
    else:
        text = _as_served(raw["model"], generators)
    if _asked(raw, "correction", "mode") != "off" and (
        judge != raw["model"] or judges - generators
    ):
        text += f"; judge {_as_served(judge, judges)}"
    return text


def _shares(rows: Mapping[str, int]) -> str:
    parts = sorted(rows.items())
    return ", ".join(f"{one_line(name)} ({count} row{'s' * (count > 1)})" for name, count in parts)


def _as_served(asked: str, served: set[str]) -> str:
    others = ", ".join(sorted(one_line(name) for name in served))
    return one_line(asked) if served <= {asked} else f"{one_line(asked)}, served by {others}"


def _served(raw: Mapping[str, Any], folder: Path) -> tuple[set[str], set[str]]:
    """Names of the models that answered, by the first row of each shard."""
    generators: set[str] = set()
    judges: set[str] = set()
    for shard in raw["shards"][:_MOST_SHARDS]:
        try:
            with (folder / shard["name"]).open("rb") as file:
                provenance = orjson.loads(file.readline())["provenance"]
        except (OSError, orjson.JSONDecodeError, KeyError):
            continue
        generators.add(provenance["model"])
        judges |= {vote["model"] for vote in provenance["votes"]}
    return generators, judges


def transition_lines(raw: Mapping[str, Any]) -> list[str]:
    """What self-correction changed: a table in plain text; empty where nothing was judged."""
    lines = matrix_lines(raw["transitions"], 100, _MOST_LABELS)
    if not lines:
        return []
    return [
        "self-correction: label before (down), after (across)",
        *(f"  {line.plain}".rstrip() for line in lines),
    ]


def _refused(raw: Mapping[str, Any]) -> str:
    """Everything that was paid for and not delivered, by reason."""
    counts = {**raw["rejected"], **{f"failed {k}": v for k, v in raw["failed"].items()}}
    if raw["surplus"]:
        counts["over quota"] = raw["surplus"]
    return ", ".join(f"{one_line(reason)} {count}" for reason, count in counts.items()) or "nothing"


def _calls(calls: Mapping[str, Any]) -> str:
    text = (
        f"{calls['served']} answered, {calls['refused']} refused by the endpoint, "
        f"{calls['in_doubt']} in doubt"
    )
    if calls["served_without_usage"]:
        text += f"; {calls['served_without_usage']} answers without a count of tokens"
    return text


def _hedged(raw: Mapping[str, Any]) -> list[str]:
    """How many stalled calls were sent twice, and what that may have cost."""
    count, most = raw["calls"].get("hedged"), raw.get("hedged")
    if not count:
        return []
    text = f"{count} stalled calls sent twice"
    if most:
        dollars = f", {usd(most['usd'])}" if most["usd"] else ""
        text += (
            f", for at most {most['prompt_tokens']} prompt + {most['completion_tokens']} "
            f"completion tokens more{dollars}: one answer of each pair is in doubt"
        )
    return [_line("hedged", text)]


def _tokens(raw: Mapping[str, Any]) -> str:
    spent, wasted = raw["spent"], raw["wasted"]
    cached = spent.get("cached_prompt_tokens")
    return (
        f"{spent['prompt_tokens']} prompt{f' ({cached} cached)' if cached else ''} + "
        f"{spent['completion_tokens']} completion, of them wasted {wasted['prompt_tokens']} + "
        f"{wasted['completion_tokens']}"
    )


def _cost(raw: Mapping[str, Any]) -> str:
    spent, wasted, doubt = raw["spent"]["usd"], raw["wasted"]["usd"], raw["in_doubt"]["usd"]
    if spent is None and (most := raw.get("usd_at_most")) is not None:
        return f"not known, as answers came without a count of tokens; at most {usd(most)}"
    if spent is None:
        return "no price is known" if not raw["simulated"] else "none: simulated"
    text = f"{usd(spent)}, of it wasted {usd(wasted or 0.0)}"
    return f"{text}; at most {usd(doubt)} more is in doubt" if doubt else text


def _rows(raw: Mapping[str, Any], folder: Path) -> list[str]:
    shards = [shard for shard in raw["shards"] if shard["rows"]]
    lines = [_line("rows in", f"{folder}/")]
    if len(shards) == 1:
        lines = [
            _line("rows in", f"{folder / shards[0]['name']}"),
            _line("sha256", shards[0]["sha256"]),
        ]
    elif shards:
        lines.append(_line("sha256", f"{digest_of(shards)} (of {len(shards)} shards' sums)"))
    if raw["failed"] or raw["rejected"]:
        lines.append(_line("refused in", f"{REJECTED}, {FAILURES}"))
    if raw["identity_broken_by"]:
        reasons = "; ".join(map(one_line, raw["identity_broken_by"]))
        lines.append(_line("identity", f"another run may give other bytes: {reasons}"))
    return lines


def digest_of(shards: list[Mapping[str, Any]]) -> str:
    """One digest for many shards: what `sha256sum instances-*.jsonl | sha256sum` prints."""
    sums = "".join(f"{shard['sha256']}  {shard['name']}\n" for shard in shards)
    return sha256(sums.encode()).hexdigest()
