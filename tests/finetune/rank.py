"""One rank of a launch that trains several runs in turn: a process starts slowly, a run does not.

    RANK=0 WORLD_SIZE=2 … python -m tests.finetune.rank JOBS.json

The jobs are [configuration, folder, step to stop at]. What a rank said of a run, and why it failed,
stands in the run's folder as said-RANK.txt; then the next one begins.
"""

import json
import os
import sys
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
        steps = count(1)
        try:
            train(
                load_train_config(Path(config)),
                Path(out),
                say=said.append,
                stopped=lambda steps=steps, stop=stop: next(steps) == stop,
            )
        except TargenError as error:
            said.append(f"{type(error).__name__}: {error}")
        name = f"said-{os.environ.get('RANK', '0')}.txt"
        Path(out, name).write_text("\n".join(said), "utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
