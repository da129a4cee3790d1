"""generate(): the one place where all parts of a run are put together."""

import sqlite3
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Literal

import anyio
from msgspec.structs import replace

from targen_async.ask import Asker
from targen_async.budget import Purse, cost_view
from targen_async.chains import Chains, addresses
from targen_async.chat.retry import Breaker
from targen_async.commit import Committer
from targen_async.config import SIMULATED_MODEL, Prices, RunConfig, anchored
from targen_async.control import Demand, RunControl
from targen_async.corpus import CorpusSeeds
from targen_async.endpoint import NOWHERE, SIMULATED_NOTICE, check_endpoint, endpoint, explained
from targen_async.errors import RunStopped, TargenError, first_cause
from targen_async.journal import Kind
from targen_async.ledger import Role
from targen_async.lock import Lock
from targen_async.log import Event, no_event
from targen_async.manifest import Manifest, State, holds_simulated, make_manifest, publish
from targen_async.opening import Parts, open_parts
from targen_async.pipeline import Incoming, Queues, Send, Stage, Work, each, run_stages
from targen_async.points import Contexts, Seeds
from targen_async.prices import prices_of
from targen_async.progress import Meter
from targen_async.records import Usage, add_usage
from targen_async.rundir import open_folder
from targen_async.slots import Blocks, Slots
from targen_async.sources import with_digests
from targen_async.stages import Steps
from targen_async.stats import Stats
from targen_async.tasks import load_task
from targen_async.telling import for_onlookers, keep_telling, show_run, tell_end, tell_start
from targen_async.verdicts import Verdicts

Say = Callable[[str], None]
MANIFEST_EVERY_S = 2.0
COMMIT_CAPACITY = 1024


async def generate(
    config: RunConfig,
    out: Path | str,
    *,
    control: RunControl | None = None,
    stats: Stats | None = None,
    say: Callable[[str], None] | None = None,
    event: Event = no_event,
    accept_task_change: bool = False,
    again: Literal["retry", "reparse"] | None = None,
    first: int | None = None,
) -> Manifest:
    """Make `config.delivery.n` rows in the folder `out`, or go on where an earlier start ended.

    `control.drain()` stops sending and returns when the calls under way are in; `stats` is updated
    as the run goes; `say` gets a line for each thing a person should know. Returns the manifest;
    its state is `stopped` when the run was drained. Raises UserError for a mistake in the input,
    RunStopped or Denied when the run cannot go on. `again`: make the rows anew out of the journal,
    asking once more for what failed (`retry`), or without a call (`reparse`: after a validator was
    changed); the new rows take the place of the old ones when they are complete. `first`: make so
    many of n for now; run.toml tells n all the same. Cancelling
    abandons calls under way; however it ends, what was paid for is on disk and the same call
    resumes it.
    """
    control = control or RunControl()
    folder = Path(out)
    task = load_task(config.data.task)
    if again != "reparse":
        await check_endpoint(config)
    config = with_digests(anchored(config))
    prices = prices_of(config)
    open_folder(folder)
    with _on_disk(folder), Lock(folder):
        async with AsyncExitStack() as stack:
            parts = stack.enter_context(
                open_parts(config, task, folder, first, accept=accept_task_change, again=again)
            )
            offline = again == "reparse"
            url = NOWHERE if offline else await stack.enter_async_context(endpoint(config, task))
            hear = say or (lambda _line: None)
            purse = Purse(config.delivery.budget, parts.ledger, prices, say=hear)
            chains = Chains(addresses(config, url), config.delivery.timeouts, purse)
            run = _Run(config, parts, chains, control, stats or Stats(), offline=offline)
            run.say, run.event, run.prices = hear, event, prices
            if again == "retry" and parts.found.swapped:
                hear("no row failed: there is nothing to ask for again")
            run.stats.held = lambda: purse.held
            run.stats.cost = lambda: cost_view(
                parts.ledger, prices, purse, delivered=run.stats.delivered, n=run.stats.n
            )
            show_run(run.stats, parts, config, control)
            tell_start(event, parts, config)
            await run.go()
            manifest = run.manifest(final=True)
            tell_end(event, parts, manifest)
            if control.error is not None and manifest.state != "complete":
                raise explained(control.error, config, task, simulated=run.simulated)
            return manifest


@contextmanager
def _on_disk(folder: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, sqlite3.Error) as error:
        said = str(error).lower()
        raise RunStopped(
            f"cannot write {folder}: {said}; mend it and start the same command again"
        ) from error


def generate_sync(config: RunConfig, out: Path | str, **options: object) -> Manifest:
    """`generate` for callers without an event loop; same arguments, result and errors."""

    async def main() -> Manifest:
        return await generate(config, out, **options)  # type: ignore[arg-type]

    return anyio.run(main, backend_options={"use_uvloop": True})


