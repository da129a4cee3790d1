"""Twenty traps, each of which some peer fell into: where each is tested, and the rest of them.

`TABLE` names tests anywhere below tests/; one that is renamed or lost makes this module fail. The
tests below it are for what no other module holds.
"""

import ast
import asyncio
import json
import os
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from targen_async.ask import memo_of
from targen_async.chat.limit import Limited
from targen_async.chat.retry import Breaker, Retrying
from targen_async.records import ChatRequest, ChatResult, Message
from tests.chat import virtual_time
from tests.chat.helpers import request, result
from tests.chat.virtual_time import now
from tests.run.test_corpus import corpus, from_corpus, passage
from tests.run.test_failures import one_sentence
from tests.running import digest, manifest, simulator, targen

TESTS = Path(__file__).resolve().parents[1]

TABLE: dict[str, tuple[str, ...]] = {
    "1 torn last JSONL line, then append, then reopen twice": (
        "test_journal.py::test_trap_1_torn_tail_then_append_then_reopen_twice",
        "run/test_failures.py::test_a_torn_journal_is_mended_and_a_damaged_one_refused",
    ),
    "2 parser raises on a paid answer: the raw text is on disk": (
        "chat/test_contract.py::test_answer_is_written_before_it_is_parsed",
        "run/test_failures.py::"
        "test_an_endpoint_that_only_refuses_stops_with_the_reason_and_keeps_what_it_said",
        "traps/test_runs.py::test_trap_2_and_9_useless_answers_are_kept_and_never_become_rows",
    ),
    "3 nothing to retry while slow calls are out: free slots stay free": (
        "traps/test_numbered.py::test_trap_3_slots_beside_slow_calls_stay_free",
    ),
    "4 back-off holds no slot": ("chat/test_retry.py::test_back_off_holds_no_slot",),
    "5 a changed prompt, template, schema or temperature changes the key": (
        "run/test_failures.py::"
        "test_trap_5_and_6_a_changed_template_asks_again_a_comment_or_a_key_does_not",
        "run/test_failures.py::test_a_changed_data_section_is_refused_with_the_difference",
        "traps/test_numbered.py::test_trap_5_whatever_is_sent_is_part_of_the_key",
        "traps/test_numbered.py::test_trap_5_no_field_of_a_request_is_left_out",
    ),
    "6 a changed API key or number of workers does not": (
        "run/test_failures.py::"
        "test_trap_5_and_6_a_changed_template_asks_again_a_comment_or_a_key_does_not",
        "run/test_generate.py::test_concurrency_changes_nothing_in_the_shards",
    ),
    "7 two equal rows stay two records": (
        # Of rows that are made and of texts that a user gives: refused, counted, and named.
        "run/test_library.py::test_a_doubled_row_stays_two_calls_and_one_row",
        "run/test_corpus.py::test_equal_long_short_and_excluded_texts_are_counted_and_not_used",
        "traps/test_numbered.py::test_trap_7_equal_texts_of_the_user_are_refused_and_counted",
    ),
    "8 corrupt checkpoint or metadata: stop with a message": (
        "test_journal.py::test_trap_8_damage_in_the_middle_is_refused_and_nothing_is_touched",
        "test_journal.py::test_a_journal_from_a_newer_version_is_refused_and_left_alone",
        "run/test_reviewed.py::test_rows_without_their_journal_are_not_overwritten",
        "run/test_generate.py::test_files_are_made_again_from_the_journal_without_a_call",
        "traps/test_numbered.py::test_trap_8_damaged_metadata_never_makes_another_data_set",
    ),
    "9 failure text never enters the data; an empty answer is no success": (
        "test_parse.py::test_trap_9_what_did_not_end_well_is_never_success",
        "traps/test_runs.py::test_trap_2_and_9_useless_answers_are_kept_and_never_become_rows",
    ),
    "10 a 429 storm of ten minutes, then recovery in a minute": (
        "chat/test_retry.py::test_a_429_storm_of_ten_minutes_is_over_within_a_minute",
        "traps/test_in_time.py::"
        "test_trap_10_and_14_a_storm_of_ten_minutes_is_over_within_one_whatever_it_says",
        "traps/test_in_time.py::test_trap_10_a_run_lives_through_a_storm_and_loses_nothing",
    ),
    "11 401 or no credit: stop within seconds with nothing lost": (
        "run/test_failures.py::test_trap_11_a_wrong_key_stops_in_seconds_and_the_key_is_nowhere",
        "chat/test_retry.py::test_a_401_stops_every_later_call_on_the_wire",
        "traps/test_in_time.py::"
        "test_trap_11_credit_that_runs_out_stops_at_once_and_the_run_goes_on_with_more",
    ),
    "12 one bad row in a batch does not take its neighbours along": (
        "run/test_library.py::test_a_judge_that_answers_only_one_at_a_time_is_asked_one_at_a_time",
    ),
    "13 a packed prompt returns fewer answers, or in another order": (
        "test_parse.py::test_trap_13_a_missing_doubled_or_unknown_id_is_misaligned",
        "test_parse.py::test_verdicts_are_matched_by_id_not_by_place",
    ),
    "14 Retry-After as a date, as 0, as an hour": (
        "chat/test_contract.py::test_retry_after",
        "chat/test_contract.py::test_retry_after_as_a_date",
        "traps/test_in_time.py::test_trap_14_an_hour_asked_for_is_waited_for_and_not_a_second_less",
    ),
    "15 a million items with constant memory": (
        "traps/test_numbered.py::test_trap_15_memory_does_not_grow_with_rows",
        "test_slots.py::test_no_slot_is_sent_beyond_the_window_until_the_watermark_moves",
    ),
    "16 import time and number of packages are limits": (
        "test_startup.py::test_a_start_takes_little_cpu",
        "test_startup.py::test_nothing_heavy_is_loaded",
        "test_packaging.py::test_the_core_has_few_dependencies_and_none_that_is_heavy",
        "traps/test_numbered.py::test_trap_16_few_packages_come_along",
        "traps/test_numbered.py::test_trap_16_few_modules_are_loaded",
    ),
    "18 tokens over three starts equal the server's count": (
        "run/test_killed.py::test_trap_18_tokens_over_three_starts_equal_the_servers_count",
    ),
    "19 kill between data write and progress write": (
        "run/test_killed.py::test_trap_19_twenty_kills_leave_the_shards_byte_identical",
        "run/test_killed.py::test_kills_with_siblings_votes_and_several_shards",
    ),
    "20 a row in the middle of the input changed between two starts": (
        "run/test_corpus.py::test_another_file_of_the_same_name_is_refused",
        "traps/test_numbered.py::test_trap_20_one_word_in_the_middle_of_the_input_is_noticed",
    ),
}
"""Number 17, a crash between the submission of a batch and the recording of its id, waits for a
transport that has batches: calls here are one request and one answer."""
WITHOUT_A_TEST = {17}


