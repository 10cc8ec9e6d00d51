"""A small repository with everything that a clone has to get right."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path


def git(*arguments: str, cwd: Path, stdin: str | None = None, **env: str) -> str:
    """Run git and return what it prints. Raises: CalledProcessError."""
    identity = {
        "GIT_AUTHOR_NAME": "A",
        "GIT_AUTHOR_EMAIL": "a@example.org",
        "GIT_COMMITTER_NAME": "C",
        "GIT_COMMITTER_EMAIL": "c@example.org",
        "GIT_TERMINAL_PROMPT": "0",
    }
    done = subprocess.run(
        ["git", *arguments],
        cwd=cwd,
        input=stdin,
        check=True,
        capture_output=True,
        text=True,
        env=os.environ | identity | env,
    )
    return done.stdout.strip()


def no_detached_maintenance(repository: Path) -> None:
    """Git packs loose objects before a command ends, not behind somebody who copies them (a newer
    one does it after twelve commits)."""
    for name in ("maintenance.autoDetach", "gc.autoDetach"):
        git("config", name, "false", cwd=repository)


@dataclass(frozen=True)
class Sample:
    """A work tree to commit in, and the bare repository it pushes to."""

    work: Path
    bare: Path

    def oid(self, rev: str) -> bytes:
        return bytes.fromhex(git("rev-parse", rev, cwd=self.bare))

    def commit(self, path: str, content: str, *, branch: str = "main") -> bytes:
        """Commit one file on `branch` and push it."""
        git("checkout", "-q", branch, cwd=self.work)
        file = self.work / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)
        git("add", "-A", cwd=self.work)
        git("commit", "-q", "-m", f"change {path}", cwd=self.work)
        self.push()
        return self.oid(branch)

    def push(self) -> None:
        git("push", "-q", "--force", "--prune", "--all", "origin", cwd=self.work)
        git("push", "-q", "--tags", "origin", cwd=self.work)

    def blobs(self, rev: str = "main") -> dict[str, bytes]:
        """Blob oids by path."""
        found = {}
        for line in git("ls-tree", "-r", rev, cwd=self.bare).splitlines():
            meta, _, path = line.partition("\t")
            found[path] = bytes.fromhex(meta.split()[2])
        return found


def make_sample(directory: Path, *, partial: bool = True) -> Sample:
    """12 commits on main, a branch `topic/one`, an annotated and a lightweight tag.

    `partial`: the bare repository allows filters and object-info to remote clients.
    """
    work, bare = directory / "work", directory / "sample.git"
    git("init", "-q", "--bare", "-b", "main", str(bare), cwd=directory)
    git("init", "-q", "-b", "main", str(work), cwd=directory)
    for repository in (bare, work):
        no_detached_maintenance(repository)
    if partial:
        git("config", "uploadpack.allowFilter", "true", cwd=bare)
        git("config", "transfer.advertiseObjectInfo", "true", cwd=bare)
    git("remote", "add", "origin", str(bare), cwd=work)
    for number in range(12):
        for name in ("README.md", f"src/part{number % 4}/file{number}.txt", "docs/index.txt"):
            file = work / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(f"{name} as of {number}\n" * 20)
        git("add", "-A", cwd=work)
        git("commit", "-q", "-m", f"commit {number}", cwd=work)
        if number == 4:
            git("tag", "-a", "-m", "release", "v1", cwd=work)
            git("tag", "light", cwd=work)
            git("branch", "topic/one", cwd=work)
    sample = Sample(work, bare)
    sample.push()
    return sample
