"""One Git process on the server side of a request: streamed, bounded in time, always reaped."""

from __future__ import annotations

import fcntl
import os
import resource
import signal
import subprocess
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial

import trio

from artifactfs.server.problems import is_scarcity

CHUNK = 256 * 1024
MEMORY_BYTES = 2 * 1024**3
_STDERR_KEPT = 4_096
_PIPE_SIZE = 512 * 1024
_ROOM_S = 30.0
_ROOM_POLL_S = 0.2
_GRACE_S = 2.0

_waiting = trio.Lock()
"""Who waits for room for a process."""


class GitProcess:
    """A running Git process with piped stdin and stdout; stderr is kept, bounded."""

    def __init__(self, process: trio.Process) -> None:
        assert process.stdin is not None and process.stdout is not None
        self._process = process
        self.stdin = process.stdin
        self.stdout = process.stdout
        self._stderr = bytearray()

    async def read(self) -> bytes:
        """The next bytes of stdout, empty at its end."""
        return bytes(await self.stdout.receive_some(CHUNK))

    async def wait(self) -> int:
        """Wait for the end; the exit status."""
        return await self._process.wait()

    @property
    def stderr(self) -> str:
        """What the process said on stderr so far, at most 4 KiB of it."""
        return self._stderr.decode(errors="replace").strip()

    def signal_group(self, number: int) -> None:
        """Send a signal to the process and the helpers it started."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)

    @property
    def running(self) -> bool:
        return self._process.returncode is None

    async def _drain_stderr(self) -> None:
        assert self._process.stderr is not None
        while data := await self._process.stderr.receive_some(CHUNK):
            if len(self._stderr) < _STDERR_KEPT:
                self._stderr += bytes(data)[: _STDERR_KEPT - len(self._stderr)]

    async def _end(self, *, gently: bool) -> None:
        """Terminate what is still running and reap it. Shielded from cancellation."""
        with trio.CancelScope(shield=True):
            if self.running and gently:
                await self.stdin.aclose()
                with trio.move_on_after(_GRACE_S):
                    await self._process.wait()
            if self.running:
                self.signal_group(signal.SIGTERM)
                with trio.move_on_after(_GRACE_S):
                    await self._process.wait()
            if self.running:
                self.signal_group(signal.SIGKILL)
                await self._process.wait()


async def _start(
    argv: Sequence[str], environment: Mapping[str, str], cwd: str, descriptors: tuple[int, ...]
) -> trio.Process:
    """Where descriptors or processes have run out, others end soon: it is tried again for
    `_ROOM_S`. Raises: OSError."""
    start = partial(
        trio.lowlevel.open_process,
        list(argv),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=dict(environment),
        cwd=cwd,
        start_new_session=True,
        pass_fds=descriptors,
    )
    try:
        return await start()
    except OSError as error:
        if not is_scarcity(error):
            raise
        scarcity = error
    with trio.move_on_after(_ROOM_S):
        # One at a time: an attempt takes up to ten descriptors, so those who try together can keep
        # each other from what would be enough for one.
        async with _waiting:
            while True:
                try:
                    return await start()
                except OSError as error:
                    if not is_scarcity(error):
                        raise
                    scarcity = error
                await trio.sleep(_ROOM_POLL_S)
    raise scarcity


@asynccontextmanager
async def git_process(
    argv: Sequence[str],
    *,
    environment: Mapping[str, str],
    cwd: str = "/",
    memory_bytes: int = MEMORY_BYTES,
    gently: bool = False,
    descriptors: tuple[int, ...] = (),
) -> AsyncIterator[GitProcess]:
    """Run `argv` (never through a shell) for the time of the block.

    However the block is left, also by cancellation, the process and its helpers are gone after
    it: SIGTERM, and SIGKILL two seconds later. Each may allocate `memory_bytes` at most; mapped
    files do not count. `gently`: its input ends first, and it gets two seconds to clean up (git
    removes a quarantine then, but not on a signal). `descriptors` are inherited.
    """
    process = await _start(argv, environment, cwd, descriptors)
    with suppress(ProcessLookupError, PermissionError):  # `serve` tells if it is not permitted
        resource.prlimit(process.pid, resource.RLIMIT_DATA, (memory_bytes, memory_bytes))
    git = GitProcess(process)
    _widen(process)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(git._drain_stderr)
            try:
                yield git
            finally:
                await git._end(gently=gently)
                nursery.cancel_scope.deadline = trio.current_time() + _GRACE_S
    finally:
        with trio.CancelScope(shield=True):
            for stream in (process.stdin, process.stdout, process.stderr):
                if stream is not None:
                    await stream.aclose()


def _widen(process: trio.Process) -> None:
    """A larger pipe: fewer switches between git and the server for a big pack."""
    for stream in (process.stdin, process.stdout):
        if isinstance(stream, trio.lowlevel.FdStream):
            with suppress(OSError):
                fcntl.fcntl(stream.fileno(), fcntl.F_SETPIPE_SZ, _PIPE_SIZE)


async def run_bounded(
    argv: Sequence[str],
    *,
    environment: Mapping[str, str],
    deadline_s: float,
    stdin: bytes = b"",
    cwd: str = "/",
    descriptors: tuple[int, ...] = (),
) -> tuple[int, bytes, str]:
    """Run git to its end: (exit status, stdout, stderr). `stdin` is for who reads all of it before
    writing much. Raises: trio.TooSlowError."""
    with trio.fail_after(deadline_s):
        async with git_process(
            argv, environment=environment, cwd=cwd, descriptors=descriptors
        ) as git:
            with suppress(trio.BrokenResourceError):  # it ended: its exit status tells
                await git.stdin.send_all(stdin)
            await git.stdin.aclose()
            output = bytearray()
            while data := await git.read():
                output += data
            status = await git.wait()
        return status, bytes(output), git.stderr
