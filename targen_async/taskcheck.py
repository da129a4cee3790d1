"""Checks a task as a whole: every fault of every file at once, each with line and column."""

import re
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from hashlib import sha256
from pathlib import Path

from targen_async.records import StageName
from targen_async.tasklabels import broken_outputs, check_label, known
from targen_async.taskread import Report, TomlPath, read_files, read_spec, read_texts
from targen_async.tasks import (
    COMMENT,
    PLACEHOLDER,
    STAGES,
    TASK_FILE,
    Fault,
    Task,
    Template,
    fixed_placeholders,
    needed_placeholders,
    placeholders,
    variants,
)
from targen_async.taskspec import TaskFile, Words
from targen_async.validators import UNFIT, VALIDATED_FIELDS, VALIDATORS

MAX_TASK_NAME = 32
MAX_SCHEMA_NAME = 64
"""OpenAI's limit on the name of a JSON schema; ours are `<task>-instances-<variant>`."""
RESERVED_FIELDS = ("key", "task", "label", "label_before_correction", "provenance")
"""Keys that stand beside the fields in a row."""
JUDGED_KEYS = ("id", "explanation")
"""Keys that stand beside the fields in what a judge is shown."""
EXPLANATION = "explanation"

_NAME = re.compile(r"[a-z][a-z0-9_]*")
_VARIANT = re.compile(r"[A-Za-z0-9_-]+")


def read_task(folder: Path) -> tuple[Task | None, list[Fault]]:
    """The task, or None where it has faults; and the faults, sorted by file, line and column."""
    report = Report(folder)
    if not (folder / TASK_FILE).is_file():
        report.add(TASK_FILE, 1, 1, "there is no such file")
        return None, report.faults
    files = dict(read_files(folder, report))
    texts = dict(read_texts(files, report))
    spec = read_spec(texts[TASK_FILE], report) if TASK_FILE in texts else None
    if spec is not None:
        _check_names(spec, report)
        _check_fields(spec, report)
        check_label(spec, report)
        _check_instances(spec, report)
        _check_axes(spec, report)
        _check_words(spec, report)
    templates = _check_templates(spec, texts, report)
    if spec is None or report.faults:
        return None, sorted(set(report.faults))
    digest = sha256()
    for name, data in sorted(files.items()):
        digest.update(f"{len(name.encode())}:{name}:{len(data)}:".encode() + data)
    parts = {name: getattr(spec, name) for name in TaskFile.__struct_fields__}
    task = Task(**parts, templates=templates, digest=digest.hexdigest(), folder=str(folder))
    return task, []


def _check_names(spec: TaskFile, report: Report) -> None:
    named: dict[TomlPath, Iterable[str]] = {
        ("fields",): spec.fields,
        ("instances", "outputs"): spec.instances.outputs,
        **{(stage, "axes"): getattr(spec, stage).axes for stage in STAGES},
    }
    for path, names in named.items():
        for name in names:
            if not _NAME.fullmatch(name):
                report.at((*path, name), "a name is small letters, digits and _, a letter first")
    if not _NAME.fullmatch(spec.name) or len(spec.name) > MAX_TASK_NAME:
        what = f"at most {MAX_TASK_NAME} small letters, digits and _, a letter first"
        report.at(("name",), f"a task's name is {what}")
    if spec.name != (folder := report.folder.absolute().resolve().name):
        report.at(("name",), f"is {spec.name!r}, but the folder is called {folder!r}")


def _check_fields(spec: TaskFile, report: Report) -> None:
    outputs, axes = spec.instances.outputs, (*spec.instances.axes, *spec.seeds.axes)
    slots = spec.placement.slots if spec.placement else ()
    for name, part in spec.fields.items():
        path = ("fields", name)
        if name in RESERVED_FIELDS or name in JUDGED_KEYS:
            report.at(path, "the name is taken by a key of every row or of what a judge sees")
        source = (*path, "source")
        made = name in outputs or part.outputs or broken_outputs(report)
        if part.source == "output" and not made:
            report.at(source, f"there is no output {name!r} (outputs: {known(outputs)})")
        if part.source == "slot" and name not in slots:
            report.at(source, f"{name!r} is no slot of [placement] (slots: {known(slots)})")
        if part.source == "axis" and name not in axes:
            report.at(source, f"there is no instances or seeds axis {name!r} (axes: {known(axes)})")
    if not spec.fields:
        report.at(("fields",), "a task needs a field or more")
    for index, name in enumerate(spec.correction.show):
        if name not in spec.fields:
            place = ("correction", "show", index)
            report.at(place, f"there is no field {name!r} (fields: {known(spec.fields)})")


