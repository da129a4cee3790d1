"""Training in this process: models learn, a step is the same however it is cut, a folder loads."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import msgspec
import orjson
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install '.[train]'")
transformers = pytest.importorskip("transformers", reason="transformers is not installed")

from safetensors.torch import load_file, save_file  # noqa: E402

from targen_async import cli  # noqa: E402
from targen_async.errors import RunStopped, UserError  # noqa: E402
from targen_async.finetune import loop  # noqa: E402
from targen_async.finetune.checkpoints import checkpoint_fault, newest_checkpoint  # noqa: E402
from targen_async.finetune.config import TrainConfig, load_train_config  # noqa: E402
from targen_async.finetune.forms import form_digest  # noqa: E402
from targen_async.finetune.instructions import Instruction, instruction_digest  # noqa: E402
from targen_async.finetune.logits import logit_names  # noqa: E402
from targen_async.finetune.loop import train  # noqa: E402
from targen_async.finetune.models import open_model  # noqa: E402
from targen_async.finetune.optim import build_optimizer, learning_rate  # noqa: E402
from tests.finetune.grammars import grammar_run  # noqa: E402
from tests.finetune.training import FAMILIES, begun_from, curve, settings, write_config  # noqa: E402


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return grammar_run(tmp_path_factory.mktemp("rows") / "cb", "cb", 700)


def config(family: str, source: Path, **training: Any) -> TrainConfig:
    return msgspec.convert(settings(family, source, **training), TrainConfig)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_a_tiny_model_learns_a_grammar_and_its_folder_says_the_same_anywhere(
    family: str, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    raw = settings(family, rows, examples=32, steps=60)
    raw["data"]["held_out"] = 0.2
    said: list[str] = []
    trained = train(msgspec.convert(raw, TrainConfig), tmp_path / "out", say=said.append)
    accuracy = trained.reports["cb"].scores[0]
    assert accuracy.low > 0.6 > 0.4 > accuracy.baseline

    kind = {
        "encoder": transformers.AutoModelForSequenceClassification,
        "encoder-decoder": transformers.AutoModelForSeq2SeqLM,
        "decoder": transformers.AutoModelForCausalLM,
    }[family]
    loaded = kind.from_pretrained(trained.folder)
    assert loaded.config.model_type in ("roberta", "t5", "gpt_neox")
    tokenizer = transformers.AutoTokenizer.from_pretrained(trained.folder)
    assert (
        tokenizer.decode(tokenizer("a cat, née Zoë 🙂", add_special_tokens=False)["input_ids"])
        == "a cat, née Zoë 🙂"
    )
    card = (trained.folder / "README.md").read_text("utf-8")
    assert "simulated endpoint" in card and f"{accuracy.value:.3f}" in card

    # The same rows once more, by the command: the training rows are known by now.
    out = tmp_path / "measured"
    flags = ["--tasks", "cb", "--data", str(rows), "--split", "train", "--out", str(out)]
    assert cli.main(["evaluate", str(trained.folder), *flags]) == 0
    assert "SIMULATED" in capsys.readouterr().out
    held = orjson.loads((out / "metrics.json").read_bytes())["tasks"]["cb"]
    assert held["report"]["scores"][0]["value"] > 0.7 and held["simulated"]
    lines = (out / "predictions" / "cb.jsonl").read_bytes().splitlines()
    assert len(lines) == held["report"]["items"] >= 690


@pytest.mark.parametrize("family", FAMILIES)
def test_the_first_steps_are_equal_for_one_batch_and_for_two_accumulated(
    family: str, rows: Path, tmp_path: Path
) -> None:
    """What transformers' Trainer gets wrong by the number of batches for T5 and RoBERTa."""
    whole = config(family, rows, steps=3)
    parts = config(family, rows, steps=3, accumulation=2)
    for name, made in (("whole", whole), ("parts", parts)):
        train(made, tmp_path / name, say=lambda _: None)
    for one, two in zip(curve(tmp_path / "whole"), curve(tmp_path / "parts"), strict=True):
        assert one["loss"] == pytest.approx(two["loss"], rel=1e-5)
        assert one["gradient_norm"] == pytest.approx(two["gradient_norm"], rel=1e-4)
        assert one["tokens"] == two["tokens"]


