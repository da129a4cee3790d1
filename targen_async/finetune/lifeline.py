"""Ranks that notice each other's death: those that live on end with the reason, and soon.

A collective waits for every rank, and a launcher that would end the rest is not always there. So
each rank holds a TCP connection to rank 0, and both sides send a beat every few seconds. A process
that dies closes its connection at once; one that is frozen, or whose machine or network is gone, is
silent for `SILENCE` seconds. Rank 0 tells the others, and each of them ends.
"""

import contextlib
import os
import secrets
import select
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from msgspec import Struct

from targen_async.errors import RunStopped

SILENCE = 120.0
"""Seconds after which a rank that sends nothing is given up. A call that keeps the interpreter's
lock holds the beats of its rank back, so it is not short."""
JOIN = 300.0
"""Seconds that all ranks have to start in."""
_BEAT = 5.0
_PATIENCE = 5.0
"""Seconds for what a rank sends to be taken."""
_SOON = 1.0
"""Seconds between a death and the end of a rank that lives on."""
_SAME = 10.0
"""The same where a rank ended with a reason: the others often come to it themselves."""
_LIVES, _DONE, _FAILED, _END = b"+", b".", b"!", b"\n"


class _Death(Struct, frozen=True):
    rank: int
    """Whose, or who tells of it."""
    reason: str
    code: int = 1
    """That the others exit with."""
    told: bool = False
    """The rank gave the reason itself, or rank 0 did."""


class Lifeline:
    """Of one rank to `peers`: rank 0 has a connection to every other rank, and they one to it.

    `tidy` is called before the process is ended; it leaves the terminal as it was.
    """

    def __init__(
        self, rank: int, peers: Mapping[int, socket.socket], silence: float = SILENCE
    ) -> None:
        self.tidy: Callable[[], None] = lambda: None
        self._rank, self._peers, self._silence = rank, peers, silence
        self._death: _Death | None = None
        self._broken, self._closed = threading.Event(), threading.Event()
        self._wake, self._woken = socket.socketpair()
        for peer in peers.values():
            peer.settimeout(_PATIENCE)
        self._thread = threading.Thread(target=self._watch, name="lifeline", daemon=True)
        self._thread.start()

    def close(self, failure: str | None = None, code: int = 1) -> None:
        """This rank is done, or ends with `failure` and an exit code, which the others are told."""
        self._closed.set()
        self._wake.close()
        self._thread.join()
        told = _DONE if failure is None else _word(code, f"rank {self._rank}: {failure}")
        for peer in self._peers.values():
            _send(peer, told)
            _hang_up(peer)
        deadline = time.monotonic() + _PATIENCE
        for peer in self._peers.values():
            # A socket that is closed with something unread resets the connection, and what was said
            # last may be lost. The other side hangs up as soon as it has heard it.
            while _read(peer) and time.monotonic() < deadline:
                pass
            peer.close()
        self._woken.close()

    def _watch(self) -> None:
        if death := self._listen():
            self._end(death)

    def _listen(self) -> _Death | None:
        """Until another rank's death, or until all are done or this line is closed."""
        heard = dict.fromkeys(self._peers, time.monotonic())
        every = min(_BEAT, self._silence / 4)
        beaten = float("-inf")
        while heard:
            if time.monotonic() - beaten >= every:
                beaten = time.monotonic()
                for rank in heard:
                    _send(self._peers[rank], _LIVES)
            owners = {self._peers[rank]: rank for rank in heard}
            ready, _, _ = select.select([*owners, self._woken], [], [], every)
            if self._woken in ready:
                return None
            for peer in ready:
                rank, content = owners[peer], _read(peer)
                heard[rank] = time.monotonic()
                while _FAILED in content and not content.endswith(_END) and (more := _read(peer)):
                    content += more
                if _DONE in content or _FAILED in content:
                    _hang_up(peer)
                if not content or _FAILED in content:
                    return _death(rank, content)
                if _DONE in content:
                    del heard[rank]
            for rank, at in heard.items():
                if time.monotonic() - at > self._silence:
                    what = f"rank {rank} has been silent for {self._silence:.0f} seconds"
                    return _Death(rank, f"{what}: it hangs, or its machine is gone")
        return None

    def outlive(self, wait: float = 3.0) -> None:
        """Called where a collective broke: ends this process if another rank's death broke it."""
        if self._broken.wait(wait):
            self._leave()

    def _end(self, death: _Death) -> None:
        """Tell the others and end this process, unless it closes the line soon: its main thread may
        be in a collective that never returns."""
        self._death = death
        self._broken.set()
        if self._rank == 0:
            for rank, peer in self._peers.items():
                if rank != death.rank:
                    _send(peer, _word(death.code, death.reason))
        if not self._closed.wait(_SAME if death.told else _SOON):
            self._leave()

    def _leave(self) -> None:
        assert self._death
        self.tidy()
        sys.stdout.flush()
        if self._rank == 0 or not self._death.told:  # Rank 0 says it for all, where it can.
            print(f"{self._death.reason}; the same command goes on", file=sys.stderr, flush=True)
        os._exit(self._death.code)


