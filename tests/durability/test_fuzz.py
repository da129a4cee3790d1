"""Bytes of any kind where files of ours are expected: a sentence, and nothing touched."""

import io
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from targen_async import UserError, config, read_shards
from targen_async.config import Source
from targen_async.errors import TargenError
from targen_async.journal import Journal, Kind, frames
from targen_async.prices import load_table, price_of
from targen_async.rundir import INDEX, MANIFEST, REJECTED, RUN_TOML, SEEDS, shard_name
from targen_async.sources import read_texts
from targen_async.terminal import print_rows, print_status
from targen_async.watch import watch
from tests.durability.world import Server, configured, faults, run
from tests.running import shard_bytes

CONFIG = configured("copa", 8)
FUZZ = settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
SCRAP = st.binary(max_size=30) | st.sampled_from(
    [
        b"tJ1",
        b"\x00" * 600,
        b"tJ1\x04\x05\x00\x00\x00",
        b"{}",
        b"null\n",
        b'{"key": 1}\n',
        b"\xff\n",
    ]
)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made") / "run"
    run(Server(1, malformed=0.2, label_noise=0.2), CONFIG, folder)
    return folder


@contextmanager
def copied(folder: Path) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="fuzz-") as place:
        yield Path(shutil.copytree(folder, Path(place) / "run"))


def left(folder: Path) -> dict[str, bytes]:
    kept = {
        path.name: path for path in folder.iterdir() if not path.name.startswith(("lock", INDEX))
    }
    return {name: path.read_bytes() for name, path in kept.items()}


def check_start(folder: Path, whole: bytes | None) -> None:
    """A start ends well, with the rows of `whole` if it is known, or with a sentence and every file
    as it was; verify reads the folder to its end."""
    before = left(folder)
    try:
        run(Server(2, malformed=0.2, label_noise=0.2), CONFIG, folder)
    except TargenError as error:
        assert str(error) and "\n" not in str(error)
        assert left(folder) == before
    else:
        assert whole is None or shard_bytes(folder) == whole
        # A record that says nothing of rows or calls does not stop a run; verify names it.
        named = () if whole is not None else ("journal:byte ",)
        assert [fault for fault in faults(folder) if not fault.startswith(named)] == []


def changed(data: bytes, draw: st.DataObject) -> bytes:
    """Pieces cut out, put in, doubled and flipped, anywhere."""
    for _ in range(draw.draw(st.integers(1, 3))):
        start = draw.draw(st.integers(0, len(data)))
        end = draw.draw(st.integers(start, min(len(data), start + 2000)))
        how = draw.draw(st.sampled_from(["cut", "put", "double", "flip", "blank", "end"]))
        piece = data[start:end]
        data = (
            data[:start]
            + {
                "cut": b"",
                "put": draw.draw(SCRAP) + piece,
                "double": piece + piece,
                "flip": bytes(byte ^ 0x10 for byte in piece),
                "blank": bytes(len(piece)),
                "end": piece[:0],
            }[how]
            + (b"" if how == "end" else data[end:])
        )
    return data


@FUZZ
@given(draw=st.data())
def test_a_journal_that_was_changed_anywhere(made: Path, draw: st.DataObject) -> None:
    with copied(made) as folder:
        journal = folder / "journal"
        journal.write_bytes(changed(journal.read_bytes(), draw))
        faults(folder)
        check_start(folder, None if journal.stat().st_size == 0 else shard_bytes(made))


@FUZZ
@given(
    kind=st.integers(0, 255),
    payload=st.binary(max_size=60),
    at=st.integers(0, 100),
)
@example(kind=Kind.ANSWER, payload=bytes(8), at=100)
@example(kind=Kind.ANSWER, payload=b"", at=3)
@example(kind=Kind.INTENT, payload=b"short", at=5)
@example(kind=Kind.CHECKPOINT, payload=b"\xc1", at=100)
@example(kind=Kind.OPENED, payload=b"\x80", at=0)
def test_a_record_that_is_whole_and_means_nothing(
    made: Path, kind: int, payload: bytes, at: int
) -> None:
    """Its checksum is right: something wrote it that should not have."""
    with copied(made) as folder:
        journal = folder / "journal"
        whole = list(frames(journal))
        at = min(at, len(whole))
        journal.write_bytes(b"")
        again = Journal(journal)
        for frame in whole[:at]:
            again.append(frame.kind, frame.payload)
        again.append(kind, payload)
        if at == len(whole):
            again.close()
        else:
            # What follows is as it was but further on, so its tickets name other places.
            for frame in whole[at:]:
                again.append(frame.kind, frame.payload)
            again.close()
        faults(folder)
        check_start(folder, None)


@FUZZ
@given(draw=st.data(), name=st.sampled_from([MANIFEST, RUN_TOML, REJECTED, shard_name(0), SEEDS]))
def test_any_other_file_that_was_changed(made: Path, draw: st.DataObject, name: str) -> None:
    """All of them can be made again."""
    with copied(made) as folder:
        file = folder / name
        file.write_bytes(changed(file.read_bytes() if file.exists() else b"", draw))
        try:
            for row in read_shards(folder):
                assert row.key
        except UserError as error:
            assert name in str(error)
        faults(folder)
        run(Server(2, malformed=0.2, label_noise=0.2), CONFIG, folder)
        assert shard_bytes(folder) == shard_bytes(made)
        assert [fault for fault in faults(folder) if not fault.startswith(SEEDS)] == []