def names_in(path: Path) -> set[str]:
    return {
        node.name
        for node in ast.parse(path.read_text("utf-8")).body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.name.startswith("test_")
    }


def test_every_trap_has_a_test_that_exists() -> None:
    numbers = {int(trap.split()[0]) for trap in TABLE}
    assert numbers | WITHOUT_A_TEST == set(range(1, 21))
    lost = [
        place
        for places in TABLE.values()
        for place in places
        for path, _, name in [place.partition("::")]
        if not (TESTS / path).is_file() or name not in names_in(TESTS / path)
    ]
    assert lost == []


def test_every_test_that_names_a_trap_stands_in_the_table() -> None:
    told = {place for places in TABLE.values() for place in places}
    for path in TESTS.rglob("test_*.py"):
        for name in names_in(path):
            named = re.match(r"test_trap_\d", name)
            assert not named or f"{path.relative_to(TESTS).as_posix()}::{name}" in told, name


# ---- 3


def test_trap_3_slots_beside_slow_calls_stay_free() -> None:
    """Three of four calls hang for ten minutes, and nothing waits to be retried."""

    class Endpoint:
        def __init__(self) -> None:
            self.done: list[float] = []
            self.most = self.out = 0

        async def complete(self, request: ChatRequest) -> ChatResult:
            self.out += 1
            self.most = max(self.most, self.out)
            await asyncio.sleep(600 if request.key.startswith("slow") else 0.1)
            self.out -= 1
            self.done.append(now())
            return result(request.key)

    async def main() -> None:
        endpoint, start = Endpoint(), now()
        breaker = Breaker(give_up_after_s=3600)
        limited = Limited(endpoint, gate=breaker.check, max_in_flight=4, adaptive=False)
        client = Retrying(limited, breaker=breaker)
        slow = [asyncio.create_task(client.complete(request(f"slow{i}"))) for i in range(3)]
        await asyncio.sleep(1)
        await asyncio.gather(*(client.complete(request(f"quick{i}")) for i in range(500)))
        quick = [at - start for at in endpoint.done]
        assert len(quick) == 500
        assert 50 < quick[-1] < 52
        assert max(b - a for a, b in pairwise(quick)) < 0.11
        await asyncio.gather(*slow)
        assert (endpoint.most, limited.in_flight, limited.waiting) == (4, 0, 0)
        # All four are there again.
        again = now()
        await asyncio.gather(*(client.complete(request(f"more{i}")) for i in range(40)))
        assert now() - again < 1.1

    virtual_time.run(main())


