"""Seeds out of a file of the user's, and texts that must stay out."""

import json
import random
import subprocess
import time
from pathlib import Path

import msgspec
import pytest

from targen_async.config import Source
from targen_async.errors import UserError
from targen_async.journal import Items, Kind, frames
from targen_async.sources import Exclusion, read_texts
from tests.running import command, digest, lines, manifest, rows, simulator, targen

_NOUNS = ("harbour", "ledger", "orchard", "tunnel", "lantern", "council", "meadow", "archive")
_VERBS = ("opens", "closes", "records", "carries", "shelters", "measures", "repairs", "paints")


def passage(number: int) -> str:
    """A made-up paragraph of about 60 words, another for every number."""
    random_ = random.Random(number)
    sentences = [
        f"The {random_.choice(_NOUNS)} of Dorf{number}x{place} {random_.choice(_VERBS)} "
        f"every {random_.choice(_NOUNS)} on day {random_.randrange(1, 29)} of the month."
        for place in range(5)
    ]
    return " ".join(sentences)


def corpus(folder: Path, count: int, extra: tuple[str, ...] = ()) -> Path:
    file = folder / "passages.jsonl"
    texts = [*(passage(number) for number in range(count)), *extra]
    file.write_text("".join(json.dumps({"id": 1, "text": text}) + "\n" for text in texts))
    return file


def size(file: Path) -> int:
    return file.stat().st_size if file.exists() else 0


def from_corpus(file: Path) -> tuple[object, ...]:
    return ("--seeds", file, "--seeds-field", "text")


@pytest.mark.parametrize("task", ["boolq", "cb", "multirc", "record", "rte"])
def test_rows_say_which_line_their_seed_stood_in_and_nothing_else_is_asked(
    tmp_path: Path, task: str
) -> None:
    file, out = corpus(tmp_path, 60), tmp_path / "run"
    with simulator(label_noise=0.1) as endpoint:
        flags = ("-n", 60, "--out", out, *from_corpus(file), *endpoint.flags)
        done = targen("generate", task, *flags, "--max-rows-per-seed", 8)
        assert done.returncode == 0, done.stderr
        stages = endpoint.stats()["by_stage"]
    assert not stages.get("contexts") and not stages.get("seeds")
    texts = [json.loads(line)["text"] for line in file.read_text().splitlines()]
    used = set()
    for row in rows(out):
        origin = row["provenance"]
        assert origin["seed_source"] == "corpus"
        assert origin["seed"] == texts[origin["seed_line"] - 1]
        assert origin["context"] == "" and set(origin["templates"]) & {"seeds", "contexts"} == set()
        used.add(origin["seed_line"])
    assert sorted(used) != list(range(1, len(used) + 1)), "a drawn order, not the file's"
    told = manifest(out)
    assert told["corpus"]["texts"] == told["corpus"]["usable"] == 60
    assert told["config"]["data"]["corpus"]["sha256"] == told["corpus"]["sha256"]


def test_a_run_goes_on_without_the_file_and_its_bytes_do_not_depend_on_kills(
    tmp_path: Path,
) -> None:
    file = corpus(tmp_path, 150)
    flags = ("generate", "boolq", "-n", 200, "--quiet", *from_corpus(file))
    assert targen(*flags, "--out", tmp_path / "whole").returncode == 0
    with simulator(latency_ms=40) as endpoint:
        out = tmp_path / "killed"
        more = ("--out", out, *endpoint.flags, "--max-in-flight", 6)
        for _ in range(3):
            child = subprocess.Popen(command(*flags, *more), stderr=subprocess.DEVNULL)
            grown = size(out / "journal") + 60_000
            while size(out / "journal") < grown and child.poll() is None:
                time.sleep(0.01)
            child.kill()
            child.wait()
        file.rename(tmp_path / "elsewhere.jsonl")
        done = targen("generate", "--out", out, "--quiet", "--max-in-flight", 20)
        assert done.returncode == 0, done.stderr
    assert digest(out) == digest(tmp_path / "whole")


