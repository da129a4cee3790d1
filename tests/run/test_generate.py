"""The main job over real HTTP: n rows, valid, distinct, balanced, corrected, and accounted for."""

import hashlib
import json
import subprocess
import time
from collections import Counter
from pathlib import Path

import pytest

from targen_async import list_tasks, load_task, read_shards
from targen_async.journal import Kind, frames
from targen_async.simulator import gold
from tests.running import NOISY, command, digest, lines, manifest, rows, simulator, targen

TASKS = tuple(list_tasks())


@pytest.fixture(scope="module")
def noisy_runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """1,000 rows of each task against an endpoint with every content fault."""
    folder = tmp_path_factory.mktemp("noisy")
    with simulator(**NOISY) as endpoint:
        for task in TASKS:
            done = targen("generate", task, "-n", 1000, "--out", folder / task, *endpoint.flags)
            assert done.returncode == 0, done.stderr
    return {task: folder / task for task in TASKS}


@pytest.mark.parametrize("task", TASKS)
def test_exactly_n_rows_in_quota_valid_and_distinct(noisy_runs: dict[str, Path], task: str) -> None:
    found = rows(noisy_runs[task])
    assert len(found) == 1000
    loaded = load_task(task)
    fields = [{name: row[name] for name in loaded.fields} for row in found]
    for row, texts in zip(found, fields, strict=True):
        assert loaded.objection(texts, row["label"]) is None
    classes = [loaded.class_of(f, row["label"]) for f, row in zip(fields, found, strict=True)]
    balance = Counter(classes)
    assert set(balance) == set(loaded.classes)
    assert max(balance.values()) - min(balance.values()) <= 1
    assert balance == manifest(noisy_runs[task])["balance"]
    assert len({tuple(row[name] for name in loaded.fields) for row in found}) == 1000
    assert len({row["key"] for row in found}) == 1000
    assert [row["key"] for row in found] == sorted(row["key"] for row in found)


@pytest.mark.parametrize("task", TASKS)
def test_correction_mends_most_of_the_noise_and_the_table_counts_it(
    noisy_runs: dict[str, Path], task: str
) -> None:
    found = rows(noisy_runs[task])
    truth = [gold(row) for row in found]
    before = sum(r["label_before_correction"] == t for r, t in zip(found, truth, strict=True))
    after = sum(r["label"] == t for r, t in zip(found, truth, strict=True))
    # Of four answers to a question one is wrong; half of the pairs that the noise broke are gone.
    noise = {"multirc": 0.025, "wsc": 0.05}.get(task, 0.1)
    assert 1000 * (1 - 1.5 * noise) <= before <= 1000 * (1 - 0.5 * noise)
    assert after >= 965
    table = manifest(noisy_runs[task])["transitions"]
    stayed = sum(n for old, row in table.items() for new, n in row.items() if new in (old, "kept"))
    all_ = sum(n for row in table.values() for n in row.values())
    wrong = noise + 0.02 if task != "wsc" else 0.1
    assert all_ - stayed == pytest.approx(wrong * all_, rel=0.4)


def test_the_answer_of_copa_stands_first_in_about_half(noisy_runs: dict[str, Path]) -> None:
    found = rows(noisy_runs["copa"])
    assert 450 <= sum(row["label_before_correction"] == "choice1" for row in found) <= 550
    assert 450 <= sum(row["label"] == "choice1" for row in found) <= 550
    assert {row["question"] for row in found} == {"cause", "effect"}


@pytest.mark.parametrize("task", ["axg", "wsc"])
def test_twins_are_whole_and_never_judged_together(noisy_runs: dict[str, Path], task: str) -> None:
    found = rows(noisy_runs[task])
    pairs = [found[at : at + 2] for at in range(0, 1000, 2)]
    for one, other in pairs:
        assert one["key"].rsplit("/", 1)[0] == other["key"].rsplit("/", 1)[0]
        assert (one["label"] == other["label"]) == (task == "axg")
        shared = "hypothesis" if task == "axg" else "span1"
        assert one[shared] == other[shared]
    refused = [r for r in lines(noisy_runs[task] / "rejected.jsonl") if r["reason"] == "twin"]
    assert refused, "the noise of this test parted no twins"
    delivered = {row["key"] for row in found}
    assert not delivered & {r["key"] for r in refused}
    first = [one["label"] == "true" for one, _ in pairs] if task == "wsc" else []
    assert not first or 200 <= sum(first) <= 300, "a row's place in its pair tells the label"


