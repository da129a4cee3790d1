"""manifest.json: what a run's folder holds, how it came about and what it cost."""

import platform
from collections.abc import Mapping
from importlib import metadata
from typing import Any, Literal

from msgspec import Struct, to_builtins

from targen_async.config import Prices, RunConfig
from targen_async.ledger import Role, Totals, spent_usd
from targen_async.opening import Parts
from targen_async.records import Usage, add_usage
from targen_async.rundir import MANIFEST, ShardSeal, read_manifest, write_manifest
from targen_async.slots import balance

FORMAT = 1
State = Literal["running", "complete", "stopped"]


class Tokens(Struct, frozen=True, kw_only=True):
    """Tokens as the endpoint counted them, and US dollars where prices are known."""

    prompt_tokens: int
    completion_tokens: int
    cached_prompt_tokens: int
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
    versions: dict[str, str]
    config: dict[str, Any]
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
    totals = parts.ledger.totals()
    wasted = Usage()
    for usage in commit.counts.wasted.values():
        wasted = add_usage(wasted, usage)
    spent = {role: one.usage for role, one in parts.ledger.by_role().items()}
    doubt = {role: one.in_doubt_worst for role, one in parts.ledger.by_role().items()}
    hedged = {role: one.hedged_worst for role, one in parts.ledger.by_role().items()}
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
        surplus=parts.gate.surplus_count(),
        balance=balance(plan.state.accepted, plan.labels),
        transitions=commit.counts.transitions,
        rejected=dict(sorted(commit.counts.rejected.items())),
        failed=dict(sorted(commit.counts.failed.items())),
        calls=_calls(totals),
        spent=tokens(totals.usage, spent, prices),
        prices=dict(prices),
        wasted=tokens(wasted, {"generator": wasted}, prices),
        in_doubt=tokens(totals.in_doubt_worst, doubt, prices),
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
        hedged=tokens(totals.hedged_worst, hedged, prices) if totals.hedged else None,
    )


def _calls(totals: Totals) -> Calls:
    return Calls(
        served=totals.served,
        refused=totals.refused,
        in_doubt=totals.in_doubt,
        served_without_usage=totals.without_usage,
        hedged=totals.hedged,
    )


def tokens(usage: Usage, by_role: Mapping[Role, Usage], prices: Mapping[Role, Prices]) -> Tokens:
    """The sum `usage`, and what its parts cost."""
    return Tokens(
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=usage.completion_tokens,
        cached_prompt_tokens=usage.cached_prompt_tokens,
        usd=spent_usd(by_role, prices),
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


def publish(parts: Parts, manifest: Manifest) -> None:
    """Write the manifest beside its rows; where they stand apart, what they cost is told above."""
    write_manifest(parts.place, manifest)
    if parts.place == parts.folder or not (parts.folder / MANIFEST).exists():
        return
    above, told = read_manifest(parts.folder), to_builtins(manifest)
    above |= {name: told[name] for name in ("calls", "spent", "in_doubt", "hedged", "prices")}
    generation = parts.found.generation
    why = generation.why if generation else ""
    above["remaking"] = {"why": why, "n": told["n"], "delivered": told["delivered"]}
    write_manifest(parts.folder, above)
