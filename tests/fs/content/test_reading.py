"""Reading a mount of which nothing was written."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from artifactfs.inode_numbers import ROOT_INO, derive_ino
from tests.fs.conftest import COMMIT_TIME
from tests.fs.mounting import Mount, MountFailed, git


def everything(top: Path) -> dict[str, tuple[int, int, object]]:
    """Mode, size and content of everything below `top`, without `.git`."""
    found: dict[str, tuple[int, int, object]] = {}
    for directory, names, files in os.walk(top):
        if directory == str(top):
            names[:] = [name for name in names if name != ".git"]
        for name in [*names, *files]:
            path = Path(directory, name)
            relative = os.path.relpath(path, top)
            if relative == ".git":
                continue
            status = path.lstat()
            content: object = None
            if stat.S_ISLNK(status.st_mode):
                content = os.readlink(path)
            elif stat.S_ISREG(status.st_mode):
                content = path.read_bytes()
            size = 0 if stat.S_ISDIR(status.st_mode) else status.st_size
            found[relative] = (status.st_mode, size, content)
    return found


def test_the_tree_is_that_of_a_clone(mount: Mount, origin: Path, tmp_path: Path) -> None:
    clone = tmp_path / "clone"
    git("clone", "-q", str(origin), str(clone), cwd=tmp_path)
    assert everything(mount.path) == everything(clone)


def test_clean_attributes(mount: Mount) -> None:
    top, secret = mount.path, bytes.fromhex(mount.ask("ino_secret"))
    status = (top / "README").stat()
    assert status.st_mtime_ns == status.st_ctime_ns == COMMIT_TIME * 10**9
    assert status.st_nlink == 1
    assert status.st_uid == os.getuid()
    # `st_ino` of the root is 1, so every number follows from the path
    assert status.st_ino == derive_ino(secret, ROOT_INO, b"README")
    assert len(secret) == 16
    deep = ROOT_INO
    for name in (b"src", b"deep", b"er"):
        deep = derive_ino(secret, deep, name)
    assert (top / "src/deep/er").stat().st_ino == deep


def test_link_counts_of_directories(top: Path) -> None:
    assert top.stat().st_nlink == 2 + 4  # src, docs, many, module
    assert (top / "src").stat().st_nlink == 3
    assert (top / "docs").stat().st_nlink == 2


def test_stat_of_everything_reads_no_content(mount: Mount) -> None:
    subprocess.run(["ls", "-lR", mount.path], check=True, stdout=subprocess.DEVNULL)
    assert [line for line in mount.log() if line.startswith("hydrate link")]
    assert len(mount.log()) == 1  # `ls -l` reads the target of the one symlink


def test_unknown_sizes_are_asked_for_by_directory(new_mount: Callable[..., Mount]) -> None:
    mount = new_mount().start(sizes_known=False)
    names = sorted(os.listdir(mount.path / "many"))
    assert len(names) == 300
    assert mount.log() == []
    sizes = [(mount.path / "many" / name).stat().st_size for name in names]
    assert sizes == [len(f"{int(name)}\n") for name in names]
    assert mount.log() == ["sizes 300"]


def test_a_file_of_unknown_size_is_read(new_mount: Callable[..., Mount]) -> None:
    """The kernel asks for the attributes before it opens, so the size comes first."""
    mount = new_mount().start(sizes_known=False)
    assert (mount.path / "src/f1.c").read_bytes() == b"int f1;\n"
    assert [line.split()[0] for line in mount.log()] == ["sizes", "hydrate"]


@pytest.mark.parametrize("wrong_by", [-300_000, -3, 300_000])
def test_a_file_whose_size_was_told_wrong_is_read_whole(
    new_mount: Callable[..., Mount], wrong_by: int
) -> None:
    mount = new_mount().start(wrong_by=wrong_by)
    path = mount.path / "big"
    assert path.stat().st_size == (1 << 20) + wrong_by
    assert path.read_bytes() == bytes(range(256)) * 4096
    assert path.stat().st_size == 1 << 20
    assert f"big was shown with {(1 << 20) + wrong_by} bytes and has {1 << 20}" in mount.stderr()


def test_a_hydrating_read_names_its_reader(mount: Mount) -> None:
    done = subprocess.Popen(["cat", mount.path / "README"], stdout=subprocess.PIPE)
    assert done.communicate()[0] == b"hello\n"
    assert mount.log() == [f"hydrate README {done.pid}"]


def test_execution_and_mapping(top: Path) -> None:
    import mmap

    assert subprocess.check_output([top / "run.sh"]) == b"ran\n"
    with open(top / "big", "rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as view:
        assert view[:] == bytes(range(256)) * 4096


def test_large_reads_at_any_offset(top: Path) -> None:
    content = bytes(range(256)) * 4096
    with open(top / "big", "rb") as file:
        for offset in (0, 1, 4095, 500_000, len(content) - 1, len(content), len(content) + 9):
            file.seek(offset)
            assert file.read(70_000) == content[offset : offset + 70_000]


def test_directories_list_dots_and_can_be_rewound(top: Path) -> None:
    output = subprocess.check_output(["ls", "-fa", top / "docs"]).split()
    assert output[:2] == [b".", b".."]
    descriptor = os.open(top / "docs", os.O_RDONLY)
    try:
        assert os.listdir(descriptor) == ["a.txt"]
        (top / "docs/b.txt").touch()
        assert sorted(os.listdir(descriptor)) == ["a.txt", "b.txt"]
    finally:
        os.close(descriptor)


def test_names_that_are_too_long(top: Path) -> None:
    with pytest.raises(OSError, match="too long"):
        (top / ("x" * 256)).stat()
    with pytest.raises(OSError, match="too long"):
        (top / ("x" * 256)).touch()


def test_a_blocked_reader_dies_of_sigkill(mount: Mount) -> None:
    mount.close_gate()
    reader = subprocess.Popen(["cat", mount.path / "README"], stdout=subprocess.PIPE)
    _wait_for(lambda: bool(mount.log()))
    reader.kill()
    assert reader.wait(60) == -signal.SIGKILL
    mount.open_gate()
    assert (mount.path / "README").read_text() == "hello\n"


@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGTERM])
def test_a_blocked_stat_can_be_ended(new_mount: Callable[..., Mount], ending: int) -> None:
    mount = new_mount().start(sizes_known=False)
    mount.close_gate()
    waiting = subprocess.Popen(["stat", mount.path / "README"], stdout=subprocess.DEVNULL)
    _wait_for(lambda: bool(mount.log()))
    waiting.send_signal(ending)
    assert waiting.wait(60) == -ending
    mount.open_gate()
    assert (mount.path / "README").stat().st_size == 6


def test_other_requests_go_on_while_readers_wait(mount: Mount) -> None:
    mount.close_gate()
    paths = [mount.path / f"many/{number:03}" for number in range(150)]
    readers = [subprocess.Popen(["cat", path], stdout=subprocess.DEVNULL) for path in paths]
    try:
        _wait_for(lambda: len(mount.log()) == len(readers))
        assert len(os.listdir(mount.path / "many")) == 300
        (mount.path / "new").write_text("written while 150 wait")
    finally:
        mount.open_gate()
        for reader in readers:
            assert reader.wait(60) == 0


def test_a_failed_download_is_an_error_and_not_an_empty_file(mount: Mount) -> None:
    mount.ask("fail", on=True)
    with pytest.raises(OSError, match="Input/output error"):
        (mount.path / "README").read_bytes()
    mount.ask("fail", on=False)
    assert (mount.path / "README").read_bytes() == b"hello\n"


def test_gitfile(new_mount: Callable[..., Mount]) -> None:
    mount = new_mount().start(index_ready=False)
    gitfile = mount.path / ".git"
    expected = f"gitdir: {mount.layout}/git\n"
    assert ".git" in os.listdir(mount.path)
    assert gitfile.stat().st_size == len(expected)
    reader = subprocess.Popen(["cat", gitfile], stdout=subprocess.PIPE)
    assert (mount.path / "README").read_text() == "hello\n"
    assert reader.poll() is None
    mount.ask("ready")
    assert reader.communicate()[0].decode() == expected
    for change in (
        lambda: gitfile.unlink(),
        lambda: gitfile.rename(mount.path / "x"),
        lambda: (mount.path / "README").rename(gitfile),
        lambda: gitfile.write_text("x"),
        lambda: gitfile.chmod(0o600),
    ):
        with pytest.raises(PermissionError):
            change()


def test_memory_is_given_back_on_forget(mount: Mount) -> None:
    subprocess.run(["ls", "-lR", mount.path], check=True, stdout=subprocess.DEVNULL)
    assert mount.ask("memory")["inodes"] > 300

    def left_after_a_drop() -> int:
        mount.kernel_forgets()
        inodes: int = mount.ask("memory")["inodes"]
        return inodes

    _wait_for(lambda: left_after_a_drop() < 50)  # the kernel tells later
    assert (mount.path / "src/deep/er/x").read_text() == "deep\n"


def test_mount_point_in_use_or_not_empty(mount: Mount, new_mount: Callable[..., Mount]) -> None:
    other = new_mount()
    (other.path / "file").touch()
    with pytest.raises(MountFailed, match="not empty"):
        other.start()
    other = new_mount()
    other.path = mount.path
    with pytest.raises(MountFailed, match="mount point already"):
        other.start()
    other.path = other.directory / "absent"
    with pytest.raises(MountFailed, match="does not exist"):
        other.start()


def test_kernel_limits_are_raised(mount: Mount) -> None:
    device = os.stat(mount.path).st_dev
    knob = Path(f"/sys/class/bdi/{os.major(device)}:{os.minor(device)}/read_ahead_kb")
    assert knob.read_text() == "1024\n"


def _wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 90
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)
