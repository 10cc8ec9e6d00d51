"""Attributes, the disk below and what is special: rows of the table in ``docs/semantics.md``."""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import stat
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from artifactfs.fs.inodes.clock import now_ns
from tests.fs.conftest import COMMIT_TIME
from tests.fs.expectations import (
    LIBC,
    NOBODY,
    as_nobody,
    downloads,
    failing,
    without_fsetid,
)
from tests.fs.mounting import Mount, renameat2


@pytest.fixture
def shared(new_shared_mount: Callable[[], Mount]) -> Mount:
    """A mount that other users may use."""
    return new_shared_mount().start()


def test_chmod_chown(shared: Mount) -> None:
    top = shared.path
    before = (top / "run.sh").stat()
    os.chmod(top / "run.sh", 0o4777)
    os.chown(top / "run.sh", 12, 34)
    os.chown(top / "README", -1, 56)
    os.chown(top / "link", 7, 8, follow_symlinks=False)
    status = (top / "run.sh").stat()
    assert (status.st_uid, status.st_gid) == (12, 34)
    assert (top / "README").stat().st_gid == 56
    assert (top / "link").lstat().st_uid == 7
    assert status.st_mtime_ns == before.st_mtime_ns < status.st_ctime_ns
    assert downloads(shared) == []
    os.chmod(top / "run.sh", 0o4777)
    assert as_nobody(shared, f"echo more >> {top}/run.sh").returncode == 0
    assert stat.S_IMODE((top / "run.sh").stat().st_mode) == 0o777


def test_privileges(shared: Mount) -> None:
    """Who loses set-user-ID and set-group-ID bits when, against the disk below."""
    left = []
    plain = shared.directory / "plain"
    plain.mkdir()
    for top in (plain, shared.path):
        path = top / "privileged"
        actions: tuple[Callable[[], object], ...] = (
            lambda: os.chown(path, 0, 0),  # noqa: B023
            lambda: os.chown(path, -1, 5),  # noqa: B023
            lambda: os.chown(path, -1, -1),  # noqa: B023
            lambda: os.utime(path),  # noqa: B023
            lambda: path.write_bytes(b"by root"),  # noqa: B023
            lambda: os.truncate(path, 3),  # noqa: B023
            lambda: as_nobody(shared, f"echo more >> {path}"),  # noqa: B023
            lambda: as_nobody(shared, f": > {path}"),  # noqa: B023
            lambda: as_nobody(shared, f"truncate -s 2 {path}"),  # noqa: B023
            lambda: without_fsetid(f"echo more >> {path}"),  # noqa: B023
            lambda: without_fsetid(f": > {path}"),  # noqa: B023
            lambda: without_fsetid(f"chmod 6757 {path}; chgrp 12 {path}"),  # noqa: B023
        )
        for mode in (0o6777, 0o4777, 0o2777, 0o0777, 0o6767, 0o2767):
            for action in actions:
                path.write_bytes(b"content")
                path.chmod(mode)
                action()
                left.append(oct(path.stat().st_mode))
                path.unlink()
        (top / "folder").mkdir()
        (top / "folder").chmod(0o2777)
        os.chown(top / "folder", 3, 4)
        left.append(oct((top / "folder").stat().st_mode))
    half = len(left) // 2
    assert left[half:] == left[:half]


def test_setgid_directory(top: Path) -> None:
    (top / "group").mkdir()
    os.chown(top / "group", -1, 77)
    os.chmod(top / "group", 0o2775)
    (top / "group/file").touch()
    (top / "group/directory").mkdir()
    assert (top / "group/file").stat().st_gid == 77
    status = (top / "group/directory").stat()
    assert status.st_gid == 77
    assert status.st_mode & stat.S_ISGID


