"""manifest.json: what a run's folder holds, how it came about and what it cost."""

import platform
from collections.abc import Mapping
from functools import reduce
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from msgspec import Struct, to_builtins

from targen_async.config import Prices, RunConfig
from targen_async.errors import UserError
from targen_async.ledger import Role, Totals, at_most_usd, spent_usd
from targen_async.opening import Parts
from targen_async.records import Usage, add_usage
from targen_async.rundir import MANIFEST, ShardSeal, read_manifest, write_manifest
from targen_async.slots import balance
from targen_async.state import JUDGED_AGAIN

FORMAT = 1
State = Literal["running", "complete", "stopped"]


class Tokens(Struct, frozen=True, kw_only=True):
    """Tokens as the endpoint counted them, and US dollars where prices are known and every answer
    was counted."""

    prompt_tokens: int
    completion_tokens: int
    cached_prompt_tokens: int = 0
    """The part of `prompt_tokens` that the provider's prefix cache held."""
    usd: float | None


class Calls(Struct, frozen=True, kw_only=True):
    """Summed over all starts of the run."""

    served: int
    refused: int
    in_doubt: int
    served_without_usage: int
    hedged: int = 0
    """Sent a second time as they stalled."""


class Manifest(Struct, frozen=True, kw_only=True):
    """See docs/run-folder.md for every field."""

    format: int
    state: State
    reason: str
    simulated: bool
    task: str
    task_version: int
    task_digest: str
    data_digest: str
    model: str
    n: int
    delivered: int
    models: dict[str, int] = {}
    """Rows in the shards by the model that wrote them, as served. Empty where they were not counted
    from the first on: in a merged folder, or one begun by an earlier version."""
    surplus: int
    balance: dict[str, int]
    transitions: dict[str, dict[str, int]]
    rejected: dict[str, int]
    failed: dict[str, int]
    calls: Calls
    spent: Tokens
    prices: dict[Role, Prices]
    """What the dollars were reckoned with; empty where no price is known."""
    wasted: Tokens
    """Part of `spent` that bought no row: answers asked again and rows rejected."""
    usd_at_most: float | None = None
    """The most that it may have cost, as the caps count it: with the worst case of answers without
    a count and of calls in doubt. None where a price is not known."""
    in_doubt: Tokens
    """On top of `spent`, at worst: calls that were sent and whose answer never arrived."""
    remaking: dict[str, Any] | None
    """While rows are made anew in `next/`: why, how many are wanted and how many are there."""
    generation: int
    """How often the rows were made anew: by a retry, a reparse or a change of the task."""
    shards: list[ShardSeal]
    identity_broken_by: list[str]
    """Why an unbroken run might have given other bytes; empty: it would not."""
    contexts_missing: int
    corpus: dict[str, Any] | None
    """Of seeds from a corpus: the file, its digest, and how many of its texts can be used."""
    waiting_for: str
    """While it runs: the row key that the next commit waits for."""
    now: dict[str, Any] | None = None
    """While it runs: what it told people last, as a line of `--json`; for who looks on."""
    versions: dict[str, str]
    config: dict[str, dict[str, Any]]
    hedged: Tokens | None = None
    """The part of `spent` and `in_doubt` that went into second copies, at worst; None: none did."""