def open_lifeline(store: Any, rank: int, count: int) -> Lifeline:  # noqa: ANN401
    """`store`: a torch.distributed store that all ranks share.

    Raises RunStopped where not all ranks come within `JOIN` seconds.
    """
    key = f"targen/lifeline/{_number(store, rank)}"
    host = os.environ["MASTER_ADDR"]
    if rank:
        port, token = bytes(store.get(key)).decode().split()
        peer = socket.create_connection((host, int(port)), JOIN)
        peer.sendall(f"{token} {rank:08d}".encode())
        return Lifeline(rank, {0: peer})
    near = host in ("localhost", "127.0.0.1")
    with socket.create_server(("127.0.0.1" if near else "", 0), backlog=count) as server:
        token = secrets.token_hex(16)
        store.set(key, f"{server.getsockname()[1]} {token}")
        return Lifeline(0, _gather(server, token, count))


def _number(store: Any, rank: int) -> int:  # noqa: ANN401
    """Of this line among those of the process; every rank opens as many."""
    return int(store.add(f"targen/lines/{rank}", 1))


def _gather(server: socket.socket, token: str, count: int) -> dict[int, socket.socket]:
    """The connections of all other ranks; who does not know the token is none."""
    peers: dict[int, socket.socket] = {}
    deadline = time.monotonic() + JOIN
    while len(peers) < count - 1:
        server.settimeout(max(0.01, deadline - time.monotonic()))
        try:
            peer, _ = server.accept()
        except TimeoutError as error:
            lacking = sorted(set(range(1, count)) - set(peers))
            raise RunStopped(
                f"rank {lacking[0]} of {count} did not come within {JOIN:.0f} seconds: start all "
                "ranks, and look at what the missing one said"
            ) from error
        peer.settimeout(_PATIENCE)
        told = b""
        with contextlib.suppress(OSError):
            told = peer.recv(len(token) + 9, socket.MSG_WAITALL)
        if secrets.compare_digest(told[: len(token)], token.encode()):
            peers[int(told[-8:])] = peer
        else:
            peer.close()
    return peers


def _send(peer: socket.socket, content: bytes) -> None:
    with contextlib.suppress(OSError):  # Its end is noticed where it is read.
        peer.sendall(content)


def _hang_up(peer: socket.socket) -> None:
    """Nothing more is said on this side; the other one reads it to the end."""
    with contextlib.suppress(OSError):
        peer.shutdown(socket.SHUT_WR)


def _read(peer: socket.socket) -> bytes:
    """Empty where the other side is gone."""
    try:
        return peer.recv(8192)
    except OSError:
        return b""


def _word(code: int, reason: str) -> bytes:
    """The last word of a rank that failed: a line, which may come in pieces."""
    return _FAILED + f"{code}{' '.join(reason.split())}".encode()[:4000] + _END


def _death(rank: int, content: bytes) -> _Death:
    if content:
        told = content.partition(_FAILED)[2].decode(errors="replace").strip()
        reason = told[1:] or f"rank {rank} failed and died before it said why"
        return _Death(rank, reason, int(told[:1] or 1), told=True)
    reason = "it was killed, or its machine ran out of memory, which the kernel's log would say"
    return _Death(rank, f"rank {rank} died without a word: {reason}")
