"""The ten SuperGLUE tasks, between our rows and the official JSONL files, in both directions.

A row of ours is its fields and its label; an official object may hold several rows: a passage of
ReCoRD has several queries, a paragraph of MultiRC several questions with several answers each.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from msgspec import Struct

from targen_async.errors import UserError
from targen_async.layouts import LAYOUTS, Layout, layout_of
from targen_async.words import find_word

Fields = Mapping[str, str]
Row = tuple[Fields, str | None]
"""Fields and label; the label is None where a file keeps it back, as the official test files do."""
Idx = int | dict[str, int]


WIC_VERSION = 1.1
SOURCE = "targen"
"""What stands where ReCoRD names its newspaper."""

_TAGS: Mapping[str, tuple[str, ...]] = {
    "lexical-semantics": ("lexical", "factiv", "implicative", "named entit", "symmetr", "redundan"),
    "predicate-argument-structure": (
        *("passive", "dative", "nominali", "genitive", "anaphor", "ellips", "coreference"),
        *("coordination", "relative", "attachment", "restrictiv", "intersectiv", "argument"),
    ),
    "knowledge": ("common sense", "world knowledge"),
    "logic": ("",),
}
"""AX-b's four columns of phenomena, told by a word in the name of ours; logic has the rest."""


class Converted(Struct, frozen=True):
    """Official objects, and for each row in turn what it is called by in them."""

    objects: list[dict[str, Any]]
    ids: list[Idx]


def to_official(task: str, rows: Sequence[Row]) -> list[dict[str, Any]]:
    """The objects of one official JSONL file; `idx` counts from 0.

    Rows of ReCoRD and MultiRC are put together by passage and question. Raises UserError for a
    task that is not SuperGLUE's and for a row that has no official form.
    """
    return convert(task, rows).objects


def convert(task: str, rows: Sequence[Row], keys: Sequence[str] = ()) -> Converted:
    """Like `to_official`, with the idx of each row; `keys` name the rows in errors."""
    layout = layout_of(task)
    checked = []
    for number, (fields, label) in enumerate(rows):
        name = keys[number] if keys else f"row {number}"
        lacking = next((field for field in layout.fields if field not in fields), None)
        if lacking:
            raise UserError(f"{name} has no field {lacking!r}, which the {task} form needs")
        if label is not None and layout.labels and label not in layout.labels:
            raise UserError(f"{name} has the label {label!r}, which {task} does not know")
        checked.append((fields, label, name))
    if task == "multirc":
        return _multirc(checked)
    if task == "record":
        return _record(checked)
    return _plain(task, layout, checked)


_Named = tuple[Fields, str | None, str]
"""A row and what it is called by in errors."""


def _plain(task: str, layout: Layout, rows: Sequence[_Named]) -> Converted:
    objects: list[dict[str, Any]] = []
    for idx, (fields, label, name) in enumerate(rows):
        special = _SPECIAL.get(task)
        values: dict[str, Any] = {k: fields[k] for k in layout.fields}
        if special:
            values = special(fields, idx, name)
        values["idx"] = idx
        if label is not None:
            values["label"] = layout.labels[label]
        objects.append(values)
    return Converted(objects, list(range(len(objects))))


def _axb(fields: Fields, idx: int, _name: str) -> dict[str, Any]:
    values = {"sentence1": fields["sentence1"], "sentence2": fields["sentence2"]}
    # What follows the colon explains the name of the phenomenon to the model.
    name = fields.get("phenomenon", "").partition(":")[0].strip()
    if name:
        said = name.casefold()
        column = next(tag for tag, words in _TAGS.items() if any(word in said for word in words))
        values[column] = name
    return values


def _axg(fields: Fields, idx: int, _name: str) -> dict[str, Any]:
    # The official pair_id names the pair of premise and hypothesis, not the twins: no two rows
    # share one. Twins are neighbours, here and there.
    return {"premise": fields["premise"], "hypothesis": fields["hypothesis"], "pair_id": idx}


def _wic(fields: Fields, _idx: int, name: str) -> dict[str, Any]:
    values: dict[str, Any] = {k: fields[k] for k in ("word", "sentence1", "sentence2")}
    for number in ("1", "2"):
        found = find_word(fields["word"], fields[f"sentence{number}"])
        if found is None:
            raise UserError(f"{name}: {fields['word']!r} does not stand in sentence{number}")
        values[f"start{number}"], values[f"end{number}"] = found
    values["version"] = WIC_VERSION
    return values


