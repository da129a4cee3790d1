"""Runs that real servers stopped: what is said, what is kept, and what a second start asks."""

import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from tests.running import command, manifest, targen

Answer = Callable[[dict[str, Any]], tuple[int, bytes]]


def said(text: str, reason: str = "stop") -> tuple[int, bytes]:
    choice = {"message": {"content": text}, "finish_reason": reason}
    usage = {"prompt_tokens": 3, "completion_tokens": 5}
    return 200, json.dumps({"choices": [choice], "model": "m", "usage": usage}).encode()


@contextmanager
def serving(answer: Answer) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """A server of our own making: its base URL and what it was asked."""
    asked: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked.append(body)
            status, data = answer(body)
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)
            self.close_connection = status >= 500

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1", asked
    finally:
        server.shutdown()
        server.server_close()


def generate(out: Path, url: str, *more: object) -> "subprocess.CompletedProcess[str]":
    flags = ("--contexts", 10, "--max-in-flight", 8, "--model", "m", "--base-url", url)
    return targen("generate", "copa", "-n", 4, "--out", out, *flags, *more)


def test_calls_that_all_fail_are_not_put_down_to_what_the_model_answers(tmp_path: Path) -> None:
    """A proxy that greets and then takes no real question."""

    def answer(body: dict[str, Any]) -> tuple[int, bytes]:
        long = sum(len(one["content"]) for one in body["messages"]) > 300
        return (422, b'{"error": {"message": "no route"}}') if long else said("OK")

    with serving(answer) as (url, _):
        done = generate(tmp_path / "run", url)
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert "no route" in last
    assert "see to the endpoint" in last
    assert "up to three times" not in last


def test_cut_prose_is_an_ignored_schema_and_a_repeated_answer_is_not_asked_for_again(
    tmp_path: Path,
) -> None:
    with serving(lambda _: said("lolabel" * 100, "length")) as (url, asked):
        done = generate(tmp_path / "run", url)
        assert done.returncode == 1
        assert "takes no JSON schema" in done.stderr
        assert [body.get("response_format") is None for body in asked] == [False] + [True] * 26
        told = manifest(tmp_path / "run")
        assert (
            "13 questions for contexts, each put up to three times, brought none" in told["reason"]
        )
        assert told["wasted"]["completion_tokens"] == 26 * 5
        again = generate(tmp_path / "run", url)
        assert len(asked) == 27
        assert again.stderr.splitlines()[-1] == done.stderr.splitlines()[-1]
        assert manifest(tmp_path / "run")["wasted"] == told["wasted"]


def test_cut_json_and_cut_thoughts_obey(tmp_path: Path) -> None:
    for number, start in enumerate(("", '{"words": [', "<think>Let me see")):
        with serving(lambda _, start=start: said(start, "length")) as (url, _):
            assert "takes no JSON schema" not in generate(tmp_path / str(number), url).stderr


def test_an_endpoint_that_refused_the_probe_is_asked_again(tmp_path: Path) -> None:
    mended = False

    def answer(body: dict[str, Any]) -> tuple[int, bytes]:
        if not mended:
            return 500, b"Internal Server Error"
        return (400, b"{}") if "response_format" in body else said("no")

    with serving(answer) as (url, asked):
        assert "refuses the simplest call" in generate(tmp_path / "run", url).stderr
        assert manifest(tmp_path / "run")["calls"]["in_doubt"] == 0
        assert len(asked) == 9
        mended = True
        assert "takes no JSON schema" in generate(tmp_path / "run", url).stderr
        count = len(asked)
        generate(tmp_path / "run", url)
        assert len(asked) == count
        assert manifest(tmp_path / "run")["identity_broken_by"] == []


def test_calls_under_way_come_in_when_seeds_run_dry(tmp_path: Path) -> None:
    count = 0

    def answer(body: dict[str, Any]) -> tuple[int, bytes]:
        nonlocal count
        text = body["messages"][-1]["content"]
        if text.startswith("Greet me"):
            return said('{"words": []}')
        if '"contexts"' in text:
            places = [f"a small shop number {i} where two people sort mail" for i in range(10)]
            return said(json.dumps({"contexts": places}))
        count += 1
        if count > 20:
            time.sleep(1)
        return said('{"seeds": ["No."]}')

    with serving(answer) as (url, asked):
        done = generate(tmp_path / "run", url)
        assert "25 questions for seeds in a row" in done.stderr
        calls = manifest(tmp_path / "run")["calls"]
        assert (calls["in_doubt"], calls["served"]) == (0, len(asked))


def test_ctrl_c_does_not_wait_for_a_server_that_is_down(tmp_path: Path) -> None:
    down = threading.Event()

    def answer(body: dict[str, Any]) -> tuple[int, bytes]:
        if body["messages"][-1]["content"].startswith("Greet me"):
            return said('{"words": []}')
        down.set()
        return 503, b""

    environment = {k: v for k, v in os.environ.items() if k != "OPENAI_API_KEY"}
    with serving(answer) as (url, _):
        flags = ("--model", "m", "--base-url", url, "--out", tmp_path / "run")
        child = subprocess.Popen(
            command("generate", "copa", "-n", 4, "--quiet", *flags),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=environment,
        )
        assert down.wait(20)
        time.sleep(4)
        child.send_signal(signal.SIGINT)
        assert child.wait(5) == 130
