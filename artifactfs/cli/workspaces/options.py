"""What ``run``, ``shell`` and ``mcp`` have in common: which workspace, and how it ends."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from artifactfs.cli.terminal.context import state, writes_option
from artifactfs.cli.terminal.names import RepoName
from artifactfs.daemon.control.remote_argument import REMOTE_VARIABLE
from artifactfs.workspaces.opening import OpenWorkspace, workspace

_F = TypeVar("_F", bound=Callable[..., Any])


class CommandFailed(Exception):
    """The command ended with `code`: an exception, so that the workspace knows of it."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


def workspace_options(function: _F) -> _F:
    """Which workspace, and how it ends: for `opened`."""
    for decorate in reversed(
        (
            click.argument("remote", envvar=REMOTE_VARIABLE),
            click.option("--ref", help="Branch, tag or commit. [default: the remote's HEAD]"),
            click.option("--branch", "-b", help="Go to this branch first; made where it is none."),
            click.option("--name", type=RepoName(), help="Go on with the work kept by this name."),
            click.option(
                "--at",
                type=click.Path(file_okay=False, path_type=Path),
                help="Where to mount it. [default: a new folder below the daemon's --root]",
            ),
            click.option("--depth", type=click.IntRange(min=1), help="Only so many commits."),
            click.option(
                "--hydrate",
                type=click.Choice(["all", "source", "none"]),
                default="source",
                show_default=True,
                help="What is fetched in the background.",
            ),
            click.option("--allow-other", is_flag=True, help="Let other users in."),
            writes_option,
            click.option(
                "--on-exit",
                type=click.Choice(["keep", "push", "refuse", "discard"]),
                default="keep",
                show_default=True,
                help="What becomes of commits and files that nobody else has.",
            ),
        )
    ):
        function = decorate(function)
    return function


def opened(remote: str, **options: Any) -> OpenWorkspace:
    """The workspace that the options ask for. Raises: InvalidInput."""
    return workspace(remote, state_root=state().root, **options)
