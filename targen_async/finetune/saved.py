"""A trained model as a folder that `from_pretrained` loads anywhere, with a model card.

Beside what transformers writes stands `targen.json`: what an evaluation needs to put examples the
way they were put in training.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from targen_async.errors import UserError
from targen_async.finetune.config import ModelChoice, TrainConfig
from targen_async.finetune.forms import form_digest
from targen_async.finetune.instructions import Instruction, instruction_digest
from targen_async.finetune.lora import merge_lora
from targen_async.finetune.metrics import Report
from targen_async.finetune.models import Model
from targen_async.finetune.prepare import Prepared

FACTS = "targen.json"
CARD = "README.md"


class Facts(Struct, frozen=True, kw_only=True):
    """How a model was trained, as far as an evaluation has to do the same."""

    model: ModelChoice
    instructions: Mapping[str, Instruction] = {}
    templates: Mapping[str, str] = {}
    """Digest of each task's form: of an instruction without its examples, so that it is the same
    for synthetic and original rows."""
    instruction_digest: str | None = None
    """Of all instructions with their examples, where there are any."""


def save_model(
    folder: Path,
    model: Model,
    weights: Mapping[str, Any],
    config: TrainConfig,
    prepared: Prepared,
) -> None:
    """Config, weights as safetensors, tokenizer, `targen.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    plain = merge_lora(model.network, weights)
    model.network.save_pretrained(str(folder), state_dict=plain)
    model.tokenizer.save_pretrained(str(folder))
    told = prepared.instructions
    facts = Facts(
        model=config.model,
        instructions=told,
        templates={task: _template_of(task, config, prepared) for task in prepared.tasks},
        instruction_digest=instruction_digest(list(told.values())) if told else None,
    )
    (folder / FACTS).write_bytes(msgspec.json.format(msgspec.json.encode(facts)))


def _template_of(task: str, config: TrainConfig, prepared: Prepared) -> str:
    """The digest of how a task was put in training."""
    if task in prepared.instructions:
        return prepared.instructions[task].template_digest
    return form_digest(task, config.model.family)


def read_facts(folder: Path) -> Facts | None:
    """What `save_model` left; None where another program saved the model.

    Raises UserError where the file is damaged.
    """
    path = folder / FACTS
    if not path.is_file():
        return None
    try:
        return msgspec.json.decode(path.read_bytes(), type=Facts)
    except msgspec.DecodeError as error:
        raise UserError(f"{path} is damaged: {error}") from error


def write_card(
    folder: Path,
    config: TrainConfig,
    prepared: Prepared,
    reports: Mapping[str, Report],
    figures: Mapping[str, Any],
) -> None:
    """The model card: data with its digests, figures with intervals and baselines, settings."""
    begun = "random weights" if config.model.init == "config" else f"`{config.model.init}`"
    lines = ["---", "library_name: transformers", "tags: [targen-async]", "---", ""]
    lines += [f"# {config.model.family} trained on {', '.join(prepared.tasks)}", ""]
    if prepared.simulated:
        lines += ["**Rows of a simulated endpoint are among its training data.**", ""]
    if config.lora:
        begun += f", with adapters of rank {config.lora.rank} that were added to the weights"
    lines += [f"Begun from {begun}. Trained by targen-async; `{FACTS}` says how it was asked.", ""]
    lines += ["## Data", "", "| use | task | source | rows | SHA-256 of the content | manifest |"]
    lines += ["|---|---|---|---|---|---|"]
    for one in prepared.sources:
        place = Path(one["source"]).name
        manifest = (one["manifest_sha256"] or "none")[:16]
        cells = (one["use"], one["task"], place, one["rows"], one["digest"][:16], manifest)
        lines.append(f"| {' | '.join(map(str, cells))} |")
    for task in prepared.tasks:
        lines += ["", f"Template of {task}: `{_template_of(task, config, prepared)}`."]
    if told := prepared.instructions:
        lines += ["", f"Instructions with examples: `{instruction_digest(list(told.values()))}`."]
    if reports:
        lines += ["", "## Validation", ""]
        lines += ["| task | metric | value | 95 % interval | majority | items |"]
        lines += ["|---|---|---|---|---|---|"]
        lines += report_rows(reports)
    lines += ["", "## Training", "", *(f"- {name}: {value}" for name, value in figures.items())]
    settings = msgspec.json.format(msgspec.json.encode(config.training)).decode()
    lines += ["", "```json", settings, "```", ""]
    (folder / CARD).write_text("\n".join(lines), "utf-8")


def report_rows(reports: Mapping[str, Report]) -> list[str]:
    """A Markdown row for every metric of every task."""
    return [
        f"| {task} | {score.name} | {score.value:.3f} | {score.low:.3f} to {score.high:.3f} | "
        f"{score.baseline:.3f} | {report.items} |"
        for task, report in reports.items()
        for score in report.scores
    ]


def told(report: Report) -> str:
    """The figures of a task in one line."""
    scores = (
        f"{s.name} {s.value:.3f} [{s.low:.3f}, {s.high:.3f}] (majority {s.baseline:.3f})"
        for s in report.scores
    )
    return f"{', '.join(scores)}, {report.items} items"
