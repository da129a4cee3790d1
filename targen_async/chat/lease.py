"""One quota for all processes of a user on this host that ask the same endpoint with the same key.

Each process writes into a small file how much it uses and whether it wants more, once a second, and
works out from the others' lines which part of the rates is its own. A line that is not renewed
expires in seconds, so the share of a killed process comes back by itself. The file holds numbers
only; its name is a digest of the address and the key.
"""

import contextlib
import fcntl
import os
import secrets
import tempfile
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path

import msgspec
from msgspec import Struct

BEAT_S = 1.0
EXPIRES_S = 4.0
_HEADROOM = 1.25
_LEAST = 0.05
"""Part of the quota that a process which wants nothing more keeps beyond what it uses."""
_LARGEST_FILE = 1 << 20


class Claim(Struct, frozen=True, kw_only=True):
    """One process' line. Times are of the host's monotonic clock, in seconds."""

    until_s: float
    used: float
    """Part of the quota."""
    wants_more: bool
    learnt: dict[str, tuple[float, float]] = {}
    """`requests` or `tokens` to its rate a second, as refusals showed it, and when."""
    taken: dict[str, tuple[float, float]] = {}
    """`requests` or `tokens` to how much was taken so far, and how much a second of late."""


class Others(Struct, frozen=True):
    """How much of a quota the other processes took, on this process' own count of it."""

    time_s: float
    taken: float
    per_s: float

    def at(self, time_s: float) -> float:
        """As much as they will have taken by then, should they go on as they do."""
        return self.taken + (time_s - self.time_s) * self.per_s


