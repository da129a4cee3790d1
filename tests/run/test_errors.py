"""Every sentence of docs/errors.md, brought about with the real command and real servers.

The page's tables are the parameters: a row without a scene fails, and so does a scene without a
row.
"""

import fcntl
import json
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.chat.tls import server_context
from tests.run.test_stops import said
from tests.running import command, simulator, targen

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "errors.md"
KEY = "sk-d0-n0t-t3ll-4321"
PASSWORD = "s3cr3t-0f-th3-pr0xy"
VARIES = ("NAME", "MODEL", "URL", "DIR", "FILE", "TEXT", "N")
"""Words of the page that stand for what differs from case to case."""

Done = subprocess.CompletedProcess[str]
Scene = Callable[[Path], Done]
Reply = tuple[int, bytes] | tuple[int, bytes, Mapping[str, str]]
SCENES: dict[str, Scene] = {}


class Row(NamedTuple):
    """One row of the page: what is printed, and the exit code that follows."""

    seen: str
    code: int
    section: str

    @property
    def pattern(self) -> str:
        parts = re.split(rf"(\b(?:{'|'.join(VARIES)})\b|…)", self.seen)
        return "".join(".+?" if part in (*VARIES, "…") else re.escape(part) for part in parts)


def rows() -> list[Row]:
    found: list[Row] = []
    section = ""
    for line in PAGE.read_text("utf-8").splitlines():
        if line.startswith("## "):
            section = line.removeprefix("## ")
        cells = [cell.strip() for cell in line.strip("|").split(" | ")]
        if len(cells) == 4 and cells[1].isdecimal():
            found.append(Row(cells[0], int(cells[1]), section))
    return found


ROWS = rows()


def scene(fragment: str) -> Callable[[Scene], Scene]:
    """This is how the row whose sentence holds `fragment` comes about."""

    def keep(made: Scene) -> Scene:
        assert fragment not in SCENES
        SCENES[fragment] = made
        return made

    return keep


# ---- servers and runs


