"""The figures of a report as one picture."""

from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter

NAMES = {
    "raw_protocol": "raw asyncio protocol",
    "bare_aiohttp": "bare aiohttp",
    "ours": "targen-async, whole engine",
    "ours_near": "targen-async, near duplicates too",
    "curator_rows": "curator",
    "openai_sdk": "openai package",
    "langchain_calls": "LangChain, one by one",
    "data_designer_rows": "data-designer",
}
OURS, OTHERS, PALE = "#c8102e", "#44546a", "#a9b4c2"


def dot(axes: Axes, values: list[float], at: float, colour: str, label: str) -> None:
    """Median and range of the rounds, with words to the right of them."""
    axes.plot([min(values), max(values)], [at, at], color=colour, linewidth=2, alpha=0.6)
    axes.plot(median(values), at, "o", color=colour, markersize=7)
    axes.annotate(
        label,
        (max(values), at),
        (9, 0),
        textcoords="offset points",
        va="center",
        fontsize=8,
    )


def log_scale(axes: Axes, room: float) -> None:
    """Plain numbers and grid lines, and room for words at the right."""
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axes.grid(axis="x", which="major", color="#dddddd")
    axes.set_axisbelow(True)
    low, high = axes.get_xlim()
    axes.set_xlim(low, high * room)


def overhead(axes: Axes, found: dict[str, Any]) -> None:
    """CPU a call of each client, both concurrencies, with the range of the rounds."""
    clients = [name for name in NAMES if name in found["256"]][::-1]
    for number, (width, figures) in enumerate(found.items()):
        for place, client in enumerate(clients):
            if client not in figures:
                continue
            values = [one["cpu_s_per_1000"] for one in figures[client]]
            colour = (OURS, "#e58a96") if client.startswith("ours") else (OTHERS, PALE)
            at = place + (0.5 - number) * 0.36
            dot(axes, values, at, colour[number], f"{median(values):.3g} at {int(width):,}")
    axes.set_yticks(range(len(clients)), [NAMES[client] for client in clients])
    log_scale(axes, 3)
    axes.set_xlabel("CPU seconds per 1,000 calls, at so many in flight (log scale, less is better)")
    axes.set_title("What a call costs the client")


def fidelity(axes: Axes, found: list[dict[str, Any]]) -> None:
    """The share used of each rate limit; of two spans the worse."""
    for place, one in enumerate(reversed(found)):
        share, refused = min(one["share"]), max(one["refused"])
        colour = OURS if one["headers"] else OTHERS
        label = f"{100 * share:.1f} %, refused {100 * refused:.2f} %"
        dot(axes, [100 * share], place, colour, label)
    axes.axvline(100, color="black", linewidth=0.8)
    axes.set_yticks(range(len(found)), [one["name"] for one in reversed(found)], fontsize=7)
    axes.set_ylim(-0.6, len(found) - 0.4)
    axes.set_xlim(min(95, *axes.get_xlim()), 104)
    axes.grid(axis="x", color="#dddddd")
    axes.set_xlabel("% of what the endpoint allowed (red: it sends rate headers)")
    axes.set_title("Rate limits, burst not declared")


def makespan(axes: Axes, found: list[dict[str, Any]]) -> None:
    """Calls answered over time, in units of the bound."""
    for one, colour in zip(found, (PALE, OURS, OTHERS), strict=False):
        done = max(step[1] for step in one["line"])
        times = [step[0] / one["bound_s"] for step in one["line"]]
        shares = [100 * step[1] / done for step in one["line"]]
        label = f"{one['rows']:,} rows: {one['times_bound']:.2f} x the bound"
        axes.plot(times, shares, color=colour, label=label)
    axes.plot([0, 1], [0, 100], color="black", linewidth=0.8, linestyle=":", label="the bound")
    axes.set_xlabel("time, in units of the least possible")
    axes.set_ylabel("% of the calls answered")
    axes.legend(loc="lower right", fontsize=8)
    axes.set_title("Four steps, latency log-normal (300 ms, sigma 1), 256 in flight")


def adaptive(axes: Axes, found: list[dict[str, Any]]) -> None:
    """Throughput of each fixed number and of the adaptive limit, in units of the best fixed."""
    for one, colour in zip(found, (PALE, OTHERS, "#7f6000"), strict=False):
        best = one["fixed"][str(one["best_fixed"])]["per_s"]
        numbers = [int(number) / one["capacity"] for number in one["fixed"]]
        rates = [each["per_s"] / best for each in one["fixed"].values()]
        axes.plot(numbers, rates, "o-", color=colour, label=f"fixed, C = {one['capacity']}")
        settled = one["adaptive"]["settled_at"] / one["capacity"]
        axes.plot(settled, one["throughput"], "*", color=colour, markersize=16)
    axes.plot([], [], "*", color="black", markersize=12, label="adaptive (where it ended)")
    axes.set_ylim(0, 1.15)
    axes.set_xlabel("calls in flight / C")
    axes.set_ylabel("throughput / best fixed")
    axes.legend(loc="lower right", fontsize=8)
    axes.set_title("A server that slows past C calls and refuses past 2C")


def journal(axes: Axes, found: dict[str, Any]) -> None:
    """Rows a second, each on the disk before it is acknowledged."""
    names = {"fsync_each": "an fsync a row", "group_commit": "group commit"}
    for place, name in enumerate(names):
        values = [one["rows_per_s"] for one in found[name]]
        dot(axes, values, place, OURS if place else OTHERS, f"{median(values):,.0f}/s")
    axes.axvline(10_000, color="black", linewidth=0.8, linestyle=":")
    axes.set_yticks(range(len(names)), list(names.values()))
    axes.set_ylim(-0.6, len(names) - 0.4)
    log_scale(axes, 3)
    axes.set_xlabel("rows of 1 KB a second (log scale; dotted: what is wanted)")
    axes.set_title("The journal, durable before acknowledged")


def memory(axes: Axes, found: list[dict[str, Any]]) -> None:
    """Peak memory by the number of rows."""
    rows = [one["rows"] for one in found]
    axes.plot(rows, [one["fresh"]["peak_mb"] for one in found], "o-", color=OURS, label="fresh")
    resumed = [one["resumed"]["peak_mb"] for one in found]
    axes.plot(rows, resumed, "s--", color=OTHERS, label="resumed")
    axes.set_ylim(0, 1.2 * axes.get_ylim()[1])
    log_scale(axes, 1.5)
    axes.set_xlabel("rows (log scale)")
    axes.set_ylabel("peak MB")
    axes.legend(loc="lower right")
    axes.set_title("Memory")


PANELS: dict[str, Callable[[Axes, Any], None]] = {
    "overhead": overhead,
    "fidelity": fidelity,
    "makespan": makespan,
    "adaptive": adaptive,
    "journal": journal,
    "memory": memory,
}


def draw(found: dict[str, Any], path: Path) -> None:
    """Write a PNG with a panel for each part that was run."""
    names = [name for name in PANELS if name in found]
    columns = len(names) if len(names) <= 3 else 2
    rows = -(-len(names) // columns)
    figure, grid = pyplot.subplots(
        rows, columns, figsize=(7.5 * columns, 4.6 * rows), squeeze=False, layout="constrained"
    )
    for axes in grid.flat[len(names) :]:
        axes.set_visible(False)
    for axes, name in zip(grid.flat, names, strict=False):
        PANELS[name](axes, found[name])
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
