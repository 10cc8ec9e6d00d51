"""Requests that the kernel need not send: what is warm costs what it costs on a local disk."""

from __future__ import annotations

import mmap
import os
import subprocess
from collections.abc import Callable

import pytest

from tests.fs.mounting import Mount

pytestmark = pytest.mark.extension


class Sent:
    """Which requests the kernel sent while the block ran."""

    def __init__(self, mount: Mount) -> None:
        self.mount = mount
        self.requests: dict[str, int] = {}

    def __enter__(self) -> dict[str, int]:
        self.before = self.mount.ask("requests")
        return self.requests

    def __exit__(self, *_: object) -> None:
        now = self.mount.ask("requests")
        for name, count in now.items():
            if count > self.before.get(name, 0):
                self.requests[name] = count - self.before.get(name, 0)


@pytest.fixture
def warm(mount: Mount) -> Mount:
    """A mount in which everything was read once."""
    subprocess.run(["grep", "-r", "nowhere", "."], cwd=mount.path)
    subprocess.run(["ls", "-lR", "."], cwd=mount.path, stdout=subprocess.DEVNULL, check=True)
    return mount


@pytest.mark.parametrize(
    "command",
    [["grep", "-r", "nowhere", "."], ["find", "."], ["ls", "-lR", "."], ["du", "-s", "."]],
)
def test_a_second_look_sends_nothing(warm: Mount, command: list[str]) -> None:
    """Unless the kernel had dropped pages, for want of memory or since somebody asked it to: then
    the first look reads them, and the second asks for atimes, which a read makes stale."""
    looks: list[dict[str, int]] = []
    while len(looks) < 2 or (looks[-1] and len(looks) < 6):
        with Sent(warm) as requests:
            subprocess.run(command, cwd=warm.path, stdout=subprocess.DEVNULL)
        requests.pop("statfs", None)  # find and its like ask what file system it is
        looks.append(requests)
        if looks[1:] and looks[-1]:  # what we cost, we cost without such a read, too
            assert {"read", "lookup", "readdir", "readdirplus"} & (looks[-2] | looks[-1]).keys()
    assert looks[-1] == {}


def test_a_directory_is_listed_by_one_request(mount: Mount) -> None:
    """The kernel asks once more behind the last entry; that does not get as far as a handler."""
    (mount.path / "src").stat()
    with Sent(mount) as requests:
        names = os.listdir(mount.path / "src")
    assert requests["readdir"] == 1
    assert names == os.listdir(mount.path / "src")
    with os.scandir(mount.path / "src") as entries:
        assert [entry.name for entry in entries] == names
        assert list(entries) == []


def test_an_absent_name_is_asked_for_once(warm: Mount) -> None:
    with Sent(warm) as requests:
        for _ in range(5):
            assert not (warm.path / "src/absent").exists()
    assert requests == {"lookup": 1}


def test_a_new_file_is_made_and_written_in_three(warm: Mount) -> None:
    (warm.path / "src/first").write_bytes(b"the kernel learns that there is no `create`")
    (warm.path / "src").stat()  # it asks again for the attributes of a changed directory
    with Sent(warm) as requests:
        (warm.path / "src/made").write_bytes(b"content")
    assert requests == {"lookup": 1, "mknod": 1, "write": 1}


def test_what_was_written_is_not_asked_for_again(warm: Mount) -> None:
    """Whole pages; the kernel asks for the rest of one that was written in part."""
    path = warm.path / "src/made"
    content = b"x" * 25 * mmap.PAGESIZE
    path.write_bytes(content)
    path.stat()
    with Sent(warm) as requests:
        assert path.read_bytes() == content
        with open(path, "r+b", buffering=0) as file:
            os.pwrite(file.fileno(), b"y", 50_000)
    assert requests == {"write": 1}
    path.stat()
    with Sent(warm) as requests:
        assert path.read_bytes()[49_999:50_002] == b"xyx"
    assert requests == {}


def test_truncation_while_opening_is_one_request(warm: Mount) -> None:
    path = warm.path / "src/made"
    path.write_bytes(b"content")
    path.stat()
    with Sent(warm) as requests:
        os.close(os.open(path, os.O_WRONLY | os.O_TRUNC))
    assert requests == {"setattr": 1}
    assert path.read_bytes() == b""


def test_who_reads_is_known_without_an_open(new_mount: Callable[..., Mount]) -> None:
    mount = new_mount().start()
    child = subprocess.Popen(["cat", mount.path / "README"], stdout=subprocess.PIPE)
    child.communicate()
    assert f"hydrate README {child.pid}" in "\n".join(mount.log())


def test_the_same_question_of_fsmonitor_is_one_request(mount: Mount) -> None:
    """As long as the answer is the same: the kernel has what it says."""
    question = mount.path / ".artifact-fs/fsmonitor" / mount.ask("fsmonitor")["token"]
    first = question.read_bytes()
    with Sent(mount) as requests:
        assert question.read_bytes() == first
    assert requests == {"lookup": 1}
    (mount.path / "README").write_text("changed")
    assert b"README" in question.read_bytes()
