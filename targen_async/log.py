"""`--log`: one JSON line for each thing that happens to a run. No keys and no model's words."""

import json
import math
import os
import re
import sys
from collections.abc import Iterable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, Protocol

from targen_async.chat.mask import hide, longest_first
from targen_async.errors import UserError
from targen_async.progress import Progress, is_calm
from targen_async.stats import LimitView

Level = Literal["info", "warning", "error"]
"""info: a milestone. warning: a person should look. error: the run ends."""

MOST_TEXT = 500
"""Characters of a text that a line holds: a reason is a sentence."""
WAITING_AFTER_S = 10.0
"""A wait that is shorter is no event."""
STORM_FROM = 20
"""So many 429s within a minute are an event, at most one a minute."""
_SHORTEST_UNNAMED = 6
_SECRET_NAMES = re.compile(r"(KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS?)$", re.IGNORECASE)
_LOOKS_SECRET = re.compile(
    r"(?i:\b(?:bearer|basic)\s+)[\w.~+/=-]{6,}|\b(?:sk|pk|rk)-[\w-]{8,}|(?<=://)[^\s/@]+:[^\s/@]+@"
)
_HIDDEN = "[hidden]"
_DOWN = re.compile(r"^(?:[\w ]+: )?(?:breaker open|endpoint down)")


class Event(Protocol):
    """Writes one event down. It raises nothing."""

    def __call__(self, level: Level, name: str, /, **fields: object) -> None: ...


def no_event(_level: Level, _name: str, /, **_fields: object) -> None:
    """Where nobody keeps a log."""


def secrets_in(environment: Mapping[str, str], names: Iterable[str] = ()) -> set[str]:
    """Values of the environment that are never to be shown: of variables so called, and of
    `names`, however short."""
    named = set(names)
    return {
        value
        for name, value in environment.items()
        if name in named or (len(value) >= _SHORTEST_UNNAMED and _SECRET_NAMES.search(name))
    }


class Log:
    """Appends JSON lines to a file, each in one write, so that several runs may share it."""

    def __init__(self, path: Path | None, secrets: Iterable[str] = ()) -> None:
        """`path` None: stderr. Raises UserError when the file cannot be written."""
        self._secrets = longest_first(secrets)
        if path is None:
            self._fd, self._ours = sys.stderr.fileno(), False
            return
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
        try:
            self._fd, self._ours = os.open(path, flags, 0o600), True
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise UserError(f"cannot write the log {path}: {reason}") from error

    def event(self, level: Level, name: str, /, **fields: object) -> None:
        """Write one event. A log that cannot be written stops no run."""
        now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        line: dict[str, object] = {"at": now, "level": level, "event": name}
        line |= {key: self._safe(value) for key, value in fields.items()}
        data = json.dumps(line) + "\n"
        with suppress(OSError):
            os.write(self._fd, data.encode())

    def close(self) -> None:
        """Close the file, if it is one of ours."""
        if self._ours:
            os.close(self._fd)

    def _safe(self, value: object) -> object:
        """The same without secrets, and with nothing but what JSON can say."""
        if isinstance(value, float) and not math.isfinite(value):
            return None
        if value is None or isinstance(value, bool | int | float):
            return value
        if isinstance(value, Mapping):
            return {str(self._safe(str(key))): self._safe(item) for key, item in value.items()}
        if isinstance(value, list | tuple | set | frozenset):
            return [self._safe(item) for item in value]
        text = self._hidden(str(value).encode("utf-8", "replace").decode())
        return text if len(text) <= MOST_TEXT else text[: MOST_TEXT - 3] + "..."

    def _hidden(self, text: str) -> str:
        return _LOOKS_SECRET.sub(_HIDDEN, hide(text, self._secrets, _HIDDEN))


# ---- what can be seen from outside


class Observer:
    """Makes events of what changes from one look at a run to the next."""

    def __init__(self, event: Event) -> None:
        self._event = event
        self._tenth = -1
        self._waits = ""
        self._waits_since_s = 0.0
        self._told = False
        self._limits: dict[str, LimitView] = {}
        self._refusals: dict[str, list[tuple[float, int]]] = {}
        self._stormed_s: dict[str, float] = {}

    def show(self, progress: Progress) -> None:
        """Take the run as it is now; four times a second is often enough."""
        if progress.n:
            self._rows(progress)
        self._waiting(progress)
        for view in progress.limits:
            self._learnt(view)
            self._storm(view, progress.elapsed_s)

    def _rows(self, progress: Progress) -> None:
        tenth = 10 * progress.delivered // progress.n
        if self._tenth < 0:
            self._tenth = tenth
        elif tenth > self._tenth:
            self._tenth = tenth
            self._event(
                "info",
                "rows",
                delivered=progress.delivered,
                n=progress.n,
                rows_per_second=progress.rows_per_second,
                elapsed_s=progress.elapsed_s,
            )

    def _waiting(self, progress: Progress) -> None:
        # What is counted down in a reason makes no new reason of it.
        reason = re.sub(r"\d+(?:\.\d+)?", "N", progress.why)
        now = progress.elapsed_s
        if reason != self._waits:
            down, was_down = bool(_DOWN.match(reason)), bool(_DOWN.match(self._waits))
            waited_s = round(now - self._waits_since_s, 1)
            if was_down and not down:
                self._event("info", "breaker_closed", waited_s=waited_s)
            elif self._told and not was_down:
                self._event("info", "waiting_ended", waited_s=waited_s)
            if down and not was_down:
                self._event("warning", "breaker_opened", why=progress.why)
            if not (down and was_down):
                self._waits_since_s = now
            self._waits, self._told = reason, down
        elif reason and not self._told and now - self._waits_since_s >= WAITING_AFTER_S:
            self._told = True
            level: Level = "info" if is_calm(reason) else "warning"
            self._event(level, "waiting", why=progress.why, since_s=WAITING_AFTER_S)

    def _learnt(self, view: LimitView) -> None:
        before = self._limits.get(view.name)
        if before is None:
            self._limits[view.name] = view
            return
        changed = (view.requests_limit, view.tokens_limit) != (
            before.requests_limit,
            before.tokens_limit,
        )
        ratio = max(view.most_in_flight, 1) / max(before.most_in_flight, 1)
        if changed or not 0.5 < ratio < 2:
            self._limits[view.name] = view
            self._event(
                "info",
                "limit_learnt",
                endpoint=view.name,
                most_in_flight=view.most_in_flight,
                requests_per_minute=view.requests_limit,
                tokens_per_minute=view.tokens_limit,
            )

    def _storm(self, view: LimitView, now: float) -> None:
        seen = self._refusals.setdefault(view.name, [])
        seen.append((now, view.refused))
        while now - seen[0][0] > 60:
            seen.pop(0)
        refused = view.refused - seen[0][1]
        quiet = now - self._stormed_s.get(view.name, -60.0) >= 60
        if quiet and refused >= STORM_FROM:
            self._stormed_s[view.name] = now
            self._event("warning", "rate_limited", endpoint=view.name, refused_last_minute=refused)