def test_another_file_of_the_same_name_is_refused(tmp_path: Path) -> None:
    file, out = corpus(tmp_path, 40), tmp_path / "run"
    assert targen("generate", "boolq", "-n", 20, "--out", out, *from_corpus(file)).returncode == 0
    corpus(tmp_path, 41)
    for flags in (("--out", out), ("boolq", "-n", 20, "--out", out, *from_corpus(file))):
        done = targen("generate", *flags)
        assert done.returncode == 2
        assert "data.corpus" in done.stderr and "Traceback" not in done.stderr


def test_texts_that_are_too_few_are_refused_before_any_call(tmp_path: Path) -> None:
    file, out = corpus(tmp_path, 10), tmp_path / "run"
    with simulator() as endpoint:
        flags = ("generate", "boolq", "-n", 60, "--out", out, *from_corpus(file), *endpoint.flags)
        done = targen(*flags)
        assert done.returncode == 2
        assert "10 usable texts of 10, enough for 20 rows" in done.stderr
        assert "--max-rows-per-seed 6 or more" in done.stderr
        assert endpoint.stats()["served"] == 0
        done = targen(*flags, "--max-rows-per-seed", 10)
        assert done.returncode == 0, done.stderr
    count: dict[int, int] = {}
    for row in rows(out):
        line = row["provenance"]["seed_line"]
        count[line] = count.get(line, 0) + 1
    assert len(count) == 10 and max(count.values()) <= 10


def test_equal_long_short_and_excluded_texts_are_counted_and_not_used(tmp_path: Path) -> None:
    twice = "  " + passage(3).upper()
    kept_out = passage(777)
    overlapping = "Before it. " + " ".join(passage(778).split()[:20]) + " " + passage(900)
    extra = (twice, "Too short.", "word " * 1400, kept_out, overlapping)
    file, out = corpus(tmp_path, 30, extra), tmp_path / "run"
    evaluation = tmp_path / "val.jsonl"
    evaluation.write_text(
        json.dumps({"passage": {"text": kept_out}, "qas": [{"query": passage(778)}]}) + "\n"
    )
    flags = ("generate", "boolq", "-n", 40, "--out", out, *from_corpus(file))
    done = targen(*flags, "--exclude", evaluation, "--quiet")
    assert done.returncode == 0, done.stderr
    told = manifest(out)["corpus"]
    assert told["texts"] == 35 and told["usable"] == 30
    assert told["refused"] == {"duplicate": 1, "excluded": 2, "invalid": 2}
    done = targen(*flags, "-n", 50, "--quiet")
    assert done.returncode == 0, "the run remembers what it keeps out: " + done.stderr
    assert manifest(out)["config"]["data"]["exclude"]


def test_no_generated_text_repeats_what_is_kept_out(tmp_path: Path) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    assert targen("generate", "boolq", "-n", 20, "--out", first, "--quiet").returncode == 0
    shard = first / "instances-00000.jsonl"
    done = targen("generate", "boolq", "-n", 20, "--out", second, "--exclude", shard, "--quiet")
    assert done.returncode == 0, done.stderr
    kept_out = {row["passage"] for row in rows(first)}
    assert not kept_out & {row["passage"] for row in rows(second)}
    details = [r["detail"] for r in lines(second / "rejected.jsonl") if r["stage"] == "seeds"]
    assert any("excluded text" in detail for detail in details)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("The old mill stood by the river.", "is an excluded text"),
        ("the OLD mill -- stood by the river", "is an excluded text"),
        ("The old mill stood by the wide river.", None),
        ("So: " + " ".join(f"w{n}" for n in range(7, 20)) + " end", "shares 13 words"),
        (" ".join(f"w{n}" for n in range(7, 19)) + " end", None),
        ("Yes.", None),
    ],
)
def test_exclusion_goes_by_whole_texts_and_by_thirteen_words(
    tmp_path: Path, text: str, reason: str | None
) -> None:
    file = tmp_path / "eval.txt"
    file.write_text(
        "The old mill stood by the river.\nYes.\n" + " ".join(f"w{n}" for n in range(40)) + "\n"
    )
    found = Exclusion((Source(file=str(file)),)).objection(text)
    assert (found is None) if reason is None else (reason in str(found))


