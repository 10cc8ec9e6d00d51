"""Git in a mount: what only git can do or tell is asked by the command, never by the daemon.

No process of the daemon may look into a mount that it serves (`artifactfs.git.apart`); a command
is a program like any other there. It runs git with its user's own configuration and environment.
"""

from __future__ import annotations

import subprocess

from artifactfs.errors import ArtifactFSError, DaemonError, InvalidInput, StateError
from artifactfs.git.apart import git_environment
from artifactfs.redact import foreign_text

STATUS_S = 120.0
_SHOWN = 10


def switch(top: str, arguments: list[str]) -> str | None:
    """``git switch ARGUMENTS``; what went wrong after it, in a hook, if anything did.

    Raises: InvalidInput, StateError with git's own words.
    """
    before = _head(top)
    done = _git(top, "switch", "-q", *arguments)
    if done.returncode == 0:
        return None
    said = foreign_text(done.stderr)
    if before != _head(top):  # git ends with the status of the hook
        return said.strip() or f"exit code {done.returncode}"
    raise _refusal(said, done.returncode)


def _head(top: str) -> bytes:
    """Where HEAD is, and by which name."""
    return _git(top, "rev-parse", "HEAD", "--symbolic-full-name", "HEAD").stdout


def run_hook(top: str, name: str, arguments: list[str]) -> str | None:
    """Run a hook where there is one; what went wrong, if anything did."""
    done = _git(top, "hook", "run", "--ignore-missing", name, "--", *arguments)
    if done.returncode == 0:
        return None
    return foreign_text(done.stderr).strip() or f"exit code {done.returncode}"


def local_changes(top: str) -> list[str]:
    """The paths that ``git status`` names. Raises: DaemonError, StateError."""
    arguments = ("status", "--porcelain=v1", "-z", "--no-renames")
    done = _git(top, *arguments, deadline_s=STATUS_S)
    if done.returncode != 0:
        raise StateError(
            f"git status in {top} failed: {foreign_text(done.stderr).strip()}",
            hint="give --force to delete all the same",
        )
    listed = done.stdout.decode("utf-8", "replace").split("\0")
    return [entry[3:] for entry in listed if entry]


def _git(
    top: str, *arguments: str, deadline_s: float | None = None
) -> subprocess.CompletedProcess[bytes]:
    """Raises: DaemonError where it does not end: it is left behind then, as it may not die."""
    command = ["git", "-C", top, *arguments]
    environment = git_environment() | {"GIT_TERMINAL_PROMPT": "0"}
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
    )
    try:
        output, errors = process.communicate(timeout=deadline_s)
    except subprocess.TimeoutExpired:
        process.kill()
        raise DaemonError(
            f"git {arguments[0]} in {top} did not end within {deadline_s:g} s",
            hint="artifact-fs doctor says what it waits for",
        ) from None
    return subprocess.CompletedProcess(command, process.returncode, output, errors)


def _refusal(stderr: str, returncode: int) -> ArtifactFSError:
    """What git said, as one of our errors: its sentence, and the paths that it lists."""
    lines = stderr.splitlines()
    said = [line for line in lines if line.startswith(("error:", "fatal:"))]
    paths = [line.strip() for line in lines if line.startswith("\t")]
    message = said[0].partition(":")[2].strip() if said else f"git switch: exit code {returncode}"
    if paths:
        more = f" and {len(paths) - _SHOWN} more" if paths[_SHOWN:] else ""
        return StateError(
            f"{message} {', '.join(paths[:_SHOWN])}{more}",
            hint="commit your changes or stash them before you switch branches",
        )
    if said and said[0].startswith("fatal:"):
        return InvalidInput(message)
    return StateError(message)