# ---- 5


CHANGES: dict[str, Any] = {
    "key": "copa/000002/0",
    "model": "another",
    "messages": (
        Message(role="system", content="You are terse."),
        Message(role="user", content="Write a premise."),
    ),
    "temperature": 0.7,
    "max_tokens": 65,
    "seed": 8,
    "top_p": 0.9,
    "stop": ("END",),
    "schema_name": "copa-seeds",
    "json_schema": {"type": "object"},
}


@pytest.mark.parametrize("field", CHANGES)
def test_trap_5_whatever_is_sent_is_part_of_the_key(field: str) -> None:
    assert memo_of(request(**{field: CHANGES[field]})) != memo_of(request())


def test_trap_5_no_field_of_a_request_is_left_out() -> None:
    assert {*CHANGES, "memo"} == set(ChatRequest.__struct_fields__)
    assert memo_of(request()) == memo_of(request()), "equal requests have one key"


# ---- 7 and 20


def test_trap_7_equal_texts_of_the_user_are_refused_and_counted(tmp_path: Path) -> None:
    """Never merged in silence: each is counted, and the first of them keeps its line's number."""
    again = tuple(passage(number) for number in (3, 3, 5))
    file, out = corpus(tmp_path, 20, again), tmp_path / "run"
    done = targen("generate", "boolq", "-n", 20, "--out", out, "--quiet", *from_corpus(file))
    assert done.returncode == 0, done.stderr
    told = manifest(out)["corpus"]
    assert (told["texts"], told["usable"], told["refused"]) == (23, 20, {"duplicate": 3})
    assert told["usable"] + sum(told["refused"].values()) == told["texts"]


def test_trap_20_one_word_in_the_middle_of_the_input_is_noticed(tmp_path: Path) -> None:
    """The number of texts, the first and the last of them are as they were."""
    file, out = corpus(tmp_path, 40), tmp_path / "run"
    flags = ("--out", out, *from_corpus(file), "--quiet")
    assert targen("generate", "boolq", "-n", 20, *flags).returncode == 0
    before, journal = digest(out), (out / "journal").read_bytes()
    texts = file.read_text().splitlines(keepends=True)
    row = json.loads(texts[20])
    row["text"] = row["text"].replace("of the month", "of the year", 1)
    texts[20] = json.dumps(row) + "\n"
    file.write_text("".join(texts))
    complaint = one_sentence(targen("generate", "boolq", "-n", 30, *flags), 2)
    assert "data.corpus" in complaint
    assert digest(out) == before
    assert (out / "journal").read_bytes() == journal


