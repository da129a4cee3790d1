"""Which endpoint a run asks: the one that is configured, or a simulator of our own."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from targen_async.chains import addresses
from targen_async.config import SIMULATED_MODEL, RunConfig
from targen_async.embedded import check_settings, embedded_simulator
from targen_async.tasks import Task

NOWHERE = "http://127.0.0.1:9/v1"
"""The address of a run that makes no calls."""
SIMULATED_NOTICE = (
    "SIMULATED: these rows come from the built-in simulator, not from a language model. "
    "For a real one give --model NAME (and --base-url URL, or the key in OPENAI_API_KEY)."
)


def is_embedded(config: RunConfig) -> bool:
    delivery = config.delivery
    nowhere = delivery.base_url is None and delivery.preset is None
    return nowhere and config.data.model == SIMULATED_MODEL


def check_endpoint(config: RunConfig) -> None:
    """Everything about the endpoint that can be wrong before anything is written or sent."""
    if is_embedded(config):
        check_settings(config.data.simulator or {})
    else:
        addresses(config, None)


@asynccontextmanager
async def endpoint(config: RunConfig, task: Task) -> AsyncIterator[str | None]:
    """The address of the embedded simulator, which runs meanwhile; None: it is not wanted."""
    if is_embedded(config):
        settings = {"task_folders": [task.folder], **(config.data.simulator or {})}
        async with embedded_simulator(settings) as base_url:
            yield base_url
    else:
        yield None
