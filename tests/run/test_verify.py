"""`targen verify`: a sound folder passes, and whatever is broken in one is found and named."""

import fcntl
import json
import re
import shutil
import zlib
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from struct import Struct
from typing import Any

import orjson
import pytest

from targen_async.errors import UserError
from targen_async.journal import Kind, frames
from targen_async.rundir import to_line
from targen_async.tasks import prompts_root
from targen_async.verify import Check
from tests.running import lines, manifest, rows, targen

NOISE = (
    *("--set", "data.simulator.label_noise=0.15", "--set", "data.simulator.malformed=0.35"),
    *("--set", "data.simulator.missing_ids=0.05", "--set", "data.simulator.error_rate=0.03"),
    *("--set", "delivery.rows_per_shard=40"),
)
PASSAGES = [
    f"The {place} museum opened in {1900 + number}. It shows {thing} that people of the town made "
    f"by hand. A visit takes about {number + 20} minutes, and children pay half the price. On "
    "Mondays the house is closed. A small shop beside the entrance sells cards and books."
    for number, (place, thing) in enumerate(
        (place, thing)
        for place in ("Harbour", "Castle", "River", "Market", "Mill", "Abbey")
        for thing in ("boats", "clocks", "chairs", "lamps", "drums")
    )
]


def made(out: Path, task: object, n: int, *flags: object) -> Path:
    done = targen("generate", task, "-n", n, "--simulate", *NOISE, *flags, "--out", out, "--quiet")
    assert done.returncode == 0, done.stderr
    return out


