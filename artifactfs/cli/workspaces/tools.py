"""The tools of ``artifact-fs mcp``: calls of the workspace, their docstrings for the model."""

from __future__ import annotations

import importlib
import signal
from collections.abc import Awaitable, Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import anyio

from artifactfs.errors import ArtifactFSError
from artifactfs.workspaces.asynchronous import AsyncWorkspace
from artifactfs.workspaces.opening import OpenWorkspace

_P = ParamSpec("_P")
_T = TypeVar("_T")

MOST_CHARACTERS = 60_000
"""Of one answer: more would push everything else out of a model's context."""
RUN_S = 600.0


class ToolFailed(Exception):
    """What the client is told in place of a result."""


async def serve(opening: OpenWorkspace) -> None:
    """Serve until standard input ends, or SIGTERM comes. Raises: ArtifactFSError."""
    async with opening as workspace:
        server = _server(workspace)
        async with anyio.create_task_group() as group:
            group.start_soon(_until_signal, group.cancel_scope)
            await server.run_stdio_async()
            group.cancel_scope.cancel()


async def _until_signal(scope: anyio.CancelScope) -> None:
    with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async for _ in signals:
            scope.cancel()
            return


def _server(workspace: AsyncWorkspace) -> Any:
    module: Any = importlib.import_module("mcp.server")
    make = getattr(module, "MCPServer", None)
    if make is None:  # before version 2
        make = importlib.import_module("mcp.server.fastmcp").FastMCP
    server = make(
        "artifact-fs",
        instructions=f"Tools for one Git working tree, {workspace.name}. Paths are relative to its "
        "top. What is neither pushed nor kept by a snapshot is kept on the machine of the server.",
    )
    tools = Tools(workspace)
    for tool in (
        *(tools.list, tools.read, tools.search, tools.edit, tools.write, tools.run),
        *(tools.changes, tools.diff, tools.commit, tools.push, tools.snapshot, tools.restore),
    ):
        server.tool()(_told(tool))
    return server


def _told(call: Callable[_P, Awaitable[_T]]) -> Callable[_P, Awaitable[_T]]:
    """Errors of ours and of the file system as one line for the client."""

    @wraps(call)
    async def tool(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        try:
            return await call(*args, **kwargs)
        except ArtifactFSError as error:
            raise ToolFailed(
                f"{error.message}{f' ({error.hint})' if error.hint else ''}"
            ) from error
        except OSError as error:
            raise ToolFailed(error.strerror or str(error)) from error

    return tool


def cut(text: str) -> str:
    """The beginning and the end of what is too long."""
    if len(text) <= MOST_CHARACTERS:
        return text
    half = MOST_CHARACTERS // 2
    left_out = len(text) - 2 * half
    return f"{text[:half]}\n… {left_out} characters left out …\n{text[-half:]}"


class Tools:
    """One method is one tool."""

    def __init__(self, workspace: AsyncWorkspace) -> None:
        self._workspace = workspace

    async def list(self, path: str = ".") -> str:
        """List the names in a folder; those of folders end in a slash."""
        return cut("\n".join(await self._workspace.list(path)))

    async def read(self, path: str, first_line: int = 1, lines: int = 2000) -> str:
        """Read a text file, or `lines` lines of it from `first_line` on (they count from 1)."""
        text = (await self._workspace.read(path)).splitlines(keepends=True)
        return cut("".join(text[max(first_line, 1) - 1 :][:lines]))

    async def search(self, pattern: str, path: str = ".", ignore_case: bool = False) -> str:
        """Search text files below a path for an extended regular expression: PATH:LINE:TEXT."""
        found = await self._workspace.grep(pattern, path, ignore_case=ignore_case)
        return cut("\n".join(f"{m.path}:{m.line}:{m.text}" for m in found)) or "nothing found"

    async def edit(self, path: str, old: str, new: str) -> str:
        """Replace a text that is exactly once in a file by another."""
        text = (await self._workspace.read_bytes(path)).decode("utf-8", "surrogateescape")
        count = text.count(old) if old else 0
        if count != 1:
            raise ToolFailed(f"the old text is {count} times in {path}: it has to be there once")
        changed = text.replace(old, new).encode("utf-8", "surrogateescape")
        await self._workspace.write(path, changed)
        return f"{path} changed"

    async def write(self, path: str, content: str, executable: bool = False) -> str:
        """Write a whole file; folders are made."""
        await self._workspace.write(path, content, executable=executable)
        return f"{path} written"

    async def run(self, command: str, timeout_s: float = RUN_S) -> str:
        """Run a shell command at the top of the tree: its exit code and its output."""
        done = await self._workspace.run(command, timeout_s=timeout_s, show=False)
        over = f" (ended after {timeout_s:g} s)" if done.timed_out else ""
        return cut(f"exit code {done.exit_code}{over}\n{done.stdout}{done.stderr}")

    async def changes(self) -> str:
        """What differs from the last commit, as git status lists it."""
        found = await self._workspace.changes()
        return cut("\n".join(f"{c.code} {c.path}" for c in found)) or "nothing has changed"

    async def diff(self) -> str:
        """All that was done in this workspace, committed or not, as one patch."""
        return cut(await self._workspace.diff()) or "nothing has changed"

    async def commit(self, message: str) -> str:
        """Commit everything that has changed, new files too."""
        made = await self._workspace.commit(message)
        return f"commit {made}" if made else "nothing to commit"

    async def push(self, branch: str = "") -> str:
        """Push the commits to a branch of the remote; without one, to that of the same name."""
        pushed = await self._workspace.push(branch or None)
        return f"pushed {pushed.commit} to {pushed.ref}"

    async def snapshot(self, message: str = "Snapshot") -> str:
        """Keep the state of all files, to go back to it by its id."""
        return (await self._workspace.snapshot(message=message)).name

    async def restore(self, id: str) -> str:
        """Make all files and the current commit those of a snapshot."""
        before = await self._workspace.restore(id)
        return f"restored; what was there before is the snapshot {before.name}"
