"""`targen evaluate`: what a model writes with nothing to hold it, and several models at once."""

import shutil
from pathlib import Path
from typing import Any

import msgspec
import orjson
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install '.[train]'")
pytest.importorskip("transformers", reason="transformers is not installed")

from targen_async import cli  # noqa: E402
from targen_async.finetune import evaluate as evaluating  # noqa: E402
from targen_async.finetune.config import TrainConfig  # noqa: E402
from targen_async.finetune.data import load_examples  # noqa: E402
from targen_async.finetune.forms import pose  # noqa: E402
from targen_async.finetune.loop import train  # noqa: E402
from targen_async.finetune.models import open_model  # noqa: E402
from targen_async.finetune.saved import read_facts  # noqa: E402
from targen_async.finetune.tokens import pose_text  # noqa: E402
from tests.finetune.grammars import grammar_run  # noqa: E402
from tests.finetune.made import write_lines  # noqa: E402
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
    few = {"decoder": {"steps": 1, "learning_rate": 3e-4}, "encoder-decoder": {"steps": 6}}
    folder = made(family, rows, tmp_path / "out", **few[family])
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


def test_options_are_ranked_however_long_they_are(rows: Path, tmp_path: Path) -> None:
    """`model.max_target` bounds what is learnt; a model of another program tells of none."""
    folder = made("encoder-decoder", rows, tmp_path / "out", steps=1)
    query = {"idx": 0, "query": "@placeholder is far away.", "answers": []}
    names = [f"The {'very ' * 40}long Name", "Kyoto"]
    passage = " and ".join(names) + " are far."
    spans = [
        {"start": passage.index(name), "end": passage.index(name) + len(name) - 1} for name in names
    ]
    answers = [{**spans[0], "text": names[0]}]
    line = {"idx": 0, "passage": {"text": passage, "entities": spans}, "qas": [query]}
    write_lines(
        tmp_path / "rows" / "ReCoRD" / "val.jsonl", line | {"qas": [query | {"answers": answers}]}
    )
    flags = ["--tasks", "record", "--data", str(tmp_path / "rows"), "--max-source", "512", "--out"]
    assert cli.main(["evaluate", folder, *flags, str(tmp_path / "told")]) == 0
    (Path(folder) / "targen.json").unlink()
    assert cli.main(["evaluate", folder, *flags, str(tmp_path / "untold")]) == 0


@pytest.mark.parametrize("most", ["-1", "0", "3"])
def test_what_a_model_reads_has_a_least_length(
    most: str, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--tasks", "cb", "--data", str(rows), "--split", "train", "--max-source", most]
    assert cli.main(["evaluate", str(tmp_path), *flags]) == 2
    assert f"--max-source is {most}, and the least is 16" in capsys.readouterr().err


def test_where_the_figures_go_is_seen_to_before_there_are_any(
    rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = made("encoder", rows, tmp_path / "cb-one", steps=1)
    flags = ["--tasks", "cb", "--data", str(rows), "--split", "train"]
    (tmp_path / "file").write_text("", "utf-8")
    out = tmp_path / "file" / "out"
    with monkeypatch.context() as patch:
        patch.setattr(evaluating, "answer_examples", lambda *_: pytest.fail("it was answered"))
        assert cli.main(["evaluate", folder, *flags, "--out", str(out)]) == 2
    assert f"--out: {out} cannot be written: Not a directory" in capsys.readouterr().err
    # Models of two runs do not meet where nothing is said: both folders are called `model`.
    monkeypatch.chdir(tmp_path)
    other = shutil.copytree(Path(folder).parent, tmp_path / "cb-two") / "model"
    assert cli.main(["evaluate", folder, *flags]) == 0
    assert cli.main(["evaluate", str(other), *flags]) == 0
    assert {path.name for path in tmp_path.glob("*-evaluated")} == {
        "cb-one-evaluated",
        "cb-two-evaluated",
    }
    assert cli.main(["evaluate", folder, *flags]) == 2
    assert "name another folder with `--out`" in capsys.readouterr().err


def test_an_instructed_model_is_instructed_in_other_tasks_too(
    rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    raw = settings("decoder", rows, steps=1)
    raw["model"]["max_source"] = 512
    raw["data"] |= {"instructed": True, "demonstrations": 1}
    folder = train(msgspec.convert(raw, TrainConfig), tmp_path / "out", say=lambda _: None).folder
    other = grammar_run(tmp_path / "rte", "rte", 8)
    flags = ["--tasks", "rte", "--data", str(other), "--split", "train", "--out"]
    assert cli.main(["evaluate", str(folder), *flags, str(tmp_path / "e")]) == 0
    assert "rte was not trained: it is put with definition and labels" in capsys.readouterr().out
    facts = read_facts(folder)
    assert facts
    posed = pose_text(
        load_examples(other, "rte", "train").examples[0], facts.model, facts.instructions
    )
    assert posed.source.startswith("Definition: ") and "Positive Example" not in posed.source


def test_the_rows_of_a_run_are_asked_for_as_train(
    rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--tasks", "cb", "--data", str(rows), "--out", str(tmp_path / "e")]
    assert cli.main(["evaluate", str(tmp_path), *flags]) == 2
    told = capsys.readouterr().err
    assert "is a run and has no split 'validation'" in told and "`--split train`" in told
