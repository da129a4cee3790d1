"""What our training loop costs beside a bare PyTorch loop, and what batches of like length bring.

The tiny twins of runners/configs from random weights on one thread of a CPU, on rows of a mix of
lengths, in rounds by turns; ratios within a round, of CPU seconds, because machines are shared.
Tokens are real ones, without padding.

- ours / bare: the same model, batches, loss and optimiser, as the twin's configuration has them;
  the bare loop's tensors are made before its clock starts, so that all of our batching, bookkeeping
  and writing counts as overhead. Both begin with the same weights and end with the same loss, or
  the figure is refused.
- ours / padded: tokens a second beside a bare loop of random batches padded to the longest length,
  of as many padded tokens. The twins' models, reading 256 tokens, 4,096 padded tokens a batch.
- MFU: FLOPs of the real tokens (finetune/shapes.py) a CPU second, over those of the fastest of
  many float32 products of square matrices, measured in the same round.

    python bench/training.py [--superglue DIR] [--rounds 7] [--steps 30] [--json FILE]

`--superglue`: official files, of which CB, RTE and BoolQ are taken as a real mix of lengths;
without it lengths are log-normal.
"""

import argparse
import json
import os
import platform
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from msgspec.structs import replace
from torch.nn import functional

from targen_async.finetune.answering import tokens_for
from targen_async.finetune.batches import epoch_steps, padding_efficiency, run_steps
from targen_async.finetune.checkpoints import seed_rank
from targen_async.finetune.config import DataChoice, Source, TrainConfig, load_train_config
from targen_async.finetune.feeds import (
    Feed,
    Sample,
    feed_of,
    lengths_of,
    loss_sum,
    plan_samples,
    samples_of,
    weight_of,
)
from targen_async.finetune.logits import logit_names
from targen_async.finetune.loop import train
from targen_async.finetune.meter import known_shape, sample_flops
from targen_async.finetune.models import Model, build_model, choose_tokenizer
from targen_async.finetune.optim import build_optimizer, learning_rate
from targen_async.finetune.prepare import prepare

CONFIGS = Path(__file__).resolve().parents[1] / "runners" / "configs"
TWINS = {"encoder": "encoder-tiny", "encoder-decoder": "t5-tiny", "decoder": "decoder-tiny"}
REAL = ("cb", "rte", "boolq")
SOURCE, TARGET, TOKENS = 256, 16, 4096
CPU = torch.device("cpu")


class Cost(NamedTuple):
    """Of all steps but the first, which warms up."""

    tokens: int
    cpu_s: float
    wall_s: float
    loss: float


class Bare(NamedTuple):
    """What a bare loop works on."""

    config: TrainConfig
    model: Model
    samples: Sequence[Sample]
    names: Sequence[str]
    steps: int


def made_rows(folder: Path, rows: int, seed: int = 0) -> Path:
    """A CB of random words whose premises have a log-normal number of them, median 60."""
    draw = random.Random(seed)
    words = ["".join(draw.choices("aeioulnrstdk", k=draw.randint(2, 9))) for _ in range(2000)]
    folder.mkdir(parents=True)
    labels = ("entailment", "contradiction", "neutral")
    with (folder / "train.jsonl").open("w", encoding="utf-8") as file:
        for number in range(rows):
            length = min(400, max(3, round(draw.lognormvariate(4.1, 0.9))))
            row = {
                "premise": " ".join(draw.choices(words, k=length)),
                "hypothesis": " ".join(draw.choices(words, k=draw.randint(3, 9))),
                "label": draw.choice(labels),
                "idx": number,
            }
            file.write(json.dumps(row) + "\n")
    return folder.parent


def twin_of(family: str, source: Path, tasks: Sequence[str], steps: int) -> TrainConfig:
    """The tiny configuration of a family on these rows, which it neither holds out nor saves."""
    config = load_train_config(CONFIGS / f"{TWINS[family]}.toml")
    bounds = {"steps": steps, "save_every": 10**6, "evaluate_every": None, "patience": None}
    return replace(
        config,
        data=DataChoice(train=tuple(Source(task=task, source=str(source)) for task in tasks)),
        training=replace(config.training, **bounds),
    )


def longer(config: TrainConfig) -> TrainConfig:
    """The same, reading more, with batches by tokens."""
    return replace(
        config,
        model=replace(config.model, max_source=SOURCE, max_target=TARGET),
        training=replace(config.training, examples=None, tokens=TOKENS),
    )


