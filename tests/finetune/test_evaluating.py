"""`targen evaluate`: what a model writes with nothing to hold it, and several models at once."""

from pathlib import Path
from typing import Any

import msgspec
import orjson
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install '.[train]'")
pytest.importorskip("transformers", reason="transformers is not installed")

from targen_async import cli  # noqa: E402
from targen_async.finetune.config import TrainConfig  # noqa: E402
from targen_async.finetune.data import load_examples  # noqa: E402
from targen_async.finetune.forms import pose  # noqa: E402
from targen_async.finetune.loop import train  # noqa: E402
from targen_async.finetune.models import open_model  # noqa: E402
from tests.finetune.grammars import grammar_run  # noqa: E402
from tests.finetune.training import settings  # noqa: E402

WORDS = {
    "decoder": {"true", "false", "neither"},
    "encoder-decoder": {"entailment", "contradiction", "neutral"},
}


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return grammar_run(tmp_path_factory.mktemp("rows") / "cb", "cb", 60)


def made(family: str, rows: Path, out: Path, **training: Any) -> str:
    raw = settings(family, rows, **training)
    return str(train(msgspec.convert(raw, TrainConfig), out, say=lambda _: None).folder)


def greedy(model: Any, family: str, source: str, most: int) -> str:
    """The likeliest token after the others, one example and one token at a time, no cache."""
    network, tokenizer = model.network, model.tokenizer
    given = tokenizer(source, return_tensors="pt").input_ids
    written: list[int] = []
    start = [network.config.decoder_start_token_id] if family == "encoder-decoder" else []
    while len(written) < most and (not written or written[-1] != tokenizer.eos_token_id):
        own = torch.tensor([[*start, *written]], dtype=torch.long)
        with torch.no_grad():
            if start:
                logits = network(input_ids=given, decoder_input_ids=own).logits
            else:
                logits = network(input_ids=torch.cat([given, own], 1)).logits
        written.append(int(logits[0, -1].argmax()))
    return str(tokenizer.decode(written, skip_special_tokens=True))


@pytest.mark.parametrize("family", ["decoder", "encoder-decoder"])
def test_free_texts_are_the_greedy_ones_and_those_outside_are_counted(
    family: str, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Against a second implementation of generation, on a model that learnt too little to keep to
    the labels."""
    steps = 3 if family == "decoder" else 6
    folder = made(family, rows, tmp_path / "out", steps=steps)
    out = tmp_path / "measured"
    flags = ["--tasks", "cb", "--data", str(rows), "--split", "train", "--out", str(out), "--free"]
    assert cli.main(["evaluate", folder, *flags]) == 0

    lines = [
        orjson.loads(line)
        for line in (out / "predictions" / "cb.free.jsonl").read_bytes().splitlines()
    ]
    model = open_model(folder)
    words = WORDS[family]
    ids = model.tokenizer([f" {w}" if family == "decoder" else w for w in words]).input_ids
    ended = int(ids[0][-1] == model.tokenizer.eos_token_id)
    most = max(map(len, ids)) + 1 - ended
    examples = load_examples(rows, "cb", "train").examples
    for one, line in zip(examples, lines, strict=True):
        source = pose(one, family).source  # type: ignore[arg-type]
        assert line["text"] == greedy(model, family, source, most)
        assert (line["prediction"] is None) == (line["text"].strip(" .").lower() not in words)
    outside = sum(line["prediction"] is None for line in lines) / len(lines)
    told = orjson.loads((out / "metrics.json").read_bytes())["tasks"]["cb"]
    assert told["free"]["outside"] == pytest.approx(outside) and outside > 0
    right = sum(line["prediction"] == line["label"] for line in lines) / len(lines)
    assert told["free"]["report"]["scores"][0]["value"] == pytest.approx(right)
    assert told["report"]["unanswered"] == 0
    assert f"{outside:.1%} outside the options" in capsys.readouterr().out


def test_a_model_that_learnt_its_labels_writes_nothing_else(rows: Path, tmp_path: Path) -> None:
    folder = made("decoder", rows, tmp_path / "out", steps=60)
    out = tmp_path / "measured"
    flags = ["--tasks", "cb", "--data", str(rows), "--split", "train", "--out", str(out), "--free"]
    assert cli.main(["evaluate", folder, *flags]) == 0
    told = orjson.loads((out / "metrics.json").read_bytes())["tasks"]["cb"]
    assert told["free"]["outside"] == 0
    assert told["free"]["report"]["scores"][0]["value"] > 0.5


def test_an_encoder_has_nothing_to_write(
    rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = made("encoder", rows, tmp_path / "out", steps=1)
    flags = ["--tasks", "cb", "--data", str(rows), "--split", "train", "--free", "--out"]
    assert cli.main(["evaluate", folder, *flags, str(tmp_path / "e")]) == 2
    assert "an encoder writes nothing: drop `--free`" in capsys.readouterr().err


def test_several_models_are_put_together(
    rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models = [
        made("decoder", rows, tmp_path / str(seed), steps=1 + 25 * seed, random_seed=seed)
        for seed in range(3)
    ]
    out = tmp_path / "measured"
    flags = ["--tasks", "cb", "--data", str(rows), "--split", "train", "--out", str(out)]
    assert cli.main(["evaluate", *models, *flags]) == 0
    values = [
        orjson.loads((out / str(n) / "metrics.json").read_bytes())["tasks"]["cb"]["report"][
            "scores"
        ][0]["value"]
        for n in (1, 2, 3)
    ]
    assert len(set(values)) > 1
    mean = sum(values) / 3
    deviation = (sum((value - mean) ** 2 for value in values) / 2) ** 0.5
    spread = orjson.loads((out / "metrics.json").read_bytes())["tasks"]["cb"][0]
    assert spread["mean"] == pytest.approx(mean) and spread["runs"] == 3
    assert spread["deviation"] == pytest.approx(deviation)
    assert f"cb: accuracy {mean:.3f} ± {deviation:.3f}, macro_f1 " in capsys.readouterr().out
