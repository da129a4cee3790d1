"""What the user has to mend: one sentence, on rank 0 only, exit code 2, before there is a model."""

import importlib.util
import json
import re
import resource
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install '.[train]'")
pytest.importorskip("transformers", reason="transformers is not installed")

import msgspec  # noqa: E402

from targen_async.finetune import loop  # noqa: E402
from targen_async.finetune.config import TrainConfig  # noqa: E402
from tests.finetune.grammars import grammar_run  # noqa: E402
from tests.finetune.made import seal, write_lines  # noqa: E402
from tests.finetune.training import ROOT, RUNNER, settings, write_config  # noqa: E402

Change = Callable[[dict[str, Any], Path], None]


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return grammar_run(tmp_path_factory.mktemp("rows") / "cb", "cb", 60)


@pytest.fixture(scope="module")
def encoder(rows: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model's folder: an encoder that reads 96 tokens."""
    made = msgspec.convert(settings("encoder", rows, steps=1), TrainConfig)
    return loop.train(made, tmp_path_factory.mktemp("encoder"), say=lambda _: None).folder


@pytest.fixture(scope="module")
def runner() -> ModuleType:
    spec = importlib.util.spec_from_file_location("runners_train", RUNNER)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def first_label(raw: dict[str, Any], folder: Path) -> None:
    run = shutil.copytree(raw["data"]["train"][0]["source"], folder / "rows")
    shard = run / "instances-00000.jsonl"
    lines = shard.read_text("utf-8").splitlines()
    lines[2] = json.dumps(json.loads(lines[2]) | {"label": "maybe"})
    write_lines(shard, *lines)
    raw["data"]["train"][0]["source"] = str(seal(run))


def official_label(raw: dict[str, Any], folder: Path) -> None:
    row = {"premise": "A.", "hypothesis": "B.", "label": "entails", "idx": 0}
    write_lines(folder / "official" / "CB" / "train.jsonl", row)
    raw["data"]["train"][0]["source"] = str(folder / "official")


def empty_shard(raw: dict[str, Any], folder: Path) -> None:
    run = shutil.copytree(raw["data"]["train"][0]["source"], folder / "rows")
    (run / "instances-00000.jsonl").write_bytes(b"")
    raw["data"]["train"][0]["source"] = str(run)


def no_rows(raw: dict[str, Any], folder: Path) -> None:
    empty_shard(raw, folder)
    seal(folder / "rows")


def no_padding(raw: dict[str, Any], folder: Path) -> None:
    model = shutil.copytree(raw["model"]["init"], folder / "model")
    path = model / "tokenizer_config.json"
    told = json.loads(path.read_text("utf-8"))
    path.write_text(json.dumps({k: v for k, v in told.items() if k != "pad_token"}), "utf-8")
    (model / "special_tokens_map.json").unlink(missing_ok=True)
    raw["model"]["init"] = str(model)


def too_long(raw: dict[str, Any], _: Path) -> None:
    raw["model"]["max_source"] = 97


def nothing_to_cut(raw: dict[str, Any], _: Path) -> None:
    raw["model"] = {"family": "decoder", "vocabulary": 300, "max_source": 16}


def too_few(raw: dict[str, Any], _: Path) -> None:
    raw["training"] |= {"examples": 64, "accumulation": 61}


def flat_pieces(raw: dict[str, Any], _: Path) -> None:
    raw["training"] |= {
        "optimizer": "adafactor",
        "deepspeed": str(ROOT / "runners" / "deepspeed" / "zero3.json"),
    }


CASES: dict[str, tuple[Change, str]] = {
    "a wrong label in a run": (
        first_label,
        r"rows/instances-00000.jsonl:3: the label 'maybe' is none of cb's \(entailment, contra",
    ),
    "a wrong label in an official file": (
        official_label,
        r"official/CB/train.jsonl:1: .*'entails'",
    ),
    "an empty shard": (empty_shard, r"instances-00000.jsonl is empty, and manifest.json says it h"),
    "no rows at all": (no_rows, r"rows/manifest.json: the run has no rows"),
    "no padding token": (no_padding, r"model: its tokenizer has no padding token, and batches ne"),
    "longer than the model reads": (
        too_long,
        r"`model.max_source` is 97, and .* reads 96 tokens at most",
    ),
    "nothing that may be cut": (
        nothing_to_cut,
        r"cb/\d+/0 has \d+ tokens, the model reads \d+, and only \d+ of them may be cut: raise",
    ),
    "too few rows": (too_few, r"60 examples are too few for 61 batches a step \(ranks times acc"),
    "flat pieces": (flat_pieces, r"Adafactor does not go with ZeRO-3, .*: use `adamw`, or stage 0"),
}


@pytest.mark.parametrize("rank", ["0", "1"])
@pytest.mark.parametrize("case", CASES)
def test_one_sentence_on_rank_0_exit_code_2_and_no_model(
    case: str,
    rank: str,
    rows: Path,
    encoder: Path,
    runner: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    change, sentence = CASES[case]
    raw = settings("encoder", rows)
    raw["model"] = {"family": "encoder", "init": str(encoder), "max_source": 96}
    change(raw, tmp_path)
    config = write_config(tmp_path / "run.toml", raw)
    built: list[Any] = []
    monkeypatch.setattr(loop, "build_model", lambda *given: built.append(given))
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setattr(
        sys, "argv", ["train.py", "--config", str(config), "--out", str(tmp_path / "out")]
    )
    assert runner.main() == 2
    assert not built and not (tmp_path / "out" / "metrics.jsonl").exists()
    told = capsys.readouterr()
    if rank == "1":
        assert told.err == ""
        return
    assert re.search(sentence, told.err), told.err
    assert told.err.startswith("train.py: ") and told.err.count("\n") == 1


@pytest.mark.parametrize("full", ["at the start", "in the writing"])
def test_a_full_disk_is_one_sentence_and_exit_code_1(
    full: str,
    rows: Path,
    runner: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """By a limit on the size of files, which the system calls a failed write."""
    config = write_config(tmp_path / "run.toml", settings("encoder", rows, steps=1))
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setattr(
        sys, "argv", ["train.py", "--config", str(config), "--out", str(tmp_path / "out")]
    )
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    if full == "at the start":
        usage = shutil.disk_usage(tmp_path)._replace(free=1_000_000)
        monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
        sentence = r"out: 3 checkpoints and the model take \d+ MB more and 1 MB are free; make room"
    else:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, before[1]))
        sentence = r"out/tokenizer could not be written \(File too large .*\): make room, and start"
    try:
        assert runner.main() == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    told = capsys.readouterr().err
    assert re.search(sentence, told), told
    assert told.startswith("train.py: ") and told.count("\n") == 1


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 1), (signal.SIGINT, 130)])
def test_before_the_first_step_a_signal_is_heeded_at_once(
    number: signal.Signals,
    code: int,
    rows: Path,
    runner: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Reading rows and weights may take many minutes, and nothing is lost."""
    config = write_config(tmp_path / "run.toml", settings("encoder", rows, steps=1))
    before = {one: signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGINT)}

    def build(*_: object) -> None:
        signal.raise_signal(number)
        raise AssertionError("it went on")

    monkeypatch.setattr(loop, "build_model", build)
    monkeypatch.setattr(
        sys, "argv", ["train.py", "--config", str(config), "--out", str(tmp_path / "out")]
    )
    try:
        assert runner.main() == code
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)
    told = capsys.readouterr().err
    assert told == "train.py: stopped before a step was done; the same command begins there\n"