class Lease:
    """Our part of a shared quota. Without a file that can be had, the whole of it is ours.

    `now_s` is a clock that all processes of the host share, as time.monotonic() is on Linux.
    """

    def __init__(self, base_url: str, api_key: str | None, folder: Path | None = None) -> None:
        secret = f"{base_url.rstrip('/')}\n{api_key or ''}".encode()
        digest = sha256(b"targen quota\n" + secret).hexdigest()[:32]
        self.path = (folder or _folder()) / f"targen-{os.getuid()}-{digest}.json"
        self.share = 1.0
        self.due_s = 0.0
        """When the next renewal is due."""
        self.joining_until_s = 0.0
        """Until then the others do not know of us yet."""
        self._name = f"{os.getpid()}-{secrets.token_hex(4)}"
        self.learnt: dict[str, tuple[float, float]] = {}
        """What others learnt last of the rates, as in `Claim`."""
        self.others: dict[str, Others] = {}
        """What others take, by the name of the limit."""
        self.leads = True
        """Whether it is us, of those that want more, who find out whether there is more."""
        self._known = False
        self._mine_last: Claim | None = None
        self._renewed_s = 0.0
        self._mine: dict[str, float] = {}
        self._seen: dict[str, Claim] = {}
        self._looked_s = 0.0

    def renew(
        self,
        now_s: float,
        *,
        used: float,
        wants_more: bool,
        learnt: dict[str, tuple[float, float]] | None = None,
        taken: dict[str, float] | None = None,
    ) -> float:
        """Write our line and return our share of the quota, between 0 and 1.

        `used`: which part of the whole quota we used of late; `learnt`: as in `Claim`; `taken`:
        how much of each limit we took so far. Never raises: where the file cannot be had this
        time, the share stays as it is.
        """
        self.due_s = now_s + BEAT_S
        self._mine_last = mine = Claim(
            until_s=now_s + EXPIRES_S,
            used=used,
            wants_more=wants_more,
            learnt=learnt or {},
            taken=self._pace(taken or {}, now_s),
        )
        with contextlib.suppress(OSError):
            claims = self._exchange(now_s, mine)
            if not self._known and len(claims) > 1:
                # Whoever was alone has to hear of us first, or the rate would be doubled.
                self.joining_until_s = now_s + BEAT_S
            self._known = True
            self.share = shares(claims)[self._name]
            self.leads = self._name == min(
                (n for n, c in claims.items() if c.wants_more), default=""
            )
            self._look_at(claims, now_s)
        return self.share

    def tell(
        self, now_s: float, *, learnt: dict[str, tuple[float, float]], taken: dict[str, float]
    ) -> None:
        """Between two renewals: what refusals showed just now, of ours and of the others'."""
        mine = self._mine_last
        if mine is None:
            return
        paces = {name: pace for name, (_, pace) in mine.taken.items()}
        mine = msgspec.structs.replace(
            mine,
            until_s=now_s + EXPIRES_S,
            learnt=learnt,
            taken={name: (amount, paces.get(name, 0.0)) for name, amount in taken.items()},
        )
        with contextlib.suppress(OSError):
            self._look_at(self._exchange(now_s, mine), now_s)

    def _pace(self, taken: dict[str, float], now_s: float) -> dict[str, tuple[float, float]]:
        since_s = max(now_s - self._renewed_s, BEAT_S / 2)
        before, self._mine, self._renewed_s = self._mine, taken, now_s
        return {
            name: (amount, max(amount - before.get(name, amount), 0.0) / since_s)
            for name, amount in taken.items()
        }

    def _look_at(self, claims: dict[str, Claim], now_s: float) -> None:
        """Count what the others took since we last looked, and hear what they learnt."""
        self.learnt = _latest(claims)
        claims = {name: claim for name, claim in claims.items() if name != self._name}
        for name in {name for claim in claims.values() for name in claim.taken}:
            before = self.others.get(name)
            taken = before.taken if before else 0.0
            per_s = 0.0
            for process, claim in claims.items():
                if name not in claim.taken:
                    continue
                amount, pace = claim.taken[name]
                written_s = claim.until_s - EXPIRES_S
                seen = self._seen.get(process)
                if seen is not None and name in seen.taken:
                    known, old_pace = seen.taken[name]
                    taken -= known + old_pace * (self._looked_s - (seen.until_s - EXPIRES_S))
                    taken += amount + pace * (now_s - written_s)
                per_s += pace
            self.others[name] = Others(now_s, taken, per_s)
        self._seen, self._looked_s = claims, now_s

    def release(self) -> None:
        """Take our line out, so that the others need not wait for it to expire."""
        if self._known:
            with contextlib.suppress(OSError):
                self._exchange(None, None)
        self._known, self._mine_last = False, None

    def _exchange(self, now_s: float | None, mine: Claim | None) -> dict[str, Claim]:
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        handle = os.open(self.path, flags, 0o600)
        try:
            if os.fstat(handle).st_uid != os.getuid():
                raise PermissionError(f"{self.path} belongs to another user")
            # Held for microseconds, so whoever finds it taken tries again in a second.
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            claims = _read(os.pread(handle, _LARGEST_FILE, 0))
            claims.pop(self._name, None)
            if now_s is not None:
                # A time that lies too far ahead is of an earlier boot.
                latest_s = now_s + 2 * EXPIRES_S
                claims = {n: c for n, c in claims.items() if now_s < c.until_s < latest_s}
            if mine is not None:
                claims[self._name] = mine
            # In one piece and padded rather than cut first: a process that is killed between
            # two calls would leave an empty file, and an empty file means a share of 1.
            if not claims:
                self.path.unlink()  # Whoever opened it just now finds the new one in a second.
                return claims
            data = msgspec.json.encode(claims)
            old = os.fstat(handle).st_size
            os.pwrite(handle, data + b" " * max(old - len(data), 0), 0)
            return claims
        finally:
            os.close(handle)


def shares(claims: Mapping[str, Claim]) -> dict[str, float]:
    """Each process' part: as much as it needs where that is little, the rest in equal parts."""
    wanted = {
        name: 1.0 if claim.wants_more else min(claim.used * _HEADROOM + _LEAST, 1.0)
        for name, claim in claims.items()
    }
    parts: dict[str, float] = {}
    left = 1.0
    for count, name in enumerate(sorted(wanted, key=lambda each: (wanted[each], each))):
        parts[name] = min(wanted[name], left / (len(wanted) - count))
        left -= parts[name]
    # What nobody asked for goes round, so that a lone process has it all at once.
    return {name: part + left / len(parts) for name, part in parts.items()}


def _latest(claims: Mapping[str, Claim]) -> dict[str, tuple[float, float]]:
    found: dict[str, tuple[float, float]] = {}
    for claim in claims.values():
        for name, (per_s, when_s) in claim.learnt.items():
            if per_s > 0 and (name not in found or when_s > found[name][1]):
                found[name] = (per_s, when_s)
    return found


def _read(data: bytes) -> dict[str, Claim]:
    """The lines of a file that may be empty or torn."""
    try:
        return msgspec.json.decode(data, type=dict[str, Claim])
    except msgspec.MsgspecError:
        return {}


def _folder() -> Path:
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    return Path(runtime if runtime and Path(runtime).is_dir() else tempfile.gettempdir())