def _wsc(fields: Fields, _idx: int, name: str) -> dict[str, Any]:
    # Readers count words by " ", by white space or by one \s a word: these agree only where words
    # are one space apart.
    text, span1, span2 = (" ".join(fields[k].split()) for k in ("text", "span1", "span2"))
    pronoun = _find(text, span2)
    if pronoun is None:
        raise UserError(f"{name}: span2 {span2!r} does not stand in the text")
    noun = _find(text, span1, beside=pronoun)
    if noun is None:
        raise UserError(f"{name}: span1 {span1!r} does not stand in the text beside span2")
    target = {
        "span1_text": span1,
        "span1_index": _word_index(text, noun[0]),
        "span2_text": span2,
        "span2_index": _word_index(text, pronoun[0]),
    }
    return {"text": text, "target": target}


_SPECIAL: Mapping[str, Callable[[Fields, int, str], dict[str, Any]]] = {
    "axb": _axb,
    "axg": _axg,
    "wic": _wic,
    "wsc": _wsc,
}


def _find(
    text: str, span: str, beside: tuple[int, int] = (0, 0), *, folded: bool = True
) -> tuple[int, int] | None:
    """[start, end) of the first whole-word mention that does not overlap `beside`.

    Mentions in other capitals count where there is none in the same.
    """
    for flags in (re.NOFLAG, re.IGNORECASE) if folded else (re.NOFLAG,):
        for found in re.finditer(rf"(?<!\w){re.escape(span)}(?!\w)", text, flags):
            if found.end() <= beside[0] or found.start() >= beside[1]:
                return found.span()
    return None


def _word_index(text: str, start: int) -> int:
    """Which word of `text`, split at white space, the character at `start` belongs to."""
    before = text[:start]
    inside = bool(before) and not before[-1].isspace()
    return len(before.split()) - inside


def _multirc(rows: Sequence[_Named]) -> Converted:
    passages: dict[str, dict[str, list[int]]] = {}
    for number, (fields, _, _) in enumerate(rows):
        questions = passages.setdefault(fields["paragraph"], {})
        questions.setdefault(fields["question"], []).append(number)
    objects: list[dict[str, Any]] = []
    ids: dict[int, Idx] = {}
    question_idx = 0
    for paragraph, asked in passages.items():
        questions_out: list[dict[str, Any]] = []
        for question, numbers in asked.items():
            answers: list[dict[str, Any]] = []
            for number in numbers:
                fields, label, _ = rows[number]
                answer: dict[str, Any] = {"text": fields["answer"], "idx": len(ids)}
                if label is not None:
                    answer["label"] = LAYOUTS["multirc"].labels[label]
                ids[number] = {
                    "paragraph": len(objects),
                    "question": question_idx,
                    "answer": len(ids),
                }
                answers.append(answer)
            questions_out.append({"question": question, "answers": answers, "idx": question_idx})
            question_idx += 1
        passage = {"text": paragraph, "questions": questions_out}
        objects.append({"passage": passage, "idx": len(objects)})
    return Converted(objects, [ids[number] for number in range(len(rows))])


def _record(rows: Sequence[_Named]) -> Converted:
    passages: dict[str, list[int]] = {}
    for number, (fields, _, _) in enumerate(rows):
        passages.setdefault(fields["passage"], []).append(number)
    objects: list[dict[str, Any]] = []
    ids: dict[int, Idx] = {}
    for text, numbers in passages.items():
        # Rows of one passage may list different entities: the passage has them all.
        listed = [e for n in numbers for e in rows[n][0]["entities"].split("\n") if e.strip()]
        spans = mentions(text, listed, rows[numbers[0]][2])
        queries: list[dict[str, Any]] = []
        for number in numbers:
            fields, label, name = rows[number]
            query: dict[str, Any] = {"query": fields["query"], "idx": len(ids)}
            if label is not None:
                found = [s for s in spans if text[s["start"] : s["end"] + 1] == label]
                if not found:
                    raise UserError(f"{name}: the answer {label!r} is none of the entities")
                query["answers"] = [{**span, "text": label} for span in found]
            ids[number] = {"passage": len(objects), "query": len(ids)}
            queries.append(query)
        passage = {"text": text, "entities": spans}
        objects.append({"source": SOURCE, "passage": passage, "qas": queries, "idx": len(objects)})
    return Converted(objects, [ids[number] for number in range(len(rows))])


def mentions(text: str, entities: Sequence[str], name: str = "a row") -> list[dict[str, int]]:
    """Where the entities stand: `start` and `end`, the last character's place, in order.

    Longer names first: no mention lies inside another, but for an entity that would have none.
    Raises UserError for an entity that is not in the text.
    """
    taken: list[tuple[int, int]] = []
    for entity in sorted(dict.fromkeys(entities), key=len, reverse=True):
        found = [m.span() for m in re.finditer(rf"(?<!\w){re.escape(entity)}(?!\w)", text)]
        found = found or [m.span() for m in re.finditer(re.escape(entity), text)]
        if not found:
            raise UserError(f"{name}: the entity {entity!r} does not stand in the passage")
        free = [(a, b) for a, b in found if all(b <= c or a >= d for c, d in taken)]
        taken += free or found[:1]
    return [{"start": start, "end": end - 1} for start, end in sorted(taken)]