def fastest_product(size: int = 1024, times: int = 12) -> float:
    """FLOP a CPU second of the fastest of some products of square float32 matrices."""
    a, b = torch.rand(2, size, size).unbind()
    product, best = torch.empty(size, size), float("inf")
    for _ in range(times):
        began = time.process_time()
        torch.mm(a, b, out=product)
        best = min(best, time.process_time() - began)
    return 2 * size**3 / best


def ours(config: TrainConfig, out: Path) -> Cost:
    """The whole of `train`, from the end of its first step to the end of its last."""
    ticks: list[tuple[float, float]] = []

    def tick() -> bool:
        ticks.append((time.process_time(), time.perf_counter()))
        return False

    trained = train(config, out, say=lambda _: None, stopped=tick)
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_bytes().splitlines()]
    tokens = sum(line["tokens"] for line in lines[1:])
    (cpu, wall), (last_cpu, last_wall) = ticks[0], ticks[-1]
    return Cost(tokens, last_cpu - cpu, last_wall - wall, trained.loss)


def bare_of(config: TrainConfig, tokenizer: Path) -> Bare:
    """The model and samples that `train` would make."""
    prepared = prepare(config)
    names = logit_names(prepared.tasks) if config.model.family == "encoder" else ()
    model = build_model(
        config.model,
        choose_tokenizer(config.model, (), tokenizer),
        names,
        config.training.random_seed,
    )
    tokens = tokens_for(model, config.model, prepared.train, {}, None)
    samples = samples_of(tokens.items, config.model.family)
    return Bare(config, model, samples, names, config.training.steps or 1)


def grouped(bare: Bare) -> tuple[list[list[Sample]], float]:
    """The batches of our loop, and their share of real tokens."""
    training = bare.config.training
    plan = plan_samples(
        bare.samples,
        bare.model.family,
        tokens=training.tokens,
        examples=training.examples,
        random_seed=training.random_seed,
    )
    first = epoch_steps(plan, 0)
    steps = list(islice(run_steps(plan, len(first)), bare.steps))
    share = padding_efficiency(plan, first)
    return [[bare.samples[n] for batch in step for n in batch] for _, step in steps], share


def padded(bare: Bare) -> list[list[Sample]]:
    """Random batches of as many padded tokens."""
    wide = SOURCE + (TARGET if bare.model.family == "encoder-decoder" else 0)
    order = random.Random(0).sample(range(len(bare.samples)), len(bare.samples))
    rows = TOKENS // wide
    batches = [order[n : n + rows] for n in range(0, len(order) - rows, rows)]
    return [[bare.samples[n] for n in batches[s % len(batches)]] for s in range(bare.steps)]


def run_bare(bare: Bare, batches: Sequence[Sequence[Sample]], widest: bool) -> Cost:
    """A loop as anyone would write it, over tensors that are there. `widest`: all of them padded to
    the longest length there may be."""
    training = bare.config.training
    model = build_model(bare.config.model, bare.model.tokenizer, bare.names, training.random_seed)
    feeds = [feed_of(batch, model, CPU) for batch in batches]
    if widest:
        feeds = [widen(feed, model) for feed in feeds]
    counts = [sum(map(weight_of, batch)) for batch in batches]
    lengths = [sum(sum(lengths_of(one, model.family)) for one in batch) for batch in batches]
    network = model.network.train()
    optimizer = build_optimizer(network, training)
    seed_rank(training.random_seed, 0)
    cpu = wall = loss = 0.0
    for number, (feed, count) in enumerate(zip(feeds, counts, strict=True)):
        if number == 1:
            cpu, wall = time.process_time(), time.perf_counter()
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(training, number, bare.steps)
        mean = loss_sum(network, feed) / count
        mean.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), training.clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        loss = float(mean.detach())
    return Cost(sum(lengths[1:]), time.process_time() - cpu, time.perf_counter() - wall, loss)


def widen(feed: Feed, model: Model) -> Feed:
    pad = model.tokenizer.pad_token_id
    wide = {"input_ids": (SOURCE, pad), "attention_mask": (SOURCE, 0)}
    wide["decoder_input_ids"] = (TARGET, pad)
    inputs = {name: _to(tensor, *wide[name]) for name, tensor in feed.inputs.items()}
    labels = feed.labels
    if labels is not None:
        labels = _to(labels, TARGET if model.family == "encoder-decoder" else SOURCE, -100)
    return replace(feed, inputs=inputs, labels=labels)


def _to(tensor: torch.Tensor, width: int, filling: int) -> torch.Tensor:
    return functional.pad(tensor, (0, width - tensor.shape[1]), value=filling)


