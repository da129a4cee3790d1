"""What a run makes sure of: room before it begins and before it writes, and the right weights."""

import resource
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install '.[train]'")
pytest.importorskip("transformers", reason="transformers is not installed")

from targen_async.errors import RunStopped  # noqa: E402
from targen_async.finetune import loop  # noqa: E402
from targen_async.finetune.answering import tokens_for  # noqa: E402
from targen_async.finetune.checkpoints import (  # noqa: E402
    Progress,
    load_random_state,
    newest_checkpoint,
    save_checkpoint,
)
from targen_async.finetune.config import ModelChoice, TrainConfig  # noqa: E402
from targen_async.finetune.data import load_examples  # noqa: E402
from targen_async.finetune.engine import PlainEngine  # noqa: E402
from targen_async.finetune.feeds import score_items  # noqa: E402
from targen_async.finetune.loop import train  # noqa: E402
from targen_async.finetune.models import (  # noqa: E402
    build_model,
    check_embeddings,
    choose_tokenizer,
    expected_parameters,
    open_model,
)
from tests.finetune.grammars import grammar_run  # noqa: E402
from tests.finetune.training import FAMILIES, settings  # noqa: E402


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return grammar_run(tmp_path_factory.mktemp("rows") / "cb", "cb", 60)


def config(rows: Path, family: str = "encoder", **training: Any) -> TrainConfig:
    return msgspec.convert(settings(family, rows, **training), TrainConfig)


class Disk:
    """What the system says is free, in the order it is asked."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, free: Iterator[int]) -> None:
        real = shutil.disk_usage

        def usage(path: Path) -> Any:
            return real(path)._replace(free=next(free))

        monkeypatch.setattr(shutil, "disk_usage", usage)


def test_without_room_nothing_is_built(
    rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Disk(monkeypatch, iter([10_000_000]))

    def built(*_: object) -> None:
        raise AssertionError("a model was built")

    monkeypatch.setattr(loop, "build_model", built)
    with pytest.raises(RunStopped, match=r"3 checkpoints and the model take 1\d MB more and") as t:
        train(config(rows, steps=2), tmp_path, say=lambda _: None)
    assert "make room, or set `training.keep` lower" in str(t.value)


def test_room_that_is_gone_at_a_save_leaves_the_checkpoint_before(
    rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = config(rows, steps=6, save_every=2)
    with monkeypatch.context() as patch:
        Disk(patch, iter([10**12, 10**12, 1000]))
        with pytest.raises(
            RunStopped, match=r"step-00000004 could not be written \(it takes \d MB and 0 MB"
        ):
            train(made, tmp_path, say=lambda _: None)
    said: list[str] = []
    assert newest_checkpoint(tmp_path / "checkpoints", said.append)
    assert said == []  # Nothing half-written is left.
    assert train(made, tmp_path, say=said.append).steps == 6
    assert "going on from step 2 of 6" in said


def test_a_disk_that_is_full_in_the_writing_is_told(rows: Path, tmp_path: Path) -> None:
    """By a limit on the size of files, which the system calls a failed write."""
    made = config(rows, steps=6, save_every=2)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    asked = iter(range(100))

    def fills_up() -> bool:
        if next(asked) == 2:
            resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, before[1]))
        return False

    try:
        with pytest.raises(RunStopped, match="step-00000004 could not be written") as told:
            train(made, tmp_path, say=lambda _: None, stopped=fills_up)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "\n" not in str(told.value)
    assert train(made, tmp_path, say=lambda _: None).steps == 6


@pytest.mark.parametrize(
    ("moment", "most", "place"),
    [("", 2000, "tokenizer"), ("step 1: cb", 10_000, "best"), ("step 1 of", 100, "")],
)
def test_whatever_a_full_disk_keeps_from_being_written_is_named(
    moment: str, most: int, place: str, rows: Path, tmp_path: Path
) -> None:
    """At least by its folder. What tokenizers and safetensors raise is no OSError."""
    raw = settings("encoder", rows, steps=2, evaluate_every=1)
    raw["data"]["held_out"] = 0.2
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def say(text: str) -> None:
        if text.startswith(moment):
            resource.setrlimit(resource.RLIMIT_FSIZE, (most, before[1]))

    if not moment:
        say("")
    try:
        with pytest.raises(
            RunStopped, match=f"{tmp_path / place} could not be written .*arge"
        ) as t:
            train(msgspec.convert(raw, TrainConfig), tmp_path, say=say)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "make room, and" in str(t.value) and "\n" not in str(t.value)


def test_the_best_weights_take_room_too(
    rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def needed(**training: Any) -> int:
        raw = settings("encoder", rows, steps=2, **training)
        raw["data"]["held_out"] = 0.2
        with monkeypatch.context() as patch, pytest.raises(RunStopped) as told:
            Disk(patch, iter([0]))
            train(msgspec.convert(raw, TrainConfig), tmp_path, say=lambda _: None)
        assert not (tmp_path / "tokenizer").exists()  # It is the first that is looked at.
        return int(str(told.value).partition("the model take ")[2].split()[0])

    assert needed(evaluate_every=1) > needed()


def test_a_step_that_does_not_fit_into_memory_is_told(
    rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def step(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

    monkeypatch.setattr(PlainEngine, "step", step)
    with pytest.raises(RunStopped, match="step 1 does not fit into the memory of cpu: raise `tra"):
        train(config(rows, steps=2), tmp_path, say=lambda _: None)


def test_a_model_that_does_not_fit_a_second_time_is_handed_out_unmeasured(
    rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The written model is measured where the optimiser still lies."""

    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

    raw = settings("encoder", rows, steps=1)
    raw["data"]["held_out"] = 0.2
    said: list[str] = []
    monkeypatch.setattr(loop, "open_model", full)
    trained = train(msgspec.convert(raw, TrainConfig), tmp_path, say=said.append)
    assert trained.reports == {} and (trained.folder / "README.md").is_file()
    [told] = [line for line in said if "not measured" in line]
    assert f"`targen evaluate {trained.folder}` measures it" in told


