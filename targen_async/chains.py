"""The clients of a run: one chain of retries, limits and budget for each endpoint it asks."""

import os
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import Any, Self

import anyio
from msgspec import Struct

from targen_async.ask import Asker
from targen_async.budget import Budgeted, Purse
from targen_async.chat import ChatClient, Recorder
from targen_async.chat.fallback import Fallback, Spared, WithFallback
from targen_async.chat.hedge import Hedged
from targen_async.chat.http import HttpChat
from targen_async.chat.lease import Lease
from targen_async.chat.limit import Limited
from targen_async.chat.named import Named
from targen_async.chat.retry import Breaker, Elsewhere, Retrying
from targen_async.chat.sdk import SdkChat
from targen_async.chat.thinking import Thinking
from targen_async.chat.wire import OPENAI, Dialect
from targen_async.config import OPENAI_URL, Data, Delivery, Endpoint, Limits, RunConfig, Timeouts
from targen_async.errors import Denied, RunStopped, UserError
from targen_async.ledger import Role, worst_of
from targen_async.presets import headers_from, preset, proxy_from, secrets_of
from targen_async.prices import models_of
from targen_async.probe import Probed, probe
from targen_async.records import ChatRequest
from targen_async.stats import LimitView

PROBE_PATIENCE_S = 10.0
"""How long the first call may find nobody: later a silent endpoint is waited for, but an address
that never answered is more likely wrong."""
PROBE_ATTEMPTS = 3
"""A 500 is often the answer to a schema that the server does not know."""


class Address(Struct, frozen=True, kw_only=True):
    """One endpoint as it is asked. Holds secrets: it is never written down."""

    role: Role
    model: str
    base_url: str
    place: str
    """The address as configured, by which a probe is known; empty: none is."""
    api_key: str | None
    headers: dict[str, str]
    proxy: str | None
    secrets: set[str]
    """What of headers and proxy comes from the environment."""
    stream: bool
    sdk: bool
    thinking_tokens: int | None
    """None: as the probe finds."""
    api_version: str | None
    dialect: Dialect
    limits: Limits
    hedge: bool | None
    """None: where the purse knows of no bill."""


def addresses(config: RunConfig, simulator_url: str | None) -> list[Address]:
    """Every endpoint that the run asks; the generator's is the first.

    `simulator_url` stands in where no address is configured. Raises UserError for what is missing.
    """
    found: list[Address] = []
    for role, model in models_of(config).items():
        own = {"judge": config.delivery.judge, "fallback": config.delivery.fallback}.get(role)
        if role == "judge" and own is None and model == config.data.model:
            continue  # The generator judges.
        found.append(_address(role, model, config.delivery, own or Endpoint(), simulator_url))
    return found


def _address(
    role: Role, model: str, delivery: Delivery, own: Endpoint, simulator_url: str | None
) -> Address:
    """What is unset in `own` is as for the generator, but for its secrets where it is elsewhere."""
    kind = preset(name) if (name := own.preset or delivery.preset) else None
    given = own.base_url or (None if own.preset else delivery.base_url)
    first = role == "generator"
    address = "--base-url" if first else f"`delivery.{role}.base_url`"
    if kind and given is None and kind.base_url is None:
        raise UserError(f"the preset {kind.name!r} has no address of its own: give {address}")
    named = given or (kind.base_url if kind else None) or ""
    base_url = named or simulator_url or OPENAI_URL
    # What was meant for one host is not shown to another.
    elsewhere = not first and bool(own.base_url or own.preset)
    variable = own.api_key_env or delivery.api_key_env
    if own.api_key_env is None and elsewhere:
        variable = kind.api_key_env if kind and own.preset else ""
    elif kind and own.api_key_env is None and variable == Delivery().api_key_env:
        variable = kind.api_key_env
    api_key = (os.environ.get(variable) or None) if variable else None
    if base_url == simulator_url:
        api_key = None
    elif api_key is None and given is None and base_url.startswith("https:"):
        raise UserError(
            f"no API key: put it into the environment variable {variable}, name another in "
            f"`delivery.{'' if first else f'{role}.'}api_key_env`, or give {address} for a server "
            "of your own"
        )
    sdk = "sdk" in (own.client or delivery.client, kind.client if kind else None)
    headers = own.headers if elsewhere else own.headers or delivery.headers
    proxy = own.proxy or delivery.proxy
    billed = bool(api_key or headers or base_url == simulator_url)
    return Address(
        role=role,
        model=model,
        base_url=base_url,
        place=named.rstrip("/"),
        api_key=api_key,
        headers=headers_from(headers),
        proxy=proxy_from(proxy),
        secrets=secrets_of(headers, proxy),
        stream=delivery.stream if own.stream is None else own.stream,
        sdk=sdk,
        thinking_tokens=(
            delivery.thinking_tokens if own.thinking_tokens is None else own.thinking_tokens
        ),
        api_version=kind.api_version if kind else None,
        dialect=kind.dialect if kind else OPENAI,
        limits=own.limits or delivery.limits,
        hedge=False if delivery.hedge is None and billed else delivery.hedge,
    )


