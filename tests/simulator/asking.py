"""Requests as the engine makes them, and rows as it lays them out, for the simulator's tests."""

import json
import random
from collections.abc import Mapping, Sequence
from typing import Any

from targen_async.parse import list_form, outputs_form, verdicts_form
from targen_async.records import ChatRequest, Message
from targen_async.simulator import SimulatedAnswer, SimulatorSettings, answer
from targen_async.tasks import Task, load_task

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
    axes = {
        name: random.Random(f"{seed}{name}").choice(options)
        for name, options in getattr(task, stage).axes.items()
    }
    form = {
        "contexts": list_form("contexts"),
        "seeds": list_form("seeds"),
        "instances": outputs_form(tuple(task.instances.outputs)),
        "correction": verdicts_form(tuple(task.labels)),
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
    """One generated row: its texts, the label asked for, and what the answer's faults were."""

    def __init__(
        self,
        label: str,
        fields: dict[str, str],
        outputs: dict[str, str],
        faults: tuple[str, ...] = (),
    ) -> None:
        self.label, self.fields, self.outputs, self.faults = label, fields, outputs, faults


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
    """One row, its position placed by the label as the engine does."""
    axis = ["cause", "effect"][seed // 2 % 2]
    values = {
        "context": context,
        "seed": seed_text,
        "label": label,
        "label_meaning": task.labels[label],
    }
    if task.name == "copa":
        values["question"] = axis
    variant = {"": "", "label": label, "question": axis}[task.instances.template_by or ""]
    asked = request(task, "instances", values, variant=variant, seed=seed)
    said = answer(asked, settings)
    outputs = content(said)
    fields: dict[str, str] = {}
    for name, spec in task.fields.items():
        if spec.source == "seed":
            fields[name] = seed_text
        elif spec.source == "output":
            fields[name] = outputs[name]
        elif spec.source == "axis":
            fields[name] = values[name]
        elif spec.source == "slot":
            fields[name] = outputs["right" if name == label else "wrong"]
    return Made(label, fields, outputs, said.faults)


def make_rows(task_name: str, count: int, settings: SimulatorSettings = HONEST) -> list[Made]:
    """Rows as a run would make them: 200 contexts, labels in turn, rows_per_seed rows a seed."""
    task = load_task(task_name)
    contexts = make_contexts(task, min(200, max(10, count // 5 // 10 * 10)), settings)
    per_seed = task.instances.rows_per_seed
    seeds = make_seeds(task, contexts, -(-count // per_seed), settings)
    labels = list(task.labels)
    return [
        make_row(
            task,
            *seeds[number // per_seed],
            labels[number % len(labels)],
            seed=number,
            settings=settings,
        )
        for number in range(count)
    ]
