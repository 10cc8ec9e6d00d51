"""The shape of the code: imports point one way, files stay small, rooms have a purpose."""

from __future__ import annotations

import ast
import graphlib
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "artifactfs"
MAX_LINES = 700

LEAVES = {
    *("config", "damage", "errors", "features", "inode_numbers", "paths", "pktline", "redact"),
    "streams",
    "system",
}
"""Modules that everybody may import; among themselves only errors, paths, redact
and `system`, a room of them."""

FLOORS = ("git", "hydration", "fs", "daemon", "doctor", "workspaces", "cli")
"""Each imports those before it. `server` and `client` stand beside them."""

NOT_BELOW = {
    *(("doctor", "fs"), ("doctor", "hydration")),
    *(("workspaces", "doctor"), ("workspaces", "fs"), ("workspaces", "hydration")),
}
"""Floors that are before another one and still none of its business."""

ALONE = {"server", "client"}
ALONE_MAY_IMPORT = {"errors", "pktline", "redact", "streams", "system"}

ROOMS: dict[str, tuple[str, ...]] = {
    "git": (
        *("surroundings", "apart", "identity", "command", "pack", "wire", "streams"),
        *("repository", "checkout", "configuration", "objects", "index", "remote"),
    ),
    "hydration": ("errors", "local", "order", "link", "background", "demand", "stats", "hydrator"),
    "fs": (
        *("kernel", "inodes", "overlay", "gitview", "tree", "native", "content", "listing"),
        "mount",
    ),
    "daemon": (
        *("control", "host", "repositories", "writes", "switch"),
        *("background", "worker", "supervisor"),
    ),
    "cli": ("terminal", "operation", "repositories", "workspaces", "main"),
    "server": (
        *("problems", "connections", "cross_origin", "metadata", "storage", "cluster", "wire"),
        "events",
        *("context", "git", "content", "jobs", "api", "web", "app", "service", "commands", "cli"),
    ),
}
"""Rooms (and modules that stand alone) of each floor: each imports those before it."""

MOST_MODULES = 10
"""In one room."""

SOURCES = sorted(PACKAGE.rglob("*.py"))


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in SOURCES}


def imported_modules(path: Path) -> set[str]:
    """The modules of the package that the one at `path` imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names = [f"{node.module}.{alias.name}" for alias in node.names] + [node.module]
        else:
            continue
        for name in names:
            short = name.removeprefix("artifactfs").removeprefix(".")
            if name.startswith("artifactfs.") and short in MODULES:
                found.add(short)
    # `from package import module` names both: only the module counts.
    return {name for name in found if not any(other.startswith(f"{name}.") for other in found)}


IMPORTS = {name: imported_modules(path) - {name} for name, path in MODULES.items()}


def allowed_floors(floor: str) -> set[str]:
    if floor in LEAVES:
        return (
            {"errors", "paths", "redact", "system"} if floor != "system" else {"errors", "system"}
        )
    if floor in ALONE:
        return ALONE_MAY_IMPORT | {floor}
    below = {other for other in FLOORS[: FLOORS.index(floor)] if (floor, other) not in NOT_BELOW}
    return below | LEAVES | {floor}


@pytest.mark.parametrize("name", [name for name in MODULES if name])
def test_floors_import_one_way(name: str) -> None:
    floor = name.partition(".")[0]
    assert {other.partition(".")[0] for other in IMPORTS[name]} <= allowed_floors(floor)


@pytest.mark.parametrize("name", [name for name in MODULES if name.partition(".")[0] in ROOMS])
def test_rooms_import_one_way(name: str) -> None:
    floor, *rest = name.split(".")
    if not rest:
        return
    rooms = ROOMS[floor]
    assert rest[0] in rooms, f"{name}: give it a place in ROOMS"
    mine = rooms.index(rest[0])
    others = {other for other in IMPORTS[name] if other.startswith(f"{floor}.")}
    assert not {other for other in others if rooms.index(other.split(".")[1]) > mine}


def test_no_circle_of_imports() -> None:
    sorter = graphlib.TopologicalSorter(IMPORTS)
    sorter.prepare()  # raises CycleError, with the circle


def test_rooms_have_a_purpose_and_a_size() -> None:
    for floor in ROOMS:
        for room in sorted(path for path in (PACKAGE / floor).iterdir() if path.is_dir()):
            modules = sorted(path for path in room.glob("*.py") if path.name != "__init__.py")
            if not modules:
                continue
            where = room.relative_to(PACKAGE)
            assert 3 <= len(modules) <= MOST_MODULES, f"{where} has {len(modules)} modules"
            assert ast.get_docstring(ast.parse((room / "__init__.py").read_text())), where


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


def test_secrets_stay_out_of_arguments_of_the_log() -> None:
    """Every module that logs a URL or the output of git takes `redact` from the one place."""
    others = [
        path for path in SOURCES if path.name != "redact.py" and "def redact(" in path.read_text()
    ]
    assert not others


def test_docstrings_name_modules_that_exist() -> None:
    paths = [f"/{path.relative_to(ROOT)}" for path in tracked_files()]
    wrong = [
        f"{module}: {name}"
        for module, path in MODULES.items()
        for name in re.findall(r"`([\w/]+\.py)`", path.read_text())
        if not any(other.endswith(f"/{name}") for other in paths)
    ]
    assert not wrong
