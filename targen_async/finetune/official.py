"""SuperGLUE as it is released: JSONL folders, and the hub's tables."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import orjson

from targen_async.errors import UserError
from targen_async.finetune.schema import Example, field_fault, import_datasets, short_marks
from targen_async.layouts import Layout, layout_of
from targen_async.splits import plain_text, text_marks
from targen_async.superglue import Idx, from_official, official_spans, spans_of

HUB = "aps/super_glue"
FILES: Mapping[str, str] = {"train": "train", "validation": "val", "test": "test"}
"""Split to the name of its file in the official release."""
_HUB_NAMES: Mapping[str, str] = {"wsc": "wsc.fixed"}
"""On the hub `wsc` has spans that do not stand in the text; `wsc.fixed` is what T5 uses too."""


def official_file(root: Path, task: str, split: str) -> Path:
    """Where a split of a task lies below `root`, which may be the task's own folder.

    Raises UserError where it is not there.
    """
    layout = layout_of(task)
    home = root / layout.folder if (root / layout.folder).is_dir() else root
    path = home / f"{layout.folder if layout.only_test else FILES[split]}.jsonl"
    if not path.is_file():
        found = ", ".join(sorted(file.name for file in home.glob("*.jsonl"))) or "no .jsonl file"
        raise UserError(f"there is no {path} ({task}, {split}); {home} has {found}")
    return path


def read_official(path: Path, task: str, split: str) -> Iterator[Example]:
    """The examples of one official file, in its order.

    Raises UserError that names file and line for a line that is no object of the task, for a label
    that the task does not know, and for one that is missing outside `test`.
    """
    layout, rows = layout_of(task), 0
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            place = f"{path}:{number}"
            if not line.strip():
                continue
            value = _object(line, place)
            try:
                pairs = from_official(task, value)
                idxs = list(_idxs(task, value))
                answers = list(_answers(task, value, len(pairs)))
                spans = official_spans(task, value)
            except UserError as error:
                raise UserError(f"{place}: {error}") from error
            except (KeyError, TypeError, ValueError) as error:
                raise UserError(
                    f"{place}: this is no object of {layout.folder}: {error!r}"
                ) from error
            for (fields, label), idx, right in zip(pairs, idxs, answers, strict=True):
                _check(layout, task, split, fields, label, place)
                yield make_example(task, split, rows, fields, label, right, idx, spans)
                rows += 1
    if not rows:
        raise UserError(f"{path} is empty: it has no example of {task}")


def _check(
    layout: Layout,
    task: str,
    split: str,
    fields: Mapping[str, str],
    label: str | None,
    place: str,
) -> None:
    if fault := field_fault(task, fields):
        raise UserError(f"{place}: {fault}")
    if label is None and split != "test" and not layout.only_test:
        raise UserError(f"{place}: it has no label, and {split} needs one")


def _object(line: bytes, place: str) -> dict[str, Any]:
    try:
        value = orjson.loads(line)
    except ValueError as error:
        raise UserError(f"{place}: this is no JSON: {error}") from error
    if not isinstance(value, dict):
        raise UserError(f"{place}: this is no JSON object")
    return value


def _idxs(task: str, value: Mapping[str, Any]) -> Iterator[Idx]:
    """In the order of `from_official`."""
    if task == "multirc":
        for question in value["passage"]["questions"]:
            for answer in question["answers"]:
                parts = (int(value["idx"]), int(question["idx"]), int(answer["idx"]))
                yield dict(zip(("paragraph", "question", "answer"), parts, strict=True))
    elif task == "record":
        for query in value["qas"]:
            yield {"passage": int(value["idx"]), "query": int(query["idx"])}
    else:
        yield int(value["idx"])


def _answers(task: str, value: Mapping[str, Any], rows: int) -> Iterator[tuple[str, ...]]:
    if task != "record":
        yield from ((),) * rows
        return
    for query in value["qas"]:
        texts = (str(answer["text"]) for answer in query.get("answers") or ())
        yield tuple(dict.fromkeys(texts))


def make_example(
    task: str,
    split: str,
    number: int,
    fields: Mapping[str, str],
    label: str | None,
    answers: tuple[str, ...],
    idx: Idx,
    spans: Mapping[str, tuple[int, int]],
) -> Example:
    """The `number`-th example of a split, with what binds it to others."""
    layout = layout_of(task)
    key = f"{task}/{split}/{number}"
    unit = key
    if isinstance(idx, dict) and task == "multirc":
        unit = f"{task}/{split}/question {idx['question']} of {idx['paragraph']}"
    elif isinstance(idx, int) and task == "axg":
        # The release has the two genders of a sentence as neighbours; its pair_id names the pair of
        # premise and hypothesis, and no two rows share one.
        unit = f"{task}/{split}/pair {idx // 2}"
    # Rows of one word share sentences, as those of a run share their seed.
    word = (plain_text(fields["word"]),) if task == "wic" else ()
    return Example(
        task=task,
        key=key,
        fields={name: fields[name] for name in layout.fields},
        label=label,
        answers=answers,
        idx=idx,
        unit=unit,
        spans={**spans_of(task, fields), **spans},
        bound=short_marks((unit, *text_marks(fields), *word)),
    )


def read_hub(task: str, split: str, repository: str = HUB) -> Iterator[Example]:
    """The examples of a split on the hub (`datasets.load_dataset`), or of a folder laid out so.

    Raises UserError where it cannot be had: no network, no such repository, no such split.
    """
    layout, name = layout_of(task), _HUB_NAMES.get(task, task)
    datasets = import_datasets()
    wanted = "test" if layout.only_test else split
    try:
        rows = datasets.load_dataset(repository, name, split=wanted)
    # The package raises errors of its own, of its HTTP client's and of the file system's.
    except Exception as error:
        reason = str(error).split("\n")[0]
        raise UserError(f"{repository} ({name}, {wanted}) cannot be loaded: {reason}") from error
    for number, row in enumerate(rows):
        place = f"{repository} {name} {wanted} row {number}"
        try:
            value = _as_official(task, row)
            fields, label, answers = _from_hub(task, layout, value)
            spans = official_spans(task, value)
        except (KeyError, TypeError, IndexError) as error:
            raise UserError(f"{place}: this is no row of {name}: {error!r}") from error
        _check(layout, task, split, fields, label, place)
        yield make_example(task, split, number, fields, label, answers, row["idx"], spans)


def _as_official(task: str, row: Mapping[str, Any]) -> Mapping[str, Any]:
    """On the hub the target of wsc is laid flat."""
    if task != "wsc":
        return row
    names = ("span1_text", "span1_index", "span2_text", "span2_index")
    return {**row, "target": {name: row[name] for name in names}}


def _from_hub(
    task: str, layout: Layout, row: Mapping[str, Any]
) -> tuple[Mapping[str, str], str | None, tuple[str, ...]]:
    """Fields, label and answers. A table of the hub has class ids, -1 where it keeps them back."""
    if task == "record":
        spans = row["entity_spans"]
        told = sorted(zip(spans["start"], spans["text"], strict=True))
        fields = {name: str(row[name]) for name in ("passage", "query")}
        fields["entities"] = "\n".join(dict.fromkeys(text for _, text in told))
        answers = tuple(dict.fromkeys(map(str, row["answers"])))
        return fields, answers[0] if answers else None, answers
    label = None if row["label"] < 0 else tuple(layout.classes)[row["label"]]
    if task == "wsc":
        unlabelled = {"text": row["text"], "target": row["target"]}
        return from_official("wsc", unlabelled)[0][0], label, ()
    return {name: str(row[name]) for name in layout.fields}, label, ()