def test_parquet_and_plain_text_give_the_same_texts(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="needs the extra `data`")
    import pyarrow.parquet as parquet

    texts = ["one text", "  another  ", "", "a third \u2028 one"]
    table = pyarrow.table({"text": texts, "n": [1, 2, 3, 4]})
    parquet.write_table(table, tmp_path / "a.parquet")
    (tmp_path / "a.txt").write_text("\n".join(texts), "utf-8")
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    wanted = [(1, "one text"), (2, "another"), (4, "a third \u2028 one")]
    for name, field in (("a.parquet", "text"), ("a.txt", None), ("a.jsonl", "text")):
        source = Source(file=str(tmp_path / name), field=field)
        assert list(read_texts(source)) == wanted, name
    with pytest.raises(UserError, match=r"no column 'body' .*columns: text, n"):
        list(read_texts(Source(file=str(tmp_path / "a.parquet"), field="body")))
    (tmp_path / "b.parquet").write_bytes(b"no parquet")
    with pytest.raises(UserError, match="cannot be read as Parquet"):
        list(read_texts(Source(file=str(tmp_path / "b.parquet"), field="text")))


@pytest.mark.parametrize(
    ("content", "field", "words"),
    [
        ('{"text": "a"}\n{"text": "b"\n', "text", "passages.jsonl:2: "),
        ('{"body": "a", "n": 3}\n', "text", "no text under 'text' (texts here: body)"),
        ('{"body": "a"}\n', None, "name the field with --seeds-field (texts here: body)"),
        ("3\n", "text", "texts here: none"),
        ('{"text": "too short to be used"}\n', "text", "holds no text that can be used"),
        ("", "text", "holds no text that can be used"),
        ('{"text": "\udc80"}\n', "text", "passages.jsonl:1: "),
    ],
)
def test_a_bad_corpus_is_one_sentence_that_names_the_line(
    tmp_path: Path, content: str, field: str | None, words: str
) -> None:
    file = tmp_path / "passages.jsonl"
    file.write_bytes(content.encode("utf-8", "surrogateescape"))
    flags = ("--seeds-field", field) if field else ()
    out = tmp_path / "run"
    done = targen("generate", "boolq", "-n", 20, "--out", out, "--seeds", file, *flags)
    assert done.returncode == 2
    assert words in done.stderr and "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("task", "file", "words"),
    [
        ("boolq", "missing.jsonl", "cannot read"),
        ("copa", "passages.jsonl", "uses {{ context }}, which a seed from a corpus does not have"),
        ("wic", "passages.jsonl", "a seed from a corpus does not have"),
    ],
)
def test_what_cannot_come_from_a_corpus_is_said(
    tmp_path: Path, task: str, file: str, words: str
) -> None:
    corpus(tmp_path, 20)
    flags = ("-n", 20, "--out", tmp_path / "run", *from_corpus(tmp_path / file))
    done = targen("generate", task, *flags)
    assert done.returncode == 2
    assert words in done.stderr


def test_n_of_twins_is_even(tmp_path: Path) -> None:
    done = targen("generate", "axg", "-n", 21, "--out", tmp_path / "run")
    assert done.returncode == 2
    assert "make n a multiple of 2, not 21" in done.stderr


def test_rows_of_the_last_texts_are_judged_though_the_plan_went_beyond_them(tmp_path: Path) -> None:
    file, out = corpus(tmp_path, 20), tmp_path / "run"
    with simulator(label_noise=0.1, malformed=0.1) as endpoint:
        flags = ("generate", "boolq", "--out", out, *from_corpus(file), *endpoint.flags, "--quiet")
        assert targen(*flags, "-n", 15).returncode == 0
        done = targen(*flags, "-n", 40)
        answered = endpoint.stats()["by_stage"]["instances"]
    told = manifest(out)
    lost = sum(told["failed"].values()) + sum(told["rejected"].values()) + told["surplus"]
    assert told["delivered"] + lost == 40
    assert told["delivered"] > 30 and answered >= 40
    assert done.returncode == (0 if told["delivered"] == 40 else 1)
    assert done.returncode == 0 or "are used up" in done.stderr


