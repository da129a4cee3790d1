"""The loss of a run as a picture."""

from pathlib import Path
from typing import Any

import msgspec
import numpy as np

_SMOOTHED = 50
"""The line is a mean over a fiftieth of the steps, beside the losses as they were."""


def draw_curve(metrics: Path, picture: Path) -> None:
    """A PNG of the losses in metrics.jsonl, with the main score of every evaluation beneath.

    Raises ImportError where matplotlib is not installed.
    """
    from matplotlib.figure import Figure

    lines = [msgspec.json.decode(line) for line in metrics.read_bytes().splitlines()]
    steps = [line for line in lines if "loss" in line]
    evaluations = [line for line in lines if "evaluation" in line]
    figure = Figure(figsize=(8, 6 if evaluations else 4), layout="constrained")
    axes = figure.subplots(2 if evaluations else 1, sharex=True, squeeze=False)[:, 0]
    _losses(axes[0], steps)
    if evaluations:
        _scores(axes[1], evaluations)
    axes[-1].set_xlabel("step")
    figure.savefig(picture, dpi=120)


def _losses(axis: Any, steps: list[dict[str, Any]]) -> None:  # noqa: ANN401
    at = np.array([line["step"] for line in steps])
    losses = np.array([line["loss"] for line in steps])
    window = max(1, len(losses) // _SMOOTHED)
    axis.plot(at, losses, color="tab:blue", alpha=0.35, linewidth=0.8, label="a step")
    if window > 1:
        sums = np.cumsum(np.insert(losses, 0, 0.0))
        means = (sums[window:] - sums[:-window]) / window
        axis.plot(at[window - 1 :], means, color="tab:blue", label=f"mean of {window} steps")
        axis.legend(frameon=False)
    if losses.min() > 0:
        axis.set_yscale("log")
        axis.yaxis.set_major_formatter("{x:g}")
        axis.yaxis.set_minor_formatter("{x:g}")
    axis.set_ylabel("loss")
    axis.grid(alpha=0.3)


def _scores(axis: Any, evaluations: list[dict[str, Any]]) -> None:  # noqa: ANN401
    at = [line["step"] for line in evaluations]
    for task in evaluations[0]["evaluation"]:
        name, _ = next(iter(evaluations[0]["evaluation"][task].items()))
        values = [line["evaluation"][task][name] for line in evaluations]
        axis.plot(at, values, marker="o", markersize=3, label=f"{task} {name}")
    axis.set_ylabel("validation")
    axis.set_ylim(0, 1.02)
    axis.legend(frameon=False)
    axis.grid(alpha=0.3)