@pytest.mark.parametrize("family", FAMILIES)
def test_what_a_model_takes_is_known_before_it_is_built(
    family: str, rows: Path, tmp_path: Path
) -> None:
    choice = config(rows, family).model
    tokenizer = choose_tokenizer(choice, ["some words"] * 9, tmp_path / "tokenizer")
    network = build_model(choice, tokenizer, ["a", "b"], 0).network
    wanted = sum(value.numel() for value in network.parameters())
    assert expected_parameters(choice, len(tokenizer), ["a", "b"]) == wanted


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("wrong", ["get_output_embeddings", "get_input_embeddings"])
def test_weights_that_a_loader_tied_or_lost_are_noticed(
    wrong: str, parts: int, rows: Path, tmp_path: Path
) -> None:
    """In one file and in several with an index."""
    trained = train(config(rows, "encoder-decoder", steps=1), tmp_path, say=lambda _: None)
    source = str(tmp_path / "again")
    model = open_model(str(trained.folder))
    head = model.network.get_output_embeddings()
    head.weight = torch.nn.Parameter(head.weight.detach().clone() + 0.1)
    size = "500KB" if parts > 1 else "1GB"
    model.network.save_pretrained(source, max_shard_size=size)
    assert len(list(Path(source).glob("*.safetensors"))) >= parts
    check_embeddings(model.network, source)
    with torch.no_grad():
        getattr(model.network, wrong)().weight[7] += 1
    with pytest.raises(RunStopped, match="in memory is not that of the file"):
        check_embeddings(model.network, source)


class Ranks:
    """Rank 0 of two, whose own part of a checkpoint cannot be written."""

    rank, ranks, device = 0, 2, torch.device("cpu")

    def __init__(self) -> None:
        self.met = 0

    def save(self, _: Path) -> None:
        raise OSError(28, "No space left on device")

    def any_of(self, values: list[bool]) -> list[bool]:
        self.met += 1
        return values


def test_a_rank_that_cannot_write_its_part_waits_for_nobody(tmp_path: Path) -> None:
    """The others are in a barrier of DeepSpeed's own: they hear of it by the lifeline."""
    engine: Any = Ranks()
    (tmp_path / "step-00000001").mkdir()  # Of a save that was broken off like this one.
    with pytest.raises(RunStopped, match=r"step-00000002 could not be written \(.*No space left"):
        save_checkpoint(tmp_path, engine, Progress(step=2), 2, 1000)
    assert engine.met == 1  # Before the writing: is there room?
    engine.save = lambda path: (path / "state").write_bytes(b"whole")
    save_checkpoint(tmp_path, engine, Progress(step=3), 2, 1000)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000003"]


def test_random_numbers_of_a_cpu_are_no_hindrance_on_a_gpu(tmp_path: Path) -> None:
    """A checkpoint goes on where there is a GPU now: its stream begins anew."""
    torch.save({"torch": torch.get_rng_state()}, tmp_path / "random-0.pt")
    engine: Any = Ranks()
    assert load_random_state(tmp_path, engine)
    engine.device = torch.device("cuda")
    assert not load_random_state(tmp_path, engine)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_measured_is_read_in_halves_where_a_batch_does_not_fit(
    family: str, rows: Path, tmp_path: Path
) -> None:
    trained = train(config(rows, family, steps=1), tmp_path, say=lambda _: None)
    model = open_model(str(trained.folder), family)
    examples = load_examples(str(rows), "cb", "train").examples[:13]
    choice = ModelChoice(family=family, max_source=96)
    items = tokens_for(model, choice, examples, {}).items
    cpu, sizes = torch.device("cpu"), []
    whole = score_items(model, items, cpu)

    def fits(most: int) -> Any:
        def look(_: object, __: object, inputs: dict[str, Any]) -> None:
            rows = next(v for k, v in inputs.items() if k.endswith("input_ids")).shape[0]
            if rows > most:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
            sizes.append(rows)

        return model.network.register_forward_pre_hook(look, with_kwargs=True)

    hook = fits(6)
    halved = score_items(model, items, cpu)
    hook.remove()
    assert max(sizes) <= 6 and len(sizes) > 2
    assert [max(range(3), key=one.__getitem__) for one in halved] == [
        max(range(3), key=one.__getitem__) for one in whole
    ]
    assert torch.allclose(torch.tensor(halved), torch.tensor(whole), atol=1e-5)
    fits(0)
    with pytest.raises(RunStopped, match=r"one example of \d+ tokens does not fit into the memory"):
        score_items(model, items, cpu)