def test_rows_of_one_text_are_never_judged_together_in_whatever_round(tmp_path: Path) -> None:
    file, out = corpus(tmp_path, 5), tmp_path / "run"
    flags = ("generate", "boolq", "-n", 40, "--out", out, *from_corpus(file), "--quiet")
    done = targen(*flags, "--max-rows-per-seed", 16)
    assert done.returncode == 0, done.stderr
    blocks = [
        msgspec.msgpack.decode(frame.payload, type=Items)
        for frame in frames(out / "journal")
        if frame.kind == Kind.ITEMS
    ]
    assert blocks
    for block in blocks:
        texts = [slot // 2 % 5 for slot, _ in block.rows]
        assert len(set(texts)) == len(texts)


def test_many_files_may_be_kept_out(tmp_path: Path) -> None:
    file, out = corpus(tmp_path, 20), tmp_path / "run"
    kept_out: list[object] = []
    for number in range(70):
        (tmp_path / f"{number}.txt").write_text(passage(1000 + number))
        kept_out += ["--exclude", tmp_path / f"{number}.txt"]
    flags = ("generate", "boolq", "-n", 20, "--out", out, *from_corpus(file), "--quiet")
    assert targen(*flags, *kept_out).returncode == 0


def test_a_free_answer_may_not_repeat_what_is_kept_out_either(tmp_path: Path) -> None:
    task = Path(__file__).parents[2] / "examples" / "instructions"
    first, second = tmp_path / "a", tmp_path / "b"
    assert targen("generate", task, "-n", 10, "--out", first, "--simulate").returncode == 0
    answers = {row["label"] for row in rows(first)}
    (tmp_path / "old.txt").write_text("\n".join(" ".join(text.split()) for text in answers))
    flags = ("-n", 10, "--out", second, "--simulate", "--exclude", tmp_path / "old.txt")
    targen("generate", task, *flags)
    assert not answers & {row["label"] for row in rows(second)}
    details = [r["detail"] for r in lines(second / "rejected.jsonl")]
    assert any("the label is an excluded text" in detail for detail in details)


def test_a_copy_of_the_corpus_that_was_changed_is_made_again(tmp_path: Path) -> None:
    file, out = corpus(tmp_path, 40), tmp_path / "run"
    flags = ("generate", "boolq", "--out", out, *from_corpus(file), "--quiet")
    assert targen(*flags, "-n", 20).returncode == 0
    before = (out / "seeds.jsonl").read_bytes()
    with (out / "seeds.jsonl").open("ab") as copy:
        copy.write(b'[41,"another text"]\n')
    assert targen(*flags, "-n", 30).returncode == 0
    assert (out / "seeds.jsonl").read_bytes() == before
    assert targen("verify", out).returncode == 0


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--seeds-field", "text"), "--seeds-field goes with --seeds FILE"),
        (("--max-rows-per-seed", 4), "give --seeds"),
        (("--exclude", "empty.txt"), "holds no text that could be kept out"),
    ],
)
def test_flags_that_do_not_go_together_are_one_sentence(
    tmp_path: Path, flags: tuple[object, ...], words: str
) -> None:
    (tmp_path / "empty.txt").write_text("\n\n")
    given = [tmp_path / flag if flag == "empty.txt" else flag for flag in flags]
    done = targen("generate", "boolq", "-n", 20, "--out", tmp_path / "run", *given)
    assert done.returncode == 2 and words in done.stderr and "Traceback" not in done.stderr


def test_fewer_rows_a_text_than_a_seed_gets_are_refused(tmp_path: Path) -> None:
    flags = ("-n", 20, "--out", tmp_path / "run", *from_corpus(corpus(tmp_path, 30)))
    done = targen("generate", "boolq", *flags, "--max-rows-per-seed", 1)
    assert done.returncode == 2 and "less than the 2 rows" in done.stderr
