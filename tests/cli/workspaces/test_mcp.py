"""``artifact-fs mcp``, asked by the client of the package ``mcp`` over stdin and stdout."""

from __future__ import annotations

import asyncio
import subprocess
from typing import Any

import pytest

from tests.e2e.mount_table import mounts_below
from tests.e2e.processes import PROGRAMS, DaemonProcess

mcp = pytest.importorskip("mcp")


def test_a_client_works_in_a_workspace(daemon: DaemonProcess, local_remote: Any) -> None:
    remote = str(local_remote.path)
    said = asyncio.run(session(remote, daemon.environment))
    assert {"list", "read", "search", "edit", "run", "commit", "push"} <= set(said["tools"])
    assert said["list"] == "README.md\nsrc/"
    assert said["read"] == "# Hello\n"
    assert said["search"] == "src/main.c:1:int main(void) { return 0; }"
    assert said["run"] == "exit code 3\nint main(void) { return 1; }\nerr\n"
    assert said["changes"] == " M src/main.c\n?? new/file"
    assert said["commit"].startswith("commit ")
    assert said["again"] == "nothing to commit"
    assert said["push"].endswith("refs/heads/topic")
    for refused in ("outside", "twice", "missing"):
        assert said[refused].startswith("error: "), said[refused]
    log = subprocess.run(
        ["git", "-C", remote, "log", "-1", "--format=%s", "topic"], capture_output=True, text=True
    )
    assert log.stdout == "By a client\n"
    assert daemon.json("list-repos") == [] and not mounts_below(daemon.mounts)


async def session(remote: str, environment: dict[str, str]) -> dict[str, Any]:
    """What each tool said."""
    program = mcp.StdioServerParameters(
        command=str(PROGRAMS / "artifact-fs"),
        args=["mcp", remote, "--branch", "topic"],
        env=environment,
    )
    async with mcp.stdio_client(program) as (read, write), mcp.ClientSession(read, write) as client:
        await client.initialize()

        async def call(tool: str, **arguments: Any) -> str:
            result = await client.call_tool(tool, arguments)
            failed = getattr(result, "is_error", getattr(result, "isError", False))
            text = "".join(part.text for part in result.content)
            return f"error: {text}" if failed else text

        said: dict[str, Any] = {"tools": [t.name for t in (await client.list_tools()).tools]}
        said["list"] = await call("list")
        said["read"] = await call("read", path="README.md")
        said["search"] = await call("search", pattern="int +main", path="src")
        await call("edit", path="src/main.c", old="return 0", new="return 1")
        said["twice"] = await call("edit", path="src/main.c", old="n", new="m")
        said["run"] = await call("run", command="cat src/main.c; echo err >&2; exit 3")
        await call("write", path="new/file", content="new\n")
        said["changes"] = await call("changes")
        kept = await call("snapshot")
        said["commit"] = await call("commit", message="By a client")
        said["again"] = await call("commit", message="Nothing")
        said["push"] = await call("push")
        said["outside"] = await call("read", path="/etc/passwd")
        said["missing"] = await call("read", path="no-such-file")
        said["restore"] = await call("restore", id=kept)
        clean = "git reset --hard -q origin/topic; git clean -fdq; rm -rf .git/refs/artifactfs"
        await call("run", command=clean)
        return said