@contextmanager
def answering(
    answer: Callable[[dict[str, Any]], Reply], tls: ssl.SSLContext | None = None
) -> Iterator[str]:
    """A server of our own making; its base URL."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            status, data, *more = answer(body)
            self.send_response(status)
            for name, value in (more[0] if more else {}).items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)
            self.close_connection = status >= 500

        def log_message(self, *_: object) -> None:
            pass

        def do_CONNECT(self) -> None:
            self.send_error(502)

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: object) -> None:
            """Clients that go away are part of the play."""

    server = Server(("127.0.0.1", 0), Handler)
    if tls:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        scheme = "https" if tls else "http"
        yield f"{scheme}://127.0.0.1:{server.server_address[1]}/v1"
    finally:
        server.shutdown()
        server.server_close()


def refusal(status: int, message: str, code: str = "", **headers: str) -> Reply:
    error = {"error": {"message": message, "code": code}}
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return status, json.dumps(error).encode(), named


def greeted(body: dict[str, Any]) -> bool:
    """Is it the first call, which finds out what the server takes?"""
    return body["messages"][-1]["content"].startswith("Greet me")


def once_greeted(reply: Reply) -> Callable[[dict[str, Any]], Reply]:
    return lambda body: said('{"words": []}') if greeted(body) else reply


def generate(folder: Path, *flags: object, **environment: str) -> Done:
    """A small run, with a key in the environment that must not be seen."""
    small = ("-n", 4, "--contexts", 2, "--give-up-after", 1, "--max-in-flight", 4)
    return targen("generate", "copa", *small, *flags, "--out", folder / "run", **environment)


def asked(folder: Path, answer: Callable[[dict[str, Any]], Reply] | Reply, *flags: object) -> Done:
    """A run against a server that answers so."""
    reply = answer if callable(answer) else lambda _: answer
    with answering(reply) as url:
        return at(folder, url, *flags)


def at(folder: Path, url: str, *flags: object, **environment: str) -> Done:
    """A run against an address."""
    key = {"OPENAI_API_KEY": KEY}
    return generate(folder, "--model", "m", "--base-url", url, *flags, **(key | environment))


def setting(key: str, value: object) -> tuple[str, str]:
    return ("--set", f"{key}={value}")


def dead_port() -> int:
    with socket.socket() as idle:
        idle.bind(("127.0.0.1", 0))
        return idle.getsockname()[1]


# ---- before anything is sent


@scene("name another in `delivery.api_key_env`")
def no_key(folder: Path) -> Done:
    return generate(folder, "--model", "gpt-4o-mini")


@scene("name another in `delivery.judge.api_key_env`")
def no_key_of_the_judge(folder: Path) -> Done:
    judge = setting("delivery.judge.preset", "together")
    return at(folder, "http://127.0.0.1:9/v1", "--judge", "other", *judge, TOGETHER_API_KEY="")


@scene("an API key is given")
def key_without_model(folder: Path) -> Done:
    return generate(folder, OPENAI_API_KEY=KEY)


@scene("an endpoint without a model")
def endpoint_without_model(folder: Path) -> Done:
    return generate(folder, "--base-url", "http://127.0.0.1:8000/v1")


@scene("--simulate goes with neither")
def simulated_model(folder: Path) -> Done:
    return generate(folder, "--simulate", "--model", "m")


@scene("no preset")
def unknown_preset(folder: Path) -> Done:
    return generate(folder, "--model", "m", "--preset", "vlm")


@scene("has no address of its own")
def preset_without_address(folder: Path) -> Done:
    return generate(folder, "--model", "m", "--preset", "azure", AZURE_OPENAI_API_KEY=KEY)


@scene("must be like http://127.0.0.1:8000/v1")
def bad_base_url(folder: Path) -> Done:
    return at(folder, "127.0.0.1:8000")


@scene("`delivery.base_url` carries credentials")
def credentials_in_base_url(folder: Path) -> Done:
    return at(folder, f"https://me:{PASSWORD}@models.example.org/v1")


@scene("`delivery.judge.base_url` carries credentials")
def credentials_in_the_judges_base_url(folder: Path) -> Done:
    judge = f"https://me:{PASSWORD}@models.example.org/v1"
    return at(folder, "http://127.0.0.1:9/v1", *setting("delivery.judge.base_url", judge))


@scene("must be the name of an environment variable")
def key_in_place_of_its_name(folder: Path) -> Done:
    return generate(folder, "--model", "m", "--api-key-env", KEY)


@scene("the host in `delivery.base_url` has a name")
def host_that_cannot_be(folder: Path) -> Done:
    return at(folder, "http://models..example.org/v1")


@scene("the API key holds characters")
def key_that_cannot_be_sent(folder: Path) -> Done:
    return at(folder, "http://127.0.0.1:9/v1", OPENAI_API_KEY=f"“{KEY}”")


@scene("is no name of an HTTP header")
def bad_header_name(folder: Path) -> Done:
    return at(folder, "http://127.0.0.1:9/v1", *setting("delivery.headers.X Team", "red"))


@scene("the header 'NAME' wants")
def header_variable_missing(folder: Path) -> Done:
    return at(folder, "http://127.0.0.1:9/v1", *setting("delivery.headers.X-Team", "$NO_SUCH_TEAM"))


@scene("the header 'NAME' carries a secret")
def secret_header(folder: Path) -> Done:
    return at(folder, "http://127.0.0.1:9/v1", *setting("delivery.headers.X-Token", PASSWORD))


@scene("the header 'NAME' begins with `$`")
def variable_that_cannot_be(folder: Path) -> Done:
    return at(folder, "http://127.0.0.1:9/v1", *setting("delivery.headers.X-Team", f"${PASSWORD}"))


@scene("the value of the header")
def header_that_cannot_be_sent(folder: Path) -> Done:
    return at(folder, "http://127.0.0.1:9/v1", *setting("delivery.headers.X-Team", "rösti"))


@scene("`proxy` wants the environment variable")
def proxy_variable_missing(folder: Path) -> Done:
    return at(folder, "http://127.0.0.1:9/v1", *setting("delivery.proxy", "$NO_SUCH_PROXY"))


@scene("`proxy` must be like")
def bad_proxy(folder: Path) -> Done:
    return at(folder, "http://127.0.0.1:9/v1", *setting("delivery.proxy", "socks5://127.0.0.1:1"))


@scene("the host in `proxy` has a name")
def proxy_host_that_cannot_be(folder: Path) -> Done:
    proxy = setting("delivery.proxy", "$OUR_PROXY")
    way = f"http://me:{PASSWORD}@proxy..example.org:3128"
    return at(folder, "http://127.0.0.1:9/v1", *proxy, OUR_PROXY=way)


@scene("`proxy` carries credentials")
def credentials_in_proxy(folder: Path) -> Done:
    way = f"http://me:{PASSWORD}@127.0.0.1:1"
    return at(folder, "http://127.0.0.1:9/v1", *setting("delivery.proxy", way))


@scene("the client `sdk` cannot ask URL")
def host_not_for_sdk(folder: Path) -> Done:
    sdk = setting("delivery.client", "sdk")
    return at(folder, "http://a\N{FRACTION SLASH}b.example.org/v1", *sdk)


@scene("wants the openai package")
def sdk_missing(folder: Path) -> Done:
    (folder / "openai.py").write_text("raise ImportError('as if it were not installed')\n")
    sdk = setting("delivery.client", "sdk")
    return at(folder, "http://127.0.0.1:9/v1", *sdk, PYTHONPATH=str(folder))


@scene("nothing to sign in with")
def nothing_for_azure(folder: Path) -> Done:
    pytest.importorskip("openai")
    flags = ("--model", "m", "--preset", "azure", "--base-url", "https://name.openai.azure.com")
    return generate(folder, *flags)


@scene("costs is not known")
def no_price(folder: Path) -> Done:
    return at(folder, "http://127.0.0.1:9/v1", "--max-usd", 1)


@scene("tells only a part of what")
def half_a_price(folder: Path) -> Done:
    half = setting("delivery.prices.usd_per_million_prompt_tokens", 1)
    return at(folder, "http://127.0.0.1:9/v1", "--max-usd", 1, *half)


@scene("cannot read the price table")
def no_price_table(folder: Path) -> Done:
    table = setting("delivery.prices_file", folder / "prices.toml")
    return at(folder, "http://127.0.0.1:9/v1", *table)


@scene("expected `int` >= 1")
def cap_of_zero(folder: Path) -> Done:
    return at(folder, "http://127.0.0.1:9/v1", "--max-requests", 0)


@scene("expected `float` > 0.0")
def rate_of_zero(folder: Path) -> Done:
    return at(folder, "http://127.0.0.1:9/v1", "--requests-per-minute", 0)


@scene("object contains unknown field")
def misspelt_key(folder: Path) -> Done:
    return at(folder, "http://127.0.0.1:9/v1", *setting("delivery.limits.max_inflight", 8))


@scene("--set wants KEY=VALUE")
def setting_without_value(folder: Path) -> Done:
    return generate(folder, "--set", "near_duplicate")


@scene("cannot read FILE")
def no_configuration(folder: Path) -> Done:
    return generate(folder, "--config", folder / "mine.toml")


@scene("is not valid TOML")
def broken_configuration(folder: Path) -> Done:
    (folder / "mine.toml").write_text("[data]\ntask = copa\n")
    return generate(folder, "--config", folder / "mine.toml")


@scene("there is nothing left to estimate")
def nothing_to_estimate(folder: Path) -> Done:
    assert generate(folder, "--simulate").returncode == 0
    return generate(folder, "--estimate")


@scene("cannot serve metrics")
def metrics_port_taken(folder: Path) -> Done:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return generate(folder, "--simulate", "--metrics-port", taken.getsockname()[1])


@scene("cannot write the log")
def log_that_cannot_be_written(folder: Path) -> Done:
    return generate(folder, "--simulate", "--log", folder / "nowhere" / "log")


# ---- the endpoint refuses


@scene("refused the API key (HTTP 401)")
def wrong_key(folder: Path) -> Done:
    # Servers like to repeat what they were sent.
    return asked(folder, refusal(401, f"Incorrect API key provided: {KEY}"))


@scene("may not use this model or this place")
def forbidden(folder: Path) -> Done:
    return asked(folder, refusal(403, "Project may not use this model", "forbidden"))


@scene("does not know this address or model (HTTP 404)")
def unknown_model(folder: Path) -> Done:
    return asked(folder, refusal(404, "The model 'm' does not exist", "model_not_found"))


@scene("does not know this address or model (HTTP 400)")
def unknown_model_as_400(folder: Path) -> Done:
    return asked(folder, refusal(400, "Invalid model name passed in model=m"))


@scene("redirects to")
def redirected(folder: Path) -> Done:
    return asked(folder, (308, b"", {"Location": "https://models.example.org/v1"}))


@scene("has no credit left (HTTP 402)")
def no_credit(folder: Path) -> Done:
    return asked(folder, refusal(402, "Insufficient credits"))


@scene("has no credit left (HTTP 429)")
def quota_spent(folder: Path) -> Done:
    return asked(folder, refusal(429, "You exceeded your current quota", "insufficient_quota"))


@scene("its limit is zero")
def allowance_of_zero(folder: Path) -> Done:
    return asked(folder, refusal(429, "Rate limit reached: limit 0, used 0, requested 1"))


@scene("refuses the simplest call: URL refused this request")
def every_request_refused(folder: Path) -> Done:
    return asked(folder, refusal(422, "n: field required"))


@scene("refuses the simplest call: URL failed")
def every_request_breaks_it(folder: Path) -> Done:
    return asked(folder, (500, b"Internal Server Error"))


@scene("did not answer with JSON")
def no_api_at_all(folder: Path) -> Done:
    return asked(folder, (200, b"<html><title>Welcome</title></html>"))


@scene("the prompt and the answer do not fit")
def prompt_over_the_context(folder: Path) -> Done:
    message = "This model's maximum context length is 512 tokens"
    return asked(folder, once_greeted(refusal(400, message, "context_length_exceeded")))


@scene("the content filter at")
def filtered(folder: Path) -> Done:
    return asked(folder, once_greeted(refusal(400, "Your prompt was flagged", "content_filter")))


@scene("will never take a request this large")
def request_too_large(folder: Path) -> Done:
    message = "Request too large for m: limit 100, requested 900"
    return asked(folder, once_greeted(refusal(429, message)))


@scene("the model refused")
def model_refuses(folder: Path) -> Done:
    message = {"content": None, "refusal": "I cannot help with that."}
    answer = {"choices": [{"message": message, "finish_reason": "stop"}], "model": "m"}
    return asked(folder, once_greeted((200, json.dumps(answer).encode())))


@scene("JSON is malformed")
def prose(folder: Path) -> Done:
    return asked(folder, once_greeted(said("I'm sorry, but I can't help with that.")))


@scene("answers in a row were cut")
def no_room_to_think(folder: Path) -> Done:
    with simulator(thinking_tokens=3000) as endpoint:
        return at(folder, endpoint.url, "--thinking-tokens", 0)


def seeds_answered(folder: Path, reply: Reply) -> Done:
    """A run that gets contexts, and this where it asks for seeds."""

    def answer(body: dict[str, Any]) -> Reply:
        if greeted(body):
            return said('{"words": []}')
        if '"contexts"' in body["messages"][-1]["content"]:
            places = [f"a small shop number {i} where two people sort mail" for i in range(10)]
            return said(json.dumps({"contexts": places}))
        return reply

    return asked(folder, answer)


@scene("; see to the endpoint, and start")
def login_page_from_now_on(folder: Path) -> Done:
    return seeds_answered(folder, (200, b"<html><title>Sign in</title></html>"))


@scene("give answers more room")
def answers_too_long(folder: Path) -> Done:
    return seeds_answered(folder, said('{"seeds": ["She took the letters and then she', "length"))


@scene("in a row failed, the last as `refused`")
def seeds_refused(folder: Path) -> Done:
    message = {"content": None, "refusal": "I cannot help with that."}
    answer = {"choices": [{"message": message, "finish_reason": "stop"}], "model": "m"}
    return seeds_answered(folder, (200, json.dumps(answer).encode()))


@scene("what it says is in failures.jsonl: choose")
def prose_from_now_on(folder: Path) -> Done:
    return seeds_answered(folder, said("Here you are!"))


@scene("brought nothing new: the model repeats itself")
def seeds_run_dry(folder: Path) -> Done:
    return seeds_answered(folder, said('{"seeds": ["She sorted the letters by their street."]}'))


@scene("brought nothing that can be used (TEXT); read rejected.jsonl")
def seeds_too_short(folder: Path) -> Done:
    return seeds_answered(folder, said('{"seeds": ["No."]}'))


def triage(folder: Path) -> Path:
    """A task of the user's own."""
    return Path(shutil.copytree(ROOT / "examples" / "triage", folder / "triage"))


