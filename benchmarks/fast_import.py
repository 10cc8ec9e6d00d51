"""A writer of `git fast-import` streams: the quickest way to make a repository of any size.

The stream format is documented in git-fast-import(1). The same calls give the same object ids on
every machine: times and names are fixed, and nothing of the user's configuration is read.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from types import TracebackType
from typing import IO, Self

FIRST_COMMIT_TIME = 1_600_000_000
"""Seconds since the epoch of the first commit; each further one is a minute later."""

FILE = b"100644"
EXECUTABLE = b"100755"
SYMLINK = b"120000"
GITLINK = b"160000"


def quiet_git_environment() -> dict[str, str]:
    """The environment for a git that reads no configuration but the repository's."""
    return os.environ | {
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_CONFIG_SYSTEM": os.devnull,
        "GIT_TERMINAL_PROMPT": "0",
    }


def run_git(*arguments: str | Path, cwd: Path | None = None) -> str:
    """Run git and return its output. Raises: subprocess.CalledProcessError."""
    result = subprocess.run(
        ["git", *map(str, arguments)],
        cwd=cwd,
        env=quiet_git_environment(),
        stdout=subprocess.PIPE,
        check=True,
    )
    return result.stdout.decode(errors="surrogateescape")


def quote_path(path: bytes) -> bytes:
    """Quote `path` as fast-import wants it: C style, every odd byte in octal."""
    plain = path.replace(b"\\", b"\\\\").replace(b'"', b'\\"')
    octal = b"".join(bytes([byte]) if 0x20 <= byte < 0x7F else b"\\%03o" % byte for byte in plain)
    return b'"' + octal + b'"'


class FastImport:
    """A bare repository being filled. Use as a context manager; commits go to `branch`."""

    def __init__(self, repository: Path, *, branch: str = "main") -> None:
        run_git("init", "--quiet", "--bare", f"--initial-branch={branch}", repository)
        run_git("-C", repository, "config", "repack.writeBitmaps", "true")
        self.repository = repository
        self.commits = 0
        self._ref = f"refs/heads/{branch}".encode()
        self._mark = 0
        self._process = subprocess.Popen(
            ["git", "-C", str(repository), "fast-import", "--quiet", "--done", "--force"],
            stdin=subprocess.PIPE,
            env=quiet_git_environment(),
        )
        assert self._process.stdin is not None
        self._out: IO[bytes] = self._process.stdin

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is not None:
            self._process.kill()
        else:
            self._out.write(b"done\n")
        self._out.close()
        if self._process.wait() and error is None:
            raise RuntimeError("git fast-import failed")

    def blob(self, data: bytes) -> bytes:
        """Store `data`; return the mark to put into `commit`."""
        self._mark += 1
        self._out.write(b"blob\nmark :%d\ndata %d\n" % (self._mark, len(data)))
        self._out.write(data)
        self._out.write(b"\n")
        return b":%d" % self._mark

    def commit(
        self,
        message: str,
        files: dict[bytes, tuple[bytes, bytes]],
        *,
        delete: tuple[bytes, ...] = (),
        replace_all: bool = False,
    ) -> None:
        """Commit on the branch. `files`: path → (mode, mark or 40 hex digits)."""
        time = FIRST_COMMIT_TIME + 60 * self.commits
        text = message.encode()
        lines = [
            b"commit " + self._ref,
            b"author A. Author <author@example.org> %d +0000" % time,
            b"committer C. Committer <committer@example.org> %d +0000" % time,
            b"data %d\n%s" % (len(text), text),
        ]
        if replace_all:
            lines.append(b"deleteall")
        lines += [b"D " + quote_path(path) for path in delete]
        lines += [
            b"M %s %s %s" % (mode, mark, quote_path(path)) for path, (mode, mark) in files.items()
        ]
        self._out.write(b"\n".join(lines) + b"\n\n")
        self.commits += 1

    def branch(self, name: str) -> None:
        """Make the branch `name` at the last commit."""
        self._out.write(b"reset refs/heads/%s\nfrom %s\n\n" % (name.encode(), self._ref))

    def tag(self, name: str) -> None:
        """Make the lightweight tag `name` at the last commit."""
        self._out.write(b"reset refs/tags/%s\nfrom %s\n\n" % (name.encode(), self._ref))
