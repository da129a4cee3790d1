"""A recognisable key through runs where everything goes wrong: afterwards it is written nowhere.

Everything is looked through: each file that a run leaves, its log, stdout and stderr with every
logger at its most talkative, the page of metrics, tracebacks, what faulthandler says in a crash.
"""

import base64
import json
import os
import re
import signal
import subprocess
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from tests.run.test_stops import serving
from tests.running import command, manifest, simulator, targen, wait_for

KEY = "sk-t3st-Zq81vN0x-kJ77hWd2-recognise-me-5b"
PASS = "h3ader-Yw55-pR0d-recognise-me-too-9e"
SECRETS = (KEY, PASS)
N = 60
WINDOW = 14
"""So many characters of a secret in a row are as good as all of it."""
FAULTS: dict[str, Any] = {
    **dict.fromkeys(("label_noise", "corrector_error", "malformed", "missing_ids"), 0.08),
    **dict.fromkeys(("refusals", "truncation", "free_text", "hostile"), 0.04),
    **dict.fromkeys(("error_rate", "reset_rate"), 0.03),
    "stall_rate": 0.01,
    "stall_s": 0.7,
    "latency_ms": 10,
    "latency_sigma": 0.5,
    "requests_per_minute": 6000,
    "burst_s": 1,
    "outages": [{"start_s": 1.0, "duration_s": 0.3}],
    "api_key": KEY,
}
LOUD = """
import logging, sys
logging.basicConfig(level=1, stream=sys.stderr)
"""
"""As sitecustomize: every logger of every package says all it has to say."""
FAULTY = """
import os, sys
if os.environ.get("TARGEN_TEST_FAULT"):
    import targen_async.rows as rows
    real, left = rows.Rows.draft, [30]
    def draft(self, offset):
        left[0] -= 1
        if not left[0]:
            raise KeyError("a fault of our own making")
        return real(self, offset)
    rows.Rows.draft = draft
"""


def forms(secret: str) -> Iterator[bytes]:
    """What a secret may look like: itself, parts of it, and as it is packed for travelling."""
    raw = secret.encode()
    yield from (raw[at : at + WINDOW] for at in range(len(raw) - WINDOW + 1))
    for before in (b"", b"x", b"xx", b"Bearer ", b":"):
        packed = base64.b64encode(before + raw)
        yield packed[8:-8]
    yield raw.hex().encode()
    yield raw[::-1]
    if quote(secret) != secret:
        yield quote(secret).encode()


FORMS = tuple({form for secret in SECRETS for form in forms(secret)})


def leaks(said: dict[str, bytes]) -> list[str]:
    """Names of what holds a secret in any form."""
    return [name for name, data in said.items() if any(form in data for form in FORMS)]