@pytest.fixture(scope="module")
def copa(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """100 rows in three shards, with rejections, failures and calls in doubt or refused."""
    return made(tmp_path_factory.mktemp("runs") / "copa", "copa", 100)


@pytest.fixture(scope="module")
def boolq(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seeds out of a corpus."""
    folder = tmp_path_factory.mktemp("corpus")
    (folder / "texts.txt").write_text("\n".join(PASSAGES), "utf-8")
    return made(folder / "boolq", "boolq", 50, "--seeds", folder / "texts.txt")


@pytest.fixture
def run(copa: Path, tmp_path: Path) -> Path:
    """A copy that a test may break."""
    return Path(shutil.copytree(copa, tmp_path / "run"))


def faults(folder: Path) -> list[str]:
    return list(Check(folder).faults())


def told(folder: Path, *patterns: str) -> list[str]:
    """The folder's faults, each pattern being found in one of them."""
    found = faults(folder)
    for pattern in patterns:
        assert any(re.search(pattern, fault) for fault in found), (pattern, found)
    return found


def edit_lines(path: Path, change: Callable[[list[bytes]], object]) -> None:
    found = path.read_bytes().splitlines(keepends=True)
    change(found)
    path.write_bytes(b"".join(found))


def edit_row(path: Path, number: int, change: Callable[[dict[str, Any]], object]) -> str:
    """Change the row in line `number` (from 0); returns its key."""
    keys = []

    def one(found: list[bytes]) -> None:
        row = orjson.loads(found[number])
        keys.append(row["key"])
        change(row)
        found[number] = to_line(row)

    edit_lines(path, one)
    return str(keys[0])


def edit_manifest(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    raw = manifest(folder)
    change(raw)
    (folder / "manifest.json").write_bytes(orjson.dumps(raw))


def reseal(folder: Path) -> None:
    """Have the manifest fit the shards, as somebody would who hides a change."""

    def seal(raw: dict[str, Any]) -> None:
        for shard in raw["shards"]:
            data = (folder / shard["name"]).read_bytes()
            shard |= {"bytes": len(data), "sha256": sha256(data).hexdigest()}
            shard["rows"] = data.count(b"\n")

    edit_manifest(folder, seal)


def shard(folder: Path, number: int = 0) -> Path:
    return folder / f"instances-{number:05d}.jsonl"


# ---- sound folders


def test_a_sound_run_passes_and_nothing_is_touched(copa: Path) -> None:
    (copa / "reserve.bin").write_bytes(b"left by a kill")
    before = {p.name: (p.read_bytes(), p.stat().st_mtime_ns) for p in copa.iterdir()}
    done = targen("verify", copa)
    raw = manifest(copa)
    refused = sum(raw["rejected"].values()) + raw["surplus"]
    failed = sum(raw["failed"].values())
    assert done.stdout == (
        f"{copa}: sound; 100 rows in 3 shards, {refused} rejected, "
        f"{failed} failure{'s' * (failed != 1)}, {raw['calls']['served']} answers in the journal\n"
    )
    assert done.returncode == 0
    assert {p.name: (p.read_bytes(), p.stat().st_mtime_ns) for p in copa.iterdir()} == before
    (copa / "reserve.bin").unlink()


@pytest.mark.parametrize(
    ("task", "n", "flags"),
    [
        ("axg", 40, ()),
        ("wsc", 40, ()),
        ("multirc", 40, ("--votes", 3)),
        ("record", 40, ()),
        ("wic", 40, ("--correction", "off")),
        ("cb", 42, ("--correction", "shown", "--set", "data.simulator.hostile=0.2")),
    ],
)
def test_a_sound_run_of_every_form_passes(
    task: str, n: int, flags: tuple[object, ...], tmp_path: Path
) -> None:
    out = made(tmp_path / task, task, n, *flags)
    assert faults(out) == []
    (out / "run.toml").write_text('[data]\ntask = "a-task-that-is-gone"\n', "utf-8")
    check = Check(out)
    assert list(check.faults()) == []
    assert "cannot be loaded" in check.notes[0]
    key = edit_row(shard(out), 3, lambda row: row["provenance"].update(explanation="Because."))
    reseal(out)
    told(out, rf"instances-00000.jsonl:4: {key}: provenance.explanation")


def test_a_sound_run_out_of_a_corpus_passes(boolq: Path) -> None:
    assert faults(boolq) == []


def test_a_run_whose_n_was_raised_passes_and_one_made_anew_too(run: Path) -> None:
    def go(*arguments: object) -> None:
        done = targen(*arguments, "--quiet")
        assert done.returncode == 0, done.stderr
        assert faults(run) == []

    go("generate", "--out", run, "-n", 160)
    keys = [row["key"] for row in rows(run)]
    assert keys != sorted(keys), "no row was over its quota; choose another seed"
    assert manifest(run)["failed"].get("instances.malformed"), "nothing to retry"
    go("retry", run)
    go("generate", "--out", run)
    go("reparse", run)
    assert manifest(run)["generation"] == 2


def test_a_changed_task_is_named_and_rows_are_compared_without_it(tmp_path: Path) -> None:
    task = Path(shutil.copytree(prompts_root() / "cb", tmp_path / "cb"))
    out = made(tmp_path / "run", task, 30)
    file = task / "correction.txt"
    file.write_text(file.read_text("utf-8") + "\nThank you.", "utf-8")
    check = Check(out)
    assert list(check.faults()) == []
    assert "are others than the run's" in check.notes[0]
    key = edit_row(shard(out), 0, lambda row: row.update(label=other(row)))
    reseal(out)
    told(out, rf"{key}: label is")


def other(row: dict[str, Any]) -> str:
    labels = {"choice1", "choice2"} if row["task"] == "copa" else {"entailment", "neutral"}
    return min(labels - {row["label"]})


# ---- one thing broken


def test_a_flipped_byte_in_a_shard(run: Path) -> None:
    data = bytearray(shard(run).read_bytes())
    place = data.index(b'"premise":"', data.index(b"\n")) + 15
    data[place] ^= 1
    shard(run).write_bytes(data)
    key = lines(shard(run))[1]["key"]
    told(run, "instances-00000.jsonl: its SHA-256", f"instances-00000.jsonl:2: {key}: premise is")
    done = targen("verify", run)
    assert done.returncode == 1
    assert re.search(r"run: 2 faults; 100 rows in 3 shards", done.stdout.splitlines()[-1])


def test_a_flipped_byte_in_the_journal(run: Path) -> None:
    data = bytearray((run / "journal").read_bytes())
    data[len(data) // 2] ^= 1
    (run / "journal").write_bytes(data)
    found = told(run, r"^journal:byte \d+: damaged, and intact records follow")
    assert len(found) == 1, "what follows from it is not told as well"


def test_a_torn_end_of_the_journal(run: Path) -> None:
    with (run / "journal").open("ab") as file:
        file.write(b"tJ1\x03half")
    told(run, r"^journal:byte \d+: the last 8 bytes are no whole record")


def frame(kind: Kind, payload: bytes) -> bytes:
    check = zlib.crc32(payload, zlib.crc32(Struct("<BI").pack(kind, len(payload))))
    return Struct("<3sBII").pack(b"tJ1", kind, len(payload), check) + payload


def test_records_of_the_journal_that_mean_nothing(run: Path) -> None:
    with (run / "journal").open("ab") as file:
        file.write(frame(Kind.ANSWER, Struct("<Q").pack(1 << 50) + b"{}"))
        file.write(frame(Kind.CHECKPOINT, b"\xc1"))
    told(run, r"^journal:byte \d+: an answer to no call", r"^journal:byte \d+: this record cannot")


def test_a_call_more_than_the_manifest_counts(run: Path) -> None:
    last = [f for f in frames(run / "journal") if f.kind == Kind.INTENT][-1]
    with (run / "journal").open("ab") as file:
        file.write(frame(Kind.INTENT, last.payload))
    told(run, r"manifest.json: calls.in_doubt is 0, and by the journal 1")


def test_another_format_of_the_journal(run: Path) -> None:
    first, *rest = list(frames(run / "journal"))
    payload = first.payload.replace(b"\xa7version\x02", b"\xa7version\x63")
    assert payload != first.payload
    data = [frame(first.kind, payload), *(frame(one.kind, one.payload) for one in rest)]
    (run / "journal").write_bytes(b"".join(data))
    told(run, "^journal: format 99 is not known here")


def test_a_missing_journal(run: Path) -> None:
    (run / "journal").unlink()
    told(run, r"^journal: cannot be read \(no such file or directory\)")
    (run / "journal").write_bytes(b"")
    told(run, "^journal: it does not begin as a journal does")


def test_a_dropped_line(run: Path) -> None:
    edit_lines(shard(run), lambda found: found.pop(5))
    told(run, r"instances-00000.jsonl: \d+ bytes, and manifest.json says", "39 rows, and manifest")
    reseal(run)
    told(
        run,
        "manifest.json: delivered is 100, and the shards have 99 rows",
        "manifest.json: balance of choice[12] is 50, and the shards have 49",
        r"manifest.json: transitions of choice[12]: choice[12] is \d+, and by the files \d+",
    )


def test_two_lines_swapped(run: Path) -> None:
    def swap(found: list[bytes]) -> None:
        found[3], found[4] = found[4], found[3]

    edit_lines(shard(run), swap)
    key = lines(shard(run))[4]["key"]
    told(run, f"instances-00000.jsonl:5: {key} stands behind a later row", "SHA-256")


def test_a_row_twice(run: Path) -> None:
    def twice(found: list[bytes]) -> None:
        found[4] = found[3]

    edit_lines(shard(run), twice)
    told(run, f"instances-00000.jsonl:5: {lines(shard(run))[3]['key']} stands here a second time")


def test_an_edited_label(run: Path) -> None:
    key = edit_row(shard(run, 1), 7, lambda row: row.update(label=other(row)))
    reseal(run)
    told(
        run,
        f'instances-00001.jsonl:8: {key}: label is "choice[12]", and by the journal "choice[12]"',
        "manifest.json: balance of choice[12] is 50, and the shards have 51",
        "^instances-00001.jsonl: manifest.json seals it with other bytes than the journal's",
    )


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda row: row.update(choice1="They went home."), 'choice1 is "They went home."'),
        (lambda row: row.update(premise="It rained."), 'premise is "It rained."'),
        (lambda row: row.update(label_before_correction=other(row)), "label_before_correction is"),
        (lambda row: row["provenance"]["axes"].update(question="why"), "provenance.*: axes"),
        (lambda row: row["provenance"].update(seed="It rained."), "its seed is in no stored"),
        (lambda row: row["provenance"].update(context="A bog."), "its context is in no stored"),
        (lambda row: row["provenance"]["votes"][0].update(explanation="I say so."), "its vote"),
        (lambda row: row["provenance"].update(outcome="review"), "provenance is not what.*outcome"),
        (lambda row: row.update(task="cb"), "its task is cb"),
        (lambda row: row.update(key="cb/000000/0"), "its key is not one of task copa"),
        (lambda row: row.update(key="copa/000000"), "this is no key of a row"),
        (lambda row: row.update(key="copa/999999/0"), "no answer to its instance call"),
        (lambda row: row.update(more="of it"), 'more is "of it", and by the journal null'),
        (lambda row: row.update(key=row.pop("key")), "stand in another order"),
    ],
)
def test_a_change_that_only_the_journal_tells(
    change: Callable[[dict[str, Any]], object], named: str, run: Path
) -> None:
    edit_row(shard(run), 2, change)
    reseal(run)
    told(run, rf"instances-00000.jsonl:3: \S+: .*{named}")


def test_votes_are_those_on_the_row_and_on_no_other(run: Path) -> None:
    first, second = rows(run)[:2]
    said = [dict(row["provenance"]["votes"][0]) for row in (first, second)]
    # Simulated judges say the same of many rows, so that the stored votes are told apart first.
    if said[0] == said[1]:
        said[0]["label"] = other(first)
    edit_row(shard(run), 1, lambda row: row["provenance"].update(votes=[said[0]]))
    reseal(run)
    told(run, f"instances-00000.jsonl:2: {second['key']}: its vote")


def test_lines_that_are_no_rows(run: Path) -> None:
    def spoil(found: list[bytes]) -> None:
        found[0], found[1], found[2] = b'{"key": 1}\n', b"[]\n", b"not json\n"
        found[-1] = found[-1].rstrip(b"\n")

    edit_lines(shard(run), spoil)
    told(
        run,
        "instances-00000.jsonl:1: this is no row of a run: it has no 'task'",
        "instances-00000.jsonl:2: this is no row of a run: it is no object",
        "instances-00000.jsonl:3: this is no row of a run: ",
        "instances-00000.jsonl:40: the last line is cut off",
    )


def test_a_missing_shard_and_a_stray_one(run: Path) -> None:
    shard(run, 1).rename(shard(run, 7))
    told(run, "^instances-00001.jsonl: missing", "^instances-00007.jsonl: stray")


def put(dotted: str, value: object) -> Callable[[dict[str, Any]], None]:
    def change(raw: dict[str, Any]) -> None:
        *tables, last = dotted.split(".")
        for name in tables:
            raw = raw[name]
        assert raw.get(last) != value
        raw[last] = value

    return change


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (put("delivered", 99), "delivered is 99, and balance adds up"),
        (put("balance.choice1", 51), "balance of choice1 is 51"),
        (put("n", 101), "state is complete, with 100 of 101 rows"),
        (put("n", 99), "n is 99, and by the journal 100"),
        (put("surplus", 1000), "surplus is 1000, and rejected.jsonl has"),
        (put("simulated", False), "simulated is false, and 100 rows are"),
        (put("transitions.choice1.choice2", 77), "transitions of choice1: choice2 is 77"),
        (put("transitions.choice1.choice2", 77), "transitions is .* and by the journal"),
        (put("rejected", {"instances.twin": 1}), "rejected: instances.twin is 1, and by rejected"),
        (put("failed", {}), "failed: instances.malformed is 0, and by failures.jsonl"),
        (put("calls.served", 7), "calls.served is 7, and by the journal"),
        (put("calls.refused", 777), "calls.refused is 777, and by the journal"),
        (
            put("calls.served_without_usage", 9),
            "calls.served_without_usage is 9, and by the journal 0",
        ),
        (put("spent.prompt_tokens", 7), "spent.prompt_tokens is 7"),
        (put("spent.usd", 0.5), "spent.usd is 0.5, and by the journal None"),
        (put("in_doubt.completion_tokens", 7), "in_doubt.completion_tokens is 7"),
        (put("generation", 3), "generation is 3, and by the journal 0"),
        (put("task_digest", "ab" * 32), "task_digest is abab"),
        (put("data_digest", "ab" * 32), "data_digest is not that of config"),
        (put("config.data.temperature", 0.5), "config is not the journal's: data.temperature: 1.0"),
        (put("config.data.temperature", "hot"), "config is no configuration: "),
        (put("format", 9), r"format 9 is not known here \(this version reads 1\)"),
        (put("task", 5), "Expected `str`, got `int`"),
        (lambda raw: raw["shards"].reverse(), "the shards are not numbered from 0 on"),
    ],
)
def test_an_edited_manifest(
    change: Callable[[dict[str, Any]], object], named: str, run: Path
) -> None:
    edit_manifest(run, change)
    told(run, f"^manifest.json: {named}")


