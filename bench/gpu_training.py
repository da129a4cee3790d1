"""T5-3B on one GPU: tokens a second, MFU, peak memory and padding share, batch sizes searched.

Random weights, bfloat16, our plain engine, AdamW; no download, no DeepSpeed, at most ten minutes.
MFU counts the FLOPs of an encoder-decoder layer by layer (finetune/shapes.py), real tokens only.

- full: every example is 512 tokens read and 128 written. Rows a batch are doubled until memory is
  full, with and without gradient checkpointing; then eager attention in place of SDPA, and
  torch.compile, at the best of them.
- mix: log-normal lengths, batches by tokens as a run makes them, at the size that was best.
- DeepSpeed (ZeRO-1, one rank), where it is installed.
- The kernels that take the most time in a step of the best setting.

Every figure is written as soon as it is there, so that a run that is cut short keeps what it has.

    python bench/gpu_training.py [--minutes 9.5] [--json FILE]
    python bench/gpu_training.py --size tiny --device cpu --minutes 1      # does the script work?
"""

import argparse
import gc
import json
import os
import platform
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import torch
import transformers

from targen_async.errors import TargenError
from targen_async.finetune.batches import epoch_steps, padding_efficiency
from targen_async.finetune.config import ModelChoice, Training
from targen_async.finetune.engine import Engine
from targen_async.finetune.feeds import Feed, Sample, feed_of, lengths_of, plan_samples
from targen_async.finetune.meter import device_peak, known_shape, peak_memory
from targen_async.finetune.models import Model
from targen_async.finetune.needs import GIB
from targen_async.finetune.ranks import join_ranks, open_engine
from targen_async.finetune.sizes import size_of
from targen_async.finetune.tokens import Item

READ, WRITTEN = 512, 128
VOCABULARY = 32128
SEED = 0
Setting = str | bool


