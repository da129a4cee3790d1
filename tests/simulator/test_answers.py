"""`answer` as a function: purity, recognition, content faults, unknown tasks."""

import json
from collections import Counter
from pathlib import Path

import msgspec
import pytest
from msgspec.structs import replace

from targen_async.parse import list_form, outputs_form, verdicts_form
from targen_async.records import ChatRequest, Message
from targen_async.simulator import SimulatedAnswer, SimulatorSettings, answer, filler
from targen_async.simulator.answers import GRAMMARS
from targen_async.simulator.recognise import recognise
from targen_async.tasks import GOOD, Task, load_task

from .asking import (
    HONEST,
    Made,
    content,
    correction_request,
    make_contexts,
    make_group,
    make_rows,
    make_seeds,
    request,
)

TASKS = tuple(GRAMMARS)
CONTEXT = "A family kitchen on a rainy Saturday with two old friends"


def four_stages(name: str, seed: int, plain: bool = False) -> list[ChatRequest]:
    task = load_task(name)
    row = make_rows(name, 10)[seed % 10]
    planned = row.planned
    by = task.instances.template_by
    variant = {None: "", "label": planned}.get(by, task.variants()[0])
    seed_text = next(iter(row.fields.values()))
    meaning = task.labels.get(planned, "")
    values = {"context": CONTEXT, "seed": seed_text, "label": planned, "label_meaning": meaning}
    values["position"] = planned
    if by and by != "label":
        values[by] = variant
    return [
        request(task, "contexts", {"count": "10"}, seed=seed, plain=plain),
        request(task, "seeds", {"count": "3", "context": CONTEXT}, seed=seed, plain=plain),
        request(task, "instances", values, variant=variant, seed=seed, plain=plain),
        correction_request(task, [row.fields], seed=seed, plain=plain),
    ]


@pytest.mark.parametrize("name", TASKS)
def test_equal_requests_get_equal_answers_and_another_seed_another(name: str) -> None:
    settings = SimulatorSettings(malformed=0.2, refusals=0.2, hostile=0.2)
    for asked in four_stages(name, 3)[:3]:
        assert answer(asked, settings) == answer(asked, settings)
        others = {answer(replace(asked, seed=seed), HONEST).text for seed in range(8)}
        assert len(others) > 2
        for other in (
            replace(asked, model="other"),
            replace(asked, temperature=0.1),
            replace(asked, max_tokens=8000),
        ):
            assert answer(other, HONEST).text != answer(asked, HONEST).text


def test_the_plan_key_and_the_memo_have_no_part_in_the_answer() -> None:
    asked = four_stages("cb", 1)[2]
    assert answer(replace(asked, key="cb/000001/0", memo=b"x" * 16), HONEST) == answer(
        asked, HONEST
    )


@pytest.mark.parametrize("name", TASKS)
def test_plain_mode_is_recognised_by_the_template(name: str) -> None:
    said = [answer(asked, HONEST) for asked in four_stages(name, 2, plain=True)]
    assert [one.stage for one in said] == ["contexts", "seeds", "instances", "correction"]
    assert len(content(said[0])["contexts"]) == 10
    assert len(content(said[1])["seeds"]) == 3
    assert set(content(said[2])) == set(load_task(name).instances.outputs)
    task = load_task(name)
    label = content(said[3])["items"][0]["label"]
    assert label in task.labels if task.labels else label not in ("", "none")
    for name in task.instances.lists:
        assert isinstance(content(said[2])[name], list)


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("name", TASKS)
def test_a_system_message_at_the_head_of_the_prompt_changes_nothing_of_what_is_asked(
    name: str, plain: bool
) -> None:
    head = load_task(name).system
    for asked in four_stages(name, 2, plain=plain):
        *_, last = asked.messages
        folded = Message(role="user", content=f"{head}\n\n{last.content}")
        assert recognise(replace(asked, messages=(folded,)), ()) == recognise(asked, ())


def test_a_prompt_of_no_task_gets_a_plain_answer() -> None:
    asked = replace(
        four_stages("cb", 1)[0],
        messages=(Message(role="user", content="Say OK."),),
        schema_name=None,
        json_schema=None,
    )
    said = answer(asked, HONEST)
    assert said.stage == "other" and "simulated" in said.text


