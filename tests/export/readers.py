"""Readers of the official SuperGLUE files, one a task, as well-known training code reads them.

They are strict on purpose: each asserts what such code takes for granted. `hub_rows` reads a file
as the hub's data set does.
"""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any


def _objects(path: Path) -> Iterator[Any]:
    for line in path.read_text(encoding="utf-8").splitlines():
        yield json.loads(line)


def read_boolq(path: Path) -> list[tuple[str, str, int]]:
    found = []
    for value in _objects(path):
        assert value["label"] is True or value["label"] is False
        found.append((value["passage"], value["question"], int(value["label"])))
    return found


def _pairs(first: str, second: str, labels: list[str]) -> Callable[[Path], list[Any]]:
    def read(path: Path) -> list[Any]:
        return [
            (value[first], value[second], labels.index(value["label"])) for value in _objects(path)
        ]

    return read


def read_axg(path: Path) -> list[Any]:
    """Gender parity is counted over neighbours, which must have one hypothesis."""
    values = list(_objects(path))
    assert len(values) % 2 == 0
    for one, two in zip(values[::2], values[1::2], strict=True):
        assert one["hypothesis"] == two["hypothesis"]
        assert one["premise"] != two["premise"]
    assert len({value["pair_id"] for value in values}) == len(values)
    assert all(type(value["pair_id"]) is int for value in values)
    return _pairs("premise", "hypothesis", ["entailment", "not_entailment"])(path)


def read_copa(path: Path) -> list[Any]:
    found = []
    for value in _objects(path):
        assert value["question"] in ("cause", "effect")
        assert type(value["label"]) is int
        choices = [value["choice1"], value["choice2"]]
        found.append((value["premise"], value["question"], choices[value["label"]]))
    return found


def read_multirc(path: Path) -> list[Any]:
    """(passage, question, answer, label); questions are scored by their idx."""
    found, seen = [], set()
    for value in _objects(path):
        for question in value["passage"]["questions"]:
            assert question["idx"] not in seen
            seen.add(question["idx"])
            for answer in question["answers"]:
                assert type(answer["label"]) is int
                assert answer["label"] in (0, 1)
                texts = (value["passage"]["text"], question["question"], answer["text"])
                found.append((*texts, answer["label"]))
    return found


def read_record(path: Path) -> list[Any]:
    """(query with the answer, every candidate, indices of the right ones)."""
    found = []
    for value in _objects(path):
        text = value["passage"]["text"]
        spans = [(e["start"], e["end"] + 1) for e in value["passage"]["entities"]]
        assert spans == sorted(spans)
        candidates = sorted({text[start:end] for start, end in spans})
        for query in value["qas"]:
            assert query["query"].count("@placeholder") == 1
            for answer in query["answers"]:
                assert text[answer["start"] : answer["end"] + 1] == answer["text"]
                assert {"start": answer["start"], "end": answer["end"]} in value["passage"][
                    "entities"
                ]
            right = {answer["text"] for answer in query["answers"]}
            assert right <= set(candidates)
            filled = [query["query"].replace("@placeholder", name) for name in candidates]
            found.append((filled, [name in right for name in candidates]))
    return found


def read_wic(path: Path) -> list[Any]:
    """(word, its form in each sentence, label)."""
    found = []
    for value in _objects(path):
        assert type(value["label"]) is bool
        forms = [value[f"sentence{i}"][value[f"start{i}"] : value[f"end{i}"]] for i in "12"]
        assert all(form and not re.search(r"\W", form) for form in forms)
        found.append((value["word"], *forms, value["label"]))
    return found


def read_wsc(path: Path) -> list[Any]:
    """The text with the pronoun marked at its word index, in two ways that must agree."""
    found = []
    for value in _objects(path):
        assert type(value["label"]) is bool
        target, words = value["target"], value["text"].split(" ")
        assert words == value["text"].split()
        assert words[target["span2_index"]].startswith(target["span2_text"])
        span1 = target["span1_text"].split()
        there = words[target["span1_index"] :][: len(span1)]
        assert " ".join(there).startswith(target["span1_text"])
        count = target["span2_index"]
        pattern = rf"^((?:\S+\s){{{count}}})({re.escape(target['span2_text'])})"
        marked, number = re.subn(pattern, r"\1*\2*", value["text"])
        assert number == 1
        found.append((marked, target["span1_text"], value["label"]))
    return found


READERS: dict[str, Callable[[Path], list[Any]]] = {
    "axb": _pairs("sentence1", "sentence2", ["entailment", "not_entailment"]),
    "axg": read_axg,
    "boolq": read_boolq,
    "cb": _pairs("premise", "hypothesis", ["contradiction", "entailment", "neutral"]),
    "copa": read_copa,
    "multirc": read_multirc,
    "record": read_record,
    "rte": _pairs("premise", "hypothesis", ["entailment", "not_entailment"]),
    "wic": read_wic,
    "wsc": read_wsc,
}


def hub_rows(task: str, path: Path) -> list[dict[str, Any]]:
    """An official file as rows of the hub's data set, labels by name."""
    found: list[dict[str, Any]] = []
    for value in _objects(path):
        if task == "multirc":
            found += [
                {
                    "paragraph": value["passage"]["text"],
                    "question": question["question"],
                    "answer": answer["text"],
                    "idx": {
                        "paragraph": value["idx"],
                        "question": question["idx"],
                        "answer": answer["idx"],
                    },
                    "label": str(bool(answer["label"])),
                }
                for question in value["passage"]["questions"]
                for answer in question["answers"]
            ]
        elif task == "record":
            found += _hub_record(value)
        else:
            value.update(value.pop("target", {}))
            if task == "copa":
                value["label"] = ("choice1", "choice2")[value["label"]]
            found.append({**value, "label": str(value["label"])})
    return found


def _hub_record(value: dict[str, Any]) -> list[dict[str, Any]]:
    text = value["passage"]["text"]
    spans = [(e["start"], e["end"] + 1) for e in value["passage"]["entities"]]
    return [
        {
            "passage": text,
            "query": query["query"],
            "entities": {text[start:end] for start, end in spans},
            "entity_spans": {
                "text": [text[start:end] for start, end in spans],
                "start": [start for start, _ in spans],
                "end": [end for _, end in spans],
            },
            "answers": sorted({answer["text"] for answer in query["answers"]}),
            "idx": {"passage": value["idx"], "query": query["idx"]},
        }
        for query in value["qas"]
    ]
