"""Token ids are made once for all runs of a user, and are the same from the cache."""

import random
from pathlib import Path
from typing import Any

import msgspec
import pytest

pytest.importorskip("torch", reason="torch is not installed: pip install '.[train]'")
pytest.importorskip("transformers", reason="transformers is not installed")

from targen_async.finetune import tokens
from targen_async.finetune.config import ModelChoice, TrainConfig
from targen_async.finetune.evaluate import evaluate
from targen_async.finetune.loop import train
from targen_async.finetune.models import train_tokenizer
from targen_async.finetune.schema import Example
from targen_async.finetune.tokens import token_cache, tokenise
from tests.finetune.grammars import grammar_run
from tests.finetune.made import examples_of
from tests.finetune.training import settings

DECODER = msgspec.convert({"family": "decoder", "max_source": 512}, ModelChoice)


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[Example]:
    return examples_of(tmp_path_factory.mktemp("rows") / "cb", "cb", 3)


@pytest.fixture(scope="module")
def tokenizer(rows: list[Example]) -> Any:
    return train_tokenizer((text for one in rows for text in one.fields.values()), 400, "decoder")


def refused(*_: Any) -> None:
    raise AssertionError("ids were made that were there")


def test_another_order_finds_the_same_ids(
    rows: list[Example], tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another seed deals the rows out in another order."""
    plain = tokenise(rows, tokenizer, DECODER)
    assert tokenise(rows, tokenizer, DECODER, cache=tmp_path) == plain
    monkeypatch.setattr(tokens, "_encode_texts", refused)
    order = random.Random(1).sample(range(len(rows)), len(rows))
    again = tokenise([rows[n] for n in order], tokenizer, DECODER, cache=tmp_path)
    assert again.items == tuple(plain.items[n] for n in order) and again.cut == plain.cut
    assert [path.suffix for path in tmp_path.iterdir()] == [".tokens"]


def test_what_changes_the_ids_is_not_found(
    rows: list[Example], tokenizer: Any, tmp_path: Path
) -> None:
    first = tokenise(rows, tokenizer, DECODER, cache=tmp_path)
    shorter = msgspec.structs.replace(DECODER, max_source=256)
    tokenise(rows, tokenizer, shorter, cache=tmp_path)
    other = train_tokenizer((one.fields["premise"] for one in rows), 300, "decoder")
    assert tokenise(rows, other, DECODER, cache=tmp_path) != first
    other = tokenizer.__class__(tokenizer_object=tokenizer.backend_tokenizer, eos_token="<s>")
    assert tokenise(rows, other, DECODER, cache=tmp_path) != first
    changed = [msgspec.structs.replace(rows[0], label="neutral"), *rows[1:]]
    assert rows[0].label != "neutral"
    assert tokenise(changed, tokenizer, DECODER, cache=tmp_path) != first
    assert len(list(tmp_path.iterdir())) == 5


def test_a_damaged_or_unwritable_cache_does_no_harm(
    rows: list[Example], tokenizer: Any, tmp_path: Path
) -> None:
    plain = tokenise(rows, tokenizer, DECODER, cache=tmp_path)
    [path] = tmp_path.iterdir()
    whole = path.read_bytes()
    path.write_bytes(whole[:100])
    assert tokenise(rows, tokenizer, DECODER, cache=tmp_path) == plain
    assert path.read_bytes() == whole
    assert tokenise(rows, tokenizer, DECODER, cache=path / "no-folder") == plain


def test_runs_and_evaluations_of_the_same_rows_share_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TARGEN_CACHE", str(tmp_path / "cache"))
    source = grammar_run(tmp_path / "cb", "cb", 40)
    raw = settings("encoder", source, steps=1)
    trained = train(msgspec.convert(raw, TrainConfig), tmp_path / "one", say=lambda _: None)
    [kept] = (tmp_path / "cache" / "tokens").iterdir()
    monkeypatch.setattr(tokens, "_encode_pairs", refused)
    raw["training"] |= {"random_seed": 1, "learning_rate": 1e-4}
    train(msgspec.convert(raw, TrainConfig), tmp_path / "two", say=lambda _: None)
    evaluate(
        str(trained.folder), ["cb"], str(source), tmp_path / "e", split="train", say=lambda _: None
    )
    assert list((tmp_path / "cache" / "tokens").iterdir()) == [kept]


def test_the_folder_is_the_users(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("TARGEN_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert token_cache() == tmp_path / "targen-async" / "tokens"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert token_cache() == tmp_path / ".cache" / "targen-async" / "tokens"
