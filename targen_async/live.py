"""A run on a terminal: one picture of it in lines that fit, drawn in place."""

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Self

from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.live import Live
from rich.text import Text

from targen_async.progress import Progress, amount, calls, duration, is_calm, usd
from targen_async.stats import LimitView

_UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)
_NAME_CELLS = 20
"""Labels and reasons longer than this are cut in tables."""
_BESIDE = 110
"""Columns from which the transition matrix has room beside the stages."""
_MOST_LABELS = 6
_BAR_CELLS = 80
_GAP = 2
_NAMES_CELLS = 10
# A terminal that knows them holds a frame back until it is whole; others ignore them.
_FRAME_BEGINS, _FRAME_ENDS = "\x1b[?2026h", "\x1b[?2026l"

# Colours of the terminal's own palette that can be read on black and on white; nothing is told
# by colour alone.
GOOD, BAD, HEAD, QUIET = "green", "bold red", "cyan", "dim"

Row = Sequence[str]


def visible(text: str) -> Text:
    """Model text for a terminal: no escape sequence, control or bidi character gets through."""
    return Text(_UNSEEN.sub(lambda match: f"\\u{ord(match.group()):04x}", text))


def one_line(text: str, cells: int | None = None) -> str:
    """Text of others on one line: harmless, and at most so many cells wide."""
    plain = visible(" ".join(text.split())).plain
    return plain if cells is None else _cut(plain, cells)


def _cut(text: str, cells: int) -> str:
    if cell_len(text) <= cells:
        return text
    return set_cell_size(text, max(cells - 2, 0)).rstrip() + ".."


# ---- the picture


def picture(
    progress: Progress,
    width: int,
    height: int = 24,
    *,
    notes: Sequence[tuple[str, str]] = (),
    ascii_only: bool = False,
) -> Text:
    """The run in lines of at most `width` cells; what is least needed is left out when `height`
    lines do not hold it. `notes`: names and texts of further lines."""
    sections = [
        _head(progress, width, ascii_only),
        _why(progress, width),
        *_middle(progress, width),
        _rows_lines(progress, width),
        _cost(progress, width) + [_line(name, one_line(text)) for name, text in notes],
    ]
    sections = [section for section in sections if section]
    lines = _fit(sections, max(height - 1, 2))
    for line in lines:
        line.truncate(width, overflow="ellipsis" if not ascii_only else "crop")
    return Text("\n").join(lines)


def _fit(sections: list[list[Text]], height: int) -> list[Text]:
    """All sections, apart as far as there are lines for that; of too many only the first ones."""
    spare = height - sum(map(len, sections))
    lines: list[Text] = []
    for number, section in enumerate(sections):
        if number > 1 and spare > 0:
            lines.append(Text())
            spare -= 1
        lines += section
    return lines[:height]


def _head(progress: Progress, width: int, ascii_only: bool) -> list[Text]:
    share = progress.delivered / progress.n if progress.n else 0.0
    rows = f"{progress.delivered:,} of {progress.n:,} rows, {int(share * 100)} %   "
    left = "time left unknown" if progress.delivered else "no rows yet"
    if not progress.n:
        rows, left = "", "no rows known yet"
    elif progress.delivered >= progress.n:
        left = "all rows are there"
    elif progress.eta_s is not None:
        left = f"{progress.rows_per_second:.1f} rows/s, {duration(progress.eta_s)} left"
    line = Text.assemble(
        ("SIMULATED " if progress.simulated else "", "bold magenta"),
        (one_line(progress.task, _NAME_CELLS), "bold"),
        f"  {rows}{left}, {duration(progress.elapsed_s)} so far",
    )
    full, empty = ("#", ".") if ascii_only else ("\u2501", "\u2500")
    size = min(width, _BAR_CELLS)
    done = min(int(share * size), size)
    return [line, Text.assemble((full * done, GOOD), (empty * (size - done), QUIET))]


