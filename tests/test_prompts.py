"""The shipped tasks: sound, fair between their labels, and free of rows of the data sets."""

import json
import re
from itertools import chain
from pathlib import Path

import pytest

from targen_async.tasks import Task, check_task, list_tasks, load_task, prompts_root

REPO = Path(__file__).resolve().parents[1]
SUPERGLUE = REPO.parent / "shared" / "superglue"
TASKS = list_tasks()


def _examples(text: str) -> list[dict[str, str]]:
    """The worked examples of a template: its lines that are a JSON object."""
    return [json.loads(line) for line in text.splitlines() if line.startswith("{")]


def _texts(task: Task) -> dict[str, str]:
    return {key: template.text for key, template in task.templates.items()}


def test_the_first_three_tasks_are_shipped() -> None:
    assert {"boolq", "cb", "copa"} <= set(TASKS)


@pytest.mark.parametrize("name", TASKS)
def test_a_shipped_task_has_no_fault(name: str) -> None:
    assert check_task(name) == []


@pytest.mark.parametrize("name", TASKS)
def test_every_prompt_can_be_read_back(name: str) -> None:
    task = load_task(name)
    for template in task.templates.values():
        values = {part: f"<{part} {{{{ seed }}}}\n- 1>" for part in template.placeholders}
        prompt = template.render(values)
        assert template.match(prompt) == values
        others = (other for other in task.templates.values() if other is not template)
        assert all(other.match(prompt) is None for other in others)


@pytest.mark.parametrize("name", TASKS)
def test_templates_name_the_keys_and_the_count_they_ask_for(name: str) -> None:
    task = load_task(name)
    for key, text in _texts(task).items():
        stage = key.partition(".")[0]
        keys = {
            "contexts": ["contexts"],
            "seeds": ["seeds"],
            "instances": list(task.instances.outputs),
            "correction": ["items", "id", "explanation", "label", "none"],
        }[stage]
        assert [part for part in keys if f'"{part}"' not in text] == []
        if stage in ("contexts", "seeds"):
            assert "exactly {{ count }}" in text


@pytest.mark.parametrize("name", TASKS)
def test_what_changes_from_call_to_call_stands_in_the_last_third(name: str) -> None:
    """Endpoints cache the common beginning of prompts."""
    for key, text in _texts(load_task(name)).items():
        first = re.search(r"\{\{ (?!description|labels|count)", text)
        assert first, key
        share = first.start() / len(text)
        assert share > 2 / 3, (key, share)


@pytest.mark.parametrize("name", TASKS)
def test_worked_examples_have_the_keys_and_pass_the_checks(name: str) -> None:
    task = load_task(name)
    variants = [key for key in task.templates if key.startswith("instances")]
    for key in variants:
        examples = _examples(task.templates[key].text)
        assert examples, key
        for example in examples:
            assert list(example) == list(task.instances.outputs)
            for field, spec in task.fields.items():
                for output in spec.outputs or (field,):
                    if spec.source == "output" and spec.words:
                        least, most = spec.words
                        text = example[output]
                        words = (text if isinstance(text, str) else " ".join(text)).split()
                        assert least <= len(words) <= most


@pytest.mark.parametrize("name", TASKS)
def test_no_real_row_stands_in_a_prompt(name: str) -> None:
    if not SUPERGLUE.is_dir():
        pytest.skip(f"the real rows are not there: {SUPERGLUE}")
    folder = next((f for f in SUPERGLUE.iterdir() if f.name.lower().replace("-", "") == name), None)
    if folder is None:
        pytest.skip(f"no real rows of {name} in {SUPERGLUE}")
    task = load_task(name)
    written = " ".join(chain(_texts(task).values(), *_axis_values(task))).casefold()
    for file in folder.glob("*.jsonl"):
        for line in file.read_text("utf-8").splitlines():
            for text in json.loads(line).values():
                if isinstance(text, str) and len(text.split()) > 3:
                    assert text.casefold().strip(". ?") not in written


def _axis_values(task: Task) -> list[tuple[str, ...]]:
    stages = (task.contexts, task.seeds, task.instances, task.correction)
    return [values for stage in stages for values in stage.axes.values()]


@pytest.mark.parametrize("name", TASKS)
def test_there_is_variety_to_draw_from(name: str) -> None:
    task = load_task(name)
    assert 12 <= len(task.contexts.axes["domain"]) <= 24
    assert all(2 <= len(values) <= 24 for values in _axis_values(task))
    assert task.seeds.axes
    assert task.instances.axes


@pytest.mark.parametrize("name", TASKS)
def test_answers_fit_in_max_tokens(name: str) -> None:
    """A word is at most about one and a half tokens; a fifth is left for the JSON around."""
    task = load_task(name)
    for stage in (task.contexts, task.seeds):
        assert stage.per_call * stage.words[1] * 1.5 * 1.2 <= stage.max_tokens


def test_copa_templates_never_speak_of_positions_or_labels() -> None:
    task = load_task("copa")
    for variant in task.variants():
        text = task.template("instances", variant).text.casefold()
        assert not re.search(r"\bchoice ?[12]\b|\bfirst\b|\bsecond\b|\blabel\b|\{\{ label", text)


@pytest.mark.parametrize("name", ["axb", "axg", "boolq", "cb", "rte", "wic"])
def test_each_label_has_its_own_prompt(name: str) -> None:
    task = load_task(name)
    assert task.variants() == tuple(task.labels)
    texts = {task.template("instances", label).digest for label in task.labels}
    assert len(texts) == len(task.labels)


def test_seeds_fit_the_field_they_fill() -> None:
    for task in map(load_task, TASKS):
        for spec in task.fields.values():
            if spec.source == "seed" and spec.words:
                assert spec.words[0] <= task.seeds.words[0]
                assert task.seeds.words[1] <= spec.words[1]


def test_the_readmes_example_is_a_sound_task(tmp_path: Path) -> None:
    readme = (prompts_root() / "README.md").read_text("utf-8")
    files = re.findall(r"^`(mood/[a-z.]+)`\n\n```\w+\n(.*?)^```$", readme, re.M | re.S)
    assert len(files) == 5
    for name, text in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text, "utf-8")
    assert check_task(tmp_path / "mood") == []
    task = load_task(tmp_path / "mood")
    assert "##" not in task.template("contexts").text
