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
    """The name of a registered repository, as an argument or as ``--name``; required."""
    return _name_argument(_name_flag("The repository.", _required)(function))


def optional_name_option(function: _F) -> _F:
    """Likewise; without it all repositories are meant."""
    return _name_argument(_name_flag("Only this repository.", _given)(function))


def name_or_here_option(function: _F) -> _F:
    """``--name N`` of a registered repository; inside a mount it can be left out."""
    what = "The repository. [default: the one that the current directory is in]"
    return _name_flag(what, _named_or_here)(function)


def name_argument_or_here_option(function: _F) -> _F:
    """Likewise, and as an argument: for commands that take no other."""
    return _name_argument(name_or_here_option(function))


_Callback = Callable[[click.Context, click.Parameter, str | None], str | None]


def _name_flag(what: str, callback: _Callback) -> Callable[[_F], _F]:
    return click.option("--name", type=RepoName(), callback=callback, help=what)


def _name_argument(function: _F) -> _F:
    return click.argument(
        "name_argument",
        metavar="[NAME]",
        required=False,
        type=RepoName(),
        expose_value=False,
        is_eager=True,
        callback=_store_argument,
    )(function)


_ARGUMENT = "artifactfs.name"


def _store_argument(ctx: click.Context, _option: click.Parameter, value: str | None) -> None:
    store_name(ctx, value)


def store_name(ctx: click.Context, name: str | None) -> None:
    """For a command that takes its name from among its arguments. Raises: InvalidInput."""
    ctx.meta[_ARGUMENT] = None if name is None else check_repo_name(name)


def _given(ctx: click.Context, _option: click.Parameter, value: str | None) -> str | None:
    argument: str | None = ctx.meta.get(_ARGUMENT)
    if argument is not None and value is not None and argument != value:
        raise click.UsageError(f"two names: {argument} and --name {value}", ctx)
    return value if value is not None else argument


def _required(ctx: click.Context, option: click.Parameter, value: str | None) -> str | None:
    name = _given(ctx, option, value)
    if name is None and not ctx.resilient_parsing:
        raise click.UsageError("Missing the NAME of a repository.", ctx)
    return name


def _named_or_here(ctx: click.Context, option: click.Parameter, value: str | None) -> str | None:
    name = _given(ctx, option, value)
    if name is not None or ctx.resilient_parsing:
        return name
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
