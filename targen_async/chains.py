"""The clients of a run: one chain of retries, limits and budget for each endpoint it asks."""

import os
from contextlib import AsyncExitStack
from typing import Any, Self

import anyio
from msgspec import Struct
from msgspec.structs import replace

from targen_async.ask import Asker
from targen_async.budget import Budgeted, Purse
from targen_async.chat import ChatClient
from targen_async.chat.hedge import Hedged
from targen_async.chat.http import HttpChat
from targen_async.chat.lease import Lease
from targen_async.chat.limit import Gate, Limited
from targen_async.chat.retry import Breaker, Retrying
from targen_async.chat.sdk import SdkChat
from targen_async.chat.wire import OPENAI, Dialect
from targen_async.config import OPENAI_URL, Data, Delivery, Endpoint, Limits, RunConfig, Timeouts
from targen_async.errors import Denied, Rejected, ServerFault, UserError
from targen_async.ledger import Role, worst_of
from targen_async.presets import headers_from, preset, proxy_from
from targen_async.prices import models_of
from targen_async.probe import Probed, probe
from targen_async.records import ChatRequest, ChatResult
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
    api_key: str | None
    headers: dict[str, str]
    proxy: str | None
    stream: bool
    sdk: bool
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
    base_url = given or (kind.base_url if kind else None) or simulator_url or OPENAI_URL
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
    headers = headers_from(own.headers if elsewhere else own.headers or delivery.headers)
    billed = bool(api_key or headers or base_url == simulator_url)
    sdk = "sdk" in (own.client or delivery.client, kind.client if kind else None)
    return Address(
        role=role,
        model=model,
        base_url=base_url,
        api_key=api_key,
        headers=headers,
        proxy=proxy_from(own.proxy or delivery.proxy),
        stream=delivery.stream if own.stream is None else own.stream,
        sdk=sdk,
        api_version=kind.api_version if kind else None,
        dialect=kind.dialect if kind else OPENAI,
        limits=own.limits or delivery.limits,
        hedge=False if delivery.hedge is None and billed else delivery.hedge,
    )


class Chain:
    """All that stands between a question and one endpoint."""

    def __init__(self, address: Address, timeouts: Timeouts, purse: Purse) -> None:
        self.address = address
        self._purse = purse
        self.limited: Limited | None = None
        self.breaker: Breaker | None = None
        common: dict[str, Any] = {
            "recorder": purse.recorder(address.role),
            "connect_timeout_s": timeouts.connect_s,
            "read_timeout_s": timeouts.read_s,
            "total_timeout_s": timeouts.total_s,
            "max_in_flight": address.limits.max_in_flight,
            "dialect": address.dialect,
            "headers": address.headers,
            "proxy": address.proxy,
            "stream": address.stream,
        }
        self.speaker: HttpChat | SdkChat
        if address.sdk:
            version = address.api_version
            self.speaker = SdkChat(
                address.base_url, address.api_key, azure_api_version=version, **common
            )
        else:
            self.speaker = HttpChat(address.base_url, address.api_key, **common)

    def probing(self, breaker: Breaker) -> ChatClient:
        """The client for the calls before the stream opens."""
        return Retrying(self._budgeted(None), breaker=breaker, max_attempts=PROBE_ATTEMPTS)

    def _budgeted(self, gate: Gate | None) -> ChatClient:
        if not self._purse.binds:
            return self.speaker
        return Budgeted(self.speaker, self._purse, self.address.role, gate=gate)

    def open(self, breaker: Breaker) -> ChatClient:
        """The client for the run."""
        limits = self.address.limits
        self.breaker = breaker
        declared = limits.requests_per_minute or limits.tokens_per_minute
        lease = None
        if limits.shared and declared:
            lease = Lease(f"{self.address.base_url}#{self.address.model}", self.address.api_key)
        self.limited = Limited(
            self._budgeted(breaker.check),
            gate=breaker.check,
            max_in_flight=limits.max_in_flight,
            requests_per_minute=limits.requests_per_minute,
            tokens_per_minute=limits.tokens_per_minute,
            adaptive=limits.adaptive,
            lease=lease,
        )
        role, purse = self.address.role, self._purse
        if purse.free(role) if self.address.hedge is None else self.address.hedge:
            hedged = Hedged(self.limited, fits=lambda copy: purse.fits(worst_of(copy), role))
            return Retrying(hedged, breaker=breaker)
        return Retrying(self.limited, breaker=breaker)


class WithFallback:
    """Asks another model where the first refuses for good, is away or is out of credit."""

    def __init__(self, first: ChatClient, chain: Chain, second: ChatClient, model: str) -> None:
        self._first = first
        self._chain = chain
        self._second = second
        self._model = model

    async def complete(self, request: ChatRequest) -> ChatResult:
        breaker = self._chain.breaker
        if breaker is None or not breaker.away:
            try:
                return await self._first.complete(request)
            except (Rejected, ServerFault, Denied) as error:
                if error.status is None:
                    raise
        return await self._second.complete(replace(request, model=self._model))


class Chains:
    """The chains of a run. Use it as an async context manager around all calls."""

    def __init__(self, found: list[Address], timeouts: Timeouts, purse: Purse) -> None:
        self._all = {address.role: Chain(address, timeouts, purse) for address in found}
        self._stack = AsyncExitStack()
        self.probed: dict[Role, Probed] = {}
        self.breakers: list[Breaker] = []

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

    def probing(self, give_up_after_s: float) -> list[Breaker]:
        """Fresh breakers for the calls before the stream opens."""
        patience_s = min(give_up_after_s, PROBE_PATIENCE_S)
        self.breakers = [Breaker(give_up_after_s=patience_s) for _ in self._all]
        return self.breakers

    async def probe(self, asker: Asker, task_name: str, data: Data) -> bool:
        """Find out what each endpoint takes; False: the run was stopped meanwhile."""
        for (role, chain), breaker in zip(self._all.items(), self.breakers, strict=True):
            asker.client = chain.probing(breaker)
            probed = await probe(
                asker,
                chain.speaker,
                task_name,
                data,
                model=chain.address.model,
                role="" if role == "generator" else role,
                start=chain.address.dialect,
            )
            if probed is None:
                return False
            self.probed[role] = probed
        return True

    def open(self, asker: Asker, give_up_after_s: float) -> list[Breaker]:
        """Give the asker its clients for the run; returns their breakers."""
        self.breakers = [Breaker(give_up_after_s=give_up_after_s) for _ in self._all]
        clients = {
            role: chain.open(breaker)
            for (role, chain), breaker in zip(self._all.items(), self.breakers, strict=True)
        }
        client = clients["generator"]
        if "fallback" in clients:
            model = self._all["fallback"].address.model
            client = WithFallback(client, self._all["generator"], clients["fallback"], model)
        asker.client = client
        asker.judge = clients.get("judge", client)
        return self.breakers

    def plain(self, role: Role) -> bool:
        """Does the endpoint that plays a role take no schema?"""
        return (self.probed.get(role) or self.probed["generator"]).plain

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