@scene("starves: N tries gave")
def rows_that_never_pass(folder: Path) -> Done:
    own = triage(folder)
    text = (own / "task.toml").read_text("utf-8")
    about = 'about = "how soon the writer needs help"'
    # No value of the axis has two words.
    strict = text.replace(about, f"{about}, words = [2, 9]")
    assert strict != text
    (own / "task.toml").write_text(strict, "utf-8")
    return targen("generate", own, "-n", 4, "--simulate", "--out", folder / "run")


@scene("targen simulate --task-folder DIR")
def simulator_without_the_task(folder: Path) -> Done:
    with simulator() as endpoint:
        own = triage(folder)
        return targen("generate", own, "-n", 4, *endpoint.flags, "--out", folder / "run")


# ---- said in passing: the run goes on


@scene("SIMULATED: these rows")
def simulated(folder: Path) -> Done:
    return generate(folder)


def through(folder: Path, change: Callable[[dict[str, Any]], Reply | None]) -> Done:
    """A run whose server refuses some calls, and has a simulator answer the rest."""
    import urllib.request

    with simulator() as endpoint:

        def answer(body: dict[str, Any]) -> Reply:
            refused = change(body)
            if refused is not None:
                return refused
            request = urllib.request.Request(
                f"{endpoint.url}/chat/completions",
                json.dumps(body | {"model": "m"}).encode(),
                {"Content-Type": "application/json"},
            )
            with urllib.request.urlopen(request, timeout=30) as served:
                return served.status, served.read()

        return asked(folder, answer)