def test_times(mount: Mount) -> None:
    top = mount.path
    os.utime(top / "README", ns=(123_456_789, 987_654_321_012_345_678))
    status = (top / "README").stat()
    assert (status.st_atime_ns, status.st_mtime_ns) == (123_456_789, 987_654_321_012_345_678)
    before = now_ns()
    os.utime(top / "README")
    assert before <= (top / "README").stat().st_mtime_ns <= time.time_ns()
    subprocess.run(["touch", "-a", "-d", "@5", top / "README"], check=True)  # UTIME_OMIT
    assert (top / "README").stat().st_atime_ns == 5 * 10**9
    assert (top / "README").stat().st_mtime_ns >= before
    assert downloads(mount) == []
    previous = before
    for action in (
        lambda: (top / "src/new").touch(),
        lambda: os.rename(top / "src/new", top / "src/newer"),
        lambda: (top / "src/newer").unlink(),
        lambda: (top / "src/d").mkdir(),
        lambda: (top / "src/d").rmdir(),
        lambda: os.symlink("x", top / "src/s"),
        lambda: os.link(top / "src/s", top / "src/t", follow_symlinks=False),
    ):
        action()
        status = (top / "src").stat()
        assert previous <= status.st_mtime_ns == status.st_ctime_ns <= time.time_ns()
        os.utime(top / "README")
        previous = (top / "README").stat().st_mtime_ns
        assert previous >= status.st_mtime_ns  # whoever gives the time, it never goes back
    assert (top / "docs").stat().st_mtime_ns == COMMIT_TIME * 10**9
    now = now_ns()
    with open(top / "run.sh", "ab", buffering=0) as file:
        file.write(b"x")
        status = os.fstat(file.fileno())
        assert now <= status.st_mtime_ns == status.st_ctime_ns
    assert (top / "run.sh").stat().st_mtime_ns == status.st_mtime_ns
    (top / "run.sh").read_bytes()
    assert (top / "run.sh").stat().st_atime_ns == COMMIT_TIME * 10**9
    mount.restart(kill=True)
    assert (top / "run.sh").stat().st_mtime_ns == status.st_mtime_ns


def test_permissions(shared: Mount) -> None:
    top = shared.path
    os.chmod(top / "README", 0o640)
    (top / "open").mkdir()
    (top / "open").chmod(0o1777)
    (top / "open/roots").touch()
    assert as_nobody(shared, f"cat {top}/README").returncode != 0
    assert as_nobody(shared, f"cat {top}/run.sh").stdout.startswith("#!")
    assert as_nobody(shared, f"echo x > {top}/run.sh").returncode != 0
    assert as_nobody(shared, f"touch {top}/src/x").returncode != 0
    assert as_nobody(shared, f"echo mine > {top}/open/mine").returncode == 0
    assert (top / "open/mine").stat().st_uid == NOBODY
    assert as_nobody(shared, f"rm -f {top}/open/roots").returncode != 0


def test_link_counts(top: Path) -> None:
    assert (top / "src").stat().st_nlink == 3
    (top / "src/new").mkdir()
    assert (top / "src").stat().st_nlink == 4
    os.rename(top / "src/deep", top / "deep")
    assert (top / "src").stat().st_nlink == 3
    assert top.stat().st_nlink == 2 + 5
    renameat2(top / "deep", top / "src/f1.c", 2)
    assert top.stat().st_nlink == 2 + 4
    assert (top / "src").stat().st_nlink == 4
    os.rename(top / "docs", top / "src/new")
    assert top.stat().st_nlink == 2 + 3
    assert (top / "src").stat().st_nlink == 4


def test_inode_numbers(mount: Mount) -> None:
    top = mount.path

    def numbers() -> dict[str, int]:
        names = ("src/f1.c", "moved", "src/deep/er/x", "made", "link")
        return {name: (top / name).lstat().st_ino for name in names}

    os.rename(top / "README", top / "moved")
    (top / "made").write_text("made")
    before = numbers()
    (top / "src/f1.c").write_text("written")
    os.chmod(top / "src/deep", 0o700)
    assert numbers() == before
    mount.kernel_forgets()
    assert numbers() == before
    mount.restart()
    assert numbers() == before
    mount.restart(kill=True)
    assert numbers() == before
    (top / "made").unlink()
    (top / "made").touch()
    assert numbers()["made"] not in before.values()