def test_the_answers_to_a_question_stand_together_in_no_order(
    noisy_runs: dict[str, Path],
) -> None:
    found = rows(noisy_runs["multirc"])
    groups: dict[str, list[dict[str, str]]] = {}
    for row in found:
        groups.setdefault(row["key"].rsplit("/", 1)[0], []).append(row)
    whole = [group for group in groups.values() if len(group) == 4]
    assert len(whole) > 200
    for group in whole:
        assert len({row["question"] for row in group}) == 1
        assert len({row["answer"] for row in group}) == 4
    first = Counter(group[0]["label_before_correction"] for group in whole)
    assert 0.4 < first["true"] / len(whole) < 0.6


def test_the_answers_place_in_record_is_balanced(noisy_runs: dict[str, Path]) -> None:
    task, found = load_task("record"), rows(noisy_runs["record"])
    for row in found:
        choices = row["entities"].split("\n")
        assert row["label"] in choices
        first = min(choices, key=row["passage"].find)
        place = task.class_of({name: row[name] for name in task.fields}, row["label"])
        assert (place == "first") == (row["label"] == first)


@pytest.mark.parametrize("task", ["axg", "cb", "rte"])
def test_attributes_are_balanced_within_each_label(noisy_runs: dict[str, Path], task: str) -> None:
    """Or else length or tone would give the label away."""
    counts: dict[tuple[str, str], Counter[str]] = {}
    for row in rows(noisy_runs[task]):
        for axis, value in row["provenance"]["axes"].items():
            counts.setdefault((axis, value), Counter())[row["label_before_correction"]] += 1
    for found in counts.values():
        most, least = max(found.values()), min(found.values())
        assert len(found) == len(load_task(task).labels)
        assert most - least <= 12 + 0.2 * most, (task, counts)


@pytest.mark.parametrize("task", TASKS)
def test_nothing_disappears_and_the_manifest_adds_up(
    noisy_runs: dict[str, Path], task: str
) -> None:
    out = noisy_runs[task]
    told = manifest(out)
    assert told["state"] == "complete"
    assert told["delivered"] == 1000 == sum(told["balance"].values())
    data = (out / "instances-00000.jsonl").read_bytes()
    assert told["shards"] == [
        {
            "name": "instances-00000.jsonl",
            "rows": 1000,
            "bytes": len(data),
            "sha256": hashlib.sha256(data).hexdigest(),
        }
    ]
    reasons = Counter(f"{r['stage']}.{r['reason']}" for r in lines(out / "rejected.jsonl"))
    assert reasons.pop("instances.surplus", 0) == told["surplus"]
    assert dict(reasons) == told["rejected"]
    failed = Counter(f"{f['stage']}.{f['kind']}" for f in lines(out / "failures.jsonl"))
    assert dict(failed) == told["failed"]
    assert told["identity_broken_by"] == []
    assert 0 < told["wasted"]["prompt_tokens"] < 0.25 * told["spent"]["prompt_tokens"]
    assert told["calls"]["served"] == sum(
        1 for frame in frames(out / "journal") if frame.kind == Kind.ANSWER
    )


@pytest.mark.parametrize("task", TASKS)
def test_every_row_says_where_it_comes_from(noisy_runs: dict[str, Path], task: str) -> None:
    templates = {t.digest for t in load_task(task).templates.values()}
    for row in rows(noisy_runs[task]):
        origin = row["provenance"]
        assert origin["simulated"] is True
        assert origin["model"] == "targen-simulator"
        assert set(origin["templates"].values()) <= templates
        assert len(origin["templates"]) == 4
        assert origin["seed_source"] == "generated"
        assert origin["context"] and origin["seed"] and origin["explanation"]
        assert origin["usage"]["prompt_tokens"] > 0
        (vote,) = origin["votes"]
        assert vote["label"] == row["label"]
        assert row["key"].startswith(f"{task}/")
        assert vote["explanation"]
        changed = row["label"] != row["label_before_correction"]
        assert origin["outcome"] == ("relabel" if changed else "keep")


