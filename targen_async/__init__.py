"""targen-async: from a task description to a labelled data set, generated and corrected by an LLM.

>>> config = RunConfig(data=Data(task="copa"), delivery=Delivery(n=200))
>>> generate_sync(config, "runs/copa")
>>> for row in read_shards("runs/copa"): ...
"""

from typing import TYPE_CHECKING, Any

from targen_async.config import Data, Delivery, RunConfig
from targen_async.control import RunControl
from targen_async.errors import RunStopped, TargenError, UserError
from targen_async.records import Instance, Provenance
from targen_async.shards import read_shards
from targen_async.stats import Stats
from targen_async.tasks import Task, list_tasks, load_task

if TYPE_CHECKING:
    from targen_async.engine import generate, generate_sync
    from targen_async.manifest import Manifest

__all__ = [
    "Data",
    "Delivery",
    "Instance",
    "Manifest",
    "Provenance",
    "RunConfig",
    "RunControl",
    "RunStopped",
    "Stats",
    "TargenError",
    "Task",
    "UserError",
    "generate",
    "generate_sync",
    "list_tasks",
    "load_task",
    "read_shards",
]


def __getattr__(name: str) -> Any:  # noqa: ANN401
    # The engine brings an HTTP client along: who only reads rows need not wait for it.
    if name in ("generate", "generate_sync"):
        from targen_async import engine

        return getattr(engine, name)
    if name == "Manifest":
        from targen_async import manifest

        return manifest.Manifest
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
