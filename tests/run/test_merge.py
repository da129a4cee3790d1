"""`targen merge`: rows of several runs together, none twice, and a folder that everything reads."""

import shutil
from collections import Counter
from hashlib import sha256
from pathlib import Path
from typing import Any

import orjson
import pytest

from targen_async import load_task, read_shards
from targen_async.distinct import DistinctGate
from targen_async.errors import UserError
from targen_async.merge import distinct_texts, merge
from targen_async.rundir import to_line
from targen_async.splits import split_rows
from targen_async.tasks import prompts_root
from targen_async.verify import Check
from tests.running import lines, manifest, rows, targen

PRICES = (
    "--set",
    "delivery.prices.usd_per_million_prompt_tokens=1.5",
    "--set",
    "delivery.prices.usd_per_million_completion_tokens=6",
)


def made(out: Path, task: object, n: int, *flags: object) -> Path:
    flags = ("--set", "data.simulator.label_noise=0.15", *flags)
    done = targen("generate", task, "-n", n, "--simulate", *flags, "--out", out, "--quiet")
    assert done.returncode == 0, done.stderr
    return out


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """copa twice with other seeds, a part of the first, and twins twice."""
    folder = tmp_path_factory.mktemp("runs")
    made(folder / "one", "copa", 60, *PRICES)
    made(folder / "two", "copa", 60, "--random-seed", 5, *PRICES)
    made(folder / "part", "copa", 20)
    made(folder / "twins", "axg", 40)
    made(folder / "more", "axg", 20)
    made(folder / "cb", "cb", 12)
    made(folder / "strict", "cb", 12, "--random-seed", 1, "--set", "data.near_duplicate=0.6")
    return folder


def sound(folder: Path) -> dict[str, Any]:
    assert list(Check(folder).faults()) == []
    return manifest(folder)


def unprefixed(row: dict[str, Any]) -> dict[str, Any]:
    return {**row, "key": row["key"].partition("/")[2]}


def test_rows_stand_in_the_order_of_the_sources_and_none_is_there_twice(
    runs: Path, tmp_path: Path
) -> None:
    out = tmp_path / "all"
    done = targen("merge", runs / "one", runs / "two", runs / "part", "--out", out)
    assert done.returncode == 0, done.stderr
    told, found, dropped = sound(out), rows(out), lines(out / "rejected.jsonl")
    assert [row["key"][:2] for row in found] == sorted(row["key"][:2] for row in found)
    # Nothing is lost: what is not in the shards is in rejected.jsonl, as it was.
    for number, name in enumerate(("one", "two", "part")):
        mine = [unprefixed(row) for row in found if row["key"].startswith(f"r{number}/")]
        rest = [unprefixed(x["row"]) for x in dropped if x["key"].startswith(f"r{number}/")]
        before = rows(runs / name)
        assert sorted([*mine, *rest], key=lambda row: row["key"]) == before
        assert told["sources"][number]["kept"] == len(mine)
        assert mine == [row for row in before if row in mine]
    # The part is the beginning of the same run, but for some labels.
    assert told["sources"][0]["kept"] == 60 and told["sources"][2]["kept"] < 20
    assert {note["reason"] for note in dropped} >= {"duplicate"}
    like = {row["key"] for row in found}
    assert all(note["detail"].split(" ")[1].rstrip(",") in like for note in dropped)
    assert "r2/  " in done.stdout and "rows of part, SIMULATED" in done.stdout
    assert told["balance"] == dict(sorted(Counter(row["label"] for row in found).items()))
    assert {path.name for path in out.iterdir()} == {
        "instances-00000.jsonl",
        "rejected.jsonl",
        "failures.jsonl",
        "manifest.json",
    }