def make_manifest(
    parts: Parts,
    config: RunConfig,
    prices: Mapping[Role, Prices],
    *,
    state: State,
    reason: str,
    simulated: bool,
    contexts_missing: int,
    waiting_for: str,
) -> Manifest:
    """The manifest of an open run at its last checkpoint."""
    commit, plan, task = parts.state, parts.plan, parts.rows.task
    totals, asked = parts.ledger.totals(), parts.ledger.by_role()
    spent, in_doubt = spent_of(asked, prices)
    hedged = {role: one.hedged_worst for role, one in asked.items()}
    models = dict(sorted(commit.counts.models.items()))
    return Manifest(
        format=FORMAT,
        state=state,
        reason=reason,
        simulated=simulated,
        task=task.name,
        task_version=task.version,
        task_digest=parts.found.task_digest,
        data_digest=config.digest(),
        model=config.data.model,
        n=plan.state.n,
        delivered=plan.delivered,
        models=models if sum(models.values()) == plan.delivered else {},
        surplus=parts.gate.surplus_count(),
        balance=balance(plan.state.accepted, plan.labels),
        transitions=commit.counts.transitions,
        rejected=dict(sorted(commit.counts.rejected.items())),
        failed=dict(sorted(commit.counts.failed.items())),
        calls=_calls(totals),
        spent=spent,
        usd_at_most=at_most_usd(asked, prices),
        prices=dict(prices),
        wasted=tokens(_wasted(commit.counts.wasted), prices, known=spent.usd is not None),
        in_doubt=in_doubt,
        remaking=None,
        generation=len(parts.found.generations),
        shards=commit.files.shards,
        identity_broken_by=_identity_broken_by(parts),
        contexts_missing=contexts_missing,
        corpus=to_builtins(parts.corpus.summary) if parts.corpus else None,
        waiting_for=waiting_for,
        versions={
            "python": platform.python_version(),
            **{name: metadata.version(name) for name in ("targen-async", "aiohttp", "rensa")},
        },
        config=to_builtins(config),
        hedged=tokens(hedged, prices) if totals.hedged else None,
    )


def _calls(totals: Totals) -> Calls:
    return Calls(
        served=totals.served,
        refused=totals.refused,
        in_doubt=totals.in_doubt,
        served_without_usage=totals.without_usage,
        hedged=totals.hedged,
    )


def _wasted(by_cause: Mapping[str, Usage]) -> dict[Role, Usage]:
    wasted: dict[Role, Usage] = {"generator": Usage(), "judge": Usage()}
    for cause, usage in by_cause.items():
        role: Role = "judge" if cause == JUDGED_AGAIN else "generator"
        wasted[role] = add_usage(wasted[role], usage)
    return wasted


def spent_of(asked: Mapping[Role, Totals], prices: Mapping[Role, Prices]) -> tuple[Tokens, Tokens]:
    """What was spent, and what is in doubt on top of it."""
    counted = not any(one.without_usage for one in asked.values())
    spent = {role: one.usage for role, one in asked.items()}
    doubt = {role: one.in_doubt_worst for role, one in asked.items()}
    return tokens(spent, prices, known=counted), tokens(doubt, prices)


def tokens(
    by_role: Mapping[Role, Usage], prices: Mapping[Role, Prices], *, known: bool = True
) -> Tokens:
    """The sum of the parts, and what they cost if that is `known`."""
    usage = reduce(add_usage, by_role.values(), Usage())
    return Tokens(
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=usage.completion_tokens,
        cached_prompt_tokens=usage.cached_prompt_tokens,
        usd=spent_usd(by_role, prices) if known else None,
    )


_ANEW = {
    "retry": "calls that had failed were made again",
    "reparse": "answers were read again by other rules",
    "task": "the task was changed",
}


def _identity_broken_by(parts: Parts) -> list[str]:
    reasons = []
    if parts.ledger.dead:
        reasons.append(f"{parts.ledger.dead} calls failed for good")
    if len(parts.found.targets) > 1:
        reasons.append("n was raised")
    reasons += [_ANEW[why] for why in dict.fromkeys(parts.found.generations)]
    return reasons


def holds_simulated(folder: Path) -> bool:
    """Are there simulated rows in the folder, by the manifest of an earlier start?"""
    try:
        told = read_manifest(folder)
    except UserError:
        return False
    return bool(told.get("simulated") and told["delivered"])


def publish(parts: Parts, manifest: Manifest) -> None:
    """Write the manifest beside its rows; where they stand apart, what they cost is told above."""
    write_manifest(parts.place, manifest)
    if parts.place == parts.folder or not (parts.folder / MANIFEST).exists():
        return
    above, told = read_manifest(parts.folder), to_builtins(manifest)
    shown = ("calls", "spent", "usd_at_most", "in_doubt", "hedged", "prices")
    above |= {name: told[name] for name in shown}
    generation = parts.found.generation
    why = generation.why if generation else ""
    above["remaking"] = {"why": why, "n": told["n"], "delivered": told["delivered"]}
    write_manifest(parts.folder, above)