@pytest.mark.parametrize(("free_text", "obeys"), [(0.0, True), (1.0, False)])
def test_a_question_of_no_task_obeys_its_schema_unless_the_model_ignores_schemas(
    free_text: float, obeys: bool
) -> None:
    form = list_form("words")
    asked = unknown("probe", "", "Answer with a JSON object.", dict(form.schema), 1)
    # The faults of single answers leave a probe alone, or it would tell of luck.
    settings = SimulatorSettings(free_text=free_text, malformed=1.0, refusals=1.0, truncation=1.0)
    said = answer(asked, settings)
    assert said.stage == "other" and said.finish_reason == "stop"
    if obeys:
        assert msgspec.json.decode(said.text, type=form.type).words
    else:
        assert "{" not in said.text and said.faults == ("free_text",)


def instance_answers(count: int, **rates: float) -> list[SimulatedAnswer]:
    asked = replace(four_stages("copa", 1)[2], max_tokens=100_000)
    settings = SimulatorSettings(**rates)  # type: ignore[arg-type]
    return [answer(replace(asked, seed=seed), settings) for seed in range(count)]


def share(said: list[SimulatedAnswer], fault: str) -> float:
    return sum(any(f.startswith(fault) for f in one.faults) for one in said) / len(said)


def test_no_faults_by_default() -> None:
    for one in instance_answers(100):
        assert one.faults == () and one.refusal is None and one.finish_reason == "stop"
        assert set(content(one)) == {"right", "wrong", "explanation"}


@pytest.mark.parametrize(
    "name", ["label_noise", "malformed", "refusals", "truncation", "free_text", "hostile"]
)
def test_a_fault_strikes_at_its_rate(name: str) -> None:
    assert 0.24 < share(instance_answers(1000, **{name: 0.3}), name) < 0.36
    assert share(instance_answers(50, **{name: 1.0}), name) == 1.0


def test_one_fault_does_not_change_the_answers_it_spares() -> None:
    sound, spoilt = instance_answers(200), instance_answers(200, malformed=0.3, hostile=0.2)
    for before, after in zip(sound, spoilt, strict=True):
        if not after.faults:
            assert before.text == after.text


def test_malformed_answers_are_malformed_in_every_way() -> None:
    kinds = Counter()
    form = outputs_form(("right", "wrong", "explanation"))
    for one in instance_answers(200, malformed=1.0):
        with pytest.raises((msgspec.DecodeError, msgspec.ValidationError)):
            msgspec.json.decode(one.text, type=form.type)
        kinds[one.faults[0]] += 1
    assert set(kinds) == {
        "malformed/cut",
        "malformed/missing_key",
        "malformed/wrong_type",
        "malformed/prose",
    }


def test_refusals_come_in_the_field_and_in_the_text() -> None:
    said = instance_answers(100, refusals=1.0)
    assert {bool(one.refusal) for one in said} == {True, False}
    for one in said:
        assert bool(one.text) != bool(one.refusal)


def test_truncation_and_max_tokens_end_with_length() -> None:
    for one in instance_answers(50, truncation=1.0):
        assert one.finish_reason == "length"
        with pytest.raises(json.JSONDecodeError):
            json.loads(one.text)
    asked = replace(four_stages("copa", 1)[2], max_tokens=20)
    said = answer(asked, HONEST)
    assert said.finish_reason == "length"
    assert said.usage.completion_tokens == 20 and len(said.text.encode()) <= 80


def test_free_text_is_a_numbered_list() -> None:
    asked = four_stages("cb", 1)[0]
    text = answer(asked, SimulatorSettings(free_text=1.0)).text
    assert "\n1. " in text and "\n10. " in text and "{" not in text


def test_hostile_values_are_still_json() -> None:
    seen = "".join(
        value for one in instance_answers(200, hostile=1.0) for value in content(one).values()
    )
    for sign in ("<script>", "\x00", "\u202e", "{{ name }}"):
        assert sign in seen
    assert len(seen) > 200_000