def measure(
    family: str, source: Path, tasks: Sequence[str], steps: int, rounds: int
) -> dict[str, Any]:
    """Ratios of a family, each with its median and its least and most."""
    twin = twin_of(family, source, tasks, steps)
    wide = longer(twin)
    figures: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        first = ours(twin, folder / "warm")
        ours(wide, folder / "warm-wide")
        bare = bare_of(twin, folder / "warm" / "tokenizer")
        bare_wide = bare_of(wide, folder / "warm-wide" / "tokenizer")
        (batches, _), (_, share) = grouped(bare), grouped(bare_wide)
        random_batches = padded(bare_wide)
        shape = known_shape(bare.model.network)
        assert shape
        work = sum(sample_flops(shape, one) for batch in batches[1:] for one in batch)
        turns: dict[str, Callable[[Path], Cost]] = {
            "ours": lambda out: ours(twin, out),
            "bare": lambda _: run_bare(bare, batches, False),
            "wide": lambda out: ours(wide, out),
            "padded": lambda _: run_bare(bare_wide, random_batches, True),
        }
        for number in range(rounds):
            order = random.Random(number).sample(sorted(turns), len(turns))
            peak = fastest_product()
            found = {turn: turns[turn](folder / f"{turn}-{number}") for turn in order}
            own, plain = found["ours"], found["bare"]
            if own.tokens != plain.tokens or abs(own.loss - plain.loss) > 1e-3:
                raise SystemExit(f"{family}: the two loops did not do the same: {own} and {plain}")
            for key, value in ratios(found, work, max(peak, fastest_product())).items():
                figures.setdefault(key, []).append(value)
            print(
                f"{family:16} round {number + 1}: overhead {figures['overhead_cpu'][-1]:+.1%} of "
                f"CPU, MFU {figures['mfu'][-1]:.1%}, "
                f"{figures['ours_over_padded'][-1]:.2f} times padded",
                flush=True,
            )
    return {
        "config": f"{TWINS[family]}.toml",
        "parameters": sum(v.numel() for v in bare.model.network.parameters()),
        "real_tokens_share": round(share, 3),
        "steps": steps,
        "loss": round(first.loss, 4),
        **{key: told(values) for key, values in figures.items()},
    }


def ratios(found: Mapping[str, Cost], work: float, peak: float) -> dict[str, float]:
    """Of one round. `work`: FLOPs of what our loop and the bare one did; `peak`: a CPU second's."""
    own, plain, wide, padded = (found[turn] for turn in ("ours", "bare", "wide", "padded"))
    return {
        "tokens_per_cpu_s": own.tokens / own.cpu_s,
        "peak_flops_per_cpu_s": peak,
        "mfu": work / own.cpu_s / peak,
        "mfu_bare": work / plain.cpu_s / peak,
        "overhead_cpu": own.cpu_s / plain.cpu_s - 1,
        "overhead_wall": own.wall_s / plain.wall_s - 1,
        "ours_over_padded": (wide.tokens / wide.cpu_s) / (padded.tokens / padded.cpu_s),
    }


def told(figures: Sequence[float]) -> dict[str, float]:
    spread = {"median": statistics.median(figures), "least": min(figures), "most": max(figures)}
    return {name: float(f"{value:.4g}") for name, value in spread.items()}


def main() -> int:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--superglue", type=Path, metavar="DIR", help="official files")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--families", nargs="+", choices=list(TWINS), default=list(TWINS))
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures here")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        source, tasks, mix = options.superglue, REAL, "real: " + ", ".join(REAL)
        if source is None:
            source = made_rows(Path(folder) / "CB", 3000)
            tasks, mix = ("cb",), "made: log-normal, median 60 words"
        found = {
            family: measure(family, source, tasks, options.steps, options.rounds)
            for family in options.families
        }
    print(f"\nlengths {mix}; median (least to most) of {options.rounds} rounds")
    for family, one in found.items():
        cost, mfu, gain = one["overhead_cpu"], one["mfu"], one["ours_over_padded"]
        print(
            f"{family:16} overhead {cost['median']:+.1%} ({cost['least']:+.1%} to "
            f"{cost['most']:+.1%}), MFU {mfu['median']:.1%}, {gain['median']:.2f} times padded "
            f"({gain['least']:.2f} to {gain['most']:.2f})"
        )
    if options.json:
        about = {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "threads": 1,
            "load": os.getloadavg()[0],
            "lengths": mix,
            "rounds": options.rounds,
        }
        options.json.write_text(json.dumps({**about, "families": found}, indent=1) + "\n", "utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