@scene("the endpoint takes no JSON schema")
def no_schema(folder: Path) -> Done:
    return through(
        folder,
        lambda body: refusal(400, "no response_format") if "response_format" in body else None,
    )


@scene("the endpoint takes no system message")
def no_system_message(folder: Path) -> Done:
    return through(
        folder,
        lambda body: (
            refusal(400, "role 'system' is not supported")
            if body["messages"][0]["role"] == "system"
            else None
        ),
    )


@scene("the model thinks before it answers")
def reasoning_model(folder: Path) -> Done:
    with simulator(thinking_tokens=600) as endpoint:
        return at(folder, endpoint.url)


@scene("going on with the fallback")
def fallback_steps_in(folder: Path) -> Done:
    with simulator() as second:
        other = ("--fallback", "second", *setting("delivery.fallback.base_url", second.url))
        return at(folder, f"http://127.0.0.1:{dead_port()}/v1", *other)


@scene("the endpoint does not take `NAME`")
def no_seed(folder: Path) -> Done:
    return through(
        folder, lambda body: refusal(400, "Unknown field: seed") if "seed" in body else None
    )


# ---- it cannot be reached


@scene("its name is not known; check the base URL")
def unknown_host(folder: Path) -> Done:
    return at(folder, "http://models.invalid/v1")


