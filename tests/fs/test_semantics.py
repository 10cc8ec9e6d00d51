"""One test for each row of the table in ``docs/semantics.md``."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import re
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from artifactfs.fs.clock import now_ns
from tests.fs.conftest import COMMIT_TIME
from tests.fs.mounting import ROOT, Mount, renameat2

NOBODY = 65534
LIBC = ctypes.CDLL(None, use_errno=True)


def failing(number: int) -> pytest.RaisesExc[OSError]:
    def matches(error: OSError) -> bool:
        return error.errno == number

    return pytest.RaisesExc(OSError, check=matches)


def everything_but_device(path: Path) -> tuple[object, ...]:
    """`st_dev` is another one after each mount."""
    status = path.stat()
    return status.st_ino, status.st_mode, status.st_nlink, status.st_mtime_ns, status.st_ctime_ns


def downloads(mount: Mount) -> list[str]:
    return [line for line in mount.log() if line.startswith("hydrate")]


def as_nobody(mount: Mount, script: str) -> subprocess.CompletedProcess[str]:
    arguments = ["setpriv", "--reuid", str(NOBODY), "--regid", str(NOBODY), "--clear-groups"]
    return subprocess.run(
        [*arguments, "sh", "-c", script], cwd="/", capture_output=True, text=True, check=False
    )


@pytest.fixture
def shared(new_mount: Callable[..., Mount]) -> Mount:
    """A mount that other users may use."""
    mount = new_mount()
    for directory in (mount.directory, *mount.directory.parents):
        if directory.is_relative_to(tempfile.gettempdir()) and directory != Path("/tmp"):
            directory.chmod(0o755)
    return mount.start(settings={"allow_other": True})


def test_every_row_has_a_test() -> None:
    table = (ROOT / "docs/semantics.md").read_text()
    rows = set(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE))
    tests = {name[5:] for name in globals() if name.startswith("test_")}
    assert rows == tests - {"every_row_has_a_test"}


def test_create(top: Path) -> None:
    before = os.umask(0o027)
    try:
        descriptor = os.open(top / "src/new", os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
    finally:
        os.umask(before)
    os.close(descriptor)
    status = (top / "src/new").stat()
    assert stat.S_IMODE(status.st_mode) == 0o640
    assert (status.st_uid, status.st_gid, status.st_size) == (os.getuid(), os.getgid(), 0)
    for name in ("src/new", "src/f1.c"):
        with failing(errno.EEXIST):
            os.open(top / name, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    with failing(errno.ENOENT):
        (top / "absent/new").touch()
    with failing(errno.ENOTDIR):
        (top / "README/new").touch()


def test_write_anywhere(top: Path) -> None:
    with open(top / "sparse", "w+b") as file:
        file.seek(10 << 20)
        file.write(b"end")
        file.seek(5)
        file.write(b"middle")
    status = (top / "sparse").stat()
    assert status.st_size == (10 << 20) + 3
    assert status.st_blocks * 512 < 1 << 20
    content = (top / "sparse").read_bytes()
    assert content[:12] == b"\0\0\0\0\0middle\0"
    assert content[-4:] == b"\0end"
    with open(top / "sparse", "rb") as file:
        assert os.lseek(file.fileno(), 0, os.SEEK_HOLE) == status.st_size


def test_append(top: Path) -> None:
    one = os.open(top / "README", os.O_WRONLY | os.O_APPEND)
    other = os.open(top / "README", os.O_WRONLY | os.O_APPEND)
    for number in range(6):
        os.write(one if number % 2 else other, b"%d" % number)
    os.close(one)
    os.close(other)
    assert (top / "README").read_bytes() == b"hello\n012345"


def test_truncate(mount: Mount) -> None:
    top = mount.path
    os.truncate(top / "README", 0)
    (top / "src/f1.c").write_bytes(b"replaced")
    with open(top / "src/f2.c", "wb") as file:
        assert os.fstat(file.fileno()).st_size == 0
    assert downloads(mount) == []
    os.truncate(top / "big", 1000)
    assert (top / "big").read_bytes() == (bytes(range(256)) * 4)[:1000]
    assert len(downloads(mount)) == 1
    os.truncate(top / "big", 2000)
    assert (top / "big").read_bytes()[990:1010] == (bytes(range(256)) * 4)[990:1000] + bytes(10)
    with failing(errno.EISDIR):
        os.truncate(top / "src", 0)


def test_first_write(mount: Mount) -> None:
    top = mount.path
    with open(top / "big", "r+b") as file:
        assert downloads(mount) == []
        file.seek(100)
        file.write(b"changed")
    expected = bytearray(bytes(range(256)) * 4096)
    expected[100:107] = b"changed"
    assert (top / "big").read_bytes() == expected
    assert len(downloads(mount)) == 1
    mount.close_gate()
    script = f"open({str(top / 'README')!r}, 'r+b', buffering=0).write(b'x')"
    writer = subprocess.Popen([sys.executable, "-c", script])
    _wait_for(lambda: len(downloads(mount)) == 2)
    writer.kill()
    assert writer.wait(10) == -9
    mount.open_gate()
    assert (top / "README").read_text() == "hello\n"


def test_read(mount: Mount) -> None:
    mount.ask("fail", on=True)
    with failing(errno.EIO):
        (mount.path / "README").read_text()
    mount.ask("fail", on=False)
    mount.close_gate()
    reader = subprocess.Popen(["cat", mount.path / "README"], stdout=subprocess.PIPE)
    _wait_for(lambda: len(downloads(mount)) == 2)
    reader.kill()
    assert reader.wait(10) == -9


def test_mapping(top: Path) -> None:
    with open(top / "README", "r+b") as file, mmap.mmap(file.fileno(), 0) as view:
        view[:5] = b"HELLO"
        view.flush()
        assert (top / "README").read_text() == "HELLO\n"
    with open(top / "README", "rb") as file:
        private = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        private[:5] = b"12345"
        assert (top / "README").read_text() == "HELLO\n"
    (top / "script").write_text("#!/bin/sh\necho made here\n")
    (top / "script").chmod(0o755)
    assert subprocess.check_output([top / "script"]) == b"made here\n"


def test_locks(top: Path) -> None:
    script = f"import fcntl; fcntl.LOCK(open({str(top / 'README')!r}, 'r+b'), 6)"
    for lock in ("flock", "lockf"):
        with open(top / "README", "r+b") as file:
            getattr(fcntl, lock)(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            other = [sys.executable, "-c", script.replace("LOCK", lock)]
            assert b"BlockingIOError" in subprocess.run(other, capture_output=True).stderr
        assert subprocess.run(other).returncode == 0


def test_mkdir_rmdir(top: Path) -> None:
    with failing(errno.ENOTEMPTY):
        (top / "docs").rmdir()
    with failing(errno.EEXIST):
        (top / "docs").mkdir()
    with failing(errno.ENOTDIR):
        (top / "README").rmdir()
    with failing(errno.EISDIR):
        os.unlink(top / "docs")
    (top / "docs/a.txt").unlink()
    (top / "docs").rmdir()
    with failing(errno.ENOENT):
        (top / "docs").stat()
    (top / "docs").mkdir(0o700)
    assert os.listdir(top / "docs") == []
    shutil.rmtree(top / "src")
    (top / "src/deep").mkdir(parents=True)
    assert os.listdir(top / "src") == ["deep"]
    assert os.listdir(top / "src/deep") == []


def test_unlink_open(mount: Mount) -> None:
    top = mount.path
    with open(top / "README", "r+b", buffering=0) as old, open(top / "new", "w+b") as new:
        os.unlink(top / "README")
        os.unlink(top / "new")
        assert os.fstat(old.fileno()).st_nlink == os.fstat(new.fileno()).st_nlink == 0
        assert old.read() == b"hello\n"
        old.write(b"more")
        os.fchmod(old.fileno(), 0o600)
        assert os.fstat(old.fileno()).st_mode & 0o777 == 0o600
        new.write(b"x" * 100_000)
        new.flush()
        assert len(mount.upper_files()) == 2
    _wait_for(lambda: mount.upper_files() == [])
    assert not (top / "README").exists()


def test_rename_file(mount: Mount) -> None:
    top = mount.path
    number = (top / "README").stat().st_ino
    os.rename(top / "README", top / "src/f1.c")
    os.rename(top / "src/f2.c", top / "F2")
    os.rename(top / "F2", top / "F2")
    assert downloads(mount) == []
    assert (top / "src/f1.c").stat().st_ino == number
    assert (top / "src/f1.c").read_text() == "hello\n"
    assert (top / "F2").read_text() == "int f2;\n"
    with failing(errno.EISDIR):
        os.rename(top / "F2", top / "src")
    with failing(errno.ENOENT):
        os.rename(top / "README", top / "x")


def test_rename_directory(mount: Mount) -> None:
    top = mount.path
    inside = everything_but_device(top / "many/123")
    mount_requests = downloads(mount)
    os.rename(top / "many", top / "src/moved")
    assert everything_but_device(top / "src/moved/123") == inside
    assert len(os.listdir(top / "src/moved")) == 300
    assert downloads(mount) == mount_requests
    with failing(errno.ENOENT):
        os.listdir(top / "many")
    with failing(errno.ENOTEMPTY):
        os.rename(top / "docs", top / "src")
    with failing(errno.ENOTDIR):
        os.rename(top / "docs", top / "run.sh")
    with failing(errno.EINVAL):
        os.rename(top / "src", top / "src/deep/inside")
    (top / "hollow").mkdir()
    os.rename(top / "docs", top / "hollow")
    assert os.listdir(top / "hollow") == ["a.txt"]
    mount.restart(kill=True)
    assert everything_but_device(top / "src/moved/123") == inside
    assert (top / "src/moved/123").read_text() == "123\n"


def test_rename_flags(top: Path) -> None:
    with failing(errno.EEXIST):
        renameat2(top / "README", top / "run.sh", 1)
    renameat2(top / "README", top / "read", 1)
    renameat2(top / "read", top / "src", 2)
    assert (top / "src").read_text() == "hello\n"
    assert (top / "read/f1.c").read_text() == "int f1;\n"
    with failing(errno.ENOENT):
        renameat2(top / "read", top / "absent", 2)
    with failing(errno.EINVAL):
        renameat2(top / "read", top / "x", 4)


def test_hard_links(mount: Mount) -> None:
    top = mount.path
    os.link(top / "README", top / "src/other")
    os.link(top / "README", top / "third")
    assert downloads(mount) == []
    assert (top / "README").stat() == (top / "src/other").stat()
    assert (top / "README").stat().st_nlink == 3
    (top / "src/other").write_text("written")
    (top / "third").chmod(0o600)
    assert (top / "README").read_text() == "written"
    (top / "README").unlink()
    assert (top / "third").stat().st_nlink == 2
    mount.restart(kill=True)
    assert (top / "src/other").stat() == (top / "third").stat()
    os.rename(top / "third", top / "src/other")  # two names of one file: nothing happens
    assert (top / "third").exists()
    with failing(errno.EEXIST):
        os.link(top / "third", top / "run.sh")
    with failing(errno.EPERM):
        os.link(top / "src", top / "x")


def test_symlinks(mount: Mount) -> None:
    top = mount.path
    assert os.readlink(top / "link") == "README"
    assert (top / "link").read_text() == "hello\n"
    target = "some/where/" + "x" * 200
    os.symlink(target, top / "made")
    assert os.readlink(top / "made") == target
    assert (top / "made").lstat().st_size == len(target)
    os.rename(top / "link", top / "src/link")
    mount.restart(kill=True)
    assert os.readlink(top / "src/link") == "README"
    assert os.readlink(top / "made") == target
    with failing(errno.EEXIST):
        os.symlink("x", top / "made")


def test_special_files(mount: Mount) -> None:
    top = mount.path
    os.mkfifo(top / "fifo")
    reader = subprocess.Popen(["cat", top / "fifo"], stdout=subprocess.PIPE)
    (top / "fifo").write_text("through the fifo")
    assert reader.communicate()[0] == b"through the fifo"
    os.chdir(top)
    try:
        with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
            server.bind("socket")
            server.listen()
            client.connect("socket")
    finally:
        os.chdir(ROOT)
    os.mknod(top / "device", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    with failing(errno.EACCES):
        (top / "device").read_bytes()
    mount.restart(kill=True)
    assert stat.S_ISFIFO((top / "fifo").stat().st_mode)
    assert stat.S_ISSOCK((top / "socket").stat().st_mode)
    assert (top / "device").stat().st_rdev == os.makedev(1, 3)


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
    Path("/proc/sys/vm/drop_caches").write_text("2\n")
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
    (top / "src/made").mkdir()
    with open(top / "src/made/file", "wb") as file:
        file.write(b"synced")
        file.flush()
        os.fsync(file.fileno())
        copy = mount.directory / "copy"
        shutil.copytree(mount.layout, copy)
    os.rename(top / "README", top / "renamed")
    descriptor = os.open(top, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)
    second = mount.directory / "second"
    shutil.copytree(mount.layout, second)
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


def _wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)
