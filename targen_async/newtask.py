"""`targen new`: a task folder to begin with. It is sound and generates at once.

The folder is a copy of `starter/`, itself a sound task, under another name and with other labels.
"""

import json
import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from targen_async.errors import UserError
from targen_async.taskcheck import MAX_TASK_NAME
from targen_async.tasks import NO_LABEL, TASK_FILE, list_tasks

STARTER = Path(__file__).resolve().parent / "starter"
_NAME = re.compile(r"[a-z][a-z0-9_]*")
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
_LABELS = re.compile(r"(?<=^\[labels\]\n)(?:.+\n)+", re.MULTILINE)
"""What stands in the [labels] table, up to the empty line."""


def begin_task(name: str, labels: Sequence[str] = (), into: Path = Path()) -> Path:
    """Make the folder `into/name` of a new task; without labels it has the starter's own.

    Raises UserError for a bad name or label, and for a folder that is there: nothing is written.
    """
    _check_name(name)
    _check_labels(labels)
    texts = {path.name: path.read_text("utf-8") for path in sorted(STARTER.iterdir())}
    texts[TASK_FILE] = _with_labels(texts[TASK_FILE], labels).replace(
        f'name = "{STARTER.name}"', f'name = "{name}"'
    )
    folder = into / name
    try:
        folder.mkdir(parents=True)
    except FileExistsError:
        raise UserError(f"{folder} is there already: choose another name, or --into DIR") from None
    except OSError as error:
        raise UserError(f"cannot make {folder}: {error.strerror}") from error
    for file, text in texts.items():
        try:
            (folder / file).write_text(text, "utf-8")
        except OSError as error:
            place = folder / file
            raise UserError(f"cannot write {place}: {error.strerror}; delete {folder}") from error
    return folder


def next_steps(folder: Path) -> str:
    """What to do with a new task, for a person to read."""
    place, run = shlex.quote(str(folder)), shlex.quote(f"runs/{folder.name}")
    files = ", ".join(sorted(path.name for path in folder.iterdir() if path.name != TASK_FILE))
    return f"""made {folder} with {TASK_FILE}, {files}
It works as it is. Change the texts (comments in them tell what), and look with:
  targen check {place}
  targen render {place} --stage instances
  targen generate {place} -n 30 --simulate --out {run}"""


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name) or len(name) > MAX_TASK_NAME:
        plain = re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_0123456789")[:MAX_TASK_NAME]
        hint = f"; how about {plain}?" if plain else ""
        raise UserError(
            f"{name!r} is no name of a task: at most {MAX_TASK_NAME} small letters, digits and _, "
            f"a letter first{hint}"
        )
    if name in list_tasks():
        raise UserError(f"a task called {name!r} is built in: choose another name")


def _check_labels(labels: Sequence[str]) -> None:
    if len(labels) == 1:
        raise UserError("a task needs two labels or more, as in --labels yes,no")
    seen: set[str] = set()
    for label in labels:
        if not label or not label.isprintable() or label != label.strip():
            raise UserError(f"{label!r} is no label: write printable text with commas between")
        if label.casefold() == NO_LABEL:
            raise UserError(f"the label {label!r} is what a judge says when no label fits")
        if label.casefold() in seen:
            raise UserError(f"the label {label!r} is there twice")
        seen.add(label.casefold())


def _with_labels(text: str, labels: Sequence[str]) -> str:
    """task.toml with these labels. Each gets a meaning to begin with, which is there to change."""
    if not labels:
        return text
    lines = [
        "# Say for each when a message gets it: the model is told what you write here.",
        *(f"{_quoted_key(label)} = {_quoted(_first_meaning(label))}" for label in labels),
    ]
    return _LABELS.sub(lambda _: "".join(f"{line}\n" for line in lines), text)


def _first_meaning(label: str) -> str:
    return f'the message belongs under the heading "{label.replace("_", " ")}"'


def _quoted_key(label: str) -> str:
    return label if _BARE_KEY.fullmatch(label) else _quoted(label)


def _quoted(text: str) -> str:
    """A TOML string. JSON's escapes are TOML's where the text is printable."""
    return json.dumps(text, ensure_ascii=False)
