"""What every client is given, and how it is measured: standard library only.

A client is a script in this folder: `python CLIENT URL CALLS IN_FLIGHT` makes that many calls and
prints one line of JSON. Its own start, imports and a warm-up are left out.
"""

import json
import os
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

TASK = Path(__file__).resolve().parent.parent / "winloss"
MODEL = "bench"
MAX_TOKENS = 1024
SYSTEM = (
    "You write and check short texts for a data set. You follow the instructions to the letter "
    "and answer with JSON only."
)
SCHEMA = {
    "type": "object",
    "properties": {"text": {"type": "string"}, "explanation": {"type": "string"}},
    "required": ["text", "explanation"],
    "additionalProperties": False,
}
_TEMPLATE = (TASK / "instances.txt").read_text("utf-8").strip()


@dataclass
class Measured:
    """CPU of the whole process tree, user and system."""

    calls: int
    cpu_s: float
    wall_s: float
    peak_mb: float
    note: str = ""


def prompt(number: int) -> str:
    """About 300 tokens, as the engine sends them."""
    text = _TEMPLATE.replace("{{ seed }}", f"what happened on day {number} of the long journey")
    return text.replace("{{ label_meaning }}", f"the text ends in a {('gain', 'loss')[number % 2]}")


def messages(number: int) -> list[dict[str, str]]:
    return [
        {"role": "system", "content": SYSTEM},
        {"role": "user", "content": prompt(number)},
    ]


def body(number: int) -> dict[str, object]:
    """A request with the same fields as the engine's."""
    schema = {"name": "winloss-instances", "strict": True, "schema": SCHEMA}
    return {
        "model": MODEL,
        "messages": messages(number),
        "temperature": 1.0,
        "max_tokens": MAX_TOKENS,
        "seed": number,
        "response_format": {"type": "json_schema", "json_schema": schema},
    }


def cpu_s() -> float:
    used = [resource.getrusage(w) for w in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def offline(**settings: str) -> None:
    """Keep a peer from calling home; call it before its import.

    tiktoken fetches its vocabulary when first used; the one that curator's litellm brings will do.
    """
    for found in TASK.parent.glob(".venvs/*/lib/*/site-packages/litellm/*/tokenizers"):
        os.environ["TIKTOKEN_CACHE_DIR"] = str(found)
    os.environ.update(HF_HUB_OFFLINE="1", **settings)


def arguments() -> tuple[str, int, int]:
    """(base URL, calls, calls in flight)"""
    return sys.argv[1], int(sys.argv[2]), int(sys.argv[3])


def measure(calls: int, work: Callable[[int], None]) -> Measured:
    """What `work(calls)` costs, once it has run for a twentieth of them."""
    work(max(1, calls // 20))
    before, started = cpu_s(), time.perf_counter()
    work(calls)
    return Measured(calls, cpu_s() - before, time.perf_counter() - started, peak_mb())


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def tell(found: Measured) -> None:
    print(json.dumps(asdict(found)))