def _why(progress: Progress, width: int) -> list[Text]:
    if not progress.why:
        moving = "moving"
        if progress.in_flight:
            moving += f": {calls(progress.in_flight)} out"
        elif in_line := sum(view.waiting for view in progress.limits):
            # At a slow rate nothing is out between two calls.
            moving += f": {calls(in_line)} in line"
        return [Text(moving, style=GOOD)]
    mark, style = ("", "bold") if is_calm(progress.why) else ("! ", BAD)
    told = Text(f"{mark}{one_line(progress.why)}", style=style)
    if told.cell_len <= width:
        return [told]
    # Two lines at most: the reason may be a server's own sentence.
    cut = told.plain.rfind(" ", 0, width)
    cut = cut if cut > width // 2 else width
    return [Text(told.plain[:cut], style), Text("  " + told.plain[cut:].lstrip(), style)]


def _middle(progress: Progress, width: int) -> list[list[Text]]:
    """Stages, endpoints and the transition matrix: side by side where there is room."""
    stages, limits = _stages(progress, width), _limits(progress, width)
    matrix = matrix_lines(progress.transitions, width)
    if not matrix:
        return [stages, limits]
    indent = max((line.cell_len for line in stages), default=0) + 4
    needed = indent + max(line.cell_len for line in matrix)
    if width >= _BESIDE and stages and needed <= width:
        return [_beside(stages, matrix, indent), limits]
    return [stages, limits, matrix]


def _beside(left: list[Text], right: list[Text], indent: int) -> list[Text]:
    lines: list[Text] = []
    for number in range(max(len(left), len(right))):
        line = left[number].copy() if number < len(left) else Text()
        if number < len(right):
            line = Text.assemble(line, " " * (indent - line.cell_len), right[number])
        lines.append(line)
    return lines


def _stages(progress: Progress, width: int) -> list[Text]:
    views = progress.stages.items()
    head: Row = ("stage", "under way", "answered", "per s", "asked again", "queue")
    rows: list[Row] = [
        (
            name,
            str(view.under_way),
            f"{view.answered:,}",
            f"{view.per_second:.1f}",
            str(view.asked_again),
            "" if view.queue is None else f"{view.queue}/{view.queue_limit}",
        )
        for name, view in views
    ]
    if all(view.queue is None for _, view in views):
        head, rows = head[:-1], [row[:-1] for row in rows]
    return table(head, rows, width) if rows else []


def _limits(progress: Progress, width: int) -> list[Text]:
    rows = [_limit(view) for view in progress.limits]
    head = ("endpoint", "in flight", "requests, 60 s", "tokens, 60 s", "429s", "in line")
    return table(head, rows, width) if rows else []


def _limit(view: LimitView) -> Row:
    return (
        one_line(view.name, _NAME_CELLS),
        f"{view.in_flight}/{view.most_in_flight}",
        _of(view.requests_per_minute, view.requests_limit),
        _of(view.tokens_per_minute, view.tokens_limit),
        f"{view.refused:,}",
        str(view.waiting),
    )


def _of(value: float, limit: float | None) -> str:
    return amount(value) if limit is None else f"{amount(value)} of {amount(limit)}"


def table(head: Row, rows: Sequence[Row], width: int) -> list[Text]:
    """Aligned columns, the first to the left; the last ones are left out where they do not fit."""
    columns = list(zip(head, *rows, strict=True))
    sizes = [max(map(cell_len, column)) for column in columns]
    while len(sizes) > 1 and sum(sizes) + _GAP * (len(sizes) - 1) > width:
        sizes.pop()
    lines: list[Text] = []
    for number, row in enumerate((head, *rows)):
        cells = [
            set_cell_size(cell, size) if place == 0 else " " * (size - cell_len(cell)) + cell
            for place, (cell, size) in enumerate(zip(row, sizes, strict=False))
        ]
        lines.append(Text((" " * _GAP).join(cells), style=HEAD if number == 0 else ""))
    return lines


def matrix_lines(
    transitions: Mapping[str, Mapping[str, int]], width: int, most: int = _MOST_LABELS
) -> list[Text]:
    """What self-correction made of each label: before (down) against after (across); of the
    labels with most rows only `most`."""
    if not transitions:
        return []
    befores = sorted(transitions, key=lambda label: -sum(transitions[label].values()))[:most]
    after = {name for row in transitions.values() for name in row}
    ends = [name for name in ("drop", "review") if name in after]
    labels = after - set(ends)
    if labels & set(transitions):
        # Not so for open labels, where what became of an answer is no label.
        labels |= set(transitions)
    columns = sorted(sorted(labels, key=lambda label: (label not in befores, label))[:most]) + ends
    rows = [
        (one_line(label, _NAME_CELLS), *(f"{transitions[label].get(c, 0):,}" for c in columns))
        for label in sorted(befores)
    ]
    # Shorter names rather than fewer columns.
    for cells in range(_NAME_CELLS, 3, -1):
        head = ("before \\ after", *(one_line(name, cells) for name in columns))
        lines = table(head, rows, 10**6)
        if lines[0].cell_len <= width:
            return lines
    return table(head, rows, width)