def test_read_shards_gives_typed_rows_in_order(noisy_runs: dict[str, Path]) -> None:
    out = noisy_runs["cb"]
    found = list(read_shards(out))
    assert [instance.key for instance in found] == [row["key"] for row in rows(out)]
    assert set(found[0].fields) == {"premise", "hypothesis"}


def test_the_ledger_equals_the_servers_own_count(tmp_path: Path) -> None:
    with simulator(**NOISY) as endpoint:
        targen("generate", "cb", "-n", 120, "--out", tmp_path / "run", *endpoint.flags)
        served = endpoint.stats()
    told = manifest(tmp_path / "run")
    assert told["calls"]["served"] == served["served"]
    assert told["calls"]["in_doubt"] == 0
    assert told["spent"]["prompt_tokens"] == served["prompt_tokens"]
    assert told["spent"]["completion_tokens"] == served["completion_tokens"]


def test_a_row_is_on_disk_while_contexts_are_still_being_asked_for(tmp_path: Path) -> None:
    """No barrier between the stages."""
    out = tmp_path / "run"
    with simulator(latency_ms=60) as endpoint:
        flags = ("--max-in-flight", 4, "--contexts", 1600, "--quiet")
        flags += ("--set", "data.correction.per_call=2")
        run = subprocess.Popen(
            command("generate", "copa", "-n", 60, "--out", out, *flags, *endpoint.flags),
            stdout=subprocess.DEVNULL,
        )
        try:
            shard = out / "instances-00000.jsonl"
            deadline = time.monotonic() + 60
            while not (shard.exists() and shard.stat().st_size):
                assert time.monotonic() < deadline
                assert run.poll() is None
                time.sleep(0.02)
            at_first_row = endpoint.stats()["by_stage"]["contexts"]
            run.wait(120)
            at_the_end = endpoint.stats()["by_stage"]["contexts"]
        finally:
            run.kill()
            run.wait()
    assert run.returncode == 0
    assert at_first_row < at_the_end


def test_concurrency_changes_nothing_in_the_shards(tmp_path: Path) -> None:
    with simulator(**NOISY) as endpoint:
        for flight in (1, 7, 64):
            out = tmp_path / str(flight)
            flags = ("--max-in-flight", flight, *endpoint.flags)
            done = targen("generate", "boolq", "-n", 150, "--out", out, *flags)
            assert done.returncode == 0, done.stderr
    assert len({digest(tmp_path / str(flight)) for flight in (1, 7, 64)}) == 1


def test_votes_and_the_papers_way_of_correcting(tmp_path: Path) -> None:
    with simulator(label_noise=0.1, corrector_error=0.15) as endpoint:
        for name, flags in {
            "one": (),
            "three": ("--votes", "3"),
            "shown": ("--correction", "shown"),
            "off": ("--correction", "off"),
        }.items():
            done = targen(
                "generate", "cb", "-n", 300, "--out", tmp_path / name, *flags, *endpoint.flags
            )
            assert done.returncode == 0, done.stderr

    def right(name: str) -> int:
        return sum(gold(row) == row["label"] for row in rows(tmp_path / name))

    assert right("three") > right("one")
    assert all(len(row["provenance"]["votes"]) == 3 for row in rows(tmp_path / "three"))
    assert 250 <= right("off") <= 285
    assert all(row["provenance"]["votes"] == [] for row in rows(tmp_path / "off"))
    reviewed = [r for r in lines(tmp_path / "three" / "rejected.jsonl") if r["reason"] == "review"]
    assert all(len({v["label"] for v in r["row"]["provenance"]["votes"]}) == 3 for r in reviewed)
    assert len(rows(tmp_path / "shown")) == 300


