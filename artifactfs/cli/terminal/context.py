"""What every command shares: the state root, the daemon's connection, units."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from artifactfs.daemon.control.client import ControlClient, DaemonNotRunning
from artifactfs.paths import StateLayout, default_state_root

_F = TypeVar("_F", bound=Callable[..., Any])

if TYPE_CHECKING:
    _OptionalFloatType = click.ParamType[float | None]
    _IntType = click.ParamType[int]
    _StrType = click.ParamType[str]
else:  # generic only in newer versions of click
    _OptionalFloatType = _IntType = _StrType = click.ParamType

_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_BYTES = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}


class StateRootOption:
    """``--state-root DIR`` (also ``--root-dir``, ``$ARTIFACT_FS_ROOT``), before the command."""

    @staticmethod
    def declare(function: _F) -> _F:
        return click.option(
            "--state-root",
            "--root-dir",
            type=click.Path(file_okay=False, path_type=Path),
            expose_value=False,
            callback=StateRootOption._store,
            is_eager=True,
            help="Where everything is kept. [env: ARTIFACT_FS_ROOT; default: /var/lib/artifact-fs, "
            "for ordinary users ~/.local/share/artifact-fs]",
        )(function)

    @staticmethod
    def _store(ctx: click.Context, _option: click.Parameter, value: Path | None) -> None:
        if value is not None:
            ctx.meta["artifactfs.state_root"] = value.absolute()


def state() -> StateLayout:
    """The state root this command works on."""
    given = click.get_current_context().meta.get("artifactfs.state_root")
    return StateLayout(given if isinstance(given, Path) else default_state_root())


def connect() -> ControlClient | None:
    """The daemon of the state root, None if none runs."""
    try:
        return ControlClient(state())
    except DaemonNotRunning:
        return None


def daemon() -> ControlClient:
    """The daemon of the state root. Raises: DaemonNotRunning."""
    return ControlClient(state())


class Duration(_OptionalFloatType):
    """Seconds: ``30s``, ``5m``, ``1h30m``; with `never`, also that word (None)."""

    name = "duration"

    def __init__(self, *, never: bool = False) -> None:
        self._never = never

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float | None:
        if isinstance(value, (int, float)):
            return float(value)
        if self._never and value == "never":
            return None
        text = str(value).strip()
        parts = re.findall(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|d)", text)
        seconds = sum(float(number) * _SECONDS[unit] for number, unit in parts)
        if re.fullmatch(r"\d+(?:\.\d+)?", text):
            seconds = float(text)
        elif not re.fullmatch(r"(?:\d+(?:\.\d+)?\s*(?:ms|s|m|h|d)\s*)+", text):
            seconds = 0.0
        if seconds <= 0:
            also = ", or never" if self._never else ""
            self.fail(f"{value!r} is not a duration such as 30s, 5m or 1h{also}", param, ctx)
        return seconds


class Size(_IntType):
    """Bytes: ``500M``, ``2G``."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(?:i?b)?", str(value).lower())
        if match is None:
            self.fail(f"{value!r} is not a size such as 500M or 2G", param, ctx)
        return int(float(match[1]) * _BYTES[match[2]])


def writes_option(function: _F) -> _F:
    """``--writes``, of the commands that mount for the first time."""
    return click.option(
        "--writes",
        type=click.Choice(["auto", "kernel", "fuse"]),
        default="auto",
        show_default=True,
        help="Who takes what programs write: the kernel's overlayfs, at the speed of the disk "
        "(as root only), or our own process; auto: the kernel where it can.",
    )(function)


def json_option(function: _F) -> _F:
    return click.option("--json", "as_json", is_flag=True, help="Print JSON.")(function)