@scene("URL cannot be reached at NAME port N: connection refused; start the server")
def nobody_listens(folder: Path) -> Done:
    return at(folder, f"http://127.0.0.1:{dead_port()}/v1")


@scene("the connection timed out")
def nothing_comes_back(folder: Path) -> Done:
    with socket.socket() as full, ExitStack() as crowd:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        port = full.getsockname()[1]
        for _ in range(4):
            member = crowd.enter_context(socket.socket())
            member.setblocking(False)
            member.connect_ex(("127.0.0.1", port))
        url = f"http://127.0.0.1:{port}/v1"
        return at(folder, url, *setting("delivery.timeouts.connect_s", 0.2))


@scene("has a TLS certificate that cannot be trusted")
def certificate_not_trusted(folder: Path) -> Done:
    with answering(lambda _: said(""), server_context(folder)) as url:
        return at(folder, url)


@scene("does not speak TLS")
def https_to_http(folder: Path) -> Done:
    with answering(lambda _: said("")) as url:
        return at(folder, url.replace("http:", "https:"))


@scene("broke the connection")
def hangs_up(folder: Path) -> Done:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def hang_up() -> None:
            while True:
                try:
                    caller, _ = listener.accept()
                except OSError:
                    return
                caller.recv(100)
                caller.close()

        threading.Thread(target=hang_up, daemon=True).start()
        done = at(folder, f"http://127.0.0.1:{listener.getsockname()[1]}/v1")
        listener.shutdown(socket.SHUT_RDWR)
        return done