def left_in(folder: Path) -> dict[str, bytes]:
    return {str(file): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def environment(folder: Path) -> dict[str, str]:
    """Where all that can be talkative is, and everything else stays in `folder`."""
    site = folder / "site"
    if not site.exists():
        site.mkdir(parents=True)
        (site / "sitecustomize.py").write_text(LOUD + FAULTY)
        (folder / "runtime").mkdir()
        (folder / "temp").mkdir()
    own = {name: value for name, value in os.environ.items() if not name.endswith("_KEY")}
    return own | {
        "OPENAI_API_KEY": KEY,
        "TEAM_PASS": PASS,
        "PYTHONPATH": f"{site}{os.pathsep}{os.environ.get('PYTHONPATH', '')}",
        "PYTHONFAULTHANDLER": "1",
        "PYTHONASYNCIODEBUG": "1",
        "PYTHONWARNINGS": "default",
        "OPENAI_LOG": "debug",
        "XDG_RUNTIME_DIR": str(folder / "runtime"),
        "TMPDIR": str(folder / "temp"),
    }


class Scraper(threading.Thread):
    """Reads the page of metrics as long as there is one."""

    def __init__(self, log: Path) -> None:
        super().__init__(daemon=True)
        self.pages: list[bytes] = []
        self.ended = threading.Event()
        self._log = log

    def run(self) -> None:
        while not self.ended.wait(0.05):
            said = self._log.read_text() if self._log.exists() else ""
            if found := re.findall(r"metrics at (http://[\d.:]+/metrics)", said):
                try:
                    with urllib.request.urlopen(found[-1], timeout=2) as page:
                        self.pages.append(page.read())
                except OSError:
                    continue


def started(folder: Path, url: str, *more: object, **extra: str) -> "subprocess.Popen[bytes]":
    """`targen generate` with headers, shared limits, metrics and a log, and its output in files."""
    flags = (
        *("generate", "cb", "-n", N, "--contexts", 10, "--out", folder / "run"),
        *("--model", "targen-simulator", "--base-url", url, "--log", folder / "log"),
        *("--set", 'delivery.headers={X-Pass="$TEAM_PASS"}', "--metrics-port", 0),
        *("--requests-per-minute", 100_000, "--max-in-flight", 16),
        *more,
    )
    number = len(list(folder.glob("stdout*")))
    with (
        (folder / f"stdout{number}").open("wb") as out,
        (folder / f"stderr{number}").open("wb") as err,
    ):
        return subprocess.Popen(
            command(*flags), stdout=out, stderr=err, env=environment(folder) | extra
        )


@pytest.mark.parametrize("client", ["http", "sdk"])
def test_a_key_is_nowhere_whatever_goes_wrong(tmp_path: Path, client: str) -> None:
    kind = ("--set", f"delivery.client={client}")
    environment(tmp_path)
    scraper = Scraper(tmp_path / "log")
    scraper.start()
    with simulator(**FAULTS) as endpoint:
        crashed = started(tmp_path, endpoint.url, *kind)
        wait_for(lambda: endpoint.stats()["served"] > 30)
        crashed.send_signal(signal.SIGABRT)
        assert crashed.wait(20) == -signal.SIGABRT
        # Who ends well takes it away.
        leases = [one.read_bytes() for one in (tmp_path / "runtime").iterdir()]
        faulty = started(tmp_path, endpoint.url, *kind, "--quiet", TARGEN_TEST_FAULT="1")
        assert faulty.wait(60) not in (0, 2)
        whole = started(tmp_path, endpoint.url, *kind, "--json")
        assert whole.wait(120) == 0, (tmp_path / "stderr2").read_text()[-3000:]
    wrong = started(tmp_path, "http://127.0.0.1:9/v1", *kind, "-n", 2 * N, "--give-up-after", 0.5)
    assert wrong.wait(60) == 1
    scraper.ended.set()
    scraper.join()
    later = [
        targen(name, tmp_path / "run", OPENAI_API_KEY=KEY)
        for name in ("status", "show", "verify", "reparse")
    ]
    told = left_in(tmp_path)
    told |= {f"page {number}": page for number, page in enumerate(scraper.pages)}
    told |= {f"lease {number}": data for number, data in enumerate(leases)}
    told |= {f"{run.args}": (run.stdout + run.stderr).encode() for run in later}
    assert leaks(told) == []
    # All of it did take place.
    assert manifest(tmp_path / "run")["delivered"] >= N
    assert b"Fatal Python error: Aborted" in told[str(tmp_path / "stderr0")]
    assert b"a fault of our own making" in told[str(tmp_path / "stderr1")]
    assert b"Traceback" in told[str(tmp_path / "stderr1")]
    assert client == "http" or b"DEBUG" in told[str(tmp_path / "stderr0")]
    assert any(b"targen_tokens_total" in page for page in scraper.pages)
    assert any(name.endswith("journal") for name in told)
    assert leases, "no lease was taken"


def test_the_search_finds_what_it_looks_for() -> None:
    for secret in SECRETS:
        packed = base64.b64encode(f"me:{secret}".encode())
        for data in (
            secret.encode(),
            secret[3:-3].encode(),
            packed,
            secret.encode().hex().encode(),
        ):
            assert leaks({"x": b"before " + data + b" after"}) == ["x"]
    assert leaks({"x": b"sk-t3st and h3ader alone are no secrets"}) == []


ECHOES = {
    "401": 401,
    "400": 400,
    "429": 429,
    "500": 500,
    "503": 503,
    "error object with a 200": 200,
}


def echo(tmp_path: Path, answer: Any) -> dict[str, bytes]:
    """What a run leaves and says where the server answers so."""
    environment(tmp_path)
    with serving(answer) as (url, asked):
        run = started(tmp_path, url, "--give-up-after", 1)
        try:
            run.wait(60)
        finally:
            run.kill()
            run.wait()
        assert asked
    assert run.returncode in (1, 2)
    return left_in(tmp_path)


@pytest.mark.parametrize("name", ECHOES)
def test_a_server_that_repeats_the_key_spreads_it_nowhere(tmp_path: Path, name: str) -> None:
    text = f"Incorrect API key provided: {KEY} ({PASS}). Headers: Bearer {KEY}"
    body = json.dumps({"error": {"message": text, "code": "no_such_code"}}).encode()
    told = echo(tmp_path, lambda _: (ECHOES[name], body))
    assert leaks(told) == []
    assert any(b"***" in data or b"[hidden]" in data for data in told.values())


def test_an_answer_that_repeats_the_key_spreads_it_nowhere(tmp_path: Path) -> None:
    """A gateway for debugging, that puts what it was asked into the model's words."""
    text = f"you sent Authorization: Bearer {KEY}"
    choice = {"message": {"content": text}, "finish_reason": "stop"}
    body = json.dumps({"choices": [choice], "model": f"m-{KEY}"}).encode()
    assert leaks(echo(tmp_path, lambda _: (200, body))) == []