def test_the_loss_is_the_mean_over_the_tokens_of_all_answers(tmp_path: Path) -> None:
    """Against transformers' own loss of the same model on the same examples."""
    rows = grammar_run(tmp_path / "rows", "cb", 40)
    made = config("encoder-decoder", rows, steps=1, examples=40, learning_rate=1e-12)
    trained = train(made, tmp_path / "out", say=lambda _: None)
    model = open_model(str(trained.folder))
    from targen_async.finetune.data import load_examples
    from targen_async.finetune.forms import pose

    total = count = 0.0
    for one in load_examples(rows, "cb", "train").examples:
        form = pose(one, "encoder-decoder")
        source = model.tokenizer(form.source, return_tensors="pt")
        labels = model.tokenizer(form.choices[form.right[0]], return_tensors="pt").input_ids
        with torch.no_grad():
            total += float(model.network(**source, labels=labels).loss) * labels.numel()
        count += labels.numel()
    assert trained.loss == pytest.approx(total / count, rel=1e-4)


@pytest.mark.parametrize("task", ["copa", "record", "wsc"])
def test_options_with_texts_of_their_own_are_learnt_too(task: str, tmp_path: Path) -> None:
    source = grammar_run(tmp_path / "rows", task, 40)
    raw = settings("encoder", source, task, examples=4, steps=4)
    raw["model"]["max_source"] = 64
    raw["data"]["held_out"] = 0.3
    trained = train(msgspec.convert(raw, TrainConfig), tmp_path / "out", say=lambda _: None)
    assert trained.reports[task].items > 0 and trained.loss < 10


def test_instructions_are_kept_for_the_evaluation(rows: Path, tmp_path: Path) -> None:
    raw = settings("decoder", rows, steps=2)
    raw["model"]["max_source"] = 512
    raw["data"] |= {"instructed": True, "demonstrations": 1, "held_out": 0.1}
    trained = train(msgspec.convert(raw, TrainConfig), tmp_path, say=lambda _: None)
    held = orjson.loads((trained.folder / "targen.json").read_bytes())
    assert len(held["instructions"]["cb"]["demonstrations"]) == 3
    assert trained.reports["cb"].items > 0
    template = Instruction(task="cb").digest  # The same whichever rows the examples are of.
    assert held["templates"] == {"cb": template} != {"cb": form_digest("cb", "decoder")}
    shown = held["instruction_digest"]
    assert shown == instruction_digest([msgspec.convert(held["instructions"]["cb"], Instruction)])
    card = (trained.folder / "README.md").read_text("utf-8")
    assert template in card and shown in card and shown != template


def test_training_ends_early_and_hands_out_the_best_weights(rows: Path, tmp_path: Path) -> None:
    """At a rate too high to learn anything: the last weights are far from the best."""
    more = {"evaluate_every": 2, "patience": 2, "save_every": 2, "keep": 20}
    raw = settings("encoder", rows, steps=40, learning_rate=0.01, schedule="constant", **more)
    raw["data"]["held_out"] = 0.1
    trained = train(msgspec.convert(raw, TrainConfig), tmp_path, say=lambda _: None)
    told = [line for line in curve(tmp_path) if "evaluation" in line]
    values = [line["evaluation"]["cb"]["accuracy"] for line in told]
    best = values.index(max(values))
    assert best == len(values) - 3 and trained.steps == told[-1]["step"] < 40
    assert trained.reports["cb"].scores[0].value == values[best]
    handed = load_file(trained.folder / "model.safetensors")
    for line, same in ((told[best], True), (told[-1], False)):
        state = tmp_path / "checkpoints" / f"step-{line['step']:08d}" / "state.pt"
        network = torch.load(state, weights_only=True)["network"]
        assert all(torch.equal(network[name], value) for name, value in handed.items()) == same
    losses = {line["step"]: line["loss"] for line in curve(tmp_path) if "loss" in line}
    card = (trained.folder / "README.md").read_text("utf-8")
    step = told[best]["step"]
    assert f"- weights: of step {step}, the best of the evaluations\n" in card
    assert f"- loss of that step: {losses[step]:.4f}\n" in card