def test_long_names(top: Path) -> None:
    assert (top / ("n" * 255)).read_text() == "long\n"
    (top / ("m" * 255)).mkdir()
    for action in (
        lambda name: (top / name).stat(),
        lambda name: (top / name).touch(),
        lambda name: (top / name).mkdir(),
        lambda name: os.symlink("x", top / name),
        lambda name: os.link(top / "README", top / name),
        lambda name: os.rename(top / "README", top / name),
    ):
        with failing(errno.ENAMETOOLONG):
            action("x" * 256)


def test_odd_names(mount: Mount) -> None:
    top = os.fsencode(mount.path)
    assert open(top + b"/odd-\xff\xfe", "rb").read() == b"odd\n"  # noqa: SIM115
    for name in (b"\xff", b"new\nline", b" ", b"\\x41", "ü".encode(), b"-rf", b"*"):
        with open(top + b"/" + name, "wb") as file:
            file.write(name)
        assert name in os.listdir(top)
    mount.restart(kill=True)
    with open(top + b"/new\nline", "rb") as file:
        assert file.read() == b"new\nline"


def test_listing(top: Path) -> None:
    with os.scandir(top / "many") as entries:
        seen = [next(entries).name]
        for name in os.listdir(top / "many"):
            if name not in seen and int(name) % 2:
                (top / "many" / name).unlink()
        seen += [entry.name for entry in entries]
    assert len(seen) == len(set(seen))
    assert {name for name in seen if int(name) % 2 == 0} == {f"{n:03}" for n in range(0, 300, 2)}
    kinds = {entry.name: entry for entry in os.scandir(top)}
    assert kinds["src"].is_dir()
    assert kinds["link"].is_symlink()
    assert kinds["README"].inode() == (top / "README").stat().st_ino


def test_sync(mount: Mount) -> None:
    """A copy of the state as it is on disk when fsync has returned has everything."""
    top = mount.path
    unfinished = shutil.ignore_patterns("*.new", ".*.????????")  # see `replace_file`
    (top / "src/made").mkdir()
    with open(top / "src/made/file", "wb") as file:
        file.write(b"synced")
        file.flush()
        os.fsync(file.fileno())
        copy = mount.directory / "copy"
        shutil.copytree(mount.layout, copy, ignore=unfinished)
    os.rename(top / "README", top / "renamed")
    descriptor = os.open(top, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)
    second = mount.directory / "second"
    shutil.copytree(mount.layout, second, ignore=unfinished)
    mount.kill()
    mount.layout = copy
    mount.start()
    assert (top / "src/made/file").read_bytes() == b"synced"
    mount.kill()
    mount.layout = second
    mount.start()
    assert (top / "renamed").read_text() == "hello\n"


def test_statfs(mount: Mount) -> None:
    below, above = os.statvfs(mount.layout), os.statvfs(mount.path)
    assert (above.f_blocks, above.f_frsize) == (below.f_blocks, below.f_frsize)
    assert above.f_files == below.f_files
    assert above.f_namemax == 255


def test_no_space(new_mount: Callable[..., Mount]) -> None:
    mount = new_mount()
    small = mount.layout
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3M", "tmpfs", small], check=True)
    try:
        mount.start()
        top = mount.path
        with failing(errno.ENOSPC), open(top / "large", "wb", buffering=0) as file:
            for _ in range(100):
                assert file.write(b"x" * 100_000)
        made = 0
        with failing(errno.ENOSPC):
            for made in range(10_000):
                (top / f"file-{made}").mkdir()
        with failing(errno.ENOSPC):
            (top / f"file-{made}").mkdir()
        names = set(os.listdir(top))
        assert f"file-{made}" not in names
        assert (top / "README").read_text() == "hello\n"
        mount.restart(kill=True)
        assert set(os.listdir(top)) == names
        (top / "large").unlink()
        (top / "after").write_text("there is space again")
        assert (top / "after").read_text() == "there is space again"
    finally:
        mount.kill()
        subprocess.run(["umount", "-l", small], check=True)


