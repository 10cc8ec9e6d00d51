"""Running git: the one place that starts it.

Every process gets a clean environment (no ``GIT_DIR`` of whoever started us, no prompts, messages
in English) and a deadline. Secrets are never arguments: they go through the credential file.

None sees a mount of ours (`apart`), wherever we were started; and none fetches what it misses,
unless it is told that it may: what it would wait for, we fetch ourselves.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
import shutil
import signal
import subprocess
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import trio

from artifactfs.errors import ArtifactFSError
from artifactfs.features import Version, version_of
from artifactfs.git.apart import git_environment, gitdir_environment
from artifactfs.git.identity import Identity, other_user_of
from artifactfs.git.surroundings import Setting
from artifactfs.redact import foreign_text
from artifactfs.system.running import KILL_AFTER_S, run_group

_STDERR_LIMIT = 4096
_LISTED = re.compile(r"error: [0-9a-f]{40}")
"""A line of a list of commits, below the one that says what is the matter with them."""
_NOWHERE = "/"
"""Where git runs. Our own directory may be in a mount, of ours or of a daemon that has died."""


class GitFailed(ArtifactFSError):
    """A git process failed, or did not end in time. `stderr` is redacted."""

    def __init__(self, message: str, *, returncode: int | None = None, stderr: str = "") -> None:
        super().__init__(message)
        self.returncode = returncode
        self.stderr = stderr


async def _environment(
    gitdir: Path | None,
    extra: Mapping[str, str] | None,
    *,
    may_fetch: bool = False,
    more: tuple[Setting, ...] = (),
    user: Identity | None = None,
) -> dict[str, str]:
    home = {"HOME": user.home} if user is not None else {}
    if gitdir is None:
        return git_environment({**home, **(extra or {})}, more=more)
    extra = {**home, **(extra or {})}
    make = partial(gitdir_environment, gitdir, extra, may_fetch=may_fetch, more=more)
    try:
        return await trio.to_thread.run_sync(make)
    except OSError as error:
        raise GitFailed(f"{error.filename or gitdir}: {error.strerror}") from error


def _as_user(user: Identity | None) -> dict[str, Any]:
    return user.process_options() if user is not None else {}


async def run_git(
    *arguments: str,
    gitdir: Path | None = None,
    stdin: bytes = b"",
    deadline_s: float = 60.0,
    env: Mapping[str, str] | None = None,
    may_fetch: bool = False,
    more: tuple[Setting, ...] = (),
    as_daemon: bool = False,
    background: bool = False,
) -> bytes:
    """Run ``git ARGUMENTS`` and return its standard output.

    `may_fetch`: with a `gitdir`, it may use the network. `env` and `more` (settings, which may be
    secrets) are for this process alone. It runs as the user of the gitdir (`identity`), unless
    `as_daemon`. `background`: see `git_command`. Cancelling ends the process and its children.
    Raises: GitFailed.
    """
    command = git_command(*arguments, gitdir=gitdir, background=background)
    user = None if as_daemon else other_user_of(gitdir)
    with trio.move_on_after(deadline_s):
        environment = await _environment(gitdir, env, may_fetch=may_fetch, more=more, user=user)
        try:
            done = await run_group(
                command,
                stdin=stdin,
                capture_stdout=True,
                capture_stderr=True,
                check=False,
                cwd=_NOWHERE,
                env=environment,
                **_as_user(user),
            )
        except OSError as error:
            raise GitFailed(f"git could not be started: {error.strerror}") from error
        if done.returncode == 0:
            return bytes(done.stdout)
        raise failure(arguments, done.returncode, done.stderr)
    raise GitFailed(f"git {_verb(arguments)} did not end within {deadline_s:g} s")


async def git_version() -> Version:
    """Of the git that `run_git` runs. Raises: GitFailed."""
    return version_of((await run_git("version")).decode("utf-8", "replace"))


def git_command(*arguments: str, gitdir: Path | None = None, background: bool = False) -> list[str]:
    """``git ARGUMENTS``. In the `background` it leaves the CPU to whoever else wants it."""
    git = ["git", f"--git-dir={gitdir}"] if gitdir else ["git"]
    return [*(_last_in_line() if background else ()), *git, *arguments]


_LAST_IN_LINE = '{ echo 10 >/proc/self/autogroup; } 2>/dev/null; exec nice -n 19 "$@"'
"""Niceness counts among the processes of one session; against those of others, as the user's
programs are, only the niceness of the whole session does (sched(7), autogroup). 10 is a tenth of a
CPU that somebody else wants, so that what git may have to wait for in the end is never starved.
On one CPU beside a busy loop, nice alone left a third to the background, SCHED_IDLE half."""


@functools.cache
def _last_in_line() -> tuple[str, ...]:
    """Has to be the first process of a session."""
    return ("sh", "-c", _LAST_IN_LINE, "sh") if shutil.which("nice") else ()


def failure(arguments: Sequence[str], returncode: int, stderr: bytes) -> GitFailed:
    """The exception for a git process that ended with `returncode`."""
    text = foreign_text(stderr)
    reason = last_message(text) or f"exit code {returncode}"
    return GitFailed(f"git {_verb(arguments)} failed: {reason}", returncode=returncode, stderr=text)


def last_message(stderr: str) -> str:
    """The line of git's error output that says what happened."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    for line in reversed(lines):
        if line.startswith(("fatal:", "error:")) and not _LISTED.fullmatch(line):
            return line.split(":", 1)[1].strip()
    return lines[-1] if lines else ""


