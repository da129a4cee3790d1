"""Training from a configuration file, in one process or under a launcher.

    python runners/train.py --config runners/configs/encoder-tiny.toml --out runs/cb-encoder
    deepspeed --num_accelerators 2 runners/train.py --config … --out …

The same command goes on with a run that was stopped or killed; SIGTERM and SIGINT save it first,
and end it at once where there is nothing to save yet.
Exit codes: 0 the model is there, 1 not yet, 2 a mistake in the input, 130 Ctrl-C.
"""

import argparse
import os
import signal
import sys
from pathlib import Path

from targen_async.errors import RunStopped, TargenError, UserError
from targen_async.finetune.stops import Stops


def main() -> int:
    parser = argparse.ArgumentParser(description="Train a model as a configuration file says.")
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tensorboard", action="store_true", help="the curve for TensorBoard too")
    parser.add_argument("--local_rank", type=int, help="given by the deepspeed launcher")
    options = parser.parse_args()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    stops = Stops()
    try:
        from targen_async.finetune.config import load_train_config

        config = load_train_config(options.config)
        from targen_async.finetune.loop import train

        train(config, options.out, stopped=stops.stopped, tensorboard=options.tensorboard)
        return 0
    except ImportError as error:
        return _complain(UserError(f"{error}: pip install 'targen-async[train]'"))
    except KeyboardInterrupt:
        word = "stopped before a step was done; the same command begins there"
        code = _complain(RunStopped(word))
    except TargenError as error:
        code = _complain(error)
    return 130 if signal.SIGINT in stops.heard else code


def _complain(error: TargenError) -> int:
    if os.environ.get("RANK", "0") == "0":
        print(f"{Path(__file__).name}: {error}", file=sys.stderr)
    return 2 if isinstance(error, UserError) else 1


if __name__ == "__main__":
    sys.exit(main())