def test_the_manifest_adds_up_and_says_where_the_rows_come_from(runs: Path, tmp_path: Path) -> None:
    told = [manifest(runs / name) for name in ("one", "two", "part")]
    both = merge([runs / "one", runs / "two"], tmp_path / "both")
    mixed = merge([runs / "one", runs / "part"], tmp_path / "priceless")
    assert both.state == "complete" and both.simulated and not both.mixed
    assert both.spent.prompt_tokens == sum(one["spent"]["prompt_tokens"] for one in told[:2])
    assert both.spent.usd == pytest.approx(sum(one["spent"]["usd"] for one in told[:2]))
    assert mixed.spent.usd is None, "what a part of it cost is not what all of it cost"
    assert both.calls.served == sum(one["calls"]["served"] for one in told[:2])
    assert both.transitions["choice1"]["choice1"] == sum(
        one["transitions"]["choice1"]["choice1"] for one in told[:2]
    )
    assert [origin.name for origin in both.sources] == ["one", "two"]
    for origin, one in zip(both.sources, told, strict=False):
        assert origin.task_digest == one["task_digest"] == both.task_digest
        assert origin.data_digest == one["data_digest"]
        assert [seal.sha256 for seal in origin.shards] == [one["shards"][0]["sha256"]]
    assert both.data_digest == "" and mixed.data_digest == told[0]["data_digest"]
    assert mixed.config["data"]["random_seed"] == 0
    assert "random_seed" not in both.config["data"] and "temperature" in both.config["data"]


