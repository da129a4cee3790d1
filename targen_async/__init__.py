"""targen-async: from a task description to a labelled data set, generated and corrected by an LLM.

>>> config = RunConfig(data=Data(task="copa"), delivery=Delivery(n=200))
>>> generate_sync(config, "runs/copa")
>>> for row in read_shards("runs/copa"): ...
"""

from importlib import import_module
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

# The engine brings an HTTP client along: who only reads rows need not wait for it.
_LATE = {
    "Manifest": "targen_async.manifest",
    "generate": "targen_async.engine",
    "generate_sync": "targen_async.engine",
}

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
    if name not in _LATE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_LATE[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
