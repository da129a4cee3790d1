"""The prefix cache, and how much of the shipped tasks' prompts it holds."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory

import anyio
import pytest
from aiohttp import web
from hypothesis import given, settings
from hypothesis import strategies as st

from targen_async import Data, Delivery, RunConfig, generate, list_tasks
from targen_async.records import ChatRequest, Message
from targen_async.simulator import SimulatorSettings, wire
from targen_async.simulator.answers import answer, prompt_tokens
from targen_async.simulator.cache import PrefixCache
from tests.chat.helpers import serving

STAGES = ("contexts", "seeds", "instances", "correction")


def request(text: str, *, system: str = "", model: str = "m", name: str = "a") -> ChatRequest:
    return ChatRequest(
        key="",
        model=model,
        messages=(Message(role="system", content=system), Message(role="user", content=text)),
        temperature=1.0,
        max_tokens=10,
        seed=0,
        schema_name=name,
        json_schema={"title": name},
    )


def test_only_long_prompts_hit_and_only_in_steps() -> None:
    cache = PrefixCache()
    short, long = "x" * 4000, "y" * 4 * 1300
    assert [cache.cached_tokens(request(short)) for _ in range(2)] == [0, 0]
    assert [cache.cached_tokens(request(long)) for _ in range(2)] == [0, 1280]
    # 8 of the first 1,024 tokens mark the messages; here the texts part after 1,140.
    assert cache.cached_tokens(request(long[: 4 * 1132] + "z" * 4000)) == 1024


def test_model_schema_and_first_message_are_part_of_the_prefix() -> None:
    cache = PrefixCache()
    text = "y" * 8000
    assert cache.cached_tokens(request(text)) == 0
    for other in ({"model": "n"}, {"name": "b"}, {"system": "s"}):
        assert cache.cached_tokens(request(text, **other)) == 0, other
    assert cache.cached_tokens(request(text)) > 1900


def test_a_prefix_is_forgotten_after_a_while_and_kept_by_reading() -> None:
    time_s = 0.0
    cache = PrefixCache(keep_s=10, clock=lambda: time_s)
    asked = request("y" * 8000)
    assert cache.cached_tokens(asked) == 0
    for _ in range(3):
        time_s += 9
        assert cache.cached_tokens(asked) > 0
    time_s += 11
    assert cache.cached_tokens(asked) == 0
    time_s += 20
    cache.cached_tokens(request("other" * 2000))
    assert len(cache._read_at) == 12, "what is forgotten is not kept"


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text("ab", max_size=8), min_size=1, max_size=12))
def test_a_hit_is_a_prefix_that_was_read(texts: list[str]) -> None:
    """Against the definition: the longest whole step that an earlier prompt shares."""
    cache, seen = PrefixCache(least_tokens=32, step_tokens=16), list[str]()
    for text in texts:
        whole = "".join(letter * 64 for letter in text)
        shared = 0
        for before in seen:
            both = zip(whole, before, strict=False)
            same = next((at for at, (a, b) in enumerate(both) if a != b), None)
            length = min(len(whole), len(before)) if same is None else same
            shared = max(shared, 8 + length // 4)
        expected = 0 if shared < 32 else shared - shared % 16
        assert cache.cached_tokens(request(whole)) == expected
        seen.append(whole)


# ---- how the shipped tasks do


@dataclass
class Read:
    """Prompt tokens of a stage, and how many of them hit with each kind of cache."""

    calls: int = 0
    tokens: int = 0
    hit: dict[str, int] = field(default_factory=dict)


CACHES = {"1024/128": (1024, 128), "64/64": (64, 64), "16/16": (16, 16)}
"""Least tokens and step: OpenAI's, DeepSeek's, and vLLM's blocks."""