def test_near_duplicates_are_looked_for_between_sources_and_not_within_one(
    runs: Path, tmp_path: Path
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    merge([runs / "one", runs / "part"], first)
    shutil.copytree(first, second)
    one, *_ = rows(first)
    near = [
        {**one, "key": f"r0/copa/{n:06d}/0", "choice1": f"{one['choice1']} {n}"} for n in (1, 2)
    ]
    far = {**one, "key": "r0/copa/000003/0", "choice1": "A bell rang.", "choice2": "A cat slept."}
    rewrite(second, [*near, far, {**far, "key": "r0/copa/000004/0", "choice2": "A cat slept on."}])
    merge([first, second], tmp_path / "out")
    notes = lines(tmp_path / "out" / "rejected.jsonl")
    assert [(note["key"], note["reason"]) for note in notes] == [
        ("r1/r0/copa/000001/0", "near_duplicate"),
        ("r1/r0/copa/000002/0", "near_duplicate"),
    ]
    assert all(note["detail"].startswith(f"like r0/{one['key']}, ") for note in notes)
    sound(tmp_path / "out")


def test_the_strictest_notion_of_a_near_duplicate_counts(runs: Path, tmp_path: Path) -> None:
    told = merge([runs / "cb", runs / "strict"], tmp_path / "out")
    assert told.config["data"]["near_duplicate"] == 0.6


def test_a_merged_folder_is_shown_exported_and_merged_again(runs: Path, tmp_path: Path) -> None:
    merge([runs / "one", runs / "part"], tmp_path / "a")
    done = targen("merge", runs / "two", tmp_path / "a", "--out", tmp_path / "b")
    assert done.returncode == 0, done.stderr
    told = sound(tmp_path / "b")
    assert [origin["name"] for origin in told["sources"][1]["sources"]] == ["one", "part"]
    keys = [row["key"] for row in rows(tmp_path / "b")]
    assert "r0/copa/000000/0" in keys and "r1/r0/copa/000000/0" in keys
    status = targen("status", tmp_path / "b")
    kept = told["sources"][0]["kept"]
    assert status.returncode == 0 and f"merged      {kept} of 60 rows of two" in status.stdout
    assert targen("show", tmp_path / "b", "-n", 1).returncode == 0
    shares = ("--split", "train=0.5,test=0.5")
    done = targen("export", tmp_path / "b", "--to", "jsonl", "--out", tmp_path / "export", *shares)
    assert done.returncode == 0, done.stderr
    assert len(lines(tmp_path / "export" / "keys.jsonl")) == len(keys)
    done = targen("verify", tmp_path / "b")
    assert "rejected, 0 failures, merged from two, a" in done.stdout


def test_twins_are_kept_or_dropped_together(runs: Path, tmp_path: Path) -> None:
    out = merge([runs / "twins", runs / "more"], tmp_path / "plain")
    found = rows(tmp_path / "plain")
    dropped = lines(tmp_path / "plain" / "rejected.jsonl")
    for keys in ([row["key"] for row in found], [note["key"] for note in dropped]):
        assert set(Counter(key.rpartition("/")[0] for key in keys).values()) == {2}
    assert out.delivered == len(found) == 60 - len(dropped)
    parts = split_rows(list(read_shards(tmp_path / "plain")), {"train": 0.5, "test": 0.5})
    side = {found[n]["key"]: name for name, numbers in parts.items() for n in numbers}
    for row in found:
        seed = row["key"].rpartition("/")[0]
        assert side[f"{seed}/0"] == side[f"{seed}/1"]


def test_a_twin_falls_with_the_one_that_is_a_duplicate(runs: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    merge([runs / "twins", runs / "more"], first)
    shutil.copytree(first, second)
    kept = rows(first)[:2]

    def one_twin(row: dict[str, Any], place: int) -> dict[str, Any]:
        if place == 0:
            return row
        return {**row, "premise": f"{place} other words that nobody has ever used so far: {place}."}

    rewrite(second, [one_twin(row, place) for place, row in enumerate(kept)])
    merge([first, second], tmp_path / "out")
    notes = lines(tmp_path / "out" / "rejected.jsonl")
    assert [(n["key"], n["reason"]) for n in notes] == [
        (f"r1/{kept[0]['key']}", "duplicate"),
        (f"r1/{kept[1]['key']}", "twin"),
    ]
    assert notes[0]["detail"] == f"like r0/{kept[0]['key']}, similarity 1.000"
    assert notes[1]["detail"] == f"its twin r1/{kept[0]['key']} was refused: duplicate"
    assert sound(tmp_path / "out")["rejected"] == {
        "instances.duplicate": 1,
        "instances.twin": 1,
    }


def rewrite(folder: Path, kept: list[dict[str, Any]], *, simulated: bool = True) -> None:
    """Have a merged folder hold these rows: it has no journal that knows better."""
    data = b"".join(map(to_line, kept))
    (folder / "instances-00000.jsonl").write_bytes(data)
    (folder / "rejected.jsonl").write_bytes(b"")
    raw = manifest(folder)
    raw["shards"][0] |= {
        "rows": len(kept),
        "bytes": len(data),
        "sha256": sha256(data).hexdigest(),
    }
    counts = Counter(row["label"] for row in kept)
    raw |= {"n": len(kept), "delivered": len(kept), "simulated": simulated, "rejected": {}}
    raw["balance"] = {label: counts[label] for label in raw["balance"]}
    sources = Counter(int(row["key"].partition("/")[0][1:]) for row in kept)
    for number, origin in enumerate(raw["sources"]):
        origin |= {"kept": sources[number], "rows": sources[number], "simulated": simulated}
    (folder / "manifest.json").write_bytes(orjson.dumps(raw))


def test_a_mixture_of_simulated_and_other_rows_is_called_so(runs: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    merge([runs / "one", runs / "part"], other)
    real = [{**row, "provenance": {**row["provenance"], "simulated": False}} for row in rows(other)]
    rewrite(other, real, simulated=False)
    done = targen("merge", runs / "two", other, "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("partly SIMULATED copa: ")
    assert sound(tmp_path / "out")["simulated"] is True
    assert targen("status", tmp_path / "out").stdout.startswith("partly SIMULATED copa: ")
    assert targen("show", tmp_path / "out").stdout.startswith("partly SIMULATED rows, ")


# ---- what is compared


@pytest.mark.parametrize("task", ["axg", "boolq", "cb", "copa", "multirc", "record", "wic"])
def test_rows_are_compared_by_the_texts_that_their_run_compared(task: str, tmp_path: Path) -> None:
    """A gate that is fed with finished rows holds what the run's own gate held."""
    out = made(tmp_path / "run", task, 24)
    gate = DistinctGate(out / "distinct.sqlite", 0.8)
    held = {digest for (digest,) in gate._db.execute("SELECT digest FROM rows")}
    for row in read_shards(out):
        assert gate.sketch(distinct_texts(load_task(task), row)).digest in held
    gate.close()


def test_a_changed_merged_folder_is_found_out(runs: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    merge([runs / "one", runs / "part"], out)

    def faults(**changes: Any) -> list[str]:
        raw = before | changes
        (out / "manifest.json").write_bytes(orjson.dumps(raw))
        found = list(Check(out).faults())
        (out / "manifest.json").write_bytes(orjson.dumps(before))
        return found

    before = manifest(out)
    assert faults() == []
    kept, spent = before["delivered"], before["spent"]
    sources = [dict(origin) for origin in before["sources"]]
    sources[1] |= {"kept": sources[1]["kept"] + 1}
    assert faults(sources=sources) == [
        f"manifest.json: delivered is {kept}, and the sources kept {kept + 1} rows",
        f"manifest.json: source 1 (part) gave {kept - 59} of 20 rows, and the files have "
        f"{kept - 60} of 20",
    ]
    assert len(faults(spent=spent | {"completion_tokens": 1})) == 1
    assert "manifest.json: simulated is not what the sources say" in faults(simulated=False)
    data = (out / "instances-00000.jsonl").read_bytes()
    (out / "instances-00000.jsonl").write_bytes(data.replace(b'"r0/', b'"x0/', 1))
    found = faults()
    assert found[0].endswith("its key names no source of this folder")


# ---- bad input


def test_a_source_that_is_not_sound_is_refused_with_its_first_fault(
    runs: Path, tmp_path: Path
) -> None:
    broken = Path(shutil.copytree(runs / "one", tmp_path / "broken"))
    data = (broken / "instances-00000.jsonl").read_bytes()
    (broken / "instances-00000.jsonl").write_bytes(data.replace(b"cause", b"pause", 1))
    done = targen("merge", runs / "two", broken, "--out", tmp_path / "out")
    assert done.returncode == 2
    assert done.stderr.startswith(f"targen: {broken} is not sound (instances-00000.jsonl:")
    assert done.stderr.endswith(f"; `targen verify {broken}` tells all\n")
    assert not (tmp_path / "out").exists() and list(tmp_path.iterdir()) == [broken]


def refused(*folders: Path, out: Path, task: str | None = None) -> str:
    with pytest.raises(UserError) as error:
        merge(folders, out, task=task)
    assert not out.is_dir() or list(out.iterdir()), "nothing is left behind"
    return str(error.value)


def test_what_does_not_go_together_is_named(runs: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert refused(runs / "one", runs / "cb", out=out) == (
        f"{runs / 'one'} and {runs / 'cb'} do not go together: task copa in the one, cb in the "
        "other"
    )
    first, second = tmp_path / "first", tmp_path / "second"
    merge([runs / "one", runs / "part"], first)
    shutil.copytree(first, second)
    renamed = [{("start" if k == "premise" else k): v for k, v in r.items()} for r in rows(first)]
    rewrite(second, renamed)
    assert refused(first, second, out=out) == (
        f"{first} and {second} do not go together: fields premise, choice1, choice2, question in "
        "the one, start, choice1, choice2, question in the other"
    )
    shutil.rmtree(second)
    shutil.copytree(first, second)
    raw = manifest(second)
    raw["balance"] = {"left": raw["balance"]["choice1"], "right": raw["balance"]["choice2"]}
    rewritten = [
        {**r, "label": {"choice1": "left", "choice2": "right"}[r["label"]]} for r in rows(first)
    ]
    (second / "manifest.json").write_bytes(orjson.dumps(raw))
    rewrite(second, rewritten)
    assert "do not go together: labels choice1, choice2 in the one, left, right in" in refused(
        first, second, out=out
    )


def test_places_that_cannot_be_used_are_refused_in_a_sentence(runs: Path, tmp_path: Path) -> None:
    one, two = runs / "one", runs / "two"
    out = tmp_path / "out"
    assert refused(one, out=out) == "name two folders or more to merge"
    assert "is named twice" in refused(one, runs / "two" / ".." / "one", out=out)
    assert "is not empty" in refused(one, two, out=runs / "cb")
    out.write_text("x")
    assert "is a file" in refused(one, two, out=out)
    out.unlink()
    out.mkdir()
    assert merge([one, two], out).delivered > 60
    assert "holds no run" in refused(one, tmp_path / "nowhere", out=tmp_path / "more")
    done = targen("merge", one, two, "--out", "/proc/nowhere/out")
    assert done.returncode == 2 and "cannot write /proc/nowhere/out" in done.stderr


def test_a_merge_that_fails_leaves_nothing(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("targen_async.merge.write_manifest", full)
    out = tmp_path / "out"
    assert "No space left on device" in refused(runs / "one", runs / "two", out=out)
    assert list(tmp_path.iterdir()) == []


def test_a_task_that_is_gone_can_be_named(runs: Path, tmp_path: Path) -> None:
    task = Path(shutil.copytree(prompts_root() / "cb", tmp_path / "cb"))
    for name, seed in (("a", 0), ("b", 5)):
        made(tmp_path / name, task, 12, "--random-seed", seed)
    (tmp_path / "elsewhere").mkdir()
    moved = task.rename(tmp_path / "elsewhere" / "cb")
    two = (tmp_path / "a", tmp_path / "b")
    out = tmp_path / "out"
    assert refused(*two, out=out).endswith("); name it with --task")
    assert "is not that of" in refused(*two, out=out, task="copa")
    done = targen("merge", *two, "--out", out, "--task", moved)
    assert done.returncode == 0, done.stderr
    assert sound(out)["config"]["data"]["task"] == str(moved)
