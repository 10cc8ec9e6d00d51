"""One test for each row of the table in ``docs/semantics.md``."""

from __future__ import annotations

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
from pathlib import Path

from tests.fs.expectations import (
    downloads,
    everything_but_device,
    failing,
    wait_for,
)
from tests.fs.mounting import ROOT, Mount, renameat2


def test_every_row_has_a_test() -> None:
    text = (ROOT / "docs/semantics.md").read_text()
    table = text.partition("## Operation by operation")[2].partition("\n## ")[0]
    rows = set(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE))
    sources = Path(__file__).parent.glob("test_semantics*.py")
    text = "".join(source.read_text() for source in sources)
    tests = set(re.findall(r"^def test_(\w+)", text, re.MULTILINE))
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
    wait_for(lambda: len(downloads(mount)) == 2)
    writer.kill()
    assert writer.wait(60) == -9
    mount.open_gate()
    assert (top / "README").read_text() == "hello\n"


def test_read(mount: Mount) -> None:
    mount.ask("fail", on=True)
    with failing(errno.EIO):
        (mount.path / "README").read_text()
    asked = len(downloads(mount))  # the kernel may ask again for a page that it could not read
    mount.ask("fail", on=False)
    mount.close_gate()
    reader = subprocess.Popen(["cat", mount.path / "README"], stdout=subprocess.PIPE)
    wait_for(lambda: len(downloads(mount)) > asked)
    reader.kill()
    assert reader.wait(60) == -9


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
    wait_for(lambda: mount.upper_files() == [])
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