def test_a_damaged_checkpoint_is_told_and_the_one_before_it_taken(
    rows: Path, tmp_path: Path
) -> None:
    calls = iter(range(100))
    made = config("encoder", rows, steps=6, save_every=2)
    with pytest.raises(RunStopped, match="stopped at step 5 of 6, which is saved"):
        train(made, tmp_path, say=lambda _: None, stopped=lambda: next(calls) == 4)
    folder = tmp_path / "checkpoints"
    assert [path.name for path in sorted(folder.iterdir())] == ["step-00000004", "step-00000005"]
    state = folder / "step-00000005" / "state.pt"
    content = bytearray(state.read_bytes())
    content[len(content) // 2] ^= 1
    state.write_bytes(content)
    said: list[str] = []
    assert newest_checkpoint(folder, said.append) == folder / "step-00000004"
    assert "state.pt is not what was written" in said[0]
    (folder / "step-00000005" / "COMPLETE").unlink()
    assert "its writing was cut off" in str(checkpoint_fault(folder / "step-00000005"))
    assert train(made, tmp_path, say=said.append).steps == 6
    assert "going on from step 4 of 6" in said


def test_a_gradient_that_is_not_finite_ends_the_run_before_it_is_saved(
    rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss of that step is a number still: only the next one would not be."""
    real, calls = loop.build_model, iter(range(100))

    def built(*given: Any) -> Any:
        model = real(*given)
        weight = next(iter(model.network.parameters()))
        weight.register_hook(lambda slope: slope * torch.inf if next(calls) == 2 else slope)
        return model

    monkeypatch.setattr(loop, "build_model", built)
    with pytest.raises(RunStopped, match="the gradient of step 3 is not finite: lower the rate"):
        train(config("encoder", rows, steps=6, save_every=1), tmp_path, say=lambda _: None)
    newest = newest_checkpoint(tmp_path / "checkpoints", lambda _: None)
    assert newest == tmp_path / "checkpoints" / "step-00000002"
    assert len(curve(tmp_path)) == 2


def test_the_rate_rises_and_falls_by_the_step_alone() -> None:
    training = msgspec.convert({"examples": 1, "warmup": 0.1, "learning_rate": 1.0}, _training())
    rates = [learning_rate(training, step, 100) for step in range(100)]
    assert rates[0] < rates[5] < rates[10] == 1.0 and rates[99] == pytest.approx(1 / 90)
    assert max(rates) == 1.0


def _training() -> Any:
    from targen_async.finetune.config import Training

    return Training


WRONG: dict[str, tuple[dict[str, dict[str, Any]], str]] = {
    "unknown key": (
        {"training": {"learning_rte": 1e-3}},
        "no key `training.learning_rte`",
    ),
    "no bound": ({"training": {"examples": None}}, "`training.examples` or `training.tokens`"),
    "a word for a number": ({"training": {"epochs": "many"}}, "`training.epochs`: expected"),
    "a family": ({"model": {"family": "rnn"}}, "`model.family`: invalid enum value 'rnn'"),
    "half precision": (
        {"training": {"precision": "float16"}},
        "`training.precision`: T5's activations overflow float16, whose largest number is 65,504",
    ),
    "no folder": (
        {"data": {"train": [{"task": "cb", "source": "nowhere"}]}},
        "no folder 'nowhere'",
    ),
    "a diagnostic set": ({"data": {"train": [{"task": "axg", "source": "x"}]}}, "evaluation only"),
    "a size": ({"model": {"size": "huge"}}, "there is no encoder 'huge' (known: tiny,"),
    "too few": ({"training": {"examples": 800, "accumulation": 800}}, "too few for 800 batches"),
    "a model": (
        {"model": {"init": "no/such-model", "vocabulary": None, "dropout": None}},
        "the model 'no/such-model' cannot be loaded",
    ),
    "instructed": ({"data": {"instructed": True}}, "an encoder reads pairs and no instructions"),
    "no validation": ({"training": {"evaluate_every": 5}}, "needs `data.validation`"),
    "no deepspeed file": ({"training": {"deepspeed": "no.json"}}, "cannot read no.json"),
}


@pytest.mark.parametrize("case", WRONG)
def test_bad_input_is_one_sentence(case: str, rows: Path, tmp_path: Path) -> None:
    changes, sentence = WRONG[case]
    raw = settings("encoder", rows)
    for table, values in changes.items():
        raw[table] = {k: v for k, v in (raw[table] | values).items() if v is not None}
    path = write_config(tmp_path / "run.toml", raw)
    with pytest.raises(UserError, match=re.escape(sentence)) as told:
        train(load_train_config(path), tmp_path / "out", say=lambda _: None)
    assert "\n" not in str(told.value)
    assert not (tmp_path / "out" / "metrics.jsonl").exists()


def test_a_position_limit_and_a_long_answer_are_told(rows: Path, tmp_path: Path) -> None:
    trained = train(config("encoder", rows, steps=1), tmp_path / "one", say=lambda _: None)
    raw = begun_from(settings("encoder", rows), trained.folder)
    raw["model"]["max_source"] = 97
    with pytest.raises(UserError, match=r"`model.max_source` is 97, and .* reads 96 tokens"):
        train(msgspec.convert(raw, TrainConfig), tmp_path / "two", say=lambda _: None)
    raw = settings("encoder-decoder", rows)
    raw["model"] |= {"max_target": 2, "vocabulary": 300}
    with pytest.raises(UserError, match=r"an answer has \d+ tokens, and `model.max_target` is 2"):
        train(msgspec.convert(raw, TrainConfig), tmp_path / "three", say=lambda _: None)


def test_a_folder_of_another_configuration_is_not_touched(rows: Path, tmp_path: Path) -> None:
    made = config("encoder", rows, steps=1)
    train(made, tmp_path, say=lambda _: None)
    with pytest.raises(UserError, match="holds a trained model"):
        train(made, tmp_path, say=lambda _: None)
    with pytest.raises(UserError, match="was begun with another configuration"):
        train(config("encoder", rows, steps=2), tmp_path, say=lambda _: None)
    assert open_model(str(tmp_path / "model")).names == logit_names(["cb"])
    # Nor is one whose checkpoints were removed, as they may be once the model is there.
    shutil.rmtree(tmp_path / "checkpoints")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    with pytest.raises(UserError, match="holds a trained model"):
        train(config("encoder", rows, steps=2), tmp_path, say=lambda _: None)
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}


def test_an_encoder_without_a_head_for_a_task_says_so(
    rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trained = train(config("encoder", rows, steps=1), tmp_path / "out", say=lambda _: None)
    other = grammar_run(tmp_path / "rte", "rte", 8)
    flags = ["--tasks", "rte", "--data", str(other), "--split", "train", "--out"]
    assert cli.main(["evaluate", str(trained.folder), *flags, str(tmp_path / "e")]) == 2
    assert "no head for rte (it has one for: cb)" in capsys.readouterr().err


def untied_t5(folder: Path, rows: Path, out: Path) -> Path:
    """A T5 with an lm_head of its own, as T5 v1.1 and Flan-T5 have, in a file as theirs."""
    trained = train(config("encoder-decoder", rows, steps=1), out, say=lambda _: None)
    shutil.copytree(trained.folder, folder)
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"] = tensors["shared.weight"] * 0.5 + 0.01
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    raw = json.loads((folder / "config.json").read_text("utf-8"))
    (folder / "config.json").write_text(json.dumps(raw | {"tie_word_embeddings": False}), "utf-8")
    return folder


def test_an_lm_head_of_its_own_survives_training(rows: Path, tmp_path: Path) -> None:
    source = untied_t5(tmp_path / "untied", rows, tmp_path / "one")
    raw = begun_from(settings("encoder-decoder", rows, steps=1, learning_rate=1e-12), source)
    trained = train(msgspec.convert(raw, TrainConfig), tmp_path / "two", say=lambda _: None)
    before, after = (load_file(f / "model.safetensors") for f in (source, trained.folder))
    for name in ("lm_head.weight", "shared.weight"):
        assert torch.allclose(before[name], after[name], atol=1e-6), name
    assert not torch.allclose(after["lm_head.weight"], after["shared.weight"], atol=1e-3)


@pytest.mark.parametrize("family", ["encoder-decoder", "decoder"])
def test_what_is_tied_is_in_the_file_once_where_weights_come_off_a_device(
    family: str, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A copy off a GPU has a memory of its own; a copy from CPU to CPU is none."""
    raw = settings(family, rows, steps=1)
    raw["model"] |= {"size": "tiny-gpt2"} if family == "decoder" else {}
    train(msgspec.convert(raw, TrainConfig), tmp_path / "cpu", say=lambda _: None)
    monkeypatch.setattr(torch.Tensor, "cpu", lambda tensor: tensor.clone())
    train(msgspec.convert(raw, TrainConfig), tmp_path / "device", say=lambda _: None)
    one, two = (load_file(tmp_path / f / "model/model.safetensors") for f in ("cpu", "device"))
    assert one.keys() == two.keys() and "lm_head.weight" not in two
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_a_mended_configuration_takes_the_folder_over(rows: Path, tmp_path: Path) -> None:
    raw = settings("encoder-decoder", rows, steps=1)
    wrong = raw | {"model": raw["model"] | {"max_target": 2, "vocabulary": 300}}
    with pytest.raises(UserError, match="an answer has"):
        train(msgspec.convert(wrong, TrainConfig), tmp_path, say=lambda _: None)
    trained = train(msgspec.convert(raw, TrainConfig), tmp_path, say=lambda _: None)
    assert len(transformers.AutoTokenizer.from_pretrained(trained.folder)) > 300


def test_a_start_that_left_no_checkpoint_leaves_no_tokenizer_either(tmp_path: Path) -> None:
    """It is trained on the rows, which may have changed before the next start."""
    rows = grammar_run(tmp_path / "rows", "cb", 40)
    made = config("encoder", rows, steps=1)
    train(made, tmp_path / "out", say=lambda _: None)
    for name in ("checkpoints", "model"):  # As it was when the first step began.
        shutil.rmtree(tmp_path / "out" / name)
    shutil.rmtree(rows)
    grammar_run(rows, "cb", 44)
    train(made, tmp_path / "out", say=lambda _: None)
    train(made, tmp_path / "anew", say=lambda _: None)
    told, anew = (
        (tmp_path / name / "tokenizer" / "tokenizer.json").read_bytes() for name in ("out", "anew")
    )
    assert told == anew


def test_a_run_does_not_go_on_with_other_rows(tmp_path: Path) -> None:
    rows = grammar_run(tmp_path / "rows", "cb", 40)
    made = config("encoder", rows, steps=4)
    with pytest.raises(RunStopped):
        train(made, tmp_path / "out", say=lambda _: None, stopped=lambda: True)
    shutil.rmtree(rows)
    grammar_run(rows, "cb", 44)
    with pytest.raises(UserError, match="was written on other data"):
        train(made, tmp_path / "out", say=lambda _: None)


def test_a_head_for_other_labels_is_begun_anew_on_the_same_body(rows: Path, tmp_path: Path) -> None:
    trained = train(config("encoder", rows, steps=1), tmp_path / "one", say=lambda _: None)
    other = grammar_run(tmp_path / "rows", "rte", 40)
    raw = settings("encoder", other, "rte", steps=1, learning_rate=1e-12)
    raw = begun_from(raw, trained.folder)
    again = train(msgspec.convert(raw, TrainConfig), tmp_path / "two", say=lambda _: None)
    before, after = (load_file(t.folder / "model.safetensors") for t in (trained, again))
    name = "classifier.out_proj.weight"
    assert before[name].shape[0] == 3 and after[name].shape[0] == 2
    body = [n for n in before if n.startswith("roberta.")]
    assert body and all(torch.allclose(before[n], after[n], atol=1e-6) for n in body)


def test_a_step_of_adafactor_is_in_proportion_to_the_weight(rows: Path) -> None:
    """Embeddings of a T5 begin 20 times as large as other weights, and move 20 times as far."""
    training = config("encoder-decoder", rows, optimizer="adafactor").training
    layer = torch.nn.Sequential(torch.nn.Linear(30, 40), torch.nn.Linear(40, 30))
    large, small = layer[0].weight, layer[1].weight
    torch.nn.init.normal_(large, std=1.0)
    torch.nn.init.normal_(small, std=0.05)
    before = [weight.detach().clone() for weight in (large, small)]
    layer(torch.randn(64, 30)).square().mean().backward()
    build_optimizer(layer, training).step()
    for old, new in zip(before, (large, small), strict=True):
        share = float((new.detach() - old).norm() / old.norm())
        assert 0.5 < share / training.learning_rate < 1.001


def test_a_run_with_adafactor_goes_on_bit_for_bit(rows: Path, tmp_path: Path) -> None:
    calls = iter(range(100))
    made = config("encoder-decoder", rows, steps=6, optimizer="adafactor")
    whole = train(made, tmp_path / "whole", say=lambda _: None).folder
    with pytest.raises(RunStopped, match="stopped at step 4 of 6"):
        train(made, tmp_path / "cut", say=lambda _: None, stopped=lambda: next(calls) == 3)
    again = train(made, tmp_path / "cut", say=lambda _: None).folder
    assert curve(tmp_path / "cut") == curve(tmp_path / "whole")
    name = "model.safetensors"
    assert (again / name).read_bytes() == (whole / name).read_bytes()


def test_gradient_checkpointing_changes_no_figure(rows: Path, tmp_path: Path) -> None:
    for name, more in (("plain", {}), ("saving", {"gradient_checkpointing": True})):
        train(config("decoder", rows, steps=2, **more), tmp_path / name, say=lambda _: None)
    for one, two in zip(curve(tmp_path / "plain"), curve(tmp_path / "saving"), strict=True):
        assert one["loss"] == pytest.approx(two["loss"], rel=1e-6)


def test_adafactor_bfloat16_and_batches_by_tokens_learn(rows: Path, tmp_path: Path) -> None:
    raw = settings("encoder-decoder", rows, steps=12, optimizer="adafactor", precision="bfloat16")
    raw["training"] |= {"tokens": 1024, "examples": None, "schedule": "cosine"}
    raw["training"]["learning_rate"] = 1e-2
    train(msgspec.convert(raw, TrainConfig), tmp_path, say=lambda _: None)
    losses = [line["loss"] for line in curve(tmp_path)]
    assert losses[-1] < 0.5 * losses[0]
