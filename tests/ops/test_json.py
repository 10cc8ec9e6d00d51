"""docs/schema.json describes what each command prints with --json: checked against the real thing.

A field that is printed and not described, or the other way round, fails here.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import jsonschema_rs
import pytest

from artifactfs.cli.main import cli
from artifactfs.cli.terminal.reference import pages
from tests.e2e.processes import DaemonProcess

SCHEMA = json.loads((Path(__file__).parents[2] / "docs" / "schema.json").read_text())


def strict(node: Any) -> Any:
    """The schema with every object closed: others must allow more fields, we must not print any."""
    if isinstance(node, list):
        return [strict(one) for one in node]
    if not isinstance(node, dict):
        return node
    closed = {key: strict(value) for key, value in node.items()}
    if "properties" in node:
        closed.setdefault("additionalProperties", False)
    return closed


def check(command: str, value: Any) -> None:
    schema = {**strict(SCHEMA), "$ref": f"#/$defs/{command.replace(' ', '-')}"}
    jsonschema_rs.validator_for(schema, validate_formats=True).validate(value)


def printing_json() -> Iterator[str]:
    for page in pages(cli, "artifact-fs"):
        if any(isinstance(p, click.Option) and "--json" in p.opts for p in page.command.params):
            yield "-".join(page.words[1:])


def test_every_command_is_described() -> None:
    assert set(printing_json()) <= set(SCHEMA["$defs"])


@pytest.fixture
def hello(daemon: DaemonProcess, tmp_path: Path) -> Path:
    def git(*arguments: str) -> None:
        subprocess.run(["git", "-C", tmp_path, *arguments], check=True, capture_output=True)

    git("init", "-q", "-b", "main", "source")
    (tmp_path / "source" / "README.md").write_text("# Hello\n")
    git("-C", "source", "add", "-A")
    git("-C", "source", "commit", "-q", "-m", "First")
    git("clone", "-q", "--bare", "source", "remote.git")
    return tmp_path / "remote.git"


@pytest.mark.timeout(600)  # some forty commands, each a process
def test_what_is_printed_is_as_described(daemon: DaemonProcess, hello: Path) -> None:
    remote = f"file://{hello}"

    def run(command: str, *arguments: str | Path) -> Any:
        value = daemon.json(*command.split(" "), *arguments)
        check(command, value)
        return value

    run("add-repo", "--name", "hello", "--remote", remote)
    run("add-repo", "--name", "hello", "--remote", remote)
    run("add-repo", "--name", "later", "--remote", f"{remote}.absent", "--async")
    run("prepare", "later")
    daemon.run("wait", "hello", "--for", "history")
    daemon.wait_for("hello", "index")
    run("list-repos")
    (daemon.mounts / "hello" / "new").write_text("new\n")
    (daemon.mounts / "hello" / "README.md").read_text()
    run("fetch", "--name", "hello")
    run("status")
    run("snapshot create", "one", "--name", "hello")
    run("snapshot list", "--name", "hello")
    run("snapshot restore", "one", "--name", "hello")
    run("prefetch", "--name", "hello", "--wait")
    run("diff-overlay", "--name", "hello")
    run("set-refresh", "--name", "hello", "never")
    run("set-remote", "--name", "hello", "--remote", remote)
    run("switch", "main", "--name", "hello")
    run("wait", "hello")
    run("gc")
    run("evict-cache")
    run("daemon reload")
    run("config list")
    run("redirect add", "target", "--name", "hello")
    run("redirect list", "--name", "hello")
    run("redirect remove", "target", "--name", "hello")
    for command in ("top", "trace"):
        options = ["--count", "1"] if command == "top" else ["--name", "hello"]
        lines = daemon.run(command, *options, "--json").stdout.splitlines()
        assert lines, command
        for line in lines:
            check(command, json.loads(line))
    run("unmount", "hello")
    run("remount", "hello")
    run("mount", remote, daemon.directory / "here")
    run("umount", daemon.directory / "here")
    check("doctor", json.loads(daemon.run("doctor", "--offline", "--json", check=False).stdout))
    run("remove-repo", "hello", "--dry-run", "--force")
    run("remove-repo", "hello", "--force")
    daemon.stop()
    run("status")
    run("list-repos")
