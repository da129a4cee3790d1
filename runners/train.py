"""Training from a configuration file, in one process or under a launcher.

    python runners/train.py --config runners/configs/encoder-tiny.toml --out runs/cb-encoder
    deepspeed --num_accelerators 2 runners/train.py --config … --out …

The same command goes on with a run that was stopped or killed; SIGTERM and SIGINT save it first.
Exit codes: 0 the model is there, 1 not yet, 2 a mistake in the input, 130 Ctrl-C.
"""

import argparse
import os
import signal
import sys
from pathlib import Path
from types import FrameType

from targen_async.errors import TargenError, UserError

_STOPS: list[int] = []


def _stop(number: int, _: FrameType | None) -> None:
    _STOPS.append(number)


def main() -> int:
    parser = argparse.ArgumentParser(description="Train a model as a configuration file says.")
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tensorboard", action="store_true", help="the curve for TensorBoard too")
    parser.add_argument("--local_rank", type=int, help="given by the deepspeed launcher")
    options = parser.parse_args()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    try:
        from targen_async.finetune.config import load_train_config

        config = load_train_config(options.config)
        from targen_async.finetune.loop import train
    except ImportError as error:
        return _complain(UserError(f"{error}: pip install 'targen-async[train]'"))
    except TargenError as error:
        return _complain(error)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _stop)
    try:
        train(config, options.out, stopped=lambda: bool(_STOPS), tensorboard=options.tensorboard)
    except TargenError as error:
        return _complain(error)
    return 0


def _complain(error: TargenError) -> int:
    if os.environ.get("RANK", "0") == "0":
        print(f"{Path(__file__).name}: {error}", file=sys.stderr)
    return 2 if isinstance(error, UserError) else 130 if signal.SIGINT in _STOPS else 1


if __name__ == "__main__":
    sys.exit(main())
