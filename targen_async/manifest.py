"""manifest.json: what a run's folder holds, how it came about and what it cost."""

import platform
from importlib import metadata
from typing import Any, Literal

from msgspec import Struct, to_builtins

from targen_async.commit import CommitState
from targen_async.config import RunConfig
from targen_async.ledger import Ledger, cost_usd
from targen_async.plan import RowPlan
from targen_async.records import Usage, add_usage
from targen_async.rundir import ShardSeal
from targen_async.slots import balance
from targen_async.tasks import Task

FORMAT = 1
State = Literal["running", "complete", "stopped"]


class Tokens(Struct, frozen=True, kw_only=True):
    """Tokens as the endpoint counted them, and US dollars where prices are configured."""

    prompt_tokens: int
    completion_tokens: int
    usd: float | None


class Calls(Struct, frozen=True, kw_only=True):
    """Summed over all starts of the run."""

    served: int
    refused: int
    in_doubt: int
    served_without_usage: int


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
    wasted: Tokens
    """Part of `spent` that bought no row: answers asked again and rows rejected."""
    in_doubt: Tokens
    """On top of `spent`, at worst: calls that were sent and whose answer never arrived."""
    shards: list[ShardSeal]
    identity_broken_by: list[str]
    """Why an unbroken run might have given other bytes; empty: it would not."""
    contexts_missing: int
    waiting_for: str
    """While it runs: the row key that the next commit waits for."""
    versions: dict[str, str]
    config: dict[str, Any]


def make_manifest(
    *,
    state: State,
    reason: str,
    simulated: bool,
    task: Task,
    task_digest: str,
    config: RunConfig,
    commit: CommitState,
    plan: RowPlan,
    ledger: Ledger,
    surplus: int,
    identity_broken_by: list[str],
    contexts_missing: int,
    waiting_for: str,
) -> Manifest:
    """The manifest of a run at its last checkpoint."""
    totals = ledger.totals()
    wasted = Usage()
    for usage in commit.counts.wasted.values():
        wasted = add_usage(wasted, usage)

    def tokens(usage: Usage) -> Tokens:
        return Tokens(
            prompt_tokens=usage.prompt_tokens,
            completion_tokens=usage.completion_tokens,
            usd=cost_usd(usage, config.delivery.prices),
        )

    return Manifest(
        format=FORMAT,
        state=state,
        reason=reason,
        simulated=simulated,
        task=task.name,
        task_version=task.version,
        task_digest=task_digest,
        data_digest=config.digest(),
        model=config.data.model,
        n=plan.state.n,
        delivered=plan.delivered,
        surplus=surplus,
        balance=balance(plan.state.accepted, plan.labels),
        transitions=commit.counts.transitions,
        rejected=dict(sorted(commit.counts.rejected.items())),
        failed=dict(sorted(commit.counts.failed.items())),
        calls=Calls(
            served=totals.served,
            refused=totals.refused,
            in_doubt=totals.in_doubt,
            served_without_usage=totals.without_usage,
        ),
        spent=tokens(totals.usage),
        wasted=tokens(wasted),
        in_doubt=tokens(totals.in_doubt_worst),
        shards=commit.files.shards,
        identity_broken_by=identity_broken_by,
        contexts_missing=contexts_missing,
        waiting_for=waiting_for,
        versions={
            "targen_async": metadata.version("targen-async"),
            "python": platform.python_version(),
            "aiohttp": metadata.version("aiohttp"),
            "rensa": metadata.version("rensa"),
        },
        config=to_builtins(config),
    )
