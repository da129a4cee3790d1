"""What a request asks for: task, stage, variant and the values that were put into the template."""

import json
import re
from collections.abc import Mapping
from functools import cache
from typing import Any, get_args

from msgspec import Struct

from targen_async.errors import TargenError
from targen_async.records import ChatRequest, StageName
from targen_async.tasks import GOOD, NO_LABEL, Task, Template, list_tasks, load_task

_NAME = re.compile(r"(.+?)[-.](contexts|seeds|instances|correction)(?:[-.](.*))?")
_NOTE = re.compile(r"\n\n(?=[^\n]*\bJSON\b)(?P<note>[^\n]*)\s*\Z")
_LINE = re.compile(r"^\W{0,4}([A-Za-z_][\w ]{0,30}?)\W{0,2}[:=][ \t]*(\S[^\n]*)$", re.MULTILINE)
_EXAMPLE_KEY = re.compile(r'"(\w+)": (?:"|(?P<list>\[))')
_EXAMPLE_LABELS = re.compile(r'"label": ("[^"]+"(?: or "[^"]+")*)')
_FIXED = frozenset(
    [
        "description",
        "count",
        "context",
        "seed",
        "label",
        "label_meaning",
        "position",
        "items",
        "labels",
    ]
)
_STAGES: tuple[StageName, ...] = get_args(StageName)


class Ask(Struct, frozen=True, kw_only=True):
    """A recognised request."""

    task: str
    stage: StageName
    variant: str
    values: Mapping[str, str]
    labels: tuple[str, ...]
    outputs: tuple[str, ...]
    """The keys of an instance's answer."""
    lists: tuple[str, ...]
    """Those of them that hold a list of texts."""
    known: Task | None

    def count(self, default: int = 10) -> int:
        """How many texts are asked for, at most 200."""
        found = re.match(r"\s*(\d{1,4})", self.values.get("count", ""))
        return min(200, int(found.group(1))) if found else default

    def axes(self) -> list[str]:
        """The values of the stage's axes, in lower case."""
        return [text.lower() for name, text in self.values.items() if name not in _FIXED]

    def label(self) -> str | None:
        """The label an instance shall have, as far as the prompt tells.

        Of an open label the prompt tells at most the position that it shall have.
        """
        if self.known and self.known.answer:
            return self.values.get("position", "").strip() or None
        given = self.values.get("label", "").strip()
        if given and (not self.labels or given in self.labels):
            return given
        meaning = self.values.get("label_meaning", "").strip()
        for name, about in (self.known.labels if self.known else {}).items():
            if name == self.variant or (meaning and about == meaning):
                return name
        return given or self.variant or None


def recognise(request: ChatRequest, folders: tuple[str, ...]) -> Ask | None:
    """What is asked for, or None for a prompt of no task. `folders` are tasks of the user's own."""
    prompt = request.messages[-1].content if request.messages else ""
    texts, note = _without_note(_without_system(prompt, folders))
    named = _NAME.fullmatch(request.schema_name or "")
    if named:
        name, stage, variant = named.group(1), named.group(2), named.group(3) or ""
        task = tasks(folders).get(name)
        values = _values(task, stage, variant, texts)
    else:
        found = _by_template(folders, texts)
        if found is None:
            return None
        task, stage, variant, values = found
        name = task.name
    return Ask(
        task=name,
        stage=next(known for known in _STAGES if known == stage),
        variant=variant,
        values=values,
        labels=_labels(task, request.json_schema, note),
        outputs=_outputs(task, request.json_schema, note),
        lists=_lists(task, request.json_schema, note),
        known=task,
    )


@cache
def tasks(folders: tuple[str, ...]) -> Mapping[str, Task]:
    """The shipped tasks and those of `folders`, by name; one that cannot be loaded is left out."""
    found: dict[str, Task] = {}
    for place in (*list_tasks(), *folders):
        try:
            task = load_task(place)
        except TargenError:
            continue
        found[task.name] = task
    return found


def _without_system(prompt: str, folders: tuple[str, ...]) -> str:
    """The prompt without a task's system message, which a dialect may put at its head."""
    for task in tasks(folders).values():
        if task.system and prompt.startswith(f"{task.system}\n\n"):
            return prompt[len(task.system) + 2 :]
    return prompt


