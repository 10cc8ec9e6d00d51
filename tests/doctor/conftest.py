"""A sound state root, small enough to be broken in one way at a time."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import trio

from artifactfs.config import RepoSettings
from artifactfs.daemon.repositories.registry import Registry
from artifactfs.doctor.examination import Report, examine
from artifactfs.doctor.finding import Finding, Severity
from artifactfs.fs.overlay.database import Overlay, create_overlay
from artifactfs.fs.overlay.pending import put_meta
from artifactfs.paths import StateLayout

_TINY_MOUNT = """
import os, stat, sys
import pyfuse3, trio

class Empty(pyfuse3.Operations):
    async def getattr(self, inode, ctx=None):
        attributes = pyfuse3.EntryAttributes()
        attributes.st_ino, attributes.st_mode, attributes.st_nlink = inode, stat.S_IFDIR | 0o755, 2
        return attributes
    async def opendir(self, inode, ctx):
        return inode
    async def readdir(self, handle, start, token):
        return None

pyfuse3.init(Empty(), sys.argv[1], {"fsname=artifact-fs"})
print("mounted", flush=True)
trio.run(pyfuse3.main)
"""


@dataclass(slots=True)
class Sick:
    """A state root with one registered repository, ``demo``."""

    state: StateLayout
    mount_point: Path
    upstream: Path

    def examine(self, *, remotes: bool = False, deadline_s: float = 20.0) -> Report:
        async def run() -> Report:
            return await examine(self.state, remotes=remotes, deadline_s=deadline_s)

        return trio.run(run)

    def found(self, code: str, **options: object) -> Finding:
        """The finding `code`; it must be there, and once."""
        report = self.examine(**options)  # type: ignore[arg-type]
        matching = [finding for finding in report.findings if finding.code == code]
        assert len(matching) == 1, [f.code for f in report.findings if f.severity != "ok"]
        return matching[0]

    def change(self, **settings: object) -> None:
        """Register ``demo`` with other settings."""
        with Registry(self.state.registry_db) as registry:
            old = registry.get("demo").settings
            changed = {name: getattr(old, name) for name in RepoSettings.__slots__} | settings
            registry.update(RepoSettings.from_mapping(changed))


def make_state(root: Path, mount_point: Path, upstream: Path) -> StateLayout:
    """What the daemon leaves behind after it cloned, mounted and ended."""
    state = StateLayout(root)
    root.mkdir(mode=0o700, exist_ok=True)
    root.chmod(0o700)
    with Registry(state.registry_db) as registry:
        registry.add(RepoSettings(name="demo", remote=str(upstream), mount_point=str(mount_point)))
    repo = state.repo("demo")
    repo.directory.mkdir(parents=True)
    git("clone", "--quiet", "--bare", upstream.as_uri(), str(repo.gitdir))
    state.sizes_db.parent.mkdir(parents=True)
    with closing(sqlite3.connect(state.sizes_db)) as connection:
        connection.execute("CREATE TABLE rows (number INTEGER PRIMARY KEY, text TEXT)")
        connection.executemany(
            "INSERT INTO rows VALUES (?, ?)", ((n, "x" * 100) for n in range(500))
        )
        connection.commit()
    create_overlay(repo.overlay_db, [put_meta(f"filler-{n}", b"x" * 100) for n in range(500)])
    Overlay(repo.overlay_db).close()
    (state.shared_objects / "pack").mkdir(parents=True)
    info = repo.gitdir / "objects" / "info"
    info.mkdir(exist_ok=True)
    (info / "alternates").write_text(f"{state.shared_objects}\n")
    mount_point.mkdir(parents=True)
    return state


def git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], check=True, capture_output=True, text=True)
    return done.stdout


@pytest.fixture(scope="session")
def upstream(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bare repository of one commit, its objects in a pack."""
    work = tmp_path_factory.mktemp("upstream")
    git("init", "--quiet", "-b", "main", str(work / "tree"))
    (work / "tree" / "README.md").write_text("# Demo\n")
    git("-C", str(work / "tree"), "add", ".")
    git("-C", str(work / "tree"), "commit", "--quiet", "-m", "First")
    git("-C", str(work / "tree"), "repack", "-adq")
    git("clone", "--quiet", "--bare", str(work / "tree"), str(work / "demo.git"))
    return work / "demo.git"


@pytest.fixture
def sick(tmp_path: Path, upstream: Path) -> Sick:
    """A state root in which nothing is wrong, yet."""
    mount_point = tmp_path / "mnt" / "demo"
    return Sick(make_state(tmp_path / "state", mount_point, upstream), mount_point, upstream)


@contextmanager
def tiny_mount(mount_point: Path) -> Iterator[subprocess.Popen[str]]:
    """A FUSE file system of one empty directory, in a process of its own."""
    process = subprocess.Popen(
        [sys.executable, "-c", _TINY_MOUNT, str(mount_point)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "mounted\n"
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
        subprocess.run(["umount", "-l", mount_point], check=False, stderr=subprocess.DEVNULL)


@contextmanager
def tmpfs(where: Path, options: str) -> Iterator[None]:
    """A small file system of its own at `where`."""
    where.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", where], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", where], check=True)


def as_nobody(look: Callable[[], list[Finding]]) -> list[Finding]:
    """What `look` finds in a process of the user nobody."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(reader)
            os.setgroups([])
            os.setresgid(65534, 65534, 65534)
            os.setresuid(65534, 65534, 65534)
            lines = [f"{f.code}\t{f.severity}\t{f.what}\t{f.mend or ''}\n" for f in look()]
            os.write(writer, "".join(lines).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with open(reader) as answers:
        fields = [line.rstrip("\n").split("\t") for line in answers]
    os.waitpid(child, 0)
    return [Finding(code, Severity(severity), what, mend) for code, severity, what, mend in fields]