def _rows_lines(progress: Progress, width: int) -> list[Text]:
    if not progress.n:
        return []
    lines = [_counts("labels", progress.balance, width, by_count=False)]
    refused = {name.removeprefix("instances."): n for name, n in progress.rejected.items()}
    if progress.failed:
        refused["failed calls"] = progress.failed
    lines.append(_counts("refused", refused, width, by_count=True))
    if progress.waiting_for and progress.n > progress.delivered:
        one = progress.waiting == 1
        waits = "1 row waits" if one else f"{progress.waiting:,} rows wait"
        behind = f"; {waits} behind it" if progress.waiting else ""
        lines.append(_line("next", f"{one_line(progress.waiting_for)}{behind}"))
    return lines


def _counts(name: str, counts: Mapping[str, int], width: int, *, by_count: bool) -> Text:
    """`a 12, b 3`, and how many more where the line is too short for all."""
    order = sorted(counts, key=lambda key: -counts[key]) if by_count else list(counts)
    text = ""
    for place, key in enumerate(order):
        longer = f"{text}{', ' if text else ''}{one_line(key, _NAME_CELLS)} {counts[key]:,}"
        rest = len(order) - place
        tail = f", and {rest - 1} more" if rest > 1 else ""
        if text and _NAMES_CELLS + cell_len(longer + tail) > width:
            return _line(name, f"{text}, and {rest} more")
        text = longer
    return _line(name, text or "none")


def _line(name: str, text: str) -> Text:
    return Text.assemble((f"{name:<{_NAMES_CELLS}}", HEAD), text)


def _cost(progress: Progress, width: int) -> list[Text]:
    cost = progress.cost
    if cost is None:
        return []
    cached = f" ({amount(cost.cached_prompt_tokens)} cached)" if cost.cached_prompt_tokens else ""
    tokens = (
        f"{amount(cost.prompt_tokens)} prompt{cached} + {amount(cost.completion_tokens)} completion"
    )
    money = "none: simulated" if progress.simulated else "no price is known"
    if cost.usd is not None:
        money = f"{usd(cost.usd)} so far"
        if cost.usd_projected is not None:
            money += f", about {usd(cost.usd_projected)} in all"
    elif cost.usd_at_most is not None:
        money = f"at most {usd(cost.usd_at_most)} so far; answers came without a count"
    lines = [_line("cost", f"{money}; {tokens} tokens")]
    if lines[0].cell_len > width:
        lines = [_line("cost", money), _line("tokens", tokens)]
    if cost.budget:
        lines.append(_line("budget", one_line(cost.budget)))
    return lines


# ---- drawing


class LiveView:
    """Draws the picture in place, frame over frame, and leaves nothing behind."""

    def __init__(self, console: Console) -> None:
        self._console = console
        # The frame is drawn by nobody but `show`, so that no thread of rich's is needed.
        self._live = Live(
            console=console, auto_refresh=False, transient=True, vertical_overflow="crop"
        )
        self._drawn = ""
        self._size: tuple[int, int] = (0, 0)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # A terminal that went away need not be cleaned.
        with suppress(OSError):
            self._live.stop()

    def show(self, progress: Progress, notes: Sequence[tuple[str, str]] = ()) -> None:
        """Draw one frame, if it differs from the last. Raises OSError when the terminal is gone."""
        size = self._console.size
        ascii_only = self._console.options.ascii_only
        frame = picture(progress, size.width, size.height, notes=notes, ascii_only=ascii_only)
        if (frame.plain, size) == (self._drawn, self._size):
            return
        self._drawn, self._size = frame.plain, size
        if not self._live.is_started:
            self._live.start()
        file = self._console.file
        file.write(_FRAME_BEGINS)
        self._live.update(frame, refresh=True)
        file.write(_FRAME_ENDS)
        file.flush()
