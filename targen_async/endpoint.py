"""Which endpoint a run asks: the one that is configured, or a simulator of our own."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from targen_async.chains import addresses, try_out
from targen_async.config import SIMULATED_MODEL, RunConfig
from targen_async.embedded import check_settings, embedded_simulator
from targen_async.errors import Starved, TargenError
from targen_async.presets import check_headers
from targen_async.tasks import Task, prompts_root

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


async def check_endpoint(config: RunConfig) -> None:
    """Everything about the endpoint that can be wrong before anything is written or sent."""
    delivery = config.delivery
    for place in (delivery, delivery.judge, delivery.fallback):
        if place is not None:
            check_headers(place.headers)
    if is_embedded(config):
        check_settings(config.data.simulator or {})
    else:
        await try_out(addresses(config, None), config.delivery.timeouts)


def explained(error: TargenError, config: RunConfig, task: Task, *, simulated: bool) -> TargenError:
    """The error, with the mend where a simulator of the user's own was not told of the task."""
    own = Path(task.folder).parent != prompts_root()
    if not (isinstance(error, Starved) and simulated and own) or is_embedded(config):
        return error
    return Starved(
        f"{error}; the simulator knows a task of your own where it was started with its folder: "
        f"targen simulate --task-folder {task.folder}"
    )


@asynccontextmanager
async def endpoint(config: RunConfig, task: Task) -> AsyncIterator[str | None]:
    """The address of the embedded simulator, which runs meanwhile; None: it is not wanted."""
    if is_embedded(config):
        settings = {"task_folders": [task.folder], **(config.data.simulator or {})}
        async with embedded_simulator(settings) as base_url:
            yield base_url
    else:
        yield None