def test_raising_n_keeps_the_rows_and_uses_the_surplus_first(tmp_path: Path) -> None:
    out = tmp_path / "run"
    with simulator(label_noise=0.3) as endpoint:
        targen("generate", "cb", "-n", 90, "--out", out, *endpoint.flags)
        first, surplus = rows(out), manifest(out)["surplus"]
        kept = [
            line["key"] for line in lines(out / "rejected.jsonl") if line["reason"] == "surplus"
        ]
        assert surplus == len(kept) > 0
        calls = endpoint.stats()["served"]
        done = targen("generate", "--out", out, "-n", 120)
        assert done.returncode == 0, done.stderr
        more = endpoint.stats()["served"] - calls
    second = rows(out)
    assert second[:90] == first
    assert len(second) == 120
    assert Counter(row["label"] for row in second) == dict.fromkeys(load_task("cb").labels, 40)
    assert {row["key"] for row in second[90:]} & set(kept), "no surplus row was used"
    assert more < 60
    assert manifest(out)["identity_broken_by"] == ["n was raised"]


def test_a_finished_run_started_again_sends_nothing(tmp_path: Path) -> None:
    out = tmp_path / "run"
    with simulator() as endpoint:
        targen("generate", "copa", "-n", 40, "--out", out, *endpoint.flags)
        before, calls = digest(out), endpoint.stats()["served"]
        again = targen("generate", "copa", "-n", 40, "--out", out, *endpoint.flags)
        assert again.returncode == 0, again.stderr
        assert endpoint.stats()["served"] == calls
    assert digest(out) == before


@pytest.mark.parametrize("damage", ["deleted", "edited", "index", "shortened"])
def test_files_are_made_again_from_the_journal_without_a_call(tmp_path: Path, damage: str) -> None:
    out = tmp_path / "run"
    with simulator(**NOISY) as endpoint:
        flags = ("--set", "delivery.rows_per_shard=25", *endpoint.flags)
        targen("generate", "copa", "-n", 60, "--out", out, *flags)
        before, calls = digest(out), endpoint.stats()["served"]
        told = manifest(out)
        shard = out / "instances-00001.jsonl"
        if damage == "deleted":
            shard.unlink()
        elif damage == "edited":
            last = out / "instances-00002.jsonl"
            last.write_bytes(last.read_bytes().replace(b"choice1", b"choice2"))
        elif damage == "index":
            for file in out.glob("distinct.sqlite*"):
                file.unlink()
        else:
            shard.write_bytes(shard.read_bytes()[:100])
        again = targen("generate", "--out", out)
        assert again.returncode == 0, again.stderr
        assert endpoint.stats()["served"] == calls
    assert digest(out) == before
    assert manifest(out)["shards"] == told["shards"]


def test_the_simulator_is_called_simulated_whatever_model_is_asked_for(tmp_path: Path) -> None:
    out = tmp_path / "run"
    with simulator() as endpoint:
        flags = ("--model", "gpt-4o", "--base-url", endpoint.url)
        done = targen("generate", "copa", "-n", 10, "--out", out, *flags)
    assert done.stderr.startswith("SIMULATED")
    assert manifest(out)["simulated"] is True
    assert all(row["provenance"]["simulated"] for row in rows(out))


def test_the_embedded_simulator_is_the_default_and_says_so_everywhere(tmp_path: Path) -> None:
    out = tmp_path / "run"
    done = targen("generate", "copa", "-n", 20, "--out", out)
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith("SIMULATED")
    assert "--model NAME" in done.stderr.replace("\n", " ")
    assert done.stdout.startswith("SIMULATED copa: 20 of 20 rows")
    assert manifest(out)["simulated"] is True
    assert all(row["provenance"]["simulated"] for row in rows(out))
    assert "choice1" in done.stdout
    shown = targen("show", out, "-n", "2")
    assert shown.stdout.startswith("SIMULATED")
    assert rows(out)[0]["premise"] in " ".join(shown.stdout.replace("│", " ").split())
    status = targen("status", out)
    assert "20 of 20 rows" in status.stdout
    assert json.loads(targen("status", out, "--json").stdout) == manifest(out)
