"""Requests as the engine makes them, and rows as it lays them out, for the simulator's tests."""

import json
import random
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from targen_async.parse import list_form, outputs_form, verdicts_form
from targen_async.records import ChatRequest, Message
from targen_async.simulator import SimulatedAnswer, SimulatorSettings, answer
from targen_async.tasks import GOOD, Task, load_task

HONEST = SimulatorSettings()
SMALL = SimulatorSettings(lexicon="small")


def request(
    task: Task,
    stage: str,
    values: Mapping[str, str],
    *,
    variant: str = "",
    seed: int = 0,
    plain: bool = False,
    max_tokens: int = 8192,
) -> ChatRequest:
    """A request of one stage. Axes that `values` leaves out get a value by the seed."""
    axes = axes_of(task, stage, seed)
    free = task.answer is not None and task.answer.kind == "free"
    form = {
        "contexts": list_form("contexts"),
        "seeds": list_form("seeds"),
        "instances": outputs_form(tuple(task.instances.outputs), task.instances.lists),
        "correction": verdicts_form((GOOD,) if free else tuple(task.labels)),
    }[stage]
    template = task.templates[f"{stage}.{variant}" if variant else stage]
    text = template.render({"description": task.description, **axes, **values})
    if plain:
        text += f"\n\nAnswer with one JSON object and nothing else: {form.example}"
    return ChatRequest(
        key="",
        model="simulated",
        messages=(
            Message(role="system", content=task.system),
            Message(role="user", content=text),
        ),
        temperature=0.7,
        max_tokens=max_tokens,
        seed=seed,
        schema_name=None if plain else "-".join(p for p in (task.name, stage, variant) if p),
        json_schema=None if plain else form.schema,
    )


def axes_of(task: Task, stage: str, seed: int) -> dict[str, str]:
    """A value for every axis that a template of the stage may name, by the seed."""
    stages = ("contexts", "seeds", "instances") if stage == "instances" else (stage,)
    return {
        name: random.Random(f"{seed}{name}").choice(options)
        for of in stages
        for name, options in getattr(task, of).axes.items()
    }


def correction_request(
    task: Task, rows: Sequence[Mapping[str, str]], *, seed: int = 0, plain: bool = False
) -> ChatRequest:
    shown = task.correction.show or tuple(task.fields)
    items = [
        {"id": f"r{number}", **{name: row[name] for name in shown}}
        for number, row in enumerate(rows)
    ]
    values = {
        "items": "\n".join(json.dumps(item, ensure_ascii=False) for item in items),
        "labels": "\n".join(f"- {name}: {about}" for name, about in task.labels.items()),
    }
    return request(task, "correction", values, seed=seed, plain=plain)


def content(said: SimulatedAnswer) -> Any:
    return json.loads(said.text)


class Made:
    """One generated row: its texts, its label before correction, and the answer's faults."""

    def __init__(
        self,
        label: str,
        fields: dict[str, str],
        outputs: dict[str, str],
        faults: tuple[str, ...] = (),
        planned: str = "",
        member: int = 0,
    ) -> None:
        self.label, self.fields, self.outputs, self.faults = label, fields, outputs, faults
        self.planned, self.member = planned, member
        """The quota class asked for, and the row's place in its group."""


def make_contexts(task: Task, count: int, settings: SimulatorSettings = HONEST) -> list[str]:
    found: list[str] = []
    for seed in range(count // 10):
        asked = request(task, "contexts", {"count": "10"}, seed=seed)
        found += content(answer(asked, settings))["contexts"]
    return found


def make_seeds(
    task: Task, contexts: Sequence[str], count: int, settings: SimulatorSettings = HONEST
) -> list[tuple[str, str]]:
    """(context, seed text) pairs, contexts in turn."""
    found: list[tuple[str, str]] = []
    number = 0
    while len(found) < count:
        context = contexts[number % len(contexts)]
        values = {"count": str(task.seeds.per_call), "context": context}
        texts = content(answer(request(task, "seeds", values, seed=number), settings))["seeds"]
        found += [(context, text) for text in texts]
        number += 1
    return found[:count]


def make_row(
    task: Task,
    context: str,
    seed_text: str,
    label: str,
    *,
    seed: int,
    settings: SimulatorSettings = HONEST,
) -> Made:
    """One row, or the first of its group."""
    return make_group(task, context, seed_text, label, seed=seed, settings=settings)[0]


def make_group(
    task: Task,
    context: str,
    seed_text: str,
    planned: str,
    *,
    seed: int,
    settings: SimulatorSettings = HONEST,
) -> list[Made]:
    """The rows of one call, as the engine lays them out; most often one.

    `planned` is a label, or the position of an open one.
    """
    axes = axes_of(task, "instances", seed)
    by = task.instances.template_by
    if by and by != "label":
        axes[by] = task.variants()[seed // 2 % len(task.variants())]
    values = {
        **axes,
        "context": context,
        "seed": seed_text,
        "label": planned,
        "label_meaning": task.labels.get(planned, ""),
        "position": planned,
    }
    variant = "" if by is None else planned if by == "label" else axes[by]
    said = answer(request(task, "instances", values, variant=variant, seed=seed), settings)
    form = outputs_form(tuple(task.instances.outputs), task.instances.lists)
    msgspec.json.decode(said.text, type=form.type)
    outputs = {
        name: "\n".join(value) if isinstance(value, list) else value
        for name, value in content(said).items()
    }
    labels = (task.group and task.group.labels) or (planned,) * task.rows_per_call
    rows: list[Made] = []
    for member, label in enumerate(labels):
        fields: dict[str, str] = {}
        for name, spec in task.fields.items():
            if spec.source == "seed":
                fields[name] = seed_text
            elif spec.source == "output":
                fields[name] = outputs[spec.outputs[member] if spec.outputs else name]
            elif spec.source == "axis":
                fields[name] = axes[name]
            elif spec.source == "slot":
                fields[name] = outputs["right" if name == label else "wrong"]
        known = outputs[task.answer.output] if task.answer else label
        rows.append(Made(known, fields, outputs, said.faults, planned, member))
    return rows


def make_rows(task_name: str, count: int, settings: SimulatorSettings = HONEST) -> list[Made]:
    """Rows as a run would make them: 200 contexts, labels in turn, rows_per_seed rows a seed."""
    task = load_task(task_name)
    contexts = make_contexts(task, min(200, max(10, count // 5 // 10 * 10)), settings)
    per_call = task.rows_per_call
    calls = -(-count // per_call)
    per_seed = task.instances.rows_per_seed // per_call
    seeds = make_seeds(task, contexts, -(-calls // per_seed), settings)
    rows: list[Made] = []
    for number in range(calls):
        planned = task.classes[number % len(task.classes)]
        found = make_group(
            task, *seeds[number // per_seed], planned, seed=number, settings=settings
        )
        rows += found
    return rows[:count]


def distinct_text(task: Task, row: Made) -> str:
    """What is compared between rows: of outputs that differ in a group, the row's own."""
    others = {
        output
        for spec in task.fields.values()
        for member, output in enumerate(spec.outputs)
        if member != row.member
    }
    names = [name for name in task.instances.distinct_on if name not in others]
    return "\n".join(row.outputs[name] for name in names)
