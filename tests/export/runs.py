"""Run folders for tests of the export, made without a run: rows, manifest.json, run.toml."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from targen_async.records import Instance
from targen_async.shards import read_shards

Row = tuple[str, Mapping[str, str], str]
"""Key, fields, label."""

PASSAGE = (
    "Mara Lindqvist opened the Harbour Museum in Norvik on Monday. The museum shows boats that "
    "Norvik built when Lindqvist was young. Tom Ewart paid for the roof."
)
OTHER = "Ada Brook sold the mill in Fenwick to Cole Marsh. Marsh plans to grind rye there again."
ENTITIES = "Mara Lindqvist\nHarbour Museum\nNorvik\nLindqvist\nTom Ewart"

ROWS: Mapping[str, Sequence[Row]] = {
    "axb": [
        (
            "axb/000000/0",
            {
                "sentence1": "No boat is red.",
                "sentence2": "A boat is red.",
                "phenomenon": "negation: no",
            },
            "not_entailment",
        ),
        (
            "axb/000001/0",
            {
                "sentence1": "Ada was seen by Tom.",
                "sentence2": "Tom saw Ada.",
                "phenomenon": "active, passive and datives: who does what to whom",
            },
            "entailment",
        ),
    ],
    "axg": [
        (
            f"axg/{seed:06d}/{place}",
            {
                "premise": f"The baker told client {seed} that {pronoun} was late.",
                "hypothesis": "The baker was late.",
            },
            label,
        )
        for seed, label in ((0, "entailment"), (1, "not_entailment"))
        for place, pronoun in enumerate(("he", "she"))
    ],
    "boolq": [
        (
            "boolq/000000/0",
            {"passage": PASSAGE, "question": "did Tom Ewart pay for the roof"},
            "true",
        ),
        ("boolq/000000/1", {"passage": PASSAGE, "question": "is the museum closed"}, "false"),
        ("boolq/000001/0", {"passage": OTHER, "question": "was the mill sold"}, "true"),
    ],
    "cb": [
        ("cb/000000/0", {"premise": "I know he left.", "hypothesis": "he left"}, "entailment"),
        (
            "cb/000001/0",
            {"premise": "I doubt she came.", "hypothesis": "she came"},
            "contradiction",
        ),
        ("cb/000002/0", {"premise": "Did they win?", "hypothesis": "they won"}, "neutral"),
    ],
    "copa": [
        (
            f"copa/{seed:06d}/0",
            {
                "premise": f"The glass number {seed} fell.",
                "choice1": "It broke.",
                "choice2": "It rained.",
                "question": "effect",
            },
            label,
        )
        for seed, label in enumerate(("choice1", "choice2", "choice1", "choice2"))
    ],
    "multirc": [
        (
            f"multirc/{seed:06d}/{place}",
            {
                "paragraph": text,
                "question": f"{question}?",
                "answer": f"answer {place} to {question}",
            },
            ("true", "false")[place % 2],
        )
        for seed, (text, question) in enumerate(
            (
                (PASSAGE, "Who paid"),
                (OTHER, "Who sold"),
                (PASSAGE, "Who opened"),
                (PASSAGE, "Who paid"),
            )
        )
        for place in range(4)
    ],
    "record": [
        (
            "record/000000/0",
            {"passage": PASSAGE, "entities": ENTITIES, "query": "The roof is @placeholder's gift."},
            "Tom Ewart",
        ),
        (
            "record/000000/1",
            {"passage": PASSAGE, "entities": ENTITIES, "query": "Boats come from @placeholder."},
            "Norvik",
        ),
        (
            "record/000001/0",
            {
                "passage": OTHER,
                "entities": "Ada Brook\nFenwick\nCole Marsh\nMarsh",
                "query": "@placeholder mills.",
            },
            "Marsh",
        ),
    ],
    "rte": [
        ("rte/000000/0", {"premise": "Ada sold it.", "hypothesis": "It was sold."}, "entailment"),
        ("rte/000001/0", {"premise": "Tom ran.", "hypothesis": "Tom won."}, "not_entailment"),
    ],
    "wic": [
        (
            f"wic/{seed:06d}/{place}",
            {
                "word": word,
                "sentence1": f"Number {place}: they {form1} here.",
                "sentence2": f"{form2.capitalize()} is what I do.",
                "part_of_speech": "verb",
            },
            label,
        )
        for seed, (word, form1, form2) in enumerate(
            (("run", "ran", "running"), ("try", "tried", "trying"))
        )
        for place, label in enumerate(("true", "false"))
    ],
    "wsc": [
        (
            f"wsc/{seed:06d}/{place}",
            {"text": text, "span1": "the bottle", "span2": "it"},
            ("true", "false")[place],
        )
        for seed, (noun, first, second) in enumerate(
            (("cup", "empty", "full"), ("jug", "light", "heavy"))
        )
        for place, text in enumerate(
            f"I poured water from the bottle into the {noun} until it was {word}."
            for word in (first, second)
        )
    ],
}
"""Rows of every task. In wic, wsc and axg a seed has two rows; in multirc a question has four, and
the passage of its first seed comes back."""

BALANCE: Mapping[str, Sequence[str]] = {
    "axb": ("entailment", "not_entailment"),
    "axg": ("entailment", "not_entailment"),
    "boolq": ("true", "false"),
    "cb": ("entailment", "contradiction", "neutral"),
    "copa": ("choice1", "choice2"),
    "multirc": ("true", "false"),
    "record": ("first", "second", "third", "fourth or later"),
    "rte": ("entailment", "not_entailment"),
    "wic": ("true", "false"),
    "wsc": ("true", "false"),
}


def provenance(**changes: Any) -> dict[str, Any]:
    return {
        "simulated": True,
        "outcome": "keep",
        "context": "a harbour",
        "context_axes": {},
        "seed": "",
        "seed_source": "generated",
        "seed_line": None,
        "seed_axes": {},
        "axes": {},
        "explanation": "so it is",
        "votes": [{"label": "x", "explanation": "yes", "model": "a-judge"}],
        "model": "targen-simulator",
        "task_version": 1,
        "templates": {},
        "usage": {"prompt_tokens": 10, "completion_tokens": 5},
        **changes,
    }


def disk_row(row: Row, **changes: Any) -> dict[str, Any]:
    key, fields, label = row
    return {
        "key": key,
        "task": key.split("/")[0],
        **fields,
        "label": label,
        "label_before_correction": changes.pop("before", label),
        "provenance": provenance(**changes),
    }


def instance(row: Row, **changes: Any) -> Instance:
    """The same row as `read_shards` gives it."""
    raw = disk_row(row, **changes)
    return msgspec.convert({**raw, "fields": dict(row[1])}, Instance)


def make_run(
    folder: Path,
    rows: Sequence[Mapping[str, Any]],
    *,
    balance: Sequence[str] | None = None,
    **facts: Any,
) -> Path:
    """A run's folder with these rows as they stand on disk."""
    folder.mkdir(parents=True)
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (folder / "instances-00000.jsonl").write_text(text, "utf-8")
    task = rows[0]["task"] if rows else "copa"
    counts = Counter(row["label"] for row in rows)
    manifest = {
        "format": 1,
        "state": "complete",
        "reason": "",
        "simulated": True,
        "task": task,
        "task_version": 1,
        "task_digest": "ab" * 32,
        "data_digest": "cd" * 32,
        "model": "targen-simulator",
        "n": len(rows),
        "delivered": len(rows),
        "balance": {label: counts[label] for label in balance or BALANCE[task]},
        "transitions": {},
        "rejected": {},
        "failed": {},
        "calls": {"served": 41, "refused": 1, "in_doubt": 0, "served_without_usage": 0},
        "spent": {"prompt_tokens": 1234, "completion_tokens": 567, "usd": None},
        "wasted": {"prompt_tokens": 89, "completion_tokens": 12, "usd": None},
        "versions": {"targen-async": "0.1.0"},
        "config": {"data": {"task": task, "temperature": 1.0, "random_seed": 7}},
        **facts,
    }
    (folder / "manifest.json").write_text(json.dumps(manifest), "utf-8")
    (folder / "run.toml").write_text(f'[data]\ntask = "{task}"\n', "utf-8")
    return folder


def make_task_run(folder: Path, task: str, times: int = 1) -> Path:
    """A run of a task of SuperGLUE's; `times` repeats its rows with other seeds and texts."""
    rows: list[dict[str, Any]] = []
    for time in range(times):
        for key, fields, label in ROWS[task]:
            name, seed, place = key.split("/")
            varied = dict(fields)
            if time:
                first = next(iter(varied)) if task not in ("wic", "boolq") else "passage"
                if task != "wic":
                    varied[first] = f"{varied[first]} Time {time}."
            rows.append(disk_row((f"{name}/{int(seed) + 100 * time:06d}/{place}", varied, label)))
    return make_run(folder, rows)


def lines(path: Path) -> list[Any]:
    """The values of a JSONL file, read line by line as anybody does."""
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def back(folder: Path) -> list[Instance]:
    return list(read_shards(folder))