@cache
def measured(task: str) -> dict[str, Read]:
    """A run of 100 rows at a server with every kind of cache: what each stage read."""
    read = {stage: Read(hit=dict.fromkeys(CACHES, 0)) for stage in STAGES}
    caches = {name: PrefixCache(least_tokens=a, step_tokens=b) for name, (a, b) in CACHES.items()}
    number = count()

    async def chat(received: web.Request) -> web.Response:
        asked = wire.read_request(await received.read()).request
        said = answer(asked, SimulatorSettings())
        if said.stage in read:
            stage = read[said.stage]
            stage.calls += 1
            stage.tokens += prompt_tokens(asked)
            for name, one in caches.items():
                stage.hit[name] += one.cached_tokens(asked)
        body = wire.completion(next(number), 0, said)
        return web.Response(body=body, content_type="application/json")

    async def main() -> None:
        with TemporaryDirectory() as folder:
            async with serving(chat) as url:
                await generate(
                    RunConfig(
                        data=Data(task=task, contexts=20),
                        delivery=Delivery(n=100, base_url=url),
                    ),
                    Path(folder) / "run",
                )

    anyio.run(main)
    return read


# Rounded down from what was measured when the prompts were written.
FLOORS = {
    "axb": 0.70,
    "axg": 0.67,
    "boolq": 0.50,
    "cb": 0.75,
    "copa": 0.67,
    "multirc": 0.45,
    "record": 0.60,
    "rte": 0.64,
    "wic": 0.70,
    "wsc": 0.75,
}


@pytest.mark.parametrize("task", list_tasks())
def test_prompts_begin_with_what_they_have_in_common(task: str) -> None:
    """A template that names a seed before its rules and examples would halve this."""
    read = measured(task)
    tokens = sum(one.tokens for one in read.values())
    assert sum(one.hit["64/64"] for one in read.values()) >= FLOORS[task] * tokens
    assert read["instances"].hit["64/64"] >= 0.6 * read["instances"].tokens


def test_only_prompts_whose_common_part_is_long_enough_hit_at_openai() -> None:
    """The others are too short to be cached there: their common part is under 1,024 tokens."""
    hitting = {
        task for task in list_tasks() if any(one.hit["1024/128"] for one in measured(task).values())
    }
    assert hitting == {"wsc"}
    instances = measured("wsc")["instances"]
    assert instances.hit["1024/128"] >= 0.75 * instances.tokens


def test_the_table_of_the_documents_is_what_is_measured() -> None:
    page = (Path(__file__).parents[2] / "docs" / "endpoints.md").read_text("utf-8")
    section = page.partition("\n## Prefix caches\n")[2].partition("\n## ")[0]
    told = [line.strip("| ").split(" | ") for line in section.splitlines() if "%" in line]
    found = {cells[0]: cells[1:] for cells in told if len(cells) == 2 + len(CACHES)}
    assert sorted(found) == sorted(list_tasks())
    for task, (tokens, *percents) in found.items():
        read = measured(task)
        instances, every = read["instances"], sum(one.tokens for one in read.values())
        assert int(tokens.replace(",", "")) == pytest.approx(
            instances.tokens / instances.calls, rel=0.05
        )
        for name, percent in zip(CACHES, percents, strict=True):
            share = 100 * sum(one.hit[name] for one in read.values()) / every
            written = float(percent.removesuffix(" %").replace("\N{EN DASH}", "0"))
            assert written == pytest.approx(share, abs=4), (task, name)


def shares() -> Iterator[str]:
    """What docs/endpoints.md has in short: `python -m tests.simulator.test_cache` prints it."""
    for task in list_tasks():
        read = measured(task)
        for stage, one in read.items():
            hits = "  ".join(f"{one.hit[name] / max(one.tokens, 1):6.1%}" for name in CACHES)
            mean = one.tokens / max(one.calls, 1)
            yield f"{task:8} {stage:10} {one.calls:4} calls of {mean:5.0f} tokens  {hits}"
        every = sum(one.tokens for one in read.values())
        total = {name: sum(one.hit[name] for one in read.values()) / every for name in CACHES}
        yield f"{task:8} {'all':10} " + "  ".join(f"{n} {share:.1%}" for n, share in total.items())


if __name__ == "__main__":
    for line in shares():
        print(line)
