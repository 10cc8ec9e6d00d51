"""Names of repositories on the command line: ``--name``, or the mount that one stands in."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from artifactfs.cli.terminal.known import known_repos, registered
from artifactfs.errors import ArtifactFSError
from artifactfs.paths import check_repo_name

_F = TypeVar("_F", bound=Callable[..., Any])

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    _StrType = click.ParamType[str]
else:  # generic only in newer versions of click
    _StrType = click.ParamType


class RepoName(_StrType):
    """A name that `add-repo` accepts."""

    name = "name"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        return check_repo_name(str(value))

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        from click.shell_completion import CompletionItem

        try:
            with ctx.scope(cleanup=False):
                names = [repo["name"] for repo in registered()]
        except ArtifactFSError:
            return []
        return [CompletionItem(name) for name in sorted(names) if name.startswith(incomplete)]


def name_option(function: _F) -> _F:
    """``--name N`` of a registered repository, required."""
    return click.option("--name", required=True, type=RepoName(), help="The repository.")(function)


def name_or_here_option(function: _F) -> _F:
    """``--name N`` of a registered repository; inside a mount it can be left out."""
    return click.option(
        "--name",
        type=RepoName(),
        callback=_named_or_here,
        help="The repository. [default: the one that the current directory is in]",
    )(function)


def _named_or_here(ctx: click.Context, _option: click.Parameter, value: str | None) -> str | None:
    if value is not None or ctx.resilient_parsing:
        return value
    here = _repo_around(_current_directories())
    if here is None:
        raise click.UsageError("Missing option '--name' (it can be left out inside a mount).", ctx)
    return here


def _current_directories() -> list[Path]:
    """The current directory, also by the name that the shell has for it (through symlinks)."""
    try:
        physical = Path.cwd()
    except OSError:
        return []
    logical = Path(os.environ.get("PWD", physical))
    return [physical, logical] if logical.is_absolute() else [physical]


def _repo_around(directories: list[Path]) -> str | None:
    """The repository with the innermost mount point around one of `directories`."""
    found = []
    for repo in known_repos():
        point = Path(repo["mount_point"])
        # Not the mount point itself: looking at it hangs where its worker does.
        real = Path(os.path.realpath(point.parent), point.name)
        if any(
            each == directory or each in directory.parents
            for each in (point, real)
            for directory in directories
        ):
            found.append((len(real.parts), repo["name"]))
    return max(found)[1] if found else None
