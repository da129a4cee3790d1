"""One quota for several processes: the file, the shares, and what comes of it in virtual time."""

import asyncio
import json
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from targen_async.chat.lease import BEAT_S, EXPIRES_S, Claim, Lease, shares
from targen_async.simulator.settings import LimitChange
from tests.chat import virtual_time
from tests.chat.bucket_server import BucketServer, sized
from tests.chat.test_limit import DECLARED, Together, limited, work_for
from tests.chat.virtual_time import now

URL, KEY = "http://127.0.0.1:1/v1", "sk-secret-0123456789"


def lease(folder: Path, key: str = KEY, url: str = URL) -> Lease:
    return Lease(url, key, folder)


def claim(used: float, hungry: bool = False) -> Claim:
    return Claim(until_s=1.0, used=used, wants_more=hungry)


# ---- shares


def test_a_lone_process_has_it_all() -> None:
    assert shares({"a": claim(0.1)}) == {"a": 1.0}


def test_two_that_want_more_have_half_each() -> None:
    assert shares({"a": claim(0.9, True), "b": claim(0.2, True)}) == {"a": 0.5, "b": 0.5}


def test_whoever_needs_little_leaves_the_rest() -> None:
    parts = shares({"a": claim(0.1), "b": claim(0.6, True)})
    assert parts["a"] == pytest.approx(0.175)
    assert parts["b"] == pytest.approx(0.825)


@given(st.dictionaries(st.text(max_size=5), st.builds(claim, st.floats(0, 1), st.booleans())))
def test_shares_add_up_to_the_whole(claims: dict[str, Claim]) -> None:
    parts = shares(claims)
    assert sum(parts.values()) == pytest.approx(1.0 if claims else 0.0)
    assert all(part > 0 for part in parts.values())


# ---- the file


def test_the_file_is_private_and_holds_no_secret(tmp_path: Path) -> None:
    one = lease(tmp_path)
    assert one.renew(100.0, used=0.5, wants_more=True) == 1.0
    assert stat.S_IMODE(one.path.stat().st_mode) == 0o600
    for text in (one.path.name, one.path.read_text()):
        assert KEY not in text and "127.0.0.1" not in text
    assert next(iter(json.loads(one.path.read_text()).values()))["used"] == 0.5


def test_another_key_or_address_is_another_quota(tmp_path: Path) -> None:
    paths = {lease(tmp_path).path, lease(tmp_path, "other").path, lease(tmp_path, url="x").path}
    assert len(paths) == 3
    assert lease(tmp_path, url=URL + "/").path == lease(tmp_path).path


def test_a_share_comes_back_when_its_process_is_silent(tmp_path: Path) -> None:
    one, two = lease(tmp_path), lease(tmp_path)
    one.renew(100.0, used=1.0, wants_more=True)
    assert two.renew(100.5, used=0.0, wants_more=True) == 0.5
    assert two.joining_until_s == 100.5 + BEAT_S
    assert one.renew(101.0, used=1.0, wants_more=True) == 0.5
    assert one.renew(100.5 + EXPIRES_S + 0.1, used=1.0, wants_more=True) == 1.0


def test_a_share_is_given_back_at_the_end(tmp_path: Path) -> None:
    one, two = lease(tmp_path), lease(tmp_path)
    one.renew(100.0, used=1.0, wants_more=True)
    two.renew(100.1, used=1.0, wants_more=True)
    two.release()
    assert one.renew(100.2, used=1.0, wants_more=True) == 1.0


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[1]", b'{"x":{"until_s":1e9,"used":1,"wants_more":true}}', b"\xff" * 9, b"null"],
)
def test_a_torn_or_foreign_file_or_one_of_an_earlier_boot_is_no_trouble(
    tmp_path: Path, content: bytes
) -> None:
    one = lease(tmp_path)
    one.path.write_bytes(content)
    assert one.renew(100.0, used=0.5, wants_more=True) == 1.0
    assert len(json.loads(one.path.read_text())) == 1


def test_a_folder_that_cannot_be_written_means_not_shared(tmp_path: Path) -> None:
    one = lease(tmp_path / "nowhere")
    assert one.renew(100.0, used=0.5, wants_more=True) == 1.0
    one.release()


def test_a_link_in_its_place_is_not_followed(tmp_path: Path) -> None:
    one = lease(tmp_path)
    victim = tmp_path / "victim"
    victim.write_text("precious")
    one.path.symlink_to(victim)
    assert one.renew(100.0, used=0.5, wants_more=True) == 1.0
    assert victim.read_text() == "precious"


