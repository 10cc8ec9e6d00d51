"""The shape of the code: imports point one way, files stay small, text speaks of the project."""

from __future__ import annotations

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "artifactfs"
MAX_LINES = 700

LEAVES = {"config", "errors", "inode_numbers", "paths", "redact"}
"""Modules that everybody may import; among themselves only errors, paths and redact."""

MAY_IMPORT = {
    "git": set[str](),
    "hydration": {"git"},
    "fs": {"git", "hydration"},
    "registry": set[str](),
    "daemon": {"git", "hydration", "fs", "registry"},
    "doctor": {"git", "daemon", "registry"},
    "cli": {"git", "hydration", "fs", "daemon", "doctor", "registry"},
    "server": set[str](),
    "client": set[str](),
}
ALONE = {"server", "client"}
ALONE_MAY_IMPORT = {"errors", "redact"}

SOURCES = sorted(PACKAGE.rglob("*.py"))


def layer_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_layers(path: Path) -> set[str]:
    """Return the parts of the package that the module at `path` imports."""
    found = set()
    for node in ast.walk(ast.parse(path.read_bytes())):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        found |= {name.split(".")[1] for name in names if name.startswith("artifactfs.")}
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_one_way(path: Path) -> None:
    layer = layer_of(path)
    if layer == "__init__":
        return
    if layer in LEAVES:
        allowed = {"errors", "paths", "redact"}
    elif layer in ALONE:
        allowed = ALONE_MAY_IMPORT | {layer}
    else:
        assert layer in MAY_IMPORT, f"{layer} has no place in the layers: add it to the table"
        allowed = MAY_IMPORT[layer] | LEAVES | {layer}
    assert imported_layers(path) <= allowed | {"__version__"}


def tracked_files() -> list[Path]:
    listing = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "-z"], check=True, capture_output=True
    )
    return [path for name in listing.stdout.decode().split("\0") if (path := ROOT / name).is_file()]


def test_no_file_is_long() -> None:
    long = {
        str(path.relative_to(ROOT)): count
        for path in tracked_files()
        if path.suffix == ".py" and (count := len(path.read_text().splitlines())) > MAX_LINES
    }
    assert not long


def test_no_module_is_named_for_nothing() -> None:
    vague = {"utils", "util", "helpers", "helper", "manager", "common", "misc"}
    assert not [path for path in SOURCES if path.stem in vague]


def test_no_unfinished_code() -> None:
    unfinished = re.compile(r"\b(?:NotImplementedError|TO" + r"DO|FIX" + r"ME|X" + r"XX)\b")
    assert not [path for path in SOURCES if unfinished.search(path.read_text())]


# Written in pieces, so that this file does not match itself.
PRIVATE = re.compile(
    "|".join(
        (
            r"/wo" + r"rk/(?:main|shared)",
            r"files\.pythonhos" + r"ted",
            r"pypi\.or" + r"g",
            r"registry\.npm" + r"js",
            r"deb\.debi" + r"an",
            r"/opt/py" + r"pi",
            r"sha" + r"red/[A-Z]+\.md",
        )
    )
)


def test_text_speaks_of_the_project_only() -> None:
    found = []
    for path in tracked_files():
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1):
            if PRIVATE.search(line):
                found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()}")
    assert not found


def test_secrets_stay_out_of_arguments_of_the_log() -> None:
    """Every module that logs a URL or the output of git takes `redact` from the one place."""
    others = [
        path for path in SOURCES if path.name != "redact.py" and "def redact(" in path.read_text()
    ]
    assert not others