def by_way_of(folder: Path, way: str) -> Done:
    """A run by way of a proxy, whose address with a password is in the environment."""
    proxy = way.replace("http://", f"http://me:{PASSWORD}@").removesuffix("/v1")
    flags = setting("delivery.proxy", "$OUR_PROXY")
    return at(folder, "http://models.example.org/v1", *flags, OUR_PROXY=proxy)


@scene("wants other credentials")
def proxy_wants_credentials(folder: Path) -> Done:
    with answering(lambda _: (407, b"")) as way:
        return by_way_of(folder, way)


@scene("refused it (HTTP 407)")
def tunnel_wants_credentials(folder: Path) -> Done:
    return tunnel(folder, "407 Who Are You")


@scene("refused it (HTTP 502)")
def tunnel_refused(folder: Path) -> Done:
    return tunnel(folder, "502 No Way")


def tunnel(folder: Path, status: str) -> Done:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def refuse() -> None:
            while True:
                try:
                    caller, _ = listener.accept()
                except OSError:
                    return
                caller.recv(10_000)
                caller.sendall(f"HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n".encode())
                caller.close()

        threading.Thread(target=refuse, daemon=True).start()
        flags = setting("delivery.proxy", "$OUR_PROXY")
        way = f"http://me:{PASSWORD}@127.0.0.1:{listener.getsockname()[1]}"
        done = at(folder, "https://models.example.org/v1", *flags, OUR_PROXY=way)
        listener.shutdown(socket.SHUT_RDWR)
        return done


@scene("the proxy on the way to URL cannot be reached at NAME port N: its name is not known")
def proxy_unknown(folder: Path) -> Done:
    return by_way_of(folder, "http://proxy.invalid:3128")


@scene("the proxy on the way to URL cannot be reached at NAME port N: connection refused")
def proxy_away(folder: Path) -> Done:
    return by_way_of(folder, f"http://127.0.0.1:{dead_port()}")


# ---- it is slow or busy


@scene("waiting N s: Retry-After from the endpoint")
def pause_asked_for(folder: Path) -> Done:
    paused = refusal(429, "Slow down", retry_after="30")
    return asked(folder, once_greeted(paused), "--json", "--give-up-after", 3)


@scene("breaker open since")
def away_for_a_while(folder: Path) -> Done:
    many = ("--contexts", 40, "--json", "--give-up-after", 3)
    return asked(folder, once_greeted((503, b"")), *many)


@scene("asks for fewer calls")
def storm_of_429(folder: Path) -> Done:
    return asked(folder, refusal(429, "Slow down"))


@scene("is not available (HTTP 503)")
def overloaded(folder: Path) -> Done:
    return asked(folder, once_greeted(refusal(503, "Overloaded")))