def _verb(arguments: Sequence[str]) -> str:
    """The subcommand, without the ``-c name=value`` pairs before it."""
    rest = iter(arguments)
    for argument in rest:
        if argument == "-c":
            next(rest, None)
        elif not argument.startswith("-"):
            return argument
    return ""


class PipedProcess:
    """A running process with stdin and stdout as pipes, and stderr in a memory file.

    (A file, because nobody has to read it: a pipe nobody reads would block the process.)
    """

    def __init__(self, process: trio.Process, stderr: int) -> None:
        assert process.stdin is not None and process.stdout is not None
        self._process = process
        self._stderr = stderr
        self.stdin: trio.abc.SendStream = process.stdin
        self.stdout: trio.abc.ReceiveStream = process.stdout

    def stderr_text(self) -> str:
        """The end of what it wrote to stderr so far, redacted."""
        size = os.fstat(self._stderr).st_size
        tail = os.pread(self._stderr, _STDERR_LIMIT, max(0, size - _STDERR_LIMIT))
        return foreign_text(tail)

    async def wait(self) -> int:
        return await self._process.wait()

    async def close(self, *, grace_s: float = KILL_AFTER_S) -> int:
        """Close its stdin, wait `grace_s`, then kill it and its children. Never cancelled."""
        with trio.CancelScope(shield=True):
            await self.stdin.aclose()
            with trio.move_on_after(grace_s):
                await self._process.wait()
            if self._process.returncode is None:
                self.kill()
                await self._process.wait()
            await self.stdout.aclose()
        os.close(self._stderr)
        return self._process.returncode or 0

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)


async def open_process(
    command: Sequence[str],
    env: Mapping[str, str] | None = None,
    *,
    cwd: str | None = None,
    user: Identity | None = None,
) -> PipedProcess:
    """Start `command` with `env` in place of our environment, in a session of its own.

    It runs as the daemon's user, who may connect to the remote, unless `user` is given.
    Raises: GitFailed.
    """
    stderr = os.memfd_create("stderr")
    try:
        process = await trio.lowlevel.open_process(
            list(command),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            cwd=cwd,
            env=git_environment() if env is None else env,
            start_new_session=True,
            **_as_user(user),
        )
    except OSError as error:
        os.close(stderr)
        raise GitFailed(f"{command[0]} could not be started: {error.strerror}") from error
    except BaseException:
        os.close(stderr)
        raise
    return PipedProcess(process, stderr)


class GitSink:
    """A git process that reads what it is sent: ``index-pack --stdin`` and the like."""

    def __init__(self, process: PipedProcess, arguments: Sequence[str]) -> None:
        self._process = process
        self._arguments = arguments

    async def send(self, chunk: bytes) -> bool:
        """Pass `chunk` on; False where the process has ended: `finish` says why."""
        try:
            await self._process.stdin.send_all(chunk)
        except trio.BrokenResourceError:
            return False
        return True

    async def finish(self, *, deadline_s: float = 600.0, most_bytes: int | None = None) -> bytes:
        """End its input, wait, and return its output. Raises: GitFailed, also where it prints more
        than `most_bytes`."""
        await self._process.stdin.aclose()
        output = bytearray()
        with trio.move_on_after(deadline_s):
            async for data in self._process.stdout:
                output += data
                if most_bytes is not None and len(output) > most_bytes:
                    raise GitFailed(f"git {_verb(self._arguments)} prints too much")
            if returncode := await self._process.wait():
                stderr = self._process.stderr_text().encode()
                raise failure(self._arguments, returncode, stderr)
            return bytes(output)
        raise GitFailed(f"git {_verb(self._arguments)} did not end within {deadline_s:g} s")


@asynccontextmanager
async def feed_git(
    *arguments: str,
    gitdir: Path | None = None,
    env: Mapping[str, str] | None = None,
    background: bool = False,
) -> AsyncIterator[GitSink]:
    """Start ``git ARGUMENTS``, to be sent its input. Leaving before `finish` kills it.

    `background`: see `git_command`. Raises: GitFailed.
    """
    command = git_command(*arguments, gitdir=gitdir, background=background)
    user = other_user_of(gitdir)
    environment = await _environment(gitdir, env, user=user)
    process = await open_process(command, environment, cwd=_NOWHERE, user=user)
    try:
        yield GitSink(process, arguments)
    finally:
        await process.close(grace_s=0)