def _check_instances(spec: TaskFile, report: Report) -> None:
    outputs = spec.instances.outputs
    fed = {
        output
        for name, part in spec.fields.items()
        if part.source == "output"
        for output in part.outputs or (name,)
    }
    fed |= {spec.answer.output} if spec.answer else set()
    if spec.placement:
        fed |= {spec.placement.right, *spec.placement.wrong}
    certain = not any(path[0] in ("fields", "placement", "answer") for path in report.bad)
    for name in outputs:
        if certain and name not in fed and name != EXPLANATION:
            report.at(("instances", "outputs", name), "feeds no field and no placement")
    if not set(outputs) - {EXPLANATION}:
        report.at(("instances", "outputs"), "the model must be asked for something")
    for key in ("distinct_on", "lists"):
        for index, name in enumerate(getattr(spec.instances, key)):
            if name not in outputs and not broken_outputs(report):
                path: TomlPath = ("instances", key, index)
                report.at(path, f"there is no output {name!r} (outputs: {known(outputs)})")
    if spec.answer and spec.answer.output in spec.instances.lists:
        report.at(("answer", "output"), "is a list; an answer is one text")
    for index, name in enumerate(spec.instances.validators):
        path = ("instances", "validators", index)
        if name not in VALIDATORS:
            report.at(path, f"there is no validator {name!r} (known: {known(VALIDATORS)})")
        elif lacking := [part for part in VALIDATED_FIELDS[name] if part not in spec.fields]:
            report.at(path, f"{name!r} reads fields the task does not have: {known(lacking)}")
    _check_variants(spec, report)


def _check_variants(spec: TaskFile, report: Report) -> None:
    by, axes = spec.instances.template_by, spec.instances.axes
    if by is not None and by != "label" and by not in axes:
        path = ("instances", "template_by")
        if not report.is_bad(("instances", "axes")):
            report.at(path, f"{by!r} is neither `label` nor an instances axis ({known(axes)})")
        return
    longest = MAX_SCHEMA_NAME - len(f"{spec.name[:MAX_TASK_NAME]}-instances-")
    for index, variant in enumerate(variants(spec.labels, spec.instances) if by else ()):
        if not _VARIANT.fullmatch(variant) or len(variant) > longest:
            place: TomlPath = ("instances", "axes", str(by), index)
            what = f"names a template: at most {longest} letters, digits, `_` and `-`"
            report.at(("labels", variant) if by == "label" else place, f"{variant!r} {what}")


def _check_axes(spec: TaskFile, report: Report) -> None:
    for stage in STAGES:
        for name, values in getattr(spec, stage).axes.items():
            path = (stage, "axes", name)
            if name in fixed_placeholders(stage, spec):
                report.at(path, f"the name is taken by the placeholder {{{{ {name} }}}}")
            if not values:
                report.at(path, "an axis needs a value or more")
            for index, value in enumerate(values):
                if not value.strip():
                    report.at((*path, index), "the value is empty")
                elif value in values[:index]:
                    report.at((*path, index), f"{value!r} is there twice")


def _check_words(spec: TaskFile, report: Report) -> None:
    bounds: list[tuple[TomlPath, Words | None]] = [
        (("contexts", "words"), spec.contexts.words),
        (("seeds", "words"), spec.seeds.words),
        *((("fields", name, "words"), part.words) for name, part in spec.fields.items()),
    ]
    for path, words in bounds:
        if words and words[0] > words[1]:
            report.at(path, f"the least, {words[0]}, is more than the most, {words[1]}")
    least, most = spec.seeds.words
    for name, part in spec.fields.items():
        if (
            part.source == "seed"
            and not report.is_bad(("fields", name, "source"))
            and part.words
            and not (part.words[0] <= least and most <= part.words[1])
        ):
            what = f"lets {least} to {most} words pass, but the field {name} takes {part.words[0]}"
            report.at(("seeds", "words"), f"{what} to {part.words[1]}")