def test_a_process_that_is_killed_loses_its_share_within_seconds(tmp_path: Path) -> None:
    """Killed with kill -9 while it writes as fast as it can: the file can always be read."""
    code = (
        "import sys,time; from pathlib import Path; from targen_async.chat.lease import Lease\n"
        f"held = Lease({URL!r}, {KEY!r}, Path(sys.argv[1]))\n"
        "print('ready', flush=True)\n"
        "while True: held.renew(time.monotonic(), used=1.0, wants_more=True)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None and child.stdout.readline()
        one = lease(tmp_path)
        deadline = time.monotonic() + 10
        while one.share != 0.5 and time.monotonic() < deadline:
            one.renew(time.monotonic(), used=1.0, wants_more=True)
            time.sleep(0.003)
        assert one.share == 0.5
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
    died = time.monotonic()
    while one.share != 1.0:
        assert time.monotonic() < died + EXPIRES_S + 1
        one.renew(time.monotonic(), used=1.0, wants_more=True)
        time.sleep(0.05)


def test_the_last_to_release_leaves_no_file(tmp_path: Path) -> None:
    one, two = lease(tmp_path), lease(tmp_path)
    for each in (one, two):
        each.renew(100.0, used=0.5, wants_more=True)
    one.release()
    assert two.path.exists()
    two.release()
    assert not list(tmp_path.iterdir())


def test_what_the_others_took_is_known_between_two_looks(tmp_path: Path) -> None:
    """One takes 10 a second; the other sees 20 of them come in two seconds, and no more."""
    one, two = lease(tmp_path), lease(tmp_path)
    for second in range(6):
        now = 100.0 + second
        one.renew(now, used=1.0, wants_more=True, taken={"requests": 500.0 + 10 * second})
        two.renew(now + 0.5, used=1.0, wants_more=True, taken={"requests": 0.0})
        if second == 2:
            before = two.others["requests"].at(103.0)
    others = two.others["requests"]
    assert others.per_s == pytest.approx(10)
    assert others.at(105.0) - before == pytest.approx(20, abs=0.5)
    assert one.leads != two.leads


def test_what_one_learnt_is_heard_between_two_renewals(tmp_path: Path) -> None:
    one, two = lease(tmp_path), lease(tmp_path)
    one.renew(100.0, used=0.5, wants_more=True)
    two.renew(100.1, used=0.5, wants_more=True)
    one.tell(100.2, learnt={"requests": (7.0, 100.2)}, taken={"requests": 31.0})
    two.tell(100.3, learnt={}, taken={})
    assert two.learnt == {"requests": (7.0, 100.2)}
    assert two.due_s == pytest.approx(101.1)


def test_what_one_took_is_heard_between_two_renewals(tmp_path: Path) -> None:
    one, two = lease(tmp_path), lease(tmp_path)
    for renewed in (one, two):
        renewed.renew(100.0, used=0.5, wants_more=True, taken={"requests": 10.0})
    two.renew(100.1, used=0.5, wants_more=True, taken={"requests": 10.0})
    before = two.others["requests"].taken
    one.tell(100.5, learnt={}, taken={"requests": 31.0})
    two.tell(100.5, learnt={}, taken={"requests": 10.0})
    assert two.others["requests"].taken - before == pytest.approx(21)


def test_a_refusal_to_one_stops_the_other_from_trying_for_more(tmp_path: Path) -> None:
    """Whoever tries for more is as likely to have another refused as itself."""

    async def main() -> None:
        server = BucketServer(requests_per_minute=600, burst_s=1, rate_headers=False)
        clients = [
            limited(server, lease=lease(tmp_path), requests_per_minute=1200) for _ in range(2)
        ]
        run = Together(server, *clients)
        await run.work(260)
        assert run.share(60, 260, 10) >= 0.98
        assert run.refused(60, 260) < 0.005

    virtual_time.run(main())


@pytest.mark.parametrize(("per_minute", "least"), [(60, 0.5), (600, 0.9)])
def test_one_of_eight_that_tries_for_more_sends_no_burst(
    tmp_path: Path, per_minute: int, least: float
) -> None:
    """Sixty a minute are few for eight, and which of them leads is chance."""

    async def main() -> None:
        server = BucketServer(requests_per_minute=per_minute, burst_s=10, rate_headers=False)
        run = Together(server, *(limited(server, lease=lease(tmp_path)) for _ in range(8)))
        await run.work(400, workers=40)
        assert run.share(200, 400, per_minute / 60) >= least
        assert run.refused(200, 400) < 0.02

    virtual_time.run(main())


def test_what_was_given_back_is_not_taken_again_by_a_late_word(tmp_path: Path) -> None:
    one = lease(tmp_path)
    one.renew(100.0, used=0.5, wants_more=True)
    one.release()
    one.tell(100.2, learnt={}, taken={})
    assert not one.path.exists()


def test_renewing_is_quick(tmp_path: Path) -> None:
    one = lease(tmp_path)
    start = time.perf_counter()
    for _ in range(100):
        one.renew(100.0, used=0.5, wants_more=True)
    assert (time.perf_counter() - start) / 100 < 0.005


# ---- two limiters on one quota


@pytest.mark.parametrize("burst_s", [1.0, 10.0, 60.0])
@pytest.mark.parametrize("headers", [True, False])
def test_two_together_get_what_one_would_get(tmp_path: Path, burst_s: float, headers: bool) -> None:
    async def main() -> None:
        server = BucketServer(**DECLARED, burst_s=burst_s, rate_headers=headers)
        clients = [limited(server, lease=lease(tmp_path), **DECLARED) for _ in range(2)]
        run = Together(server, *clients)
        await run.work(150)
        assert run.share(0, 150, 10, 10 * burst_s) >= 0.97
        assert run.refused(0, 150) < 0.005

    virtual_time.run(main())


@pytest.mark.parametrize("late_s", [0.4, 0.8])
def test_two_together_follow_a_limit_that_nobody_tells_of(tmp_path: Path, late_s: float) -> None:
    """Each sees only its own refusals: how much of a shortfall the other had is not known."""

    async def main() -> None:
        change = LimitChange(at_s=60, requests_per_minute=300, tokens_per_minute=100_000)
        server = BucketServer(**DECLARED, burst_s=10, rate_headers=False, limit_changes=(change,))
        one, two = (limited(server, lease=lease(tmp_path), **DECLARED) for _ in range(2))
        first, second = Together(server, one), Together(server, two)

        async def later() -> None:
            await asyncio.sleep(late_s)
            await second.work(220)

        await asyncio.gather(first.work(220), later())
        assert first.share(80, 220, 5) >= 0.95
        assert first.refused(80, 220) < 0.0075  # Five calls of 700.
        assert first.refused(0, 60) < 0.01

    virtual_time.run(main())


def test_without_a_lease_two_get_refused_a_lot() -> None:
    """What the lease is for: the limit would be one for each process."""

    async def main() -> None:
        server = BucketServer(**DECLARED, burst_s=1, rate_headers=False)
        run = Together(server, *(limited(server, **DECLARED) for _ in range(2)))
        await run.work(60)
        assert run.refused(0, 60) > 0.01

    virtual_time.run(main())


def test_a_process_with_little_to_ask_leaves_its_share_to_the_other(tmp_path: Path) -> None:
    async def main() -> None:
        server = BucketServer(**DECLARED, burst_s=1)
        busy, idle = (limited(server, lease=lease(tmp_path), **DECLARED) for _ in range(2))
        start = now()

        async def trickle() -> None:
            for number in range(150):
                await idle.complete(sized(f"idle/{number}", 100))
                await asyncio.sleep(0.9)

        trickling = asyncio.create_task(trickle())
        await work_for(busy, 120, 100, lambda key: sized(key, 100))
        trickling.cancel()
        idles = sum(key.startswith("idle") for _, key in server.served)
        assert 90 <= idles <= 115
        assert server.within(start + 20, start + 120) >= 0.95 * 1000

    virtual_time.run(main())


def test_the_survivor_has_the_whole_quota_seconds_later(tmp_path: Path) -> None:
    async def main() -> None:
        server = BucketServer(**DECLARED, burst_s=1)
        one, two = (limited(server, lease=lease(tmp_path), **DECLARED) for _ in range(2))
        start = now()

        def make(key: str):  # type: ignore[no-untyped-def]
            return sized(key, 100)

        await asyncio.gather(work_for(one, 90, 100, make), work_for(two, 30, 100, make))
        assert server.within(start + 30 + EXPIRES_S + 2, start + 90) >= 0.95 * 10 * 54

    virtual_time.run(main())