def test_a_manifest_that_is_none(run: Path) -> None:
    (run / "manifest.json").write_bytes(b"{")
    told(run, "^manifest.json: ")
    (run / "manifest.json").unlink()
    told(run, r"^manifest.json: cannot be read \(no such file")
    assert targen("verify", run).returncode == 1


def test_a_missing_configuration(run: Path) -> None:
    (run / "run.toml").unlink()
    told(run, "there is no run.toml in it")


def test_notes_that_were_changed(run: Path) -> None:
    noted = lines(run / "rejected.jsonl")
    place = next(n for n, note in enumerate(noted) if note["stage"] == "instances")
    key = noted[place]["key"]

    def change(note: dict[str, Any]) -> None:
        note["row"]["premise"] = "It rained."
        note["key"] = "copa/000000/9"

    edit_row(run / "rejected.jsonl", place, change)
    told(
        run,
        rf'rejected.jsonl:{place + 1}: {key}: premise is "It rained."',
        rf"rejected.jsonl:{place + 1}: copa/000000/9: the row is that of {key}",
    )
    edit_lines(run / "rejected.jsonl", lambda found: found.append(b"{}\n"))
    edit_lines(run / "failures.jsonl", lambda found: found.append(b"{}\n"))
    told(
        run,
        rf"rejected.jsonl:{len(noted) + 1}: this is no rejection",
        r"failures.jsonl:\d+: this is no failure",
    )
    edit_lines(run / "rejected.jsonl", lambda found: [found.pop(), found.pop(place)])
    edit_lines(run / "failures.jsonl", lambda found: [found.pop(), found.pop()])
    told(run, r"manifest.json: (rejected: instances|surplus)", "manifest.json: failed: ")