async def try_out(found: list[Address], timeouts: Timeouts) -> None:
    """Make every client once. Raises UserError for what cannot be one: a key that no header can
    carry, a package that is missing."""
    for address in found:
        async with _speaker(address, timeouts, None):
            pass


def _speaker(address: Address, timeouts: Timeouts, recorder: Recorder | None) -> HttpChat | SdkChat:
    common: dict[str, Any] = {
        "recorder": recorder,
        "connect_timeout_s": timeouts.connect_s,
        "read_timeout_s": timeouts.read_s,
        "total_timeout_s": timeouts.total_s,
        "max_in_flight": address.limits.max_in_flight,
        "dialect": address.dialect,
        "headers": address.headers,
        "proxy": address.proxy,
        "secrets": address.secrets,
        "stream": address.stream,
    }
    url, key = address.base_url, address.api_key
    if address.sdk:
        return SdkChat(url, key, azure_api_version=address.api_version, **common)
    return HttpChat(url, key, **common)


class Chain:
    """All that stands between a question and one endpoint."""

    def __init__(self, address: Address, timeouts: Timeouts, purse: Purse) -> None:
        self.address = address
        self._purse = purse
        self.limited: Limited | None = None
        self.breaker: Breaker | None = None
        self._lease: Lease | None = None
        self.speaker = _speaker(address, timeouts, purse.recorder(address.role))

    def probing(self, breaker: Breaker) -> ChatClient:
        """The client for the calls before the stream opens."""
        asked = self._budgeted(self.speaker)
        return Retrying(asked, breaker=breaker, max_attempts=PROBE_ATTEMPTS)

    def _budgeted(self, client: ChatClient) -> ChatClient:
        if not self._purse.binds:
            return client
        return Budgeted(client, self._purse, self.address.role)

    def open(self, breaker: Breaker, room: int) -> ChatClient:
        """The client for the run. `room`: tokens to think with, where none are configured."""
        limits = self.address.limits
        self.breaker = breaker
        if limits.shared:
            self._lease = Lease(
                f"{self.address.base_url}#{self.address.model}", self.address.api_key
            )
        self.limited = Limited(
            self.speaker,
            gate=breaker.check,
            max_in_flight=limits.max_in_flight,
            requests_per_minute=limits.requests_per_minute,
            tokens_per_minute=limits.tokens_per_minute,
            adaptive=limits.adaptive,
            lease=self._lease,
        )
        client = self._budgeted(self.limited)
        if self._hedges:
            client = Hedged(client, self.limited, fits=self._fits)
        own = self.address.thinking_tokens
        return Thinking(Retrying(client, breaker=breaker), room if own is None else own)

    def close(self) -> None:
        """No call comes any more: what it had of a shared quota is the others' at once."""
        if self._lease is not None:
            self._lease.release()

    @property
    def _hedges(self) -> bool:
        """Are stalled calls sent a second time?"""
        told = self.address.hedge
        return self._purse.free(self.address.role) if told is None else told

    def _fits(self, copy: ChatRequest) -> bool:
        return self._purse.fits(worst_of(copy), self.address.role)


