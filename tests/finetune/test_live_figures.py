"""What a run shows of itself: figures of a step, TensorBoard, a picture of the loss, a warning."""

import json
import shutil
import struct
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install '.[train]'")
pytest.importorskip("transformers", reason="transformers is not installed")

from targen_async.errors import RunStopped, UserError  # noqa: E402
from targen_async.finetune import board, meter  # noqa: E402
from targen_async.finetune.config import TrainConfig  # noqa: E402
from targen_async.finetune.loop import train  # noqa: E402
from targen_async.finetune.shapes import shape_of  # noqa: E402
from tests.finetune.grammars import grammar_run  # noqa: E402
from tests.finetune.training import (  # noqa: E402
    FAMILIES,
    ROOT,
    curve,
    run,
    settings,
    write_config,
)


def config(family: str, folder: Path, **training: Any) -> TrainConfig:
    rows = folder / "cb"
    if not rows.exists():
        grammar_run(rows, "cb", 40)
    return msgspec.convert(settings(family, rows, **training), TrainConfig)


def lines(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_bytes().splitlines()]


@pytest.mark.parametrize("family", FAMILIES)
def test_mfu_counts_the_real_tokens_of_a_step(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(meter, "device_peak", lambda _: 1e12)
    monkeypatch.setenv("TARGEN_CACHE", str(tmp_path))
    made = config(family, tmp_path, steps=2, examples=40, precision="bfloat16")
    said: list[str] = []
    trained = train(made, tmp_path / "out", say=said.append)
    raw = json.loads((trained.folder / "config.json").read_text("utf-8"))
    shape = shape_of(raw["model_type"], raw, 3)
    whole = 0.0
    for path in (tmp_path / "tokens").iterdir():
        for item in msgspec.msgpack.decode(path.read_bytes())["items"]:
            [source], choices, right = item[0], item[2], item[4]
            written = len(choices[right[0]]) if choices else 0
            apart = (len(source), written) if family == "encoder-decoder" else None
            whole += shape.flops(*(apart or (len(source) + written,)))
    for line in lines(tmp_path / "out"):
        assert line["mfu"] * line["seconds"] * 1e12 == pytest.approx(whole, rel=1e-6)
        assert 0.05 < line["memory_gib"] < 50
    assert any("MFU" in line and "GiB" in line for line in said)


def test_without_a_known_peak_there_is_no_mfu(tmp_path: Path) -> None:
    train(config("encoder", tmp_path, steps=1), tmp_path / "out", say=lambda _: None)
    assert "mfu" not in lines(tmp_path / "out")[0]


def test_the_picture_of_the_loss_is_a_png_and_its_lack_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib")
    raw = settings("encoder", grammar_run(tmp_path / "cb", "cb", 60), steps=6, evaluate_every=2)
    raw["data"]["held_out"] = 0.2
    made = msgspec.convert(raw, TrainConfig)
    train(made, tmp_path / "with", say=lambda _: None)
    content = (tmp_path / "with" / "loss.png").read_bytes()
    assert content[:8] == b"\x89PNG\r\n\x1a\n" and struct.unpack(">I", content[16:20])[0] > 600
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    said: list[str] = []
    train(made, tmp_path / "without", say=said.append)
    assert [line for line in said if "no loss.png: it needs matplotlib" in line]
    assert not (tmp_path / "without" / "loss.png").exists()


def test_tensorboard_has_the_curve_once_also_after_a_stop(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    calls = iter(range(100))
    made, out = config("encoder", tmp_path, steps=6, save_every=2), tmp_path / "out"
    with pytest.raises(RunStopped):
        halt = lambda: next(calls) == 2  # noqa: E731
        train(made, out, say=lambda _: None, stopped=halt, tensorboard=True)
    # The step after the checkpoint that is left is made, and told, a second time.
    (out / "checkpoints" / "step-00000003" / "COMPLETE").unlink()
    train(made, out, say=lambda _: None, tensorboard=True)
    events = EventAccumulator(str(out / "tensorboard"))
    events.Reload()
    shown = [(one.step, one.value) for one in events.Scalars("loss")]
    assert shown == [(n["step"], pytest.approx(n["loss"], rel=1e-6)) for n in curve(out)]
    assert len(shown) == 6 and "tokens_per_s" in events.Tags()["scalars"]


def test_tensorboard_that_is_not_installed_is_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(board, "find_spec", lambda _: None)
    with pytest.raises(UserError, match="needs the package `tensorboard`"):
        train(config("encoder", tmp_path, steps=1), tmp_path / "out", tensorboard=True)
    assert not (tmp_path / "out").exists()


def test_a_run_that_may_not_fit_warns_and_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    train(config("decoder", tmp_path, steps=1), tmp_path / "one", say=said.append)
    assert not [line for line in said if "warning" in line]
    monkeypatch.setattr(meter.os, "sysconf", lambda _: 1000)
    train(config("decoder", tmp_path, steps=1), tmp_path / "two", say=said.append)
    assert len([line for line in said if "warning: a step may not fit: about" in line]) == 1


@pytest.mark.long
@pytest.mark.parametrize("family", FAMILIES)
def test_a_compiled_model_has_the_same_losses_and_names(family: str, tmp_path: Path) -> None:
    for name, more in (("plain", {}), ("compiled", {"compile": True})):
        train(config(family, tmp_path, steps=3, **more), tmp_path / name, say=lambda _: None)
    for one, two in zip(curve(tmp_path / "plain"), curve(tmp_path / "compiled"), strict=True):
        assert one["loss"] == pytest.approx(two["loss"], rel=1e-4)
    from safetensors.torch import load_file

    plain, compiled = (
        load_file(tmp_path / name / "model" / "model.safetensors") for name in ("plain", "compiled")
    )
    assert plain.keys() == compiled.keys()


def test_compile_is_refused_under_zero_3(tmp_path: Path) -> None:
    pytest.importorskip("deepspeed")
    zero = str(ROOT / "runners" / "deepspeed" / "zero3.json")
    made = config("encoder", tmp_path, steps=1, compile=True, deepspeed=zero)
    with pytest.raises(UserError, match=r"drop `training.compile`, or use stage 2"):
        train(made, tmp_path / "out", say=lambda _: None)


@pytest.mark.long
@pytest.mark.parametrize("stage", [2, 3])
def test_offloaded_states_have_the_losses_of_plain_torch(stage: int, tmp_path: Path) -> None:
    pytest.importorskip("deepspeed")
    if shutil.which("g++") is None:
        pytest.skip("DeepSpeed compiles for ranks on a CPU, and g++ is missing")
    zero = str(ROOT / "runners" / "deepspeed" / f"zero{stage}-offload.json")
    for name, more in (("plain", {}), ("offloaded", {"deepspeed": zero})):
        made = settings("encoder", tmp_path / "cb", steps=4, **more)
        if not (tmp_path / "cb").exists():
            grammar_run(tmp_path / "cb", "cb", 40)
        ended = run(write_config(tmp_path / f"{name}.toml", made), tmp_path / name)
        assert ended.returncode == 0, ended.stderr
    for one, two in zip(curve(tmp_path / "plain"), curve(tmp_path / "offloaded"), strict=True):
        assert one["loss"] == pytest.approx(two["loss"], abs=2e-5)