def test_a_refused_seed_that_no_model_wrote(run: Path) -> None:
    note = {"key": "copa/s000000/1", "stage": "seeds", "reason": "duplicate", "detail": ""}
    edit_lines(run / "rejected.jsonl", lambda f: f.insert(0, to_line({**note, "text": "It sat."})))
    told(run, "rejected.jsonl:1: copa/s000000/1: its text is in no stored answer")


# ---- a corpus, a state between two


def test_a_copy_of_the_corpus_that_was_changed(boolq: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(boolq, tmp_path / "run"))
    row = rows(run)[0]
    line = row["provenance"]["seed_line"]

    def spoil(found: list[bytes]) -> None:
        place = next(n for n, one in enumerate(found) if one.startswith(b"[%d," % line))
        found[place] = found[place].replace(b"A visit", b"A VISIT")

    edit_lines(run / "seeds.jsonl", spoil)
    told(run, f"instances-00000.jsonl:1: {row['key']}: passage is .* and by the journal")
    edit_lines(run / "seeds.jsonl", lambda found: found.append(b'"no pair"\n'))
    told(run, r"seeds.jsonl:\d+: this is no text of a corpus", "seeds.jsonl: 31 texts, and its")
    head = json.loads((run / "seeds.jsonl").read_bytes().splitlines()[0])
    head |= {"sha256": "ab" * 32, "exclude": ["cd" * 32]}
    edit_lines(run / "seeds.jsonl", lambda f: f.__setitem__(0, json.dumps(head).encode() + b"\n"))
    told(
        run,
        "seeds.jsonl:1: it is made from another file",
        "seeds.jsonl:1: other files were excluded",
        "manifest.json: corpus is not what the first line",
    )
    (run / "seeds.jsonl").unlink()
    told(run, "seeds.jsonl: cannot be read")