LOOKS: tuple[Callable[[Path], int], ...] = (
    partial(print_status, as_json=False),
    partial(print_status, as_json=True),
    partial(print_rows, count=2),
    watch,
)
ANOTHER_KIND = st.sampled_from([None, "x", -3, 0.5, True, [1], {"a": 1}])


def otherwise(value: Any, draw: st.DataObject) -> Any:
    """The same with something in it gone, or of another kind."""
    inner = isinstance(value, dict | list) and bool(value)
    if not inner or draw.draw(st.integers(0, 3)) == 0:
        return draw.draw(ANOTHER_KIND)
    keys = list(value) if isinstance(value, dict) else list(range(len(value)))
    key = draw.draw(st.sampled_from(keys))
    copy = value.copy()
    if draw.draw(st.booleans()):
        copy[key] = otherwise(copy[key], draw)
    else:
        del copy[key]
    return copy


@FUZZ
@given(draw=st.data())
def test_a_manifest_with_anything_in_it_is_shown_or_refused(
    made: Path, draw: st.DataObject
) -> None:
    """It is sound JSON; nobody who reads it breaks down, and a start makes it again."""
    with copied(made) as folder:
        file = folder / MANIFEST
        whole = json.loads(file.read_bytes())
        file.write_text(json.dumps(otherwise(whole, draw)))
        for look in LOOKS:
            with suppress(UserError), redirect_stdout(io.StringIO()):
                look(folder)
        faults(folder)
        run(Server(2, malformed=0.2, label_noise=0.2), CONFIG, folder)
        again = json.loads(file.read_bytes())
        # This start had nothing to stop for.
        assert {**again, "reason": ""} == {**whole, "reason": ""}


@FUZZ
@given(draw=st.data())
def test_a_configuration_of_any_text_is_read_or_refused(made: Path, draw: st.DataObject) -> None:
    with tempfile.TemporaryDirectory(prefix="fuzz-") as place:
        file = Path(place) / "own.toml"
        file.write_bytes(changed((made / RUN_TOML).read_bytes(), draw))
        try:
            config.dump(config.load(file, {}))
        except UserError as error:
            assert "own.toml" in str(error)


# ---- files of the user's


def a_parquet_file() -> bytes:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    held = io.BytesIO()
    texts = [f"A text of some words, the {number}th." for number in range(50)]
    table = pyarrow.table({"text": texts, "more": [{"deep": [text]} for text in texts]})
    parquet.write_table(table, held)
    return held.getvalue()


CORPORA: dict[str, Callable[[], bytes]] = {
    "texts.txt": lambda: "One text a line.\nAnother é.\n\n".encode() * 9,
    "texts.jsonl": lambda: b'{"text": "one", "more": {"deep": ["two", 3, null]}}\n"three"\n' * 9,
    "texts.parquet": a_parquet_file,
}


@pytest.mark.parametrize("name", CORPORA)
@FUZZ
@given(draw=st.data(), field=st.sampled_from([None, "text", "more"]), every=st.booleans())
def test_a_file_of_texts_of_any_bytes_is_read_or_refused(
    name: str, draw: st.DataObject, field: str | None, every: bool
) -> None:
    """As seeds and as what is to be kept out (`every` text in it)."""
    with tempfile.TemporaryDirectory(prefix="fuzz-") as place:
        file = Path(place) / name
        whole = CORPORA[name]()
        file.write_bytes(changed(whole, draw) if draw.draw(st.integers(0, 4)) else whole)
        try:
            for number, text in read_texts(Source(file=str(file), field=field), all_fields=every):
                assert number > 0 and text.strip() == text != ""
        except UserError as error:
            assert name in str(error)


def test_a_text_that_is_nested_without_end_is_refused(tmp_path: Path) -> None:
    """JSON's parser takes more levels than Python does."""
    file = tmp_path / "texts.jsonl"
    file.write_bytes(b'"a"\n' + b"[" * 1000 + b'"deep"' + b"]" * 1000 + b"\n")
    with pytest.raises(UserError, match=r"texts\.jsonl:2: nested too deeply"):
        list(read_texts(Source(file=str(file)), all_fields=True))


@FUZZ
@given(draw=st.data())
def test_a_table_of_prices_of_any_text_is_read_or_refused(draw: st.DataObject) -> None:
    whole = b'[[model]]\nnames = ["m", "m-*"]\nprompt = 1.5\ncompletion = 2\nknown = 2026-11-01\n'
    with tempfile.TemporaryDirectory(prefix="fuzz-") as place:
        file = Path(place) / "prices.toml"
        file.write_bytes(changed(whole * 2, draw))
        try:
            price_of("m", load_table(file))
        except UserError as error:
            assert "prices.toml" in str(error)