class Bench:
    """Figures, the clock, and where they are written."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.device = torch.device(options.device)
        self.size, self.path, self.steps = options.size, options.json, options.steps
        self.ends = time.monotonic() + 60 * options.minutes
        cuda = self.device.type == "cuda"
        self.peak = device_peak(self.device)
        self.found: dict[str, Any] = {
            "model": options.size,
            "device": torch.cuda.get_device_name(self.device) if cuda else "CPU",
            "peak_tflops": self.peak and self.peak / 1e12,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "python": platform.python_version(),
            "measured": [],
        }

    @property
    def left(self) -> float:
        """Seconds."""
        return self.ends - time.monotonic()

    def keep(self, figures: dict[str, Any]) -> None:
        self.found["measured"].append(figures)
        print("  ".join(f"{name} {value}" for name, value in figures.items()), flush=True)
        self.write()

    def write(self) -> None:
        if self.path:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.write_text(json.dumps(self.found, indent=1) + "\n", "utf-8")


def build(bench: Bench, attention: str) -> transformers.PreTrainedModel:
    """The network on its device. Its weights are drawn there."""
    size = size_of("encoder-decoder", bench.size)
    config = transformers.AutoConfig.for_model(
        size.kind,
        **size.settings,
        vocab_size=VOCABULARY,
        pad_token_id=0,
        eos_token_id=1,
        decoder_start_token_id=0,
    )
    torch.manual_seed(SEED)
    with torch.device(bench.device):
        return transformers.AutoModelForSeq2SeqLM.from_config(
            config, attn_implementation=attention
        ).float()


def samples_of_lengths(lengths: Sequence[tuple[int, int]]) -> list[Sample]:
    draw = np.random.default_rng(SEED)
    made = []
    for source, target in lengths:
        read = tuple(draw.integers(5, 32000, source).tolist())
        written = tuple(draw.integers(5, 32000, target).tolist())
        made.append(Sample(Item((read,), (), (written,), (), (0,), False), 0))
    return made


def mixed_lengths(rows: int) -> list[tuple[int, int]]:
    """Median 150 read and 12 written, at most 512 and 128."""
    draw = np.random.default_rng(SEED)
    read = np.clip(draw.lognormal(np.log(150), 0.8, rows).round(), 8, READ).astype(int)
    written = np.clip(draw.lognormal(np.log(12), 0.8, rows).round(), 2, WRITTEN).astype(int)
    return list(zip(read.tolist(), written.tolist(), strict=True))


@contextmanager
def engine_of(bench: Bench, attention: str, **settings: Setting) -> Iterator[tuple[Engine, Model]]:
    """An engine of ours, on a device that the one before it has left."""
    gc.collect()
    if bench.device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    precision = "bfloat16" if bench.device.type == "cuda" else "float32"
    training = msgspec.convert({"examples": 1, "precision": precision, **settings}, Training)
    network = build(bench, attention)
    choice = msgspec.convert({"family": "encoder-decoder"}, ModelChoice)
    model = Model(family=choice.family, network=network, tokenizer=SimpleNamespace(pad_token_id=0))
    with join_ranks(training) as ranks:
        yield open_engine(network, training, ranks), model


def timed(
    bench: Bench, engine: Engine, model: Model, batches: Sequence[Sequence[Sample]]
) -> dict[str, Any]:
    """Figures of a step a batch: the first two warm up, the median of the others counts."""
    shape = known_shape(model.network)
    assert shape is not None
    rates, shares, seconds = [], [], []
    for number, batch in enumerate(batches):
        feed: Feed = feed_of(batch, model, bench.device)
        count = sum(lengths_of(one, model.family)[1] for one in batch)
        synchronise(bench)
        began = time.perf_counter()
        engine.step(iter([feed]), count, 1e-6)
        synchronise(bench)
        if number < 2:
            continue
        took = time.perf_counter() - began
        pairs = [lengths_of(one, model.family) for one in batch]
        rates.append(sum(map(sum, pairs)) / took)
        shares.append(sum(shape.flops(*pair) for pair in pairs) / took)
        seconds.append(took)
    figures: dict[str, Any] = {
        "step_s": round(statistics.median(seconds), 4),
        "tokens_per_s": round(statistics.median(rates)),
        "tflops": round(statistics.median(shares) / 1e12, 2),
    }
    if bench.peak:
        figures["mfu"] = round(statistics.median(shares) / bench.peak, 4)
    return {**figures, "memory_gib": round(peak_memory(bench.device) / GIB, 1)}


def synchronise(bench: Bench) -> None:
    if bench.device.type == "cuda":
        torch.cuda.synchronize(bench.device)


def full(bench: Bench, rows: int, attention: str = "sdpa", **settings: Setting) -> float | None:
    """Tokens a second at full length; None where it does not fit or does not run."""
    told = {"what": "full", "rows": rows, "attention": attention, **settings}
    if "deepspeed" in told:
        told["deepspeed"] = Path(str(told["deepspeed"])).name
    try:
        with engine_of(bench, attention, **settings) as (engine, model):
            batch = samples_of_lengths([(READ, WRITTEN)] * rows)
            figures = timed(bench, engine, model, [batch] * (2 + bench.steps))
    except torch.OutOfMemoryError:
        bench.keep({**told, "fault": "out of memory"})
        return None
    except (TargenError, RuntimeError, ValueError, ImportError) as error:
        bench.keep({**told, "fault": str(error).split("\n")[0][:200]})
        return None
    bench.keep({**told, **figures})
    return float(figures["tokens_per_s"])


def search(bench: Bench, most: int) -> tuple[int, bool]:
    """The best rows a batch, and whether with gradient checkpointing."""
    best: tuple[float, int, bool] = (0.0, 1, True)
    for saving in (False, True):
        rows = 4 if not saving else max(best[1], 4)
        while rows <= most and bench.left > 240 * (bench.device.type == "cuda"):
            speed = full(bench, rows, gradient_checkpointing=saving)
            if speed is None or speed < 0.9 * best[0]:
                break
            best = max(best, (speed, rows, saving))
            rows *= 2
    return best[1], best[2]


def mix(bench: Bench, rows: int, saving: bool) -> None:
    """Batches by tokens over lengths as they come."""
    samples = samples_of_lengths(mixed_lengths(4000))
    tokens = rows * (READ + WRITTEN)
    plan = plan_samples(samples, "encoder-decoder", tokens=tokens)
    steps = epoch_steps(plan, 0)
    batches = [[samples[n] for batch in step for n in batch] for step in steps]
    with engine_of(bench, "sdpa", gradient_checkpointing=saving) as (engine, model):
        figures = timed(bench, engine, model, batches[: 2 + 3 * bench.steps])
    share = round(padding_efficiency(plan, steps), 3)
    bench.keep({"what": "mix", "tokens": tokens, "real_tokens_share": share, **figures})


def profile(bench: Bench, rows: int, saving: bool) -> None:
    """Kernels by their share of a step."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as recording

    cuda = bench.device.type == "cuda"
    kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    with engine_of(bench, "sdpa", gradient_checkpointing=saving) as (engine, model):
        batch = samples_of_lengths([(READ, WRITTEN)] * rows)
        timed(bench, engine, model, [batch] * 3)
        with recording(activities=kinds) as seen:
            timed(bench, engine, model, [batch] * 3)
    field = "self_device_time_total" if cuda else "self_cpu_time_total"
    events = sorted(seen.key_averages(), key=lambda event: -getattr(event, field))
    whole = sum(getattr(event, field) for event in events)
    bench.found["profile"] = [
        {"kernel": event.key[:100], "share": round(getattr(event, field) / whole, 4)}
        for event in events[:25]
    ]
    bench.write()


def main() -> int:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--size", default="t5-3b", help="of an encoder-decoder (default: t5-3b)")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--minutes", type=float, default=9.5, help="then no further part begins")
    parser.add_argument("--steps", type=int, default=5, help="measured steps of each setting")
    parser.add_argument("--most", type=int, default=128, help="rows a batch at most")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures here")
    options = parser.parse_args()
    if options.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    elif not torch.cuda.is_available():
        print("gpu_training.py: there is no GPU here; --device cpu --size tiny tries the script")
        return 2
    bench = Bench(options)
    rows, saving = search(bench, options.most)
    settings: dict[str, Any] = {"gradient_checkpointing": saving}
    parts = (
        lambda: mix(bench, rows, saving),
        lambda: profile(bench, rows, saving),
        lambda: full(bench, rows, "eager", **settings),
        lambda: full(bench, rows, deepspeed=str(ZERO1), **settings),
        lambda: full(bench, rows, compile=True, **settings),  # Last: it may take minutes.
    )
    for part in parts:
        if bench.left > 0:
            try:
                part()
            except torch.OutOfMemoryError:
                bench.keep({"what": "a part", "fault": "out of memory"})
    bench.write()
    return 0


ZERO1 = Path(__file__).resolve().parents[1] / "runners" / "deepspeed" / "zero1.json"

if __name__ == "__main__":
    raise SystemExit(main())