@scene("did not answer in time")
def too_slow(folder: Path) -> Done:
    over = threading.Event()

    def answer(_: dict[str, Any]) -> Reply:
        over.wait(20)
        return said("")

    with answering(answer) as url:
        done = at(folder, url, *setting("delivery.timeouts.read_s", 0.3))
        over.set()
        return done


# ---- budgets


@scene("the budget of N requests is used up")
def requests_used_up(folder: Path) -> Done:
    return generate(folder, "--simulate", "--max-requests", 3)


@scene("the budget of N tokens is used up")
def tokens_used_up(folder: Path) -> Done:
    return generate(folder, "--simulate", "--max-tokens", 3000)


@scene("the budget of $N is used up")
def dollars_used_up(folder: Path) -> Done:
    price = setting("delivery.prices.usd_per_million_completion_tokens", 1000)
    price += setting("delivery.prices.usd_per_million_prompt_tokens", 0.001)
    return generate(folder, "--simulate", *price, "--max-usd", 2.6, "-n", 20)


@scene("is too small for a single call")
def budget_too_small(folder: Path) -> Done:
    return generate(folder, "--simulate", "--max-tokens", 100)


@scene("the endpoint reports N prompt")
def endpoint_reports_more(folder: Path) -> Done:
    def answer(body: dict[str, Any]) -> Reply:
        status, data = said('{"words": []}' if greeted(body) else "no")
        told = json.loads(data) | {"usage": {"prompt_tokens": 9999, "completion_tokens": 9999}}
        return status, json.dumps(told).encode()

    return asked(folder, answer, "--max-tokens", 10_000)


# ---- folder and disk


@scene("cannot write to DIR")
def folder_that_cannot_be_made(folder: Path) -> Done:
    (folder / "run").write_text("a file")
    return targen("generate", "copa", "--out", folder / "run" / "below")


@scene("is not empty and not a run")
def folder_of_somebody_else(folder: Path) -> Done:
    (folder / "run").mkdir()
    (folder / "run" / "thesis.tex").write_text("years of work")
    return generate(folder, "--simulate")