@pytest.mark.parametrize("rate", [0.0, 0.4, 1.0])
def test_missing_ids(rate: float) -> None:
    task, rows = load_task("cb"), make_rows("cb", 20)
    settings = SimulatorSettings(missing_ids=rate)
    kinds = Counter()
    for seed in range(300):
        said = answer(correction_request(task, [r.fields for r in rows[:8]], seed=seed), settings)
        ids = [item["id"] for item in content(said)["items"]]
        sound = ids == [f"r{n}" for n in range(8)]
        assert sound == (not said.faults)
        kinds.update(said.faults)
    assert abs(kinds.total() / 300 - rate) < 0.09
    if rate:
        assert set(kinds) == {f"missing_ids/{k}" for k in ("lacking", "doubled", "invented")}


def test_usage_counts_bytes() -> None:
    asked = four_stages("boolq", 1)[2]
    said = answer(asked, HONEST)
    size = sum(len(message.content.encode()) for message in asked.messages)
    assert abs(said.usage.prompt_tokens - size / 4) < 10
    assert said.usage.completion_tokens == -(-len(said.text.encode()) // 4)


# ---- tasks without a grammar


def unknown(
    stage: str, variant: str, prompt: str, schema: dict[str, object], seed: int
) -> ChatRequest:
    return ChatRequest(
        key="",
        model="m",
        messages=(Message(role="user", content=prompt),),
        temperature=0.7,
        max_tokens=50_000,
        seed=seed,
        schema_name="-".join(part for part in ("mood", stage, variant) if part),
        json_schema=schema,
    )


LABELS = ("cheerful", "gloomy", "angry")


@pytest.mark.parametrize("by_variant", [True, False])
def test_the_judge_recovers_the_labels_of_an_unknown_task(by_variant: bool) -> None:
    form = outputs_form(("headline", "text", "explanation"))
    rows, asked_for = [], []
    for seed in range(300):
        label = LABELS[seed % 3]
        prompt = "Write a review." if by_variant else f"Write a review.\nLabel: {label}\nSeed: x"
        variant = label if by_variant else ""
        said = answer(unknown("instances", variant, prompt, dict(form.schema), seed), HONEST)
        outputs = content(said)
        assert set(outputs) == {"headline", "text", "explanation"}
        rows.append({"id": f"i{seed}", "headline": outputs["headline"], "text": outputs["text"]})
        asked_for.append(label)
    lines = "Judge these.\n" + "\n".join(json.dumps(row) for row in rows)
    verdicts = verdicts_form(LABELS)
    said = answer(unknown("correction", "", lines, dict(verdicts.schema), 1), HONEST)
    assert [item["label"] for item in content(said)["items"]] == asked_for


def test_an_unknown_task_is_answered_in_the_form_that_its_prompt_shows() -> None:
    form = outputs_form(("line", "tags"), ("tags",))
    note = f"\n\nAnswer with one JSON object and nothing else: {form.example}"
    for prompt, schema in (("Write.", form.schema), (f"Write.{note}", None)):
        asked = replace(unknown("instances", "", prompt, {}, 1), json_schema=schema)
        value = msgspec.json.decode(answer(asked, HONEST).text, type=form.type)
        assert value.line and len(value.tags) > 1


def test_unknown_tasks_get_contexts_and_seeds() -> None:
    for stage in ("contexts", "seeds"):
        form = list_form(stage)
        asked = unknown(stage, "", "Write 12 things.", dict(form.schema), 1)
        texts = content(answer(asked, HONEST))[stage]
        assert len(set(texts)) == 12


def test_pseudo_words_of_a_label_never_change() -> None:
    assert filler.words_of("cheerful") == filler.words_of.__wrapped__("cheerful")
    assert len(set(filler.words_of("cheerful")) & set(filler.words_of("gloomy"))) <= 1


def test_a_folder_of_the_users_own_is_read_by_its_templates(tmp_path: Path) -> None:
    folder = tmp_path / "moods"
    folder.mkdir()
    (folder / "task.toml").write_text(
        'name = "moods"\nversion = 1\ndescription = "Moods."\nsystem = "You write."\n'
        '[labels]\nup = "a good mood"\ndown = "a bad mood"\n'
        '[fields]\nline = { source = "output", words = [3, 30] }\n'
        '[contexts]\n[seeds]\n[instances]\ndistinct_on = ["line"]\n'
        '[instances.outputs]\nline = "the line"\nexplanation = "why"\n[correction]\n'
    )
    (folder / "contexts.txt").write_text("{{ count }} settings as JSON, please.")
    (folder / "seeds.txt").write_text("{{ count }} seeds for {{ context }} as JSON.")
    (folder / "instances.txt").write_text(
        "Turn {{ seed }} in {{ context }} into a line; {{ label_meaning }} shall show. JSON."
    )
    (folder / "correction.txt").write_text("Labels:\n{{ labels }}\nJudge as JSON:\n{{ items }}")
    task = load_task(folder)
    settings = SimulatorSettings(task_folders=(str(folder),))
    rows = []
    for seed in range(40):
        label = ("up", "down")[seed % 2]
        values = {"seed": "a", "context": "b", "label_meaning": task.labels[label]}
        asked = request(task, "instances", values, seed=seed)
        line = content(answer(asked, settings))["line"]
        assert task.objection({"line": line}, label) is None
        rows.append({"line": line})
    items = content(answer(correction_request(task, rows), settings))["items"]
    assert [item["label"] for item in items] == ["up", "down"] * 20


OWN_TASKS = {
    "choice": """
        [answer]
        kind = "choice"
        output = "filler"
        choices = "candidates"
        text = "story"
        positions = ["first", "second", "third or later"]
        [fields]
        story = { source = "seed", words = [5, 200] }
        candidates = { source = "output", words = [2, 30] }
        gap = { source = "output", words = [4, 20] }
        [seeds]
        kind = "passage"
        words = [5, 200]
        [instances]
        lists = ["candidates"]
        distinct_on = ["gap"]
        [instances.outputs]
        candidates = "names"
        gap = "a sentence with a gap"
        filler = "what fills it"
        explanation = "why"
    """,
    "extract": """
        [answer]
        kind = "extract"
        output = "product"
        text = "review"
        [fields]
        review = { source = "output", words = [8, 40] }
        [instances]
        [instances.outputs]
        review = "a review"
        product = "what it is about"
    """,
    "free": """
        [answer]
        kind = "free"
        output = "reply"
        [fields]
        letter = { source = "seed", words = [1, 60] }
        tone = { source = "output", words = [1, 3] }
        [instances]
        [instances.outputs]
        tone = "how it sounds"
        reply = "an answer to the letter"
    """,
    "group": """
        [labels]
        up = "a good mood"
        down = "a bad mood"
        [group]
        size = 4
        whole = true
        labels = ["up", "down", "down", "up"]
        [fields]
        line = { source = "output", outputs = ["one", "two", "three", "four"], words = [4, 20] }
        topic = { source = "output", words = [3, 9] }
        tags = { source = "output", words = [4, 12] }
        [instances]
        rows_per_seed = 4
        lists = ["tags"]
        [instances.outputs]
        one = "a line"
        two = "another"
        three = "a third"
        four = "a fourth"
        topic = "what they share"
        tags = "some tags"
    """,
}
"""Tasks of users' own, as far as they differ; `own_task` adds the rest."""


def own_task(kind: str, folder: Path) -> tuple[Task, SimulatorSettings]:
    folder.mkdir()
    open_label = "[answer]" in OWN_TASKS[kind]
    place = "{{ position }}" if "positions" in OWN_TASKS[kind] else ""
    (folder / "task.toml").write_text(
        f'name = "{kind}"\nversion = 1\ndescription = "Own."\n' + OWN_TASKS[kind]
    )
    (folder / "contexts.txt").write_text("{{ count }} settings as JSON, please.")
    (folder / "seeds.txt").write_text("{{ count }} seeds for {{ context }} as JSON.")
    (folder / "instances.txt").write_text(f"Turn {{{{ seed }}}} into a row {place}. JSON.")
    labels = "" if open_label else "Labels:\n{{ labels }}\n"
    (folder / "correction.txt").write_text(labels + "Judge as JSON:\n{{ items }}")
    return load_task(folder), SimulatorSettings(task_folders=(str(folder),))


def own_rows(task: Task, settings: SimulatorSettings, count: int) -> list[list[Made]]:
    seeds = make_seeds(task, ["a harbour"], count, settings)
    return [
        make_group(
            task,
            *seeds[number],
            task.classes[number % len(task.classes)],
            seed=number,
            settings=settings,
        )
        for number in range(count)
    ]


def judged(task: Task, settings: SimulatorSettings, rows: list[Made]) -> list[str]:
    """The labels a judge means, which sees the answer where it is free."""
    shown = [dict(row.fields) for row in rows]
    if task.answer and task.answer.kind == "free":
        shown = [{**row.fields, "answer": row.label} for row in rows]
    said: list[dict[str, str]] = []
    for start in range(0, len(shown), 20):
        items = [{"id": f"r{n}", **row} for n, row in enumerate(shown[start : start + 20])]
        values = {"items": "\n".join(map(json.dumps, items)), "labels": "none"}
        said += content(answer(request(task, "correction", values), settings))["items"]
    return [
        task.reading(row.fields, row.label, item["label"])
        for row, item in zip(rows, said, strict=True)
    ]


@pytest.mark.parametrize("kind", OWN_TASKS)
def test_a_users_own_task_gets_sound_rows_and_a_judge_that_knows_them(
    kind: str, tmp_path: Path
) -> None:
    task, settings = own_task(kind, tmp_path / kind)
    groups = own_rows(task, settings, 200)
    for members in groups:
        assert len(members) == task.rows_per_call
        for row in members:
            assert task.objection(row.fields, row.label) is None, row.fields
            if task.answer and task.answer.positions:
                assert task.class_of(row.fields, row.label) == row.planned
    rows = [row for members in groups for row in members]
    said = judged(task, settings, rows)
    right = sum(label == row.label for label, row in zip(said, rows, strict=True))
    assert right >= 0.98 * len(rows)


@pytest.mark.parametrize("fault", ["label_noise", "corrector_error"])
@pytest.mark.parametrize("kind", OWN_TASKS)
def test_noise_and_error_strike_a_users_own_task_too(kind: str, fault: str, tmp_path: Path) -> None:
    task, honest = own_task(kind, tmp_path / kind)
    wrong = replace(honest, **{fault: 1.0})
    writer, judge = (wrong, honest) if fault == "label_noise" else (honest, wrong)
    rows = [row for members in own_rows(task, writer, 60) for row in members]
    for row in rows:
        assert task.objection(row.fields, row.label) is None, row.fields
    said = judged(task, judge, rows)
    assert sum(label != row.label for label, row in zip(said, rows, strict=True)) > 0.97 * len(rows)


def test_the_lists_of_an_answer_are_lists_and_can_be_hostile() -> None:
    asked = replace(four_stages("record", 1)[2], max_tokens=100_000)
    for seed in range(40):
        settings = SimulatorSettings(hostile=1.0)
        entities = content(answer(replace(asked, seed=seed), settings))["entities"]
        assert len(entities) > 1 and all(isinstance(entry, str) for entry in entities)
        said = answer(replace(asked, seed=seed), SimulatorSettings(free_text=1.0)).text
        assert "{" not in said and "\n1. " in said


def test_a_judge_of_free_answers_says_good_or_none() -> None:
    form = verdicts_form((GOOD,))
    lines = "Judge these.\n" + json.dumps({"id": "i1", "letter": "Hello.", "answer": "Hi."})
    asked = unknown("correction", "", lines, dict(form.schema), 1)
    assert content(answer(asked, HONEST))["items"][0]["label"] == "none"
    settings = SimulatorSettings(corrector_error=1.0)
    assert content(answer(asked, settings))["items"][0]["label"] == GOOD


def test_odd_prompts_never_fail() -> None:
    base = four_stages("copa", 1)
    for asked in base:
        for text in ("", "{", "{{ seed }}", "\x00\u202e" * 50, '{"id": 1}\n{"id": []}\n[1]\n{"id'):
            for stage_name in (
                asked.schema_name,
                None,
                "x-correction",
                "x-instances-y",
                "cb-seeds",
            ):
                odd = replace(
                    asked,
                    messages=(Message(role="user", content=text),),
                    schema_name=stage_name,
                )
                assert answer(odd, HONEST).finish_reason == "stop"
    assert answer(replace(base[0], messages=()), HONEST).stage == "contexts"


def test_seeds_of_the_same_context_differ_by_call() -> None:
    task = load_task("cb")
    contexts = make_contexts(task, 10)
    texts = [text for _, text in make_seeds(task, contexts[:1], 100)]
    assert len(set(texts)) > 95