def _check_templates(
    spec: TaskFile | None, texts: Mapping[str, str], report: Report
) -> dict[str, Template]:
    """The templates by `<stage>` or `<stage>.<variant>`; what is missing or unused is reported."""
    certain = spec is not None and _sure_of_variants(spec, report)
    keys = {str(stage): f"{stage}.txt" for stage in STAGES if stage != "instances"}
    if spec is not None:
        for variant in variants(spec.labels, spec.instances):
            key = f"instances.{variant}" if variant else "instances"
            keys[key] = f"{key}.txt"
    faulty = {fault.path for fault in report.faults}
    templates: dict[str, Template] = {}
    for name, text in texts.items():
        if name == TASK_FILE:
            continue
        key = name.removesuffix(".txt")
        stage = next((s for s in STAGES if key.split(".")[0] == s), None)
        if key in keys or (stage and not certain):
            templates[key] = Template.parse(str(report.folder / name), text)
            _check_template(name, text, stage or "instances", spec, report)
        else:
            report.add(name, 1, 1, f"no stage uses this file (used: {known(keys.values())})")
    for key, name in keys.items():
        unsure = key.startswith("instances") and not certain
        if key not in templates and str(report.folder / name) not in faulty and not unsure:
            report.add(name, 1, 1, "there is no such file")
    if spec is not None and certain and set(keys) <= set(templates):
        _check_use(spec, templates, report)
    return dict(sorted(templates.items()))


def _sure_of_variants(spec: TaskFile, report: Report) -> bool:
    """Whether it can be told which instance templates the task means to have."""
    by, axis = spec.instances.template_by, ("instances", "axes", str(spec.instances.template_by))
    unknown = by is not None and by != "label" and by not in spec.instances.axes
    parts: tuple[TomlPath, ...] = (("labels",), ("instances", "template_by"), axis)
    broken = any(path[:3] == axis for path in report.bad) or any(map(report.is_bad, parts))
    return not unknown and not broken


def _check_template(
    name: str, text: str, stage: StageName, spec: TaskFile | None, report: Report
) -> None:
    """One template: what stands in braces, what is needed, and the characters."""
    names = placeholders(stage, spec) if spec else None
    used: set[str] = set()
    for number, line in enumerate(text.split("\n"), 1):
        if line.startswith(COMMENT):
            continue
        if unfit := UNFIT.search(line):
            report.add(name, number, unfit.start() + 1, f"has the character U+{ord(unfit[0]):04X}")
        for opening in re.finditer(r"\{\{", line):
            column = opening.start() + 1
            if (found := PLACEHOLDER.match(line, opening.start())) is None:
                report.add(name, number, column, "`{{` must open a placeholder: {{ name }}")
            elif names is None or found[1] in names:
                used.add(found[1])
            elif not report.is_bad((stage, "axes")):
                close = get_close_matches(found[1], names, n=1)
                hint = f"did you mean {close[0]}? " if close else ""
                what = f"there is no placeholder {found[1]!r} here"
                report.add(name, number, column, f"{what} ({hint}known: {known(names)})")
    for needed in needed_placeholders(stage, spec) if spec else ():
        if needed not in used:
            report.add(name, 1, 1, f"{{{{ {needed} }}}} is never used, but {stage} need it")


def _check_use(spec: TaskFile, templates: Mapping[str, Template], report: Report) -> None:
    """What the templates leave out: an axis without effect, a label the model is never told."""
    by = spec.instances.template_by
    for stage in STAGES:
        used = {
            name
            for key, template in templates.items()
            if key.split(".")[0] == stage
            for name in template.placeholders
        }
        if stage == "instances":
            used |= {name for name, part in spec.fields.items() if part.source == "axis"}
            used.add(by or "")
            fixed = spec.answer or spec.placement or (spec.group and spec.group.labels)
            if by != "label" and not fixed and not used & {"label", "label_meaning"}:
                mend = 'use {{ label }}, template_by = "label" or [placement]'
                report.at(("instances",), f"the model is never told the label: {mend}")
        for axis in getattr(spec, stage).axes:
            if axis not in used:
                report.at((stage, "axes", axis), f"no {stage} template uses {{{{ {axis} }}}}")
