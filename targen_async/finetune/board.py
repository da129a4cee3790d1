"""The curve of a run for TensorBoard."""

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

from targen_async.errors import UserError


def check_board() -> None:
    """Raises UserError where TensorBoard is not installed."""
    if find_spec("tensorboard") is None:
        raise UserError(
            "`--tensorboard` needs the package `tensorboard`; pip install 'targen-async[plots]'"
        )


class Board:
    """Events in a folder, from the step after `begun` on: what a killed start wrote is hidden."""

    def __init__(self, folder: Path, begun: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder), purge_step=begun + 1)

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        for name, value in figures.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()
