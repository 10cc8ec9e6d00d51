"""Writes the command line's reference from click: Markdown, man pages and shell completions."""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click
from click.shell_completion import get_completion_class

from artifactfs import __version__

SHELLS = ("bash", "zsh", "fish")
_WIDTH = 90


@dataclass(frozen=True, slots=True)
class Page:
    """One command. `words` is how it is called: ``("artifact-fs", "redirect", "add")``."""

    words: tuple[str, ...]
    command: click.Command
    context: click.Context

    @property
    def name(self) -> str:
        return " ".join(self.words)

    @property
    def man_name(self) -> str:
        return "-".join(self.words)


def pages(command: click.Command, name: str, parent: click.Context | None = None) -> Iterator[Page]:
    """`command` and everything below it, in the order in which ``--help`` lists it."""
    context = click.Context(command, parent, info_name=name, terminal_width=_WIDTH)
    above = tuple(parent.command_path.split()) if parent else ()
    yield Page((*above, name), command, context)
    if isinstance(command, click.Group):
        for child in command.list_commands(context):
            found = command.get_command(context, child)
            if found is not None and not found.hidden:
                yield from pages(found, child, context)


# -- Markdown --------------------------------------------------------------------------------


def markdown(programs: dict[str, click.Command]) -> str:
    """The whole reference as one document."""
    parts = [
        "# Command line reference",
        "<!-- Written by scripts/generate-docs from the programs' own help: do not edit. -->",
    ]
    for name, program in programs.items():
        listing = list(pages(program, name))
        parts.append(f"## {name}")
        parts.append(_fenced(listing[0].context))
        for page in listing[1:]:
            parts.append(f"### {page.name}")
            parts.append(_fenced(page.context))
    return "\n\n".join(parts) + "\n"


def _fenced(context: click.Context) -> str:
    help_text = "\n".join(line.rstrip() for line in context.get_help().splitlines())
    return f"```text\n{help_text}\n```"


# -- man pages -------------------------------------------------------------------------------


def man_page(page: Page) -> str:
    """`page` in the language of man(7)."""
    short = page.command.get_short_help_str(200).rstrip(".")
    lines = [
        f'.TH "{page.man_name.upper()}" 1 "" "artifactfs {__version__}" "ArtifactFS"',
        ".SH NAME",
        f"{_roff(page.man_name)} \\- {_roff(short)}",
        ".SH SYNOPSIS",
        f".B {_roff(page.name)}",
        _roff(" ".join(page.command.collect_usage_pieces(page.context))),
        ".SH DESCRIPTION",
        *_roff_paragraphs(page.command.help or ""),
        *_option_lines(page),
        *_command_lines(page),
        *_see_also(page),
    ]
    return "\n".join(lines) + "\n"


def _roff(text: str) -> str:
    escaped = text.replace("\\", "\\e").replace("-", "\\-")
    return re.sub(r"^([.'])", r"\\&\1", escaped, flags=re.MULTILINE)


def _roff_paragraphs(text: str) -> Iterator[str]:
    for number, paragraph in enumerate(re.split(r"\n\s*\n", inspect.cleandoc(text))):
        if number:
            yield ".PP"
        if paragraph.startswith("\b"):
            yield ".nf"
            yield from (_roff(line.rstrip()) for line in paragraph.splitlines()[1:])
            yield ".fi"
        else:
            yield from _filled(paragraph)


def _filled(text: str) -> Iterator[str]:
    yield from (_roff(line) for line in textwrap.wrap(text, 78, break_on_hyphens=False))


def _option_lines(page: Page) -> Iterator[str]:
    records = [
        record
        for parameter in page.command.get_params(page.context)
        if (record := parameter.get_help_record(page.context)) is not None
    ]
    if records:
        yield ".SH OPTIONS"
    for flags, explained in records:
        yield ".TP"
        yield f".B {_roff(flags)}"
        yield from _filled(explained) if explained else ("\\&",)


def _command_lines(page: Page) -> Iterator[str]:
    if not isinstance(page.command, click.Group):
        return
    yield ".SH COMMANDS"
    for child in page.command.list_commands(page.context):
        command = page.command.get_command(page.context, child)
        if command is not None and not command.hidden:
            yield ".TP"
            yield f".BR {_roff(f'{page.man_name}-{child}')} (1)"
            yield _roff(command.get_short_help_str(200))


def _see_also(page: Page) -> Iterator[str]:
    above = "-".join(page.words[:-1])
    if above:
        yield ".SH SEE ALSO"
        yield f".BR {_roff(above)} (1)"


def write_man_pages(programs: dict[str, click.Command], directory: Path) -> list[Path]:
    """Write ``NAME.1`` for every command into `directory`, return the files."""
    directory.mkdir(parents=True, exist_ok=True)
    written = []
    for name, program in programs.items():
        for page in pages(program, name):
            target = directory / f"{page.man_name}.1"
            target.write_text(man_page(page))
            written.append(target)
    return written


# -- completions -----------------------------------------------------------------------------


def completion_script(program: click.Command, name: str, shell: str) -> str:
    """The script that makes `shell` complete `name`, as click writes it."""
    kind = get_completion_class(shell)
    assert kind is not None, shell
    variable = f"_{name.replace('-', '_').upper()}_COMPLETE"
    return kind(program, {}, name, variable).source().strip() + "\n"


def write_completions(programs: dict[str, click.Command], directory: Path) -> list[Path]:
    """Write ``NAME.SHELL`` for every program and shell, return the files."""
    directory.mkdir(parents=True, exist_ok=True)
    written = []
    for name, program in programs.items():
        for shell in SHELLS:
            target = directory / f"{name}.{shell}"
            target.write_text(completion_script(program, name, shell))
            written.append(target)
    return written