def _without_note(prompt: str) -> tuple[tuple[str, ...], str]:
    """The prompt as it is and without a last paragraph on JSON, and that paragraph.

    The paragraph may be the template's own or a note that plain mode appends.
    """
    note = _NOTE.search(prompt)
    return ((prompt, prompt[: note.start()]), note.group("note")) if note else ((prompt,), "")


def _template(task: Task, stage: str, variant: str) -> Template | None:
    return task.templates.get(f"{stage}.{variant}") or task.templates.get(stage)


def _values(task: Task | None, stage: str, variant: str, texts: tuple[str, ...]) -> dict[str, str]:
    template = _template(task, stage, variant) if task else None
    matches = (template.match(text) for text in texts) if template else ()
    return next((found for found in matches if found), None) or _loose_values(stage, texts[0])


def _loose_values(stage: str, text: str) -> dict[str, str]:
    """Values of an unknown template: its `name: value` lines and its lines of JSON."""
    if stage == "correction":
        lines = [line for line in text.splitlines() if line.startswith("{")]
        return {"items": "\n".join(lines)}
    values = {
        m.group(1).strip().lower().replace(" ", "_"): m.group(2) for m in _LINE.finditer(text)
    }
    number = re.search(r"\b(\d{1,3})\b", text)
    if "count" not in values and number:
        values["count"] = number.group(1)
    return values


def _by_template(
    folders: tuple[str, ...], texts: tuple[str, ...]
) -> tuple[Task, str, str, dict[str, str]] | None:
    """The first template that renders to the text; a template of more fixed text is tried first."""
    for task, stage, variant, template in _all_templates(folders):
        # Cheap test first: a template's opening words are fixed text.
        if not texts[0].startswith(template.text.partition("{{")[0]):
            continue
        for text in texts:
            values = template.match(text)
            if values is not None:
                return task, stage, variant, values
    return None


@cache
def _all_templates(folders: tuple[str, ...]) -> tuple[tuple[Task, str, str, Template], ...]:
    found: list[tuple[Task, str, str, Template]] = []
    for task in tasks(folders).values():
        for key, template in task.templates.items():
            stage, _, variant = key.partition(".")
            found.append((task, stage, variant, template))
    return tuple(sorted(found, key=lambda entry: -len(entry[3].text)))


def _labels(task: Task | None, schema: Mapping[str, Any] | None, note: str) -> tuple[str, ...]:
    if task:
        return (GOOD,) if task.answer and task.answer.kind == "free" else tuple(task.labels)
    try:
        item = (schema or {})["properties"]["items"]["items"]
        labels = item["properties"]["label"]["enum"]
    except (KeyError, TypeError):
        shown = _EXAMPLE_LABELS.search(note)
        labels = re.findall(r'"([^"]+)"', shown.group(1)) if shown else ()
    return tuple(str(label) for label in labels if label not in (NO_LABEL, "…"))


def _outputs(task: Task | None, schema: Mapping[str, Any] | None, note: str) -> tuple[str, ...]:
    if schema and isinstance(schema.get("properties"), Mapping):
        return tuple(schema["properties"])
    if task:
        return tuple(task.instances.outputs)
    return tuple(found.group(1) for found in _EXAMPLE_KEY.finditer(note))


def _lists(task: Task | None, schema: Mapping[str, Any] | None, note: str) -> tuple[str, ...]:
    if schema and isinstance(schema.get("properties"), Mapping):
        parts = schema["properties"].items()
        return tuple(n for n, of in parts if isinstance(of, Mapping) and of.get("type") == "array")
    if task:
        return tuple(task.instances.lists)
    return tuple(found.group(1) for found in _EXAMPLE_KEY.finditer(note) if found["list"])


def items_of(ask: Ask) -> list[dict[str, Any]]:
    """The rows to judge: the lines of `items` that are JSON objects with an id."""
    found: list[dict[str, Any]] = []
    for line in ask.values.get("items", "").splitlines():
        if not line.startswith("{"):
            continue
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and "id" in row:
            found.append(row)
    return found
