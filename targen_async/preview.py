"""`targen render`: what would be sent for a task, without sending anything."""

from targen_async.tasks import Task, load_task

_STAND_INS = {"seed": "<a seed>", "context": "<a context>", "items": "<one JSON object a row>"}


def render_task(name_or_path: str, only: str | None) -> str:
    """Every prompt of a task with its first attribute values and stand-ins for model text."""
    task = load_task(name_or_path)
    parts: list[str] = []
    for key, template in task.templates.items():
        stage, _, variant = key.partition(".")
        if only is None or stage == only:
            text = template.render(_values(task, stage, variant))
            parts.append(f"=== {key} ({template.path})\n[system]\n{task.system}\n[user]\n{text}\n")
    return "\n".join(parts)


def _values(task: Task, stage: str, variant: str) -> dict[str, str]:
    spec = getattr(task, stage)
    axes = dict(spec.axes)
    if stage == "instances":
        axes = {**task.contexts.axes, **task.seeds.axes, **axes}
    values = {name: choices[0] for name, choices in axes.items()}
    label = next(iter(task.labels), "")
    if stage == "instances":
        by = task.instances.template_by
        if by == "label":
            label = variant
        elif by:
            values[by] = variant
    return {
        "description": task.description,
        "count": str(getattr(spec, "per_call", "")),
        "label": label,
        "label_meaning": task.labels.get(label, ""),
        "position": task.classes[0],
        "labels": "\n".join(f"- {name}: {about}" for name, about in task.labels.items()),
        **_STAND_INS,
        **values,
    }
