"""`targen generate`: from flags to a configuration, and the run with its signals and progress."""

import argparse
import os
import signal
import sys
import tomllib
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal

import anyio

from targen_async.config import SIMULATED_MODEL, RunConfig, load
from targen_async.control import RunControl
from targen_async.engine import Say, generate
from targen_async.errors import UserError
from targen_async.estimate import Estimate, estimate
from targen_async.manifest import Manifest
from targen_async.outlets import Outlets, open_outlets
from targen_async.rundir import RUN_TOML
from targen_async.stats import Stats
from targen_async.tasks import TASK_FILE

INTERRUPTED = "interrupted"


def config_from_options(
    options: argparse.Namespace, flags: Mapping[str, str]
) -> tuple[RunConfig, Path]:
    """The configuration: a run that exists, or --config, with the given flags laid over it.

    `flags`: the dotted key that each sets, and its name.
    """
    overrides: list[tuple[str, Any]] = [
        (dotted, value) for dotted in flags if (value := getattr(options, dotted)) is not None
    ]
    said = {dotted: flags[dotted] for dotted, _ in overrides}
    if options.task is not None:
        folder = Path(options.task)
        # A folder is meant wherever the run is gone on with from.
        given = str(folder.resolve()) if (folder / TASK_FILE).is_file() else options.task
        overrides.append(("data.task", given))
    if options.exclude:
        overrides.append(("data.exclude", [{"file": file} for file in options.exclude]))
        said["data.exclude"] = "--exclude"
    settings = [_setting(text) for text in options.set]
    overrides += settings
    said |= {dotted: "--set" for dotted, _ in settings}
    out: Path | None = options.out
    if out is None and options.task is not None:
        out = Path("runs") / Path(options.task).resolve().name
    if out is None:
        raise UserError("no task: name one, as in `targen generate copa`, or a run with --out")
    base = options.config
    if base is None and (out / RUN_TOML).exists():
        base = out / RUN_TOML
    if options.simulate:
        overrides.append(("data.model", SIMULATED_MODEL))
    config = load(base, overrides, said)
    begun, written = base == out / RUN_TOML, _data_in(base)
    if begun and "task" not in written:
        raise UserError(
            f"{base} is not what a run wrote there (it names no task): restore it from a copy, or "
            "delete it and give every flag again"
        )
    _check_endpoint(options, config, named=begun or "model" in written)
    return config, out


def _data_in(path: Path | None) -> Mapping[str, Any]:
    """[data] of a configuration file, which `load` has found to be sound."""
    found: Mapping[str, Any] = (
        tomllib.loads(path.read_text("utf-8")).get("data", {}) if path else {}
    )
    return found


def _setting(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals or "." not in key:
        raise UserError(f"--set wants KEY=VALUE like data.near_duplicate=0.9, not {text!r}")
    try:
        return key.strip(), tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return key.strip(), value


def _check_endpoint(options: argparse.Namespace, config: RunConfig, *, named: bool) -> None:
    """The real endpoint or the simulator, never by accident one for the other."""
    model, base_url = getattr(options, "data.model"), config.delivery.base_url
    if options.simulate and (model or getattr(options, "delivery.base_url")):
        raise UserError("--simulate goes with neither --model nor --base-url: choose one")
    if options.simulate or named or config.data.model != SIMULATED_MODEL or model:
        return
    if base_url is not None:
        raise UserError(
            f"an endpoint without a model: name the model to ask for at {base_url} "
            f"with --model ({SIMULATED_MODEL} for `targen simulate`)"
        )
    variable = config.delivery.api_key_env
    if os.environ.get(variable) or getattr(options, "delivery.api_key_env"):
        raise UserError(
            f"an API key is given ({variable}) and no model: add --model NAME for the real "
            "endpoint, or --simulate for the built-in simulator"
        )


def run_generate(
    config: RunConfig,
    out: Path,
    *,
    quiet: bool,
    as_json: bool = False,
    log_file: Path | None = None,
    accept_task_change: bool = False,
    estimated: bool = False,
    again: Literal["retry", "reparse"] | None = None,
) -> int:
    """Run with progress on stderr; returns the exit code. Ctrl-C drains, twice stops now."""
    control, stats = RunControl(), Stats()
    made: list[Manifest] = []
    told: list[Estimate] = []

    async def main(outlets: Outlets) -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(_obey_signals, control, outlets.say, group.cancel_scope)
            async with outlets.attend(stats, config.delivery.metrics_port):
                make = partial(
                    generate,
                    control=control,
                    stats=stats,
                    say=outlets.say,
                    event=outlets.event,
                    accept_task_change=accept_task_change,
                    again=again,
                )
                if estimated:
                    manifest, found = await estimate(config, out, generate=make, stats=stats)
                    told.extend([found] if found else [])
                else:
                    manifest = await make(config, out)
                made.append(manifest)
            group.cancel_scope.cancel()

    with open_outlets(config.delivery, quiet=quiet, as_json=as_json, log_file=log_file) as outlets:
        try:
            anyio.run(main, outlets, backend_options={"use_uvloop": True})
        except BaseException as error:
            cause = _only(error) if isinstance(error, BaseExceptionGroup) else error
            outlets.failed(cause, out)
            raise cause from None
        if made and (told or as_json or not estimated):
            outlets.end(made[0], out, estimate=told[0] if told else None)
    if made and made[0].state == "complete":
        return 0
    if control.draining == INTERRUPTED:
        more = f"targen {again} {out}" if again else f"targen generate --out {out}"
        makes = f" and makes all {config.delivery.n:,} rows" if estimated else ""
        print(f"interrupted; `{more}` goes on from here{makes}", file=sys.stderr)
        return 130
    if again == "reparse" and made:
        missing = f"{made[0].n - made[0].delivered} rows are missing"
        print(f"{missing}: `targen generate --out {out}` makes them", file=sys.stderr)
    return 1


def _only(group: BaseExceptionGroup[BaseException]) -> BaseException:
    first = group.exceptions[0]
    return _only(first) if isinstance(first, BaseExceptionGroup) else first


async def _obey_signals(control: RunControl, say: Say, scope: anyio.CancelScope) -> None:
    with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        first = True
        async for _ in signals:
            if not first:
                scope.cancel()
                return
            first = False
            say("stopping: waiting for the calls under way; once more to stop now")
            control.drain(INTERRUPTED)
