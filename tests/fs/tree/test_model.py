"""Random operations on the mount and on a plain directory beside it: nothing may differ.

Results and errnos are compared after each step, the trees after each run. In the runs with kills,
the serving process dies by SIGKILL between steps, and everything that was acknowledged has to be
there when it serves again.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from artifactfs.fs.tree.mutations import RENAME_EXCHANGE, RENAME_NOREPLACE
from tests.fs.mounting import Mount, git, renameat2

NAMES = ["README", "src", "docs", "f1.c", "a", "b", "deep", "er", "x", "a.txt", "link", "run.sh"]


def _large(word: str) -> bytes:
    return word.encode() * 8_000


names = st.sampled_from(NAMES)
paths = st.lists(names, min_size=1, max_size=3).map("/".join)
contents = st.binary(max_size=40) | st.just(b"z" * 9000) | st.sampled_from(["large"]).map(_large)
offsets = st.integers(0, 10_000)

PAST = 1_500_000_000 * 10**9


def outcome(action: Callable[[Path], Any], top: Path) -> Any:
    try:
        return "ok", action(top)
    except OSError as error:
        return "error", error.errno


class Overlaid(RuleBasedStateMachine):
    """The mount against a directory of the disk that holds it."""

    origin: Path
    kills = 0
    may_kill = False

    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp(prefix="fs-model-"))
        self.plain = self.directory / "plain"
        git("clone", "-q", str(self.origin), str(self.plain), cwd=self.directory)
        shutil.rmtree(self.plain / ".git")
        oid = git("rev-parse", "HEAD", cwd=self.origin).strip()
        self.mount = Mount(self.directory / "m", self.origin / ".git", oid)
        self.mount.start(settings={"xattrs": True}, segment_bytes=20_000, collect_s=0.01)
        self.open: list[tuple[Any, Any]] = []

    @initialize()
    def begin(self) -> None:
        self.same(lambda top: sorted(set(os.listdir(top)) - {".git"}))

    def same(self, action: Callable[[Path], Any]) -> None:
        on_disk = outcome(action, self.plain)
        in_mount = outcome(action, self.mount.path)
        assert in_mount == on_disk

    # Files

    @rule(path=paths, content=contents, flags=st.sampled_from(["wb", "ab", "xb", "r+b"]))
    def write(self, path: str, content: bytes, flags: str) -> None:
        def action(top: Path) -> None:
            with open(top / path, flags) as file:
                file.write(content)

        self.same(action)

    @rule(path=paths, content=contents, offset=offsets)
    def write_at(self, path: str, content: bytes, offset: int) -> None:
        def action(top: Path) -> int:
            fd = os.open(top / path, os.O_RDWR)
            try:
                return os.pwrite(fd, content, offset)
            finally:
                os.close(fd)

        self.same(action)

    @rule(path=paths, size=offsets)
    def truncate(self, path: str, size: int) -> None:
        self.same(lambda top: os.truncate(top / path, size))

    @rule(path=paths)
    def read(self, path: str) -> None:
        self.same(lambda top: (top / path).read_bytes())

    @rule(path=paths)
    def unlink(self, path: str) -> None:
        self.same(lambda top: os.unlink(top / path))

    @rule(path=paths)
    def open_file(self, path: str) -> None:
        """Keep it open: it goes on working when its name is gone."""
        if self.may_kill or len(self.open) > 5:
            return
        opened: list[Any] = []

        def action(top: Path) -> None:
            opened.append(open(top / path, "r+b", buffering=0))  # noqa: SIM115

        self.same(action)
        if len(opened) == 2:
            self.open.append((opened[0], opened[1]))

    @rule(content=contents, offset=offsets)
    def use_open_file(self, content: bytes, offset: int) -> None:
        if not self.open:
            return
        results = []
        for file in self.open[offset % len(self.open)]:
            file.seek(offset)
            file.write(content)
            file.seek(0)
            status = os.fstat(file.fileno())
            results.append((file.read(), status.st_size, status.st_nlink))
        assert results[0] == results[1]

    @rule(path=paths, content=contents, offset=offsets)
    def write_by_mapping(self, path: str, content: bytes, offset: int) -> None:
        """What is stored into a shared mapping is in the file, for readers and after `msync`."""

        def action(top: Path) -> Any:
            with open(top / path, "r+b", buffering=0) as file:
                size = os.fstat(file.fileno()).st_size
                if not content or size < len(content):
                    return size
                begin = offset % (size - len(content) + 1)
                with mmap.mmap(file.fileno(), size) as mapped:
                    mapped[begin : begin + len(content)] = content
                    seen = file.read()
                    mapped.flush()
                return seen

        self.same(action)

    @rule(path=paths, pieces=st.lists(contents, max_size=4))
    def append_from_two(self, path: str, pieces: list[bytes]) -> None:
        def action(top: Path) -> Any:
            flags = os.O_RDWR | os.O_APPEND
            first = os.open(top / path, flags | os.O_CREAT, 0o644)
            try:
                second = os.open(top / path, flags)
                try:
                    for number, piece in enumerate(pieces):
                        os.write((first, second)[number % 2], piece)
                    return os.fstat(first).st_size, os.pread(second, 20_000, 0)
                finally:
                    os.close(second)
            finally:
                os.close(first)

        self.same(action)

    @rule(old=paths, new=paths, name=names, content=contents)
    def move_with_open_files(self, old: str, new: str, name: str, content: bytes) -> None:
        """A directory is renamed while a file in it is open, and the file is written then."""

        def action(top: Path) -> Any:
            fd = os.open(top / old / name, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                os.write(fd, b"before")
                try:
                    os.rename(top / old, top / new)
                    moved = 0
                except OSError as error:
                    moved = error.errno
                os.write(fd, content)
                return moved, os.pread(fd, 20_000, 0), os.fstat(fd).st_nlink
            finally:
                os.close(fd)

        self.same(action)

    @rule()
    def close_files(self) -> None:
        for pair in self.open:
            for file in pair:
                file.close()
        self.open.clear()

    # Names

    @rule(path=paths)
    def mkdir(self, path: str) -> None:
        self.same(lambda top: os.mkdir(top / path))

    @rule(path=paths)
    def rmdir(self, path: str) -> None:
        self.same(lambda top: os.rmdir(top / path))

    @rule(path=paths)
    def remove_tree(self, path: str) -> None:
        self.same(lambda top: shutil.rmtree(top / path) if (top / path).is_dir() else None)

    @rule(old=paths, new=paths, flags=st.sampled_from([0, 0, RENAME_NOREPLACE, RENAME_EXCHANGE]))
    def rename(self, old: str, new: str, flags: int) -> None:
        self.same(lambda top: renameat2(top / old, top / new, flags))

    @rule(old=paths, new=paths)
    def link(self, old: str, new: str) -> None:
        self.same(lambda top: os.link(top / old, top / new, follow_symlinks=False))

    @rule(path=paths, leads_to=paths)
    def symlink(self, path: str, leads_to: str) -> None:
        self.same(lambda top: os.symlink(leads_to, top / path))

    @rule(path=paths)
    def mkfifo(self, path: str) -> None:
        self.same(lambda top: os.mknod(top / ("fifo-" + path.replace("/", "-")), 0o010644))

    # Attributes

    @rule(path=paths, mode=st.sampled_from([0o644, 0o755, 0o600, 0o4755]))
    def chmod(self, path: str, mode: int) -> None:
        self.same(lambda top: os.chmod(top / path, mode))

    @rule(path=paths, ns=st.integers(0, PAST))
    def utime(self, path: str, ns: int) -> None:
        self.same(lambda top: os.utime(top / path, ns=(ns, ns), follow_symlinks=False))
        self.same(lambda top: os.lstat(top / path).st_mtime_ns)

    @rule(
        path=paths,
        name=st.sampled_from(["user.a", "user.b"]),
        value=st.none() | st.binary(max_size=20),
    )
    def set_xattr(self, path: str, name: str, value: bytes | None) -> None:
        def action(top: Path) -> Any:
            if value is None:
                os.removexattr(top / path, name)
            else:
                os.setxattr(top / path, name, value)

        self.same(action)
        self.same(lambda top: xattrs(top / path))

    @rule(
        path=paths,
        other=paths,
        number=st.integers(0, 9),
    )
    def times_follow(self, path: str, other: str, number: int) -> None:
        """Which mtimes and ctimes a change moves: those of the file and of both parents."""

        def action(top: Path) -> Any:
            one, two = top / path, top / other
            watched = dict.fromkeys((one.parent, two.parent, one, two))
            actions: tuple[Callable[[], object], ...] = (
                lambda: os.close(os.open(one, os.O_CREAT | os.O_EXCL, 0o644)),
                lambda: os.unlink(one),
                lambda: os.mkdir(one),
                lambda: os.rmdir(one),
                lambda: os.rename(one, two),
                lambda: os.link(one, two, follow_symlinks=False),
                lambda: os.symlink("x", one),
                lambda: os.truncate(one, 10),
                lambda: os.chmod(one, 0o640),
                lambda: renameat2(one, two, RENAME_EXCHANGE),
            )
            inodes = {}
            for place in watched:
                if os.path.lexists(place):
                    os.utime(place, ns=(PAST, PAST), follow_symlinks=False)
                    status = os.lstat(place)
                    inodes[status.st_ino] = place, status.st_ctime_ns
            time.sleep(0.011)  # a tick of the clock that files get their ctime from
            result = outcome(lambda _: actions[number](), top)
            moved = []
            for place in watched:
                if os.path.lexists(place):
                    status = os.lstat(place)
                    before = inodes.get(status.st_ino)
                    if before is not None:
                        name = str(place.relative_to(top))
                        same_ctime = status.st_ctime_ns == before[1]
                        moved.append((name, status.st_mtime_ns == PAST, same_ctime))
            return result, moved

        self.same(action)

    @rule(path=paths)
    def look(self, path: str) -> None:
        def action(top: Path) -> Any:
            status = os.lstat(top / path)
            size = 0 if stat.S_ISDIR(status.st_mode) else status.st_size
            return status.st_mode, size, status.st_nlink, status.st_uid

        self.same(action)

    # Life

    @rule(kill=st.booleans(), now=st.integers(0, 7))
    def restart(self, kill: bool, now: int) -> None:
        if now or self.open:
            return
        before = snapshot(self.mount.path, exact=True)
        if kill and not self.may_kill:
            kill = False
        type(self).kills += kill
        self.mount.restart(kill=kill)
        assert differences(before, snapshot(self.mount.path, exact=True)) == {}

    @invariant()
    def nothing_failed(self) -> None:
        assert "Traceback" not in self.mount.stderr()

    def teardown(self) -> None:
        try:
            if self.mount.process is not None and self.mount.process.poll() is None:
                assert differences(snapshot(self.plain), snapshot(self.mount.path)) == {}
                self.close_files()
                self.mount.stop()
                assert "Traceback" not in self.mount.stderr()
                files = len(self.mount.upper_files())
                assert files == dirty_count(self.mount), "an upper file without a row"
        finally:
            self.close_files()
            self.mount.kill()
            shutil.rmtree(self.directory, ignore_errors=True)


def xattrs(path: Path) -> dict[str, bytes]:
    names = [name for name in os.listxattr(path) if name.startswith("user.")]
    return {name: os.getxattr(path, name) for name in names}


def dirty_count(mount: Mount) -> int:
    import sqlite3

    database = sqlite3.connect(mount.layout / "overlay.db")
    (count,) = database.execute(
        "SELECT count(*) FROM inodes WHERE has_data AND segment IS NULL"
    ).fetchone()
    database.close()
    return int(count)


def snapshot(top: Path, *, exact: bool = False) -> dict[str, Any]:
    """Everything below `top`; `exact` with inode numbers and times."""
    return dict(_walk(top, "", exact))


def differences(expected: dict[str, Any], found: dict[str, Any]) -> dict[str, Any]:
    names = expected.keys() | found.keys()
    pairs = {name: (expected.get(name), found.get(name)) for name in names}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def _walk(directory: Path, prefix: str, exact: bool) -> Iterator[tuple[str, Any]]:
    for name in sorted(os.listdir(directory)):
        if not prefix and name == ".git":
            continue
        path = directory / name
        status = path.lstat()
        described: list[Any] = [status.st_mode, status.st_nlink]
        if stat.S_ISREG(status.st_mode):
            described += [status.st_size, path.read_bytes()]
        elif stat.S_ISLNK(status.st_mode):
            described.append(os.readlink(path))
        if stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode):
            with contextlib.suppress(OSError):  # they are off
                described += sorted(xattrs(path).items())
        if exact:
            described += [status.st_ino, status.st_mtime_ns, status.st_ctime_ns]
        yield prefix + name, described
        if stat.S_ISDIR(status.st_mode):
            yield from _walk(path, f"{prefix}{name}/", exact)


_CHECKS = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]


def run_model(
    origin: Path, *, runs: int, steps: int, kill: bool, derandomize: bool = False
) -> type[Overlaid]:
    machine = type("Run", (Overlaid,), {"origin": origin, "may_kill": kill, "kills": 0})
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        machine,
        settings=settings(
            max_examples=runs,
            stateful_step_count=steps,
            deadline=None,
            database=None,
            suppress_health_check=_CHECKS,
            phases=[Phase.generate],
            derandomize=derandomize,
        ),
    )
    return machine


def test_operations_equal_those_of_a_disk(origin: Path) -> None:
    run_model(origin, runs=5, steps=150, kill=False, derandomize=True)


def test_kills_lose_nothing(origin: Path) -> None:
    run_model(origin, runs=5, steps=100, kill=True, derandomize=True)


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_many_operations_and_many_kills(origin: Path) -> None:
    run_model(origin, runs=40, steps=500, kill=False)
    kills = 0
    while kills < 200:
        kills += run_model(origin, runs=20, steps=300, kill=True).kills
    print(f"{kills} kills")
