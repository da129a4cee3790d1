"""Checks what carries the label in task.toml: [labels] or [answer], [placement] and [group]."""

from collections.abc import Iterable

from targen_async.taskread import Report, TomlPath
from targen_async.tasks import NO_LABEL
from targen_async.taskspec import TaskFile
from targen_async.validators import GROUP_VALIDATED_FIELDS, GROUP_VALIDATORS


def known(names: Iterable[str]) -> str:
    """Names for the end of a message."""
    return ", ".join(names) or "none"


def broken_outputs(report: Report) -> bool:
    """Is it unknown which outputs there are?"""
    return report.is_bad(("instances", "outputs"))


def check_label(spec: TaskFile, report: Report) -> None:
    """Every fault of the four tables."""
    _check_labels(spec, report)
    _check_answer(spec, report)
    _check_placement(spec, report)
    _check_group(spec, report)


def _check_labels(spec: TaskFile, report: Report) -> None:
    if spec.answer is not None:
        if spec.labels:
            report.at(("answer",), "goes with no [labels]: the label is one of a few, or open")
        return
    if not spec.labels and not report.is_bad(("labels",)):
        report.at(("labels",), "a task needs [labels], or [answer] where the label is open")
    elif len(spec.labels) < 2:
        report.at(("labels",), "a task needs two labels or more")
    seen: set[str] = set()
    for label in spec.labels:
        if label.casefold() == NO_LABEL:
            report.at(("labels", label), "is reserved for a judge that finds no label to fit")
        if not label.isprintable() or label != label.strip() or not label:
            report.at(("labels", label), "a label is printable text without blanks around it")
        if label.casefold() in seen:
            report.at(("labels", label), "another label differs only in capital letters")
        seen.add(label.casefold())


def _check_answer(spec: TaskFile, report: Report) -> None:
    if (answer := spec.answer) is None:
        return
    if answer.output not in spec.instances.outputs and not broken_outputs(report):
        what = f"there is no output {answer.output!r} (outputs: {known(spec.instances.outputs)})"
        report.at(("answer", "output"), what)
    needs = {
        "choices": answer.kind == "choice",
        "text": answer.kind != "free",
        "positions": answer.kind == "choice",
    }
    for name, needed in needs.items():
        value = getattr(answer, name)
        if needed and not value:
            report.at(("answer", name), f'is needed where kind = "{answer.kind}"')
        elif value and not needed:
            report.at(("answer", name), f'has no meaning where kind = "{answer.kind}"')
        elif value and name != "positions" and value not in spec.fields:
            what = f"there is no field {value!r} (fields: {known(spec.fields)})"
            report.at(("answer", name), what)
    if len(answer.positions) == 1 or len(set(answer.positions)) < len(answer.positions):
        report.at(("answer", "positions"), "needs two names or more, all different")
    if answer.kind == "free" and answer.output in spec.fields:
        path = ("fields", answer.output)
        report.at(path, "the name is taken by the answer, which a judge sees beside the fields")


def _check_placement(spec: TaskFile, report: Report) -> None:
    if (placement := spec.placement) is None:
        return
    slots, wrong, count = placement.slots, placement.wrong, len(spec.labels)
    if len(slots) != count and not report.is_bad(("labels",)):
        report.at(("placement", "slots"), f"has {len(slots)} slots for {count} labels")
    if len(wrong) != len(slots) - 1 and not report.is_bad(("placement", "slots")):
        what = f"has {len(wrong)} outputs, but {len(slots)} slots take one right and the rest wrong"
        report.at(("placement", "wrong"), what)
    for index, name in enumerate(slots):
        path: TomlPath = ("placement", "slots", index)
        if name not in spec.fields:
            report.at(path, f"there is no field {name!r} (fields: {known(spec.fields)})")
        elif spec.fields[name].source != "slot" and not report.is_bad(("fields", name, "source")):
            report.at(path, f'the field {name!r} must have source = "slot"')
        if name in slots[:index]:
            report.at(path, f"{name!r} is named twice")
    outputs = spec.instances.outputs
    placed: list[tuple[TomlPath, str]] = [(("placement", "right"), placement.right)]
    placed += [(("placement", "wrong", index), name) for index, name in enumerate(wrong)]
    for index, (path, name) in enumerate(placed):
        if name not in outputs and not broken_outputs(report):
            report.at(path, f"there is no output {name!r} (outputs: {known(outputs)})")
        if name in [other for _, other in placed[:index]]:
            report.at(path, f"{name!r} is named twice")


def _check_group(spec: TaskFile, report: Report) -> None:
    for name, part in spec.fields.items():
        _check_members(spec, name, part.outputs, report)
    if (group := spec.group) is None or report.is_bad(("group",)):
        return
    sized = not report.is_bad(("group", "size"))
    if sized and group.labels and len(group.labels) != group.size:
        what = f"names {len(group.labels)} labels for {group.size} rows"
        report.at(("group", "labels"), what)
    for index, label in enumerate(group.labels):
        if label not in spec.labels and not report.is_bad(("labels",)):
            what = f"there is no label {label!r} (labels: {known(spec.labels)})"
            report.at(("group", "labels", index), what)
    missing = [label for label in spec.labels if label not in group.labels]
    if group.labels and missing:
        report.at(("group", "labels"), f"no row would have the label {missing[0]!r}")
    if group.labels and spec.instances.template_by == "label":
        what = "a call writes rows of several labels: [group] has `labels`"
        report.at(("instances", "template_by"), what)
    if spec.placement:
        report.at(("group",), "goes with no [placement]: choose one")
    if sized and spec.instances.rows_per_seed % group.size:
        what = f"must be a multiple of the {group.size} rows that a call writes"
        report.at(("instances", "rows_per_seed"), what)
    if not any(part.outputs for part in spec.fields.values()):
        report.at(("group",), "all rows of a call would be the same: no field has `outputs`")
    for index, name in enumerate(group.validators):
        path: TomlPath = ("group", "validators", index)
        if name not in GROUP_VALIDATORS:
            report.at(path, f"there is no validator {name!r} (known: {known(GROUP_VALIDATORS)})")
        elif lacking := [f for f in GROUP_VALIDATED_FIELDS[name] if f not in spec.fields]:
            report.at(path, f"{name!r} reads fields the task does not have: {known(lacking)}")


def _check_members(spec: TaskFile, name: str, outputs: tuple[str, ...], report: Report) -> None:
    """The outputs of a field, one for each member of the group."""
    if not outputs:
        return
    path: TomlPath = ("fields", name, "outputs")
    if spec.fields[name].source != "output" and not report.is_bad(("fields", name, "source")):
        report.at(path, 'has no meaning but where source = "output"')
    if spec.group is None:
        report.at(path, "needs a [group] that says how many rows a call writes")
    elif len(outputs) != spec.group.size and not report.is_bad(("group", "size")):
        report.at(path, f"names {len(outputs)} outputs for {spec.group.size} rows")
    for index, output in enumerate(outputs):
        if output not in spec.instances.outputs and not broken_outputs(report):
            what = f"there is no output {output!r} (outputs: {known(spec.instances.outputs)})"
            report.at((*path, index), what)
        if output in outputs[:index]:
            report.at((*path, index), f"{output!r} is named twice")
