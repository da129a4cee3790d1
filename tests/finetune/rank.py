"""One rank of a launch that trains several runs in turn: a process starts slowly, a run does not.

    RANK=0 WORLD_SIZE=2 … python -m tests.finetune.rank JOBS.json

The jobs are [configuration, folder, step to stop at]; at a negative one it waits to be killed.
What it said of a run, and why that failed, stands in the run's folder as said-RANK.txt; then the
next one begins.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path

import torch

from targen_async.errors import TargenError
from targen_async.finetune.config import load_train_config
from targen_async.finetune.loop import train


def main(jobs: Path) -> None:
    torch.set_num_threads(1)
    for config, out, stop in json.loads(jobs.read_text("utf-8")):
        said: list[str] = []
        try:
            train(
                load_train_config(Path(config)),
                Path(out),
                say=said.append,
                stopped=stopper(stop),
            )
        except TargenError as error:
            said.append(f"{type(error).__name__}: {error}")
        name = f"said-{os.environ.get('RANK', '0')}.txt"
        Path(out, name).write_text("\n".join(said), "utf-8")


def stopper(stop: int | None) -> Callable[[], bool]:
    steps = count(1)

    def stopped() -> bool:
        step = next(steps)
        if stop == -step:
            time.sleep(3600)
        return step == stop

    return stopped


if __name__ == "__main__":
    main(Path(sys.argv[1]))
