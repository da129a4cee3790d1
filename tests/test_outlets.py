"""No outlet and no file of a run shows what a run has from the environment."""

import json
import threading
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from targen_async.config import Delivery, Endpoint
from targen_async.outlets import open_outlets
from tests.running import targen

KEY = "k3y-12"
HEADER = "tok12"
PASSWORD = "pr0xy-p"
JUDGE = "jdg7"


def test_the_log_knows_every_secret_of_a_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = {
        "GENERATOR": "gen-a",
        "JUDGE": "jud-b",
        "GW": "tok-c",
        "GW2": "tok-d",
        "FALL": "fal-e",
        "WAY": "http://me:pas-f@proxy.example.org:3128",
        "WAY2": "http://me:pas-g@proxy.example.org:3128",
        "VLLM_API_KEY": "vll-h",
        "UNUSED": "not-a-secret",
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    delivery = Delivery(
        api_key_env="GENERATOR",
        headers={"X-Gateway-Token": "${GW}", "X-Title": "plain"},
        proxy="${WAY}",
        judge=Endpoint(api_key_env="JUDGE", headers={"X-Gateway-Token": "$GW2"}),
        fallback=Endpoint(headers={"X-Pass": "$FALL"}, proxy="$WAY2"),
    )
    log = tmp_path / "log"
    with open_outlets(delivery, quiet=True, as_json=False, log_file=log) as outlets:
        outlets.event("error", "failed", text=" ".join([*environment.values(), "plain"]))
    told = json.loads(log.read_text("utf-8"))["text"]
    hidden = ["[hidden]"] * 5
    hidden += ["http://[hidden]@proxy.example.org:3128"] * 2 + ["[hidden]"]
    assert told == " ".join([*hidden, "not-a-secret plain"])


@contextmanager
def echo(status: int) -> Iterator[str]:
    """A server that repeats all headers it was sent; its base URL."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            said = json.dumps(dict(self.headers))
            choice = {"message": {"content": f"You sent {said}"}, "finish_reason": "stop"}
            answer = {"model": f"m at {self.headers['Authorization']}", "choices": [choice]}
            refusal = {"error": {"message": f"bad: {said}"}}
            data = json.dumps(answer if status == 200 else refusal).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize("client", ["http", "sdk"])
@pytest.mark.parametrize("status", [200, 401, 503])
def test_a_server_that_repeats_secrets_does_not_get_them_shown_or_stored(
    tmp_path: Path, status: int, client: str
) -> None:
    """Neither on the screen nor in the journal, the log, failures.jsonl, manifest or run.toml."""
    run = tmp_path / "run"
    with echo(status) as way:
        done = targen(
            *("generate", "copa", "-n", 4, "--contexts", 2, "--give-up-after", 1),
            *("--model", "m", "--base-url", "http://models.example.org/v1", "--judge", "j"),
            *("--json", "--log", tmp_path / "log", "--out", run),
            *("--set", f"delivery.client={client}", "--set", "delivery.proxy=$WAY"),
            *("--set", "delivery.headers.X-Gateway-Token=${GW}"),
            *("--set", "delivery.judge.headers.X-Gateway-Token=$GW_OF_JUDGE"),
            OPENAI_API_KEY=KEY,
            GW=HEADER,
            GW_OF_JUDGE=f"Bearer {JUDGE}",
            WAY=way.replace("//", f"//me:{PASSWORD}@"),
        )
    assert done.returncode in (1, 2), done.stderr
    files = [file for file in run.rglob("*") if file.is_file()]
    assert {"journal", "run.toml"} <= {file.name for file in files}
    seen = {file.name: file.read_bytes() for file in (*files, tmp_path / "log")}
    seen["the screen"] = (done.stdout + done.stderr).encode()
    for place in ("journal", "failures.jsonl") if status == 200 else ("the screen", "log"):
        assert b"***" in seen[place]
    sent = b64encode(f"me:{PASSWORD}".encode()).decode()
    for secret in (KEY, HEADER, PASSWORD, JUDGE, sent):
        for place, data in seen.items():
            assert secret.encode() not in data, (secret, place)


@pytest.mark.parametrize("place", ["delivery", "delivery.judge", "delivery.fallback"])
@pytest.mark.parametrize("flags", [("--simulate",), ("--model", "m", "--base-url", "http://h/v1")])
def test_a_plain_secret_is_refused_before_anything_is_written_used_or_not(
    tmp_path: Path, place: str, flags: tuple[str, ...]
) -> None:
    run = tmp_path / "run"
    done = targen(
        *("generate", "copa", "-n", 2, *flags, "--out", run),
        *("--set", f"{place}.headers.apikey=PLAINSECRETVALUE123"),
    )
    assert done.returncode == 2
    assert "the header 'apikey' carries a secret" in done.stderr
    assert "PLAINSECRET" not in done.stdout + done.stderr
    assert not run.exists()