# ---- 8


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        *((name, how) for name in ("manifest.json", "run.toml") for how in ("garbage", "cut")),
        *((name, "empty") for name in ("manifest.json", "run.toml")),
        ("distinct.sqlite", "cut"),
        ("rejected.jsonl", "garbage"),
        ("failures.jsonl", "garbage"),
    ],
)
def test_trap_8_damaged_metadata_never_makes_another_data_set(
    finished: Path, tmp_path: Path, name: str, damage: str
) -> None:
    """Either a sentence and nothing touched, or the same rows again without a call."""
    out = tmp_path / "run"
    out.mkdir()
    for file in finished.iterdir():
        (out / file.name).write_bytes(file.read_bytes())
    whole = (out / name).read_bytes()
    broken = {"garbage": b"\x00\xff{{ not ]]", "cut": whole[: len(whole) // 2], "empty": b""}
    (out / name).write_bytes(broken[damage])
    before, journal = digest(out), (out / "journal").read_bytes()
    # Nobody answers there any more: a call would end the run.
    url = tomllib.loads((finished / "run.toml").read_text())["delivery"]["base_url"]
    flags = ("--model", "targen-simulator", "--base-url", url, "-n", 40)
    done = targen("generate", "copa", *flags, "--contexts", 10, "--out", out, "--quiet")
    assert digest(out) == before
    # Settings that are gone are not made up for in silence, whatever flags there are.
    assert done.returncode == 2 or name != "run.toml"
    if done.returncode == 0:
        assert (out / "journal").read_bytes().startswith(journal)
        told = manifest(out)
        assert (told["delivered"], told["state"]) == (40, "complete")
        if name.endswith("jsonl"):
            assert (out / name).read_bytes() == whole
    else:
        assert name in one_sentence(done, done.returncode)
        assert (out / "journal").read_bytes() == journal


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("finished") / "run"
    with simulator(label_noise=0.2, malformed=0.1) as endpoint:
        flags = ("-n", 40, "--contexts", 10, "--out", out, *endpoint.flags)
        assert targen("generate", "copa", *flags).returncode == 0
    return out


# ---- 15

MEASURED = """
import resource, sys
from targen_async.cli import main
assert main(sys.argv[1:]) == 0
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""
MORE_MIB = 24.0


@pytest.mark.long
def test_trap_15_memory_does_not_grow_with_rows(tmp_path: Path) -> None:
    """Peak memory of the whole process at 2,000 rows and at 20,000, with a window that is full."""
    peaks_mib: list[float] = []
    with simulator() as endpoint:
        for n in (2_000, 20_000):
            flags = (
                *("generate", "boolq", "-n", n, "--contexts", 400, "--correction", "off"),
                *("--set", "delivery.window=1024", "--max-in-flight", 64, "--quiet"),
                *("--out", tmp_path / str(n), *endpoint.flags),
            )
            done = subprocess.run(
                [sys.executable, "-c", MEASURED, *map(str, flags)],
                capture_output=True,
                text=True,
                check=False,
                env={name: value for name, value in os.environ.items() if "API_KEY" not in name},
            )
            assert done.returncode == 0, done.stderr
            peaks_mib.append(int(done.stdout.splitlines()[-1]) / 1024)
    assert peaks_mib[1] - peaks_mib[0] < MORE_MIB, peaks_mib


# ---- 16

MOST_PACKAGES = 24
"""With what comes along: peers bring 50 to 117."""
MOST_MODULES_OF_OTHERS = 60
"""That `import targen_async` loads and the standard library does not have."""


def applies(requirement: str) -> bool:
    """Whether a requirement holds here, without extras and for this Python."""
    _, _, marker = requirement.partition(";")
    if "extra ==" in marker:
        return False
    older = re.search(r'python_version < "3\.(\d+)"', marker)
    return not older or sys.version_info[1] < int(older[1])


def test_trap_16_few_packages_come_along() -> None:
    found: set[str] = set()
    waiting = ["targen-async"]
    while waiting:
        name = re.sub(r"[-_.]+", "-", waiting.pop()).lower()
        if name not in found:
            found.add(name)
            needs = [each for each in metadata.requires(name) or [] if applies(each)]
            waiting += [re.split(r"[^\w.-]", each)[0] for each in needs]
    assert "aiohttp" in found
    assert len(found - {"targen-async"}) <= MOST_PACKAGES, sorted(found)


def test_trap_16_few_modules_are_loaded() -> None:
    program = "import sys, targen_async; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    names = {name for name in done.stdout.decode().split() if "." not in name}
    others = names - set(sys.stdlib_module_names) - {"targen_async"}
    assert len(others) <= MOST_MODULES_OF_OTHERS, sorted(others)