class _Run:
    """One start of a run, from the open journal to the last checkpoint."""

    def __init__(
        self,
        config: RunConfig,
        parts: Parts,
        chains: Chains,
        control: RunControl,
        stats: Stats,
        *,
        offline: bool,
    ) -> None:
        self.chains = chains
        self.offline = offline
        self.config = config
        self.parts = parts
        self.control = control
        self.stats = stats
        self.say: Say = lambda _line: None
        self.event: Event = no_event
        self.prices: Mapping[Role, Prices] = {}
        data, task, generation = config.data, parts.rows.task, parts.found.generation
        self.holds_simulated = holds_simulated(parts.folder)
        self.simulated = self.holds_simulated or data.model == SIMULATED_MODEL
        self.rows_per_seed = parts.rows_per_seed
        self.block_size = data.correction.per_call or task.correction.per_call
        self.context_demand = Demand(
            control,
            per_call=task.contexts.per_call,
            needed=data.contexts,
            accepted=0,
            window=config.delivery.window,
        )
        self.seed_demand = Demand(
            control,
            per_call=1 if parts.corpus else data.seeds_per_context or task.seeds.per_call,
            needed=0,
            accepted=parts.state.seeds.index,
            window=config.delivery.window,
        )
        self.contexts = Contexts(parts.rows, data, self.context_demand)
        self.seeds = Seeds(parts.rows, data, parts.gate, self.seed_demand, parts.state.seeds)
        self.committer = Committer(
            parts.state,
            parts.found.targets,
            rows=parts.rows,
            plan=parts.plan,
            journal=parts.journal,
            files=parts.files,
            gate=parts.gate,
            control=control,
            seed_demand=self.seed_demand,
            stats=stats,
            voters=0 if data.correction.mode == "off" else data.correction.votes,
            block_size=self.block_size,
            rows_per_seed=self.rows_per_seed,
            replay_to=parts.replay_to,
            remake_to=generation.until if generation else 0,
            stop_at=generation.until if offline and generation else None,
        )

    async def go(self) -> None:
        """Run the stages until n is delivered or nothing more can be had; then checkpoint."""
        sound = True
        try:
            async with self.chains, anyio.create_task_group() as background:
                background.start_soon(self.parts.journal.keep_synced)
                background.start_soon(self._keep_manifest)
                background.start_soon(keep_telling, self.event, self.parts)
                await self._run_stages()
                background.cancel_scope.cancel()
        except BaseExceptionGroup as group:
            cause = first_cause(group)
            if isinstance(cause, TargenError):
                self.control.fail(cause)
            # After an error of our own making the last checkpoint is a safer place to go on from.
            sound = isinstance(cause, (TargenError, anyio.get_cancelled_exc_class()))
            raise cause from None
        finally:
            if sound:
                with anyio.CancelScope(shield=True):
                    await self._finish()

    async def _finish(self) -> None:
        """The last checkpoint and manifest of this start."""
        done = self.committer.done
        trailing = [] if done else [*self.contexts.notes, *self.seeds.notes]
        wasted = Usage() if done else add_usage(self.contexts.wasted, self.seeds.wasted)
        await self.committer.finish(trailing, wasted)
        publish(self.parts, self.manifest(final=True))
        # A reparse is over when it runs out of answers, but not when somebody ends it.
        whole = self.committer.done or (self.offline and self.control.draining is None)
        if whole and not self.parts.found.swapped:
            self.parts.journal.append(Kind.SWAPPED, b"")
            await self.parts.journal.sync()
            self.parts.found.swapped = True

    async def _run_stages(self) -> None:
        chains, data, task = self.chains, self.config.data, self.parts.rows.task
        patience_s = self.config.delivery.give_up_after_s
        asker = self._asker()
        async with self._drained(chains.probing(patience_s)):
            await chains.probe(asker, task.name, data)
        if "generator" not in chains.probed or len(chains.probed) < len(chains):
            return
        self._announce()
        if not self.parts.found.swapped:
            self.say(
                f"the rows are made anew in {self.parts.place}; those in {self.parts.folder} stand "
                "until the new ones are complete"
            )
        if self.control.replaying:
            self.say("files are missing or changed: they are made again from the journal")
        if self.committer.done:
            return
        breakers = chains.open(asker, patience_s, self.say)
        self.stats.endpoint = lambda: chains.state
        self.stats.in_flight = lambda: chains.in_flight
        self.stats.limits = chains.views
        known = Verdicts()
        if self.parts.found.generation is not None:
            known = Verdicts.scan(self.parts.journal.path, self.parts.found.generation_at)
        steps = Steps(
            asker,
            self.parts.rows,
            data,
            known,
            plain=chains.plain("generator"),
            plain_judge=chains.plain("judge"),
        )
        async with self._drained(breakers):
            await run_stages(self._stages(steps), self._see)

    def _see(self, queues: Queues) -> None:
        self.stats.queues = queues

    def _stages(self, steps: Steps) -> list[Stage]:
        parts, data, delivery = self.parts, self.config.data, self.config.delivery
        calls = delivery.limits.max_in_flight
        slots = Slots(
            parts.rows.task,
            parts.plan,
            self.control,
            rows_per_seed=self.rows_per_seed,
            random_seed=data.random_seed,
            start=parts.state.restart_slot,
            window=delivery.window,
        )
        self.stats.window_full = lambda: slots.window_full
        return [
            *self._seed_stages(steps),
            # Seeds pass in order: those that are asked for early enough bridge a slow call.
            Stage(name="slots", work=slots.work, capacity=calls),
            Stage(name="instances", work=each(steps.instances), workers=calls),
            *self._judging_stages(steps),
            Stage(name="commit", work=self.committer.work, capacity=COMMIT_CAPACITY),
        ]

    def _judging_stages(self, steps: Steps) -> list[Stage]:
        """From drafts to judged rows: none where correction is off."""
        if not steps.judges:
            return []
        blocks = Blocks(
            self.parts.rows.task,
            self.parts.plan,
            self.control,
            size=self.block_size,
            seed_of=self._seed_of,
            random_seed=self.config.data.random_seed,
        )
        calls = self.config.delivery.limits.max_in_flight
        judge = Stage(name="correction", work=each(steps.correction), workers=calls)
        return [Stage(name="blocks", work=blocks.work), judge]

    def _seed_of(self, slot: int) -> int:
        """Which seed a row hangs on; a text of a corpus may come round again."""
        seed, corpus = slot // self.rows_per_seed, self.parts.corpus
        return seed % len(corpus) if corpus else seed

    def _seed_stages(self, steps: Steps) -> list[Stage]:
        """From nothing to seeds: by way of contexts, or out of a corpus."""
        calls = self.config.delivery.limits.max_in_flight
        if self.parts.corpus is not None:
            taken = CorpusSeeds(self.parts.corpus, self.seed_demand, self.parts.state.seeds)
            return [Stage(name="corpus", work=self._ordered(taken.work))]
        return [
            Stage(name="context-calls", work=self.contexts.calls),
            Stage(name="contexts", work=each(steps.contexts), workers=min(calls, 4)),
            Stage(name="context-point", work=self._ordered(self.contexts.point)),
            Stage(name="seed-calls", work=self.seeds.calls),
            Stage(name="seeds", work=each(steps.seeds), workers=calls),
            Stage(name="seed-point", work=self._ordered(self.seeds.point)),
        ]

    def _asker(self) -> Asker:
        parts = self.parts
        return Asker(
            parts.journal,
            parts.ledger,
            parts.found.memos,
            self.control,
            self.stats,
            retry_before=parts.found.retry_before,
            generation_at=parts.found.generation_at,
            # Who has all rows asks nothing, at whatever address.
            offline=self.offline or self.committer.done,
        )

    def _announce(self) -> None:
        probed = self.chains.probed
        # Where a run moves to another endpoint, the rows that it has stay what they are.
        simulated = self.holds_simulated or any(one.simulated for one in probed.values())
        self.simulated = self.stats.simulated = simulated
        if self.simulated:
            self.say(SIMULATED_NOTICE)
        for role, one in probed.items():
            self.event("info", "probed", role=role, simulated=one.simulated, plain=one.plain)
            for note in one.notes:
                self.say(note if len(probed) == 1 else f"{role}: {note}")

    def _ordered(self, work: Work) -> Work:
        """A point that runs dry ends its stream: what it passed on before still becomes rows."""

        async def guarded(incoming: Incoming, send: Send) -> None:
            try:
                await work(incoming, send)
            except RunStopped as error:
                if not self.offline:
                    self.control.error = self.control.error or error
                self.context_demand.close()
                self.seed_demand.close()

        return guarded

    @asynccontextmanager
    async def _drained(self, breakers: Sequence[Breaker]) -> AsyncIterator[None]:
        """Bounds what is done inside once nothing new is to be sent."""
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as group:
                group.start_soon(self._end_drain, scope, breakers)
                yield
                group.cancel_scope.cancel()

    async def _end_drain(self, scope: anyio.CancelScope, breakers: Sequence[Breaker]) -> None:
        """Give calls under way `drain_s` to arrive, then abandon them; what waits ends at once."""
        await self.control.changed.until(lambda: self.control.draining is not None)
        for breaker in breakers:
            breaker.drain()
        await anyio.sleep(self.config.delivery.drain_s)
        scope.cancel()

    async def _keep_manifest(self) -> None:
        meter = Meter(self.stats)
        while True:
            await anyio.sleep(MANIFEST_EVERY_S)
            publish(self.parts, replace(self.manifest(final=False), now=for_onlookers(meter)))

    def manifest(self, *, final: bool) -> Manifest:
        """What the folder holds at the last checkpoint."""
        state: State = "running"
        if final:
            state = "complete" if self.parts.plan.done else "stopped"
        return make_manifest(
            self.parts,
            self.config,
            self.prices,
            state=state,
            reason=self.control.draining or str(self.control.error or ""),
            simulated=self.simulated,
            contexts_missing=self.contexts.shortfall,
            waiting_for="" if final else self.stats.waiting_for,
        )
