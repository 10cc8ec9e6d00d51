"""The documentation names only what exists."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from artifactfs.cli.main import cli

ROOT = Path(__file__).resolve().parent.parent.parent
TEXTS = [
    *sorted((ROOT / "docs").rglob("*.md")),
    ROOT / "README.md",
    ROOT / "vagrant" / "smoke",
    ROOT / "vagrant" / "provision",
    ROOT / "containers" / "Dockerfile",
    ROOT / "containers" / "entrypoint",
    *sorted((ROOT / "systemd").rglob("*.service")),
    *sorted((ROOT / "artifactfs" / "doctor").glob("*.py")),
]
WRITTEN_LATER = {"benchmarks.md", "docs/benchmarks.md"}
"""By scripts/benchmark, which takes too long for a test."""
_CALL = re.compile(r"artifact-fs ((?:--state-root \S+ )?)([a-z][a-z-]+)((?: [^\n`|;&#)]*)?)")
_NOT_A_COMMAND = {"daemon's", "mounts", "says"}


def calls() -> Iterator[tuple[Path, str, str]]:
    """Every ``artifact-fs COMMAND …`` in a text, as (file, command, the rest)."""
    for path in TEXTS:
        for match in _CALL.finditer(path.read_text()):
            before = path.read_text()[: match.start()]
            in_code = before.endswith(
                ("`", "\n", "$ ", "  ", '"', "&& ", "| ", "sudo ", ": ", "… ")
            )
            if in_code and match[2] not in _NOT_A_COMMAND:
                yield path, match[2], match[3]


def known(context: click.Context) -> dict[str, click.Command]:
    return {
        name: command
        for name in cli.list_commands(context)
        if (command := cli.get_command(context, name)) is not None
    }


def test_commands_and_options_exist() -> None:
    context = click.Context(cli)
    commands = known(context)
    wrong = []
    for path, name, rest in calls():
        command = commands.get(name)
        if command is None:
            wrong.append(f"{path.name}: artifact-fs {name}")
            continue
        if isinstance(command, click.Group):
            word = rest.split()[0] if rest.split() else ""
            command = command.get_command(context, word) or command
        flags = {flag for p in command.params for flag in (*p.opts, *p.secondary_opts)} | {"--help"}
        wrong += [
            f"{path.name}: artifact-fs {name} {flag}"
            for flag in re.findall(r"(?<![\w-])--[a-z][a-z-]+", rest)
            if flag not in flags
        ]
    assert wrong == []


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.name)
def test_links_lead_somewhere(path: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", path.read_text())
    local = [link for link in links if not re.match(r"[a-z]+:", link) and link not in WRITTEN_LATER]
    assert [link for link in local if not (path.parent / link).exists()] == []


INSIDE = [
    *(ROOT / "docs" / name for name in ("architecture.md", "performance.md", "semantics.md")),
    *sorted((ROOT / "docs" / "decisions").glob("*.md")),
]
"""Pages that name places in the code: `floor/room/module.py`, or `…/module.py:Class.name`."""


def defined(source: Path) -> set[str]:
    """``name``, ``Class`` and ``Class.name`` of everything that a module defines."""
    names = set()
    for node in ast.parse(source.read_text()).body:
        for child in [node, *(node.body if isinstance(node, ast.ClassDef) else [])]:
            if isinstance(child, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
                names.add(child.name if child is node else f"{node.name}.{child.name}")
    return names


@pytest.mark.parametrize("path", INSIDE, ids=lambda path: path.name)
def test_places_in_the_code_exist(path: Path) -> None:
    missing = []
    for place in re.findall(r"`([\w/]+/[\w/]+\.py(?::[\w.]+)?)`", path.read_text()):
        name, _, inside = place.partition(":")
        source = next((at for at in (ROOT / "artifactfs" / name, ROOT / name) if at.exists()), None)
        if source is None or (inside and inside not in defined(source)):
            missing.append(place)
    assert missing == []


def test_the_architecture_is_short() -> None:
    assert len((ROOT / "docs" / "architecture.md").read_text().splitlines()) <= 200


def test_every_code_of_the_doctor_is_listed() -> None:
    listed = (ROOT / "docs" / "operations.md").read_text()
    codes = set()
    for path in (ROOT / "artifactfs" / "doctor").glob("*.py"):
        made = re.findall(
            r'\b(?:problem|warning|note|finding)\(\s*"([a-z]+)\.([a-z-]+)"', path.read_text()
        )
        codes |= {name for _, name in made}
    assert len(codes) > 35
    assert {code for code in codes if f"`{code}`" not in listed} - {"unreadable"} == set()


def test_every_document_is_in_the_index() -> None:
    index = (ROOT / "docs" / "README.md").read_text()
    documents = {path.name for path in (ROOT / "docs").glob("*.md")} - {"README.md"}
    assert {name for name in documents if f"({name})" not in index} == set()