def test_a_killed_run_is_named_and_its_rows_are_looked_at(run: Path) -> None:
    start = b"".join(shard(run, 1).read_bytes().splitlines(keepends=True)[:9])
    seal = {"bytes": len(start), "sha256": sha256(start).hexdigest(), "rows": 9}

    def older(raw: dict[str, Any]) -> None:
        raw.update(state="running", delivered=70, balance={"choice1": 35, "choice2": 35})
        raw["shards"] = [raw["shards"][0], raw["shards"][1] | seal]

    edit_manifest(run, older)
    with shard(run, 2).open("ab") as file:
        file.write(b'{"half": ')
    found = told(run, "^manifest.json: the run was killed; `targen generate --out .*` goes on")
    assert len(found) == 1
    key = edit_row(shard(run, 1), 0, lambda row: row.update(premise=row["premise"].swapcase()))
    told(run, f"instances-00001.jsonl:1: {key}: premise", "instances-00001.jsonl: its SHA-256")
    shard(run, 1).write_bytes(start[:-1])
    told(run, r"instances-00001.jsonl: \d+ bytes, and", "instances-00001.jsonl: 8 rows, and")


def test_rows_that_are_being_made_anew_are_named(tmp_path: Path) -> None:
    task = Path(shutil.copytree(prompts_root() / "cb", tmp_path / "cb"))
    out = made(tmp_path / "run", task, 30)
    # From here on the journal goes on, and what stands in its place is older.
    generation = b"\x83\xa3why\xa5retry\xa5waves\x90\xa5until\x00"
    with (out / "journal").open("ab") as file:
        file.write(frame(Kind.GENERATION, generation))
    (out / "next").mkdir()
    check = Check(out)
    assert list(check.faults()) == []
    assert check.notes == [
        "next/: the rows are being made anew (retry); until that is done those before stand and "
        f"are what is verified; `targen retry {out}` goes on"
    ]
    with (out / "journal").open("ab") as file:
        file.write(frame(Kind.SWAPPED, b""))
    told(out, "^next/: rows made anew wait to be put in place")


def test_a_folder_that_somebody_works_in_is_left_alone(run: Path) -> None:
    with (run / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write("process 1 on a host\n")
        file.flush()
        done = targen("verify", run)
    assert done.returncode == 2
    assert done.stderr == (
        f"targen: {run} is in use by process 1 on a host; verify it when that is done\n"
    )


def test_a_folder_that_is_no_run(tmp_path: Path) -> None:
    done = targen("verify", tmp_path)
    assert done.returncode == 2 and "holds no run" in done.stderr
    with pytest.raises(UserError, match="holds no run"):
        Check(tmp_path / "nowhere")


def test_text_of_others_does_not_reach_the_terminal_raw(run: Path) -> None:
    edit_row(shard(run), 0, lambda row: row.update(key="copa/\x1b[2J"))
    done = targen("verify", run)
    assert "\x1b" not in done.stdout and "copa/\\u001b[2J" in done.stdout
