"""The official SuperGLUE files, told apart by the keys of an object, as rows.

Field names and labels are those of our own tasks, so that both sides of a comparison agree.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from targen_async.analysis.rows import Row

Object = Mapping[str, Any]
_TRUTH = {True: "true", False: "false"}
"""For 1 and 0 too, which equal them."""
_CHOICE = {0: "choice1", 1: "choice2"}


def _label(value: Any, names: Mapping[Any, str] | None) -> str | None:  # noqa: ANN401
    if value is None:
        return None
    if names is None:
        if not isinstance(value, str):
            raise ValueError(f"the label is {value!r}, and should be a text")
        return value
    try:
        return names[value]
    except (KeyError, TypeError):
        known = ", ".join(dict.fromkeys(map(repr, names)))
        raise ValueError(f"the label is {value!r}, and should be one of {known}") from None


def _flat(
    fields: tuple[str, ...], names: Mapping[Any, str] | None
) -> Callable[[Object, str], Iterator[Row]]:
    def rows(entry: Object, key: str) -> Iterator[Row]:
        texts = {name: _text(entry[name], name) for name in fields}
        yield Row(key=key, fields=texts, label=_label(entry.get("label"), names))

    return rows


def _text(value: Any, name: str) -> str:  # noqa: ANN401
    if not isinstance(value, str):
        raise ValueError(f"{name!r} is no text")
    return value


def _wsc(entry: Object, key: str) -> Iterator[Row]:
    target = entry["target"]
    texts = {
        "text": _text(entry["text"], "text"),
        "span1": _text(target["span1_text"], "span1_text"),
        "span2": _text(target["span2_text"], "span2_text"),
    }
    yield Row(key=key, fields=texts, label=_label(entry.get("label"), _TRUTH))


def _multirc(entry: Object, key: str) -> Iterator[Row]:
    paragraph = _text(entry["passage"]["text"], "text")
    for at, question in enumerate(entry["passage"]["questions"]):
        for number, answer in enumerate(question["answers"]):
            fields = {
                "paragraph": paragraph,
                "question": _text(question["question"], "question"),
                "answer": _text(answer["text"], "text"),
            }
            label = _label(answer.get("label"), _TRUTH)
            yield Row(key=f"{key}/{at}/{number}", fields=fields, label=label)


def _record(entry: Object, key: str) -> Iterator[Row]:
    passage = _text(entry["passage"]["text"], "text")
    spans = entry["passage"]["entities"]
    entities = dict.fromkeys(passage[span["start"] : span["end"] + 1] for span in spans)
    for at, query in enumerate(entry["qas"]):
        fields = {
            "passage": passage,
            "query": _text(query["query"], "query"),
            "entities": "\n".join(entities),
        }
        answers = query.get("answers") or [{"text": None}]
        yield Row(key=f"{key}/{at}", fields=fields, label=_label(answers[0]["text"], None))


_NLI = _flat(("premise", "hypothesis"), None)

FORMS: Mapping[str, tuple[frozenset[str], Callable[[Object, str], Iterator[Row]]]] = {
    "copa": (
        frozenset({"premise", "choice1", "choice2", "question"}),
        _flat(("premise", "choice1", "choice2", "question"), _CHOICE),
    ),
    "wic": (
        frozenset({"word", "sentence1", "sentence2", "start1"}),
        _flat(("word", "sentence1", "sentence2"), _TRUTH),
    ),
    "wsc": (frozenset({"text", "target"}), _wsc),
    "boolq": (frozenset({"question", "passage", "idx"}), _flat(("passage", "question"), _TRUTH)),
    "record": (frozenset({"passage", "qas"}), _record),
    "multirc": (frozenset({"passage", "idx", "version"}), _multirc),
    "axb": (frozenset({"sentence1", "sentence2", "idx"}), _flat(("sentence1", "sentence2"), None)),
    "nli": (frozenset({"premise", "hypothesis", "idx"}), _NLI),
}
"""Form to the keys that tell it (the first whose keys are all there) and its reader. RTE, CB and
AX-g look alike: `nli`."""
OPEN = "record"
"""The form whose label is a text of the row's own."""


def form_of(entry: Object) -> str | None:
    """Which official file an object is from, or None."""
    return next((name for name, (keys, _) in FORMS.items() if keys <= entry.keys()), None)


def rows_of(form: str, entry: Object, key: str) -> Iterator[Row]:
    """The rows of one object. Raises ValueError that says what is wrong with it."""
    try:
        yield from FORMS[form][1](entry, key)
    except KeyError as error:
        raise ValueError(f"it has no {error.args[0]!r}, which the rows of {form} have") from error
    except (TypeError, AttributeError) as error:
        raise ValueError(f"it is not built as the rows of {form} are") from error