@scene("is in use by")
def folder_in_use(folder: Path) -> Done:
    (folder / "run").mkdir()
    with (folder / "run" / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lock.write(f"process {os.getpid()} on this host")
        lock.flush()
        return generate(folder, "--simulate")


@scene("it has just begun, and told nothing yet")
def folder_just_begun(folder: Path) -> Done:
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lock.write(f"process {os.getpid()} on this host")
        lock.flush()
        return targen("show", folder)


@scene("was killed before it told anything")
def killed_at_once(folder: Path) -> Done:
    (folder / "run.toml").touch()
    return targen("status", folder)


@scene("is not what a run wrote there")
def emptied_configuration(folder: Path) -> Done:
    assert generate(folder, "--simulate").returncode == 0
    (folder / "run" / "run.toml").write_text("")
    return generate(folder, "--simulate")


@scene("holds a run with another [data]")
def another_run(folder: Path) -> Done:
    assert generate(folder, "--simulate").returncode == 0
    return generate(folder, "--temperature", 0.5)


@scene("no room for a run at")
def no_room(folder: Path) -> Done:
    return on_small_disk(folder, 100_000)


@scene("cannot write FILE")
def disk_full(folder: Path) -> Done:
    return on_small_disk(folder, 1_060_000, "-n", 600, *setting("data.near_duplicate", 1.0))


def on_small_disk(folder: Path, size: int, *flags: object) -> Done:
    """No file may grow beyond `size` bytes, which looks like a full disk to who writes."""

    limited = (
        "import resource, signal, sys; from targen_async.cli import main;"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({size}, {size}));"
        "sys.exit(main(sys.argv[1:]))"
    )
    # A task of long texts.
    arguments = ("generate", "multirc", "--simulate", *flags, "--out", folder / "run")
    return subprocess.run(
        [sys.executable, "-c", limited, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@scene("is damaged at byte")
def damaged_journal(folder: Path) -> Done:
    assert generate(folder, "--simulate").returncode == 0
    journal = folder / "run" / "journal"
    data = bytearray(journal.read_bytes())
    data[len(data) // 2] ^= 0xFF
    journal.write_bytes(data)
    return generate(folder)


# ---- Ctrl-C


@scene("stopping: waiting for the calls under way")
def stopping(folder: Path) -> Done:
    return interrupted(folder, 1)


@scene("interrupted; `targen generate --out DIR`")
def stopped(folder: Path) -> Done:
    return interrupted(folder, 2)


def interrupted(folder: Path, times: int) -> Done:
    """Ctrl-C, once or twice, while calls are out."""
    out, back = threading.Event(), threading.Event()

    def answer(body: dict[str, Any]) -> Reply:
        if not greeted(body):
            out.set()
            back.wait(20)
        return said('{"words": []}')

    with answering(answer) as url:
        flags = ("--model", "m", "--base-url", url, "--out", folder / "run")
        child = subprocess.Popen(
            command("generate", "copa", *flags),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"OPENAI_API_KEY": KEY},
        )
        assert out.wait(20)
        child.send_signal(signal.SIGINT)
        if times == 2:
            time.sleep(0.5)
            child.send_signal(signal.SIGINT)
        else:
            time.sleep(0.2)
            back.set()
        stdout, stderr = child.communicate(timeout=30)
        back.set()
    return subprocess.CompletedProcess(child.args, child.returncode, stdout, stderr)


# ---- the page and the scenes


def row_of(fragment: str) -> Row:
    found = [row for row in ROWS if fragment in row.seen]
    assert len(found) == 1, f"{fragment!r} is in {len(found)} rows of {PAGE.name}"
    return found[0]


def test_every_row_has_a_scene_and_every_scene_a_row() -> None:
    played = [row_of(fragment) for fragment in SCENES]
    assert sorted(played) == sorted(ROWS)


def printed(done: Done) -> list[str]:
    """Every sentence that was said, also in the objects of --json."""
    lines = done.stderr.splitlines()
    lines += [
        why
        for line in done.stdout.splitlines()
        if line.startswith("{")
        if (why := json.loads(line).get("why"))
    ]
    return [line.removeprefix("targen: ") for line in lines]


@pytest.fixture(scope="module")
def played(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, tuple[Path, "Future[Done]"]]]:
    """The scenes that are asked for, some at a time: many of them only wait."""
    wanted = [
        item.callspec.params["fragment"]
        for item in request.session.items
        if isinstance(item, pytest.Function) and item.originalname == JUDGED
    ]
    with ThreadPoolExecutor(4) as pool:
        running = {}
        for fragment in wanted:
            folder = tmp_path_factory.mktemp("scene")
            running[fragment] = folder, pool.submit(SCENES[fragment], folder)
        yield running
        pool.shutdown(cancel_futures=True)


@pytest.mark.parametrize("fragment", SCENES)
def test_what_the_page_says_is_what_is_printed(
    fragment: str, played: dict[str, tuple[Path, "Future[Done]"]]
) -> None:
    row = row_of(fragment)
    folder, scene_played = played[fragment]
    done = scene_played.result(120)
    lines = printed(done)
    assert any(re.fullmatch(row.pattern, line) for line in lines), (row.seen, lines)
    assert done.returncode == row.code, done.stderr
    complaints = [line for line in done.stderr.splitlines() if line.startswith("targen: ")]
    assert len(complaints) == (row.code in (1, 2)), done.stderr
    if row.section == "Before anything is sent" and fragment not in BEGUN_BEFORE:
        assert not (folder / "run").exists(), "a mistake of the user's left a folder behind"
    for fault in ("Traceback", "Unclosed", "never retrieved"):
        assert fault not in done.stdout + done.stderr
    for secret in (KEY, PASSWORD):
        assert secret not in done.stdout + done.stderr
        for file in (folder / "run").rglob("*") if (folder / "run").is_dir() else ():
            assert secret.encode() not in file.read_bytes(), file


BEGUN_BEFORE = ("there is nothing left to estimate",)
"""Scenes in which a run is made before the mistake is."""
JUDGED = test_what_the_page_says_is_what_is_printed.__name__
