"""What is imported is declared where it is needed, and what is declared is used."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
NAMES = {
    "graphql": "graphql-core",
    "markdown_it": "markdown-it-py",
}
"""Packages whose distributions are called otherwise."""
BY_OTHERS = {"python-multipart", "psycopg"}
"""Imported by FastAPI and SQLAlchemy, which do not ask for it."""


def declared(requirements: list[str]) -> set[str]:
    return {re.split(r"[\[<>=~ ]", one)[0].lower() for one in requirements} - {"artifactfs"}


def imported(*folders: str) -> set[str]:
    """The distributions that the code below these folders of the package imports."""
    found = set()
    for folder in folders:
        for path in sorted((PROJECT / "artifactfs").glob(folder)):
            for file in [path] if path.suffix == ".py" else path.rglob("*.py"):
                found |= set(_imports(ast.parse(file.read_text())))
    ours = {name for name in found if name not in sys.stdlib_module_names and name != "artifactfs"}
    return {NAMES.get(name, name.replace("_", "-")) for name in ours}


def _imports(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module.partition(".")[0]


def test_dependencies() -> None:
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    core = declared(project["dependencies"])
    server = declared(extras["server"])
    mcp = declared(extras["mcp"])
    assert imported("[!s]*", "system", "streams.py") - mcp == core
    assert imported("server") <= core | server
    assert server - core <= imported("server") | BY_OTHERS
