"""``artifact-fs``: the command group, and how errors are shown.

Commands are imported when they are called, so that ``artifact-fs status`` starts in a fraction of
the time that importing everything takes.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Mapping
from typing import Any, NoReturn

import click

from artifactfs import __version__
from artifactfs.cli.terminal.configuration import (
    ENVIRONMENT_PREFIX,
    apply_configuration,
    load_configuration,
)
from artifactfs.cli.terminal.context import StateRootOption
from artifactfs.cli.terminal.output import printable
from artifactfs.errors import ArtifactFSError
from artifactfs.redact import redact
from artifactfs.streams import leave, open_standard_streams

_MODULES: Mapping[str, tuple[str, ...]] = {
    "repositories.adding": ("add-repo",),
    "operation.completion": ("completion",),
    "operation.configuration": ("config",),
    "operation.daemon": ("daemon",),
    "operation.doctor": ("doctor",),
    "operation.status": ("list-repos", "status"),
    "operation.content": ("evict-cache", "gc", "prefetch"),
    "repositories.switch": ("diff-overlay", "switch"),
    "repositories.mounting": ("prepare", "remount", "remove-repo", "unmount"),
    "repositories.redirect": ("redirect",),
    "repositories.mount": ("mount", "umount"),
    "repositories.rescue": ("rescue",),
    "repositories.remotes": ("fetch", "set-refresh", "set-remote"),
    "operation.top": ("top", "trace", "wait"),
    "workspaces.mcp": ("mcp",),
    "workspaces.running": ("run", "shell"),
    "workspaces.snapshots": ("snapshot",),
}
"""Module of `artifactfs.cli` → its commands; the function of ``add-repo`` is ``add_repo``."""

_HELP: Any = getattr(click.exceptions, "NoArgsIsHelpError", ())
"""A group without a command, of click 8.2 and later: that is no error."""

_COMMANDS = {command: module for module, commands in _MODULES.items() for command in commands}

_ALIASES = {"ls": "list-repos", "list": "list-repos", "rm": "remove-repo"}
"""Words that people try; they are not listed."""


@click.command("help")
@click.argument("words", nargs=-1, metavar="[COMMAND]...")
@click.pass_context
def _help(context: click.Context, words: tuple[str, ...]) -> None:
    """Show the help of a command."""
    shown = context.find_root()
    for word in words:
        group = shown.command
        command = group.get_command(shown, word) if isinstance(group, click.Group) else None
        if command is None:
            raise click.UsageError(f"no such command: {' '.join(words)}", context)
        shown = click.Context(command, parent=shown, info_name=word)
    click.echo(shown.get_help())


@click.command("version")
def _version() -> None:
    """Show the version."""
    click.echo(f"artifact-fs, version {__version__}")


_UNLISTED = {"help": _help, "version": _version}


class LazyGroup(click.Group):
    """A group whose commands are imported when they are needed."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        cmd_name = _ALIASES.get(cmd_name, cmd_name)
        module = _COMMANDS.get(cmd_name)
        if module is None:
            return _UNLISTED.get(cmd_name)
        loaded = importlib.import_module(f"artifactfs.cli.{module}")
        command: click.Command = getattr(loaded, cmd_name.replace("-", "_"))
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        args = [_ALIASES.get(args[0], args[0]), *args[1:]]
        known = args[0] in _COMMANDS or args[0] in _UNLISTED
        if not known and not args[0].startswith("-"):
            import difflib

            close = difflib.get_close_matches(args[0], _COMMANDS, 1)
            hint = f"did you mean {close[0]}?" if close else "artifact-fs --help lists the commands"
            raise click.UsageError(f"no such command: {args[0]} ({hint})", ctx)
        name, command, rest = super().resolve_command(ctx, args)
        if name is not None and command is not None:
            apply_configuration(ctx, name, command)
        return name, command, rest


@click.group(
    cls=LazyGroup,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(__version__, "-V", "--version", prog_name="artifact-fs")
@StateRootOption.declare
@click.pass_context
def cli(context: click.Context) -> None:
    """Mount Git repositories as working trees; contents arrive when they are read.

    \b
    Examples:
      artifact-fs daemon &
      artifact-fs add-repo --name hello --remote https://host/org/hello.git
      artifact-fs status
    """
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


def main() -> NoReturn:
    """The console command. Errors are ``error: …`` and ``hint: …``, one line each."""
    open_standard_streams()
    os.umask(os.umask(0o077) | 0o022)  # gitdirs have settings that git runs programs for
    leave(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Run a command line and return its exit code."""
    if os.environ.get("ARTIFACT_FS_DEBUG") == "1":
        return _call(arguments)
    try:
        return _call(arguments)
    except ArtifactFSError as error:
        return _report(error.message, error.hint, error.exit_code)
    except click.UsageError as error:
        if isinstance(error, _HELP):
            click.echo(error.format_message())
            return 0
        path = error.ctx.command_path if error.ctx else "artifact-fs"
        return _report(error.format_message(), f"see {path} --help", 2)
    except click.ClickException as error:
        return _report(error.format_message(), None, error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        return _report("interrupted", None, 130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # nobody reads: not worth a message
        return 141
    except BaseExceptionGroup as group:
        return _report_group(group)
    except FileNotFoundError as error:
        if error.filename is not None:
            return _report(f"{os.fsdecode(error.filename)}: {error.strerror}", None, 1)
        return _report("the current directory is not there any more", "cd to one that is", 1)
    except OSError as error:
        what = error.strerror or str(error)
        what = f"{os.fsdecode(error.filename)}: {what}" if error.filename else what
        return _report(what, None, 1)


def _call(arguments: list[str]) -> int:
    result = cli.main(
        arguments,
        "artifact-fs",
        standalone_mode=False,
        default_map=load_configuration(),
        auto_envvar_prefix=ENVIRONMENT_PREFIX,
    )
    return result if isinstance(result, int) else 0


def _report(message: str, hint: str | None, exit_code: int) -> int:
    print(f"error: {_one_line(message)}", file=sys.stderr)
    if hint:
        print(f"hint: {_one_line(hint)}", file=sys.stderr)
    return exit_code


def _report_group(group: BaseExceptionGroup[BaseException]) -> int:
    """Several tasks failed: the first error a user can understand stands for all.

    Ctrl-C in the midst of tasks comes as a group as well.
    """
    if group.subgroup(KeyboardInterrupt) is not None:
        return _report("interrupted", None, 130)
    known = group.subgroup(ArtifactFSError)
    found: BaseException = known if known is not None else group
    while isinstance(found, BaseExceptionGroup):
        found = found.exceptions[0]
    if isinstance(found, ArtifactFSError):
        return _report(found.message, found.hint, found.exit_code)
    hint = "ARTIFACT_FS_DEBUG=1 shows where it comes from"
    return _report(f"{type(found).__name__}: {found}", hint, 1)


def _one_line(text: str) -> str:
    return redact(printable(" ".join(text.split())))


if __name__ == "__main__":
    main()
