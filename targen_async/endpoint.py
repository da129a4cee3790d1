"""Which endpoint a run asks: the one that is configured, or a simulator of our own."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from targen_async.config import OPENAI_URL, SIMULATED_MODEL, RunConfig
from targen_async.embedded import check_settings, embedded_simulator
from targen_async.errors import UserError
from targen_async.tasks import Task

NOWHERE = "http://127.0.0.1:9/v1"
"""The address of a run that makes no calls."""
SIMULATED_NOTICE = (
    "SIMULATED: these rows come from the built-in simulator, not from a language model. "
    "For a real one give --model NAME (and --base-url URL, or the key in OPENAI_API_KEY)."
)


def is_embedded(config: RunConfig) -> bool:
    return config.delivery.base_url is None and config.data.model == SIMULATED_MODEL


def check_endpoint(config: RunConfig) -> None:
    """Everything about the endpoint that can be wrong before anything is written or sent."""
    if is_embedded(config):
        check_settings(config.data.simulator or {})
    elif config.delivery.base_url is None and not os.environ.get(config.delivery.api_key_env):
        raise UserError(
            f"no API key: put it into the environment variable {config.delivery.api_key_env}, "
            "name another in `delivery.api_key_env`, or give --base-url for a server of your own"
        )


@asynccontextmanager
async def endpoint(config: RunConfig, task: Task) -> AsyncIterator[tuple[str, str | None]]:
    """Base URL and key of the endpoint; runs the embedded simulator where none is configured."""
    if is_embedded(config):
        settings = {"task_folders": [task.folder], **(config.data.simulator or {})}
        async with embedded_simulator(settings) as base_url:
            yield base_url, None
    else:
        api_key = os.environ.get(config.delivery.api_key_env) or None
        yield config.delivery.base_url or OPENAI_URL, api_key
