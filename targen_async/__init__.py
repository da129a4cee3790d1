"""targen-async: from a task description to a labelled, self-corrected data set.

>>> config = RunConfig(data=Data(task="copa"), delivery=Delivery(n=200))
>>> generate_sync(config, "runs/copa")
>>> for row in read_shards("runs/copa"): ...
"""

from targen_async.config import Data, Delivery, RunConfig
from targen_async.errors import RunStopped, TargenError, UserError
from targen_async.generate import generate, generate_sync
from targen_async.records import Instance, Provenance
from targen_async.shards import read_shards
from targen_async.tasks import Task, list_tasks, load_task

__all__ = [
    "Data",
    "Delivery",
    "Instance",
    "Provenance",
    "RunConfig",
    "RunStopped",
    "TargenError",
    "Task",
    "UserError",
    "generate",
    "generate_sync",
    "list_tasks",
    "load_task",
    "read_shards",
]