class Chains:
    """The chains of a run. Use it as an async context manager around all calls."""

    def __init__(self, found: list[Address], timeouts: Timeouts, purse: Purse) -> None:
        self._all = {address.role: Chain(address, timeouts, purse) for address in found}
        self._stack = AsyncExitStack()
        self.probed: dict[Role, Probed] = {}
        self.breakers: list[Breaker] = []
        self._missing: BaseException | None = None
        """Why the generator cannot be asked in this start, where the fallback steps in for it."""

    def __len__(self) -> int:
        return len(self._all)

    async def __aenter__(self) -> Self:
        for chain in self._all.values():
            await self._stack.enter_async_context(chain.speaker)
        return self

    async def __aexit__(self, *_: object) -> None:
        # Shielded: who is cancelled while it closes leaves connections open, and aiohttp says so.
        with anyio.CancelScope(shield=True):
            await self._stack.aclose()
        for chain in self._all.values():
            chain.close()

    def probing(self, give_up_after_s: float) -> list[Breaker]:
        """Fresh breakers for the calls before the stream opens."""
        patience_s = min(give_up_after_s, PROBE_PATIENCE_S)
        # Others may be using up the quota, which a fallback need not wait for.
        limited_for_s = patience_s if "fallback" in self._all else give_up_after_s
        self.breakers = [
            Breaker(give_up_after_s=patience_s, limited_for_s=limited_for_s) for _ in self._all
        ]
        return self.breakers

    async def probe(self, asker: Asker, task_name: str, data: Data) -> bool:
        """Find out what each endpoint takes; False: the run was stopped meanwhile.

        A generator that cannot be asked is done without where there is a fallback that can.
        """
        for (role, chain), breaker in zip(self._all.items(), self.breakers, strict=True):
            asker.client = chain.probing(breaker)
            missing = self._missing
            if missing or (role == "generator" and "fallback" in self._all):
                asker.client = Spared(asker.client, mistakes=missing is not None)
            address = chain.address
            try:
                probed = await probe(
                    asker,
                    chain.speaker,
                    task_name,
                    data,
                    model=address.model,
                    role="" if role == "generator" else role,
                    place=address.place,
                    start=address.dialect,
                    thinking_tokens=address.thinking_tokens,
                )
            except (RunStopped, Elsewhere) as error:
                # It was never asked here, and where nothing is sent it does not matter.
                if not asker.offline:
                    self._do_without(role, address.model, error)
                probed = Probed(dialect=address.dialect, model=address.model)
            if probed is None:
                return False
            self.probed[role] = probed
        return True

    def _do_without(self, role: Role, model: str, error: Exception) -> None:
        """Remember why the generator cannot be asked. Raises RunStopped where it takes more."""
        cause = error.__cause__ if isinstance(error, Elsewhere) else error
        if self._missing is not None:
            # Of the judge there is no other, either.
            whom = f"the {role} {model!r}"
            raise RunStopped(f"{self._missing}; nor can {whom} be asked: {cause}") from error
        if role != "generator" or "fallback" not in self._all:
            raise error
        self._missing = cause

    def open(
        self, asker: Asker, give_up_after_s: float, say: Callable[[str], None]
    ) -> list[Breaker]:
        """Give the asker its clients for the run; returns their breakers."""
        spare = "fallback" in self._all
        self.breakers = [
            Breaker(give_up_after_s=give_up_after_s, elsewhere=spare and role == "generator")
            for role in self._all
        ]
        clients: dict[Role, ChatClient] = {}
        for (role, chain), breaker in zip(self._all.items(), self.breakers, strict=True):
            probed = self.probed[role]
            client = chain.open(breaker, probed.thinking_tokens)
            whose = f"{role}: " if len(self) > 1 else ""
            clients[role] = Named(client, probed.model, say, whose=whose)
        client = clients["generator"]
        if spare:
            model = self._all["fallback"].address.model
            asker.fallback = Fallback(clients["fallback"], model)
            line = f"going on with the fallback {model!r}: "
            client = WithFallback(client, asker.fallback, lambda why: say(line + why))
            if self._missing is not None:
                # It speaks a dialect that is not known: the next start tries it again.
                why = str(self._missing.__cause__ or self._missing)
                self.breakers[0].deny(Denied(why, user_fault=False))
        asker.client = client
        asker.judge = clients.get("judge", client)
        return self.breakers

    def plain(self, role: Role) -> bool:
        """Does the endpoint that plays a role take no schema?"""
        if role not in self.probed:
            role = "generator"
        if role == "generator" and self._missing is not None:
            role = "fallback"
        return self.probed[role].plain

    def views(self) -> list[LimitView]:
        """Every endpoint's limits at a glance."""
        return [
            chain.limited.view(role, held=chain.breaker.waits_for)
            for role, chain in self._all.items()
            if chain.limited and chain.breaker
        ]

    @property
    def state(self) -> str:
        """One line on the endpoints; the first that is not well speaks for all."""
        states = [chain.breaker.state for chain in self._all.values() if chain.breaker]
        return next((state for state in states if state != "endpoint up"), "endpoint up")

    @property
    def in_flight(self) -> int:
        """Calls that are out right now."""
        return sum(chain.limited.in_flight for chain in self._all.values() if chain.limited)