def test_xattrs_off(top: Path) -> None:
    with failing(errno.EOPNOTSUPP):
        os.setxattr(top / "README", "user.x", b"1")
    with failing(errno.EOPNOTSUPP):
        os.getxattr(top / "README", "user.x")
    with failing(errno.EOPNOTSUPP):
        os.listxattr(top / "README")


def test_xattrs_on(new_mount: Callable[..., Mount]) -> None:
    mount = new_mount().start(settings={"xattrs": True})
    file = mount.path / "README"
    os.setxattr(file, "user.one", b"1")
    os.setxattr(file, "user.two", b"\0" * 5000)
    with failing(errno.EEXIST):
        os.setxattr(file, "user.one", b"2", os.XATTR_CREATE)
    with failing(errno.ENODATA):
        os.setxattr(file, "user.three", b"2", os.XATTR_REPLACE)
    mount.restart(kill=True)
    assert os.listxattr(file) == ["user.one", "user.two"]
    assert os.getxattr(file, "user.two") == b"\0" * 5000
    os.removexattr(file, "user.two")
    for name in ("user.two", "user.none"):
        with failing(errno.ENODATA):
            os.getxattr(file, name)
    with failing(errno.EOPNOTSUPP):
        os.setxattr(file, "trusted.x", b"1")
    assert downloads(mount) == []


def test_fallocate(top: Path) -> None:
    with open(top / "new", "wb") as file:
        assert LIBC.fallocate(file.fileno(), 0, ctypes.c_long(0), ctypes.c_long(9000)) == -1
        assert ctypes.get_errno() == errno.EOPNOTSUPP
        os.posix_fallocate(file.fileno(), 0, 9000)
        assert os.fstat(file.fileno()).st_size == 9000


def test_tmpfile(top: Path) -> None:
    with failing(errno.EOPNOTSUPP):
        os.open(top, os.O_TMPFILE | os.O_RDWR)
    with tempfile.TemporaryFile(dir=top) as file:
        file.write(b"works")


def test_copy(top: Path) -> None:
    with open(top / "big", "rb") as source, open(top / "copied", "wb") as target:
        left = 1 << 20
        while left:
            left -= os.copy_file_range(source.fileno(), target.fileno(), left)
    assert (top / "copied").read_bytes() == (top / "big").read_bytes()
    command = ["cp", "--reflink=always", top / "big", top / "reflinked"]
    assert subprocess.run(command, capture_output=True).returncode != 0
    subprocess.run(["cp", "-a", top / "src", top / "src-copy"], check=True)
    assert subprocess.run(["diff", "-r", top / "src", top / "src-copy"]).returncode == 0


def test_watching(top: Path) -> None:
    watch = LIBC.inotify_init1(os.O_NONBLOCK)
    assert LIBC.inotify_add_watch(watch, os.fsencode(top / "src"), 0x100 | 0x200 | 0x2) > 0
    (top / "src/new").write_text("x")
    (top / "src/f1.c").unlink()
    events = os.read(watch, 4096)
    os.close(watch)
    assert b"new\0" in events
    assert b"f1.c\0" in events


def test_gitfile(top: Path) -> None:
    assert (top / ".git").read_text().startswith("gitdir: /")
    with failing(errno.EPERM):
        (top / ".git").unlink()
    with failing(errno.EEXIST):
        (top / ".git").mkdir()


def test_hidden_directory(top: Path) -> None:
    assert ".artifact-fs" not in os.listdir(top)
    assert (top / ".artifact-fs/fsmonitor").is_dir()
    for path in (".artifact-fs/x", ".artifact-fs/fsmonitor/x"):
        with pytest.raises(OSError):
            (top / path).write_text("x")


def test_submodules(top: Path) -> None:
    assert os.listdir(top / "module") == []
    (top / "module/file").write_text("as git submodule update does")
    assert os.listdir(top / "module") == ["file"]