# ---- back


def from_official(task: str, value: Mapping[str, Any]) -> list[Row]:
    """The rows of one official object in our fields; a label is None where there is none.

    Not in the official form, so not in the fields: wic's part_of_speech. Raises UserError where
    the object is not of the task's form.
    """
    layout = layout_of(task)
    try:
        if task == "multirc":
            return _from_multirc(value)
        if task == "record":
            return _from_record(value)
        fields = {name: _text(value, name) for name in layout.fields if task != "wsc"}
        if task == "wsc":
            fields = _from_wsc(value)
        if task == "axb" and (found := [str(value[tag]) for tag in _TAGS if value.get(tag)]):
            fields["phenomenon"] = ";".join(found)
        return [(fields, _our_label(layout, value))]
    except KeyError as error:
        raise UserError(
            f"this is no object of {layout.folder}: it has no {error.args[0]!r}"
        ) from error
    except (TypeError, AttributeError) as error:
        raise UserError(f"this is no object of {layout.folder}: {error}") from error


def _text(value: Mapping[str, Any], name: str) -> str:
    """TypeError for what is no text: a number would pass for one."""
    text = value[name]
    if not isinstance(text, str):
        raise TypeError(f"{name!r} is no text")
    return text


def _our_label(layout: Layout, value: Mapping[str, Any]) -> str | None:
    if value.get("label") is None:
        return None
    for ours, official in layout.labels.items():
        if value["label"] == official:
            return ours
    raise UserError(f"{value['label']!r} is no label of {layout.folder}")


def _from_wsc(value: Mapping[str, Any]) -> dict[str, str]:
    """The spans as they stand in the text: the official ones differ in capitals or line ends."""
    text, found = _text(value, "text"), official_spans("wsc", value)
    fields = {"text": text}
    for name in ("span1", "span2"):
        start, end = found.get(name, (0, 0))
        fields[name] = text[start:end] or str(value["target"][f"{name}_text"])
    return fields


# ---- where the words stand that a row asks about


def spans_of(task: str, fields: Fields) -> dict[str, tuple[int, int]]:
    """[start, end) of what a row of ours asks about, in characters; what is not found is left out.

    Of wsc `span1` and `span2` in the text, of wic the word in `sentence1` and `sentence2`.
    """
    found: dict[str, tuple[int, int] | None] = {}
    if task == "wsc":
        pronoun = _find(fields["text"], fields["span2"])
        noun = _find(fields["text"], fields["span1"], beside=pronoun or (0, 0))
        found = {"span1": noun, "span2": pronoun}
    elif task == "wic":
        names = ("sentence1", "sentence2")
        found = {name: find_word(fields["word"], fields[name]) for name in names}
    return {name: span for name, span in found.items() if span}


def official_spans(task: str, value: Mapping[str, Any]) -> dict[str, tuple[int, int]]:
    """What `spans_of` tells, of an official object, by its own indices; a row's pronoun may stand
    in the text twice. Empty for the other tasks."""
    if task == "wic":
        return {f"sentence{n}": (int(value[f"start{n}"]), int(value[f"end{n}"])) for n in "12"}
    if task != "wsc":
        return {}
    text, target = str(value["text"]), value["target"]
    words = list(re.finditer(r"\S+", text))
    found: dict[str, tuple[int, int]] = {}
    for name in ("span1", "span2"):
        span, index = str(target[f"{name}_text"]), int(target[f"{name}_index"])
        pattern = re.compile(r"\s+".join(map(re.escape, span.split())), re.IGNORECASE)
        word = words[index] if index < len(words) else None
        there = pattern.search(text, word.start()) if word else None
        if word and there and there.start() < word.end():
            found[name] = there.span()
    return found


def _from_multirc(value: Mapping[str, Any]) -> list[Row]:
    passage, layout = value["passage"], LAYOUTS["multirc"]
    return [
        (
            {
                "paragraph": _text(passage, "text"),
                "question": _text(question, "question"),
                "answer": _text(answer, "text"),
            },
            _our_label(layout, answer),
        )
        for question in passage["questions"]
        for answer in question["answers"]
    ]


def _from_record(value: Mapping[str, Any]) -> list[Row]:
    """Of several right answers, which are other names of the same, the first is the label."""
    text = _text(value["passage"], "text")
    spans = sorted((int(e["start"]), int(e["end"])) for e in value["passage"]["entities"])
    entities = "\n".join(dict.fromkeys(text[start : end + 1] for start, end in spans))
    rows: list[Row] = []
    for query in value["qas"]:
        answers = query.get("answers") or []
        label = str(answers[0]["text"]) if answers else None
        fields = {"passage": text, "entities": entities, "query": _text(query, "query")}
        rows.append((fields, label))
    return rows
