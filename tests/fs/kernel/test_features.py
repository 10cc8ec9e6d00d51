"""What makes a mount fast: each feature on or off by itself, and never wrong."""

from __future__ import annotations

import mmap
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from artifactfs.errors import InvalidInput
from artifactfs.features import FEATURES, Features, disabled_features
from artifactfs.fs.mount import session
from tests.fs.expectations import as_nobody
from tests.fs.mount.test_requests import Sent
from tests.fs.mounting import Mount

CHANGES_LIBFUSE = [feature.name for feature in FEATURES if "extension" in feature.needs]


def used(mount: Mount) -> None:
    """What a mount must do right whatever it was told; the second look may be at caches."""
    top = mount.path
    for _ in range(2):
        assert (top / "README").read_text() == "hello\n"
        assert (top / "link").readlink() == Path("README")
        assert len(os.listdir(top / "many")) == 300
        assert not (top / "absent").exists()
    made = top / "src/made"
    made.write_bytes(b"first")
    with open(made, "r+b") as file:
        assert file.read() == b"first"
        os.truncate(made, 2)
        file.write(b"x")
    assert made.read_bytes() == b"fi\0\0\0x"
    os.fsync(descriptor := os.open(top / "src", os.O_RDONLY))
    os.close(descriptor)
    made.chmod(0o6777)
    os.close(os.open(made, os.O_WRONLY | os.O_TRUNC))
    assert stat.S_IMODE(made.stat().st_mode) == 0o6777  # root keeps them, others do not:
    assert as_nobody(mount, f": > {made}").returncode == 0
    assert stat.S_IMODE(made.stat().st_mode) == 0o777
    made.chmod(0o6777)
    os.chown(made, 1, 2)
    assert stat.S_IMODE(made.stat().st_mode) == 0o777
    made.rename(top / "docs/moved")
    assert sorted(os.listdir(top / "docs")) == ["a.txt", "moved"]
    assert (top / "docs/moved").stat().st_size == 0


def readlinks(mount: Mount) -> None:
    for _ in range(2):
        os.readlink(mount.path / "link")


def reads(mount: Mount) -> None:
    (mount.path / "README").read_text()


def lists(mount: Mount) -> None:
    os.listdir(mount.path / "docs")


def rereads(mount: Mount) -> None:
    """Of a page that was written: its mtime is another one than the last time."""
    path = mount.path / "src/page"
    with open(path, "r+b" if path.exists() else "w+b", buffering=0) as file:
        file.write(b"x" * mmap.PAGESIZE)
    path.stat()
    path.read_bytes()


def chowns(mount: Mount) -> None:
    os.chown(mount.path / "run.sh", 1, 1)


SEEN: dict[str, tuple[Callable[[Mount], None], str, int, int]] = {
    "kernel-open": (reads, "open", 0, 1),
    "kernel-opendir": (lists, "opendir", 0, 1),
    "cached-symlinks": (readlinks, "readlink", 0, 2),
    "keep-pages": (rereads, "read", 0, 1),
    "set-id-bits": (chowns, "getattr", 0, 1),
}
"""By feature: an action, and how many of which request it sends the second time, with the feature
and without."""


@pytest.mark.extension
@pytest.mark.parametrize("name", CHANGES_LIBFUSE)
def test_each_can_be_off_by_itself(new_shared_mount: Callable[[], Mount], name: str) -> None:
    mount = new_shared_mount().without(name)
    states = mount.ask("features")
    # Who serves this mount does not put the gitdir into it: that is the daemon's work.
    builds_on_it = {feature.name for feature in FEATURES if name in feature.needs}
    off = {state for state, found in states.items() if not found["on"]}
    assert off == {name, "git-folder", *builds_on_it}
    assert states[name]["why"] == "switched off by ARTIFACT_FS_DISABLE"
    used(mount)
    reader = 0 if name == "request-headers" else os.getpid()
    assert f"hydrate README {reader}" in mount.log()


@pytest.mark.extension
def test_what_each_is_seen_by(new_mount: Callable[..., Mount]) -> None:
    whole, without = new_mount().start(), new_mount().without(*SEEN)
    for mount, column in ((whole, 2), (without, 3)):
        mount.path.stat()
        for name, row in SEEN.items():
            for warm in range(2):
                with Sent(mount) as requests:
                    row[0](mount)
                if warm:
                    assert (name, requests.get(row[1], 0)) == (name, row[column])


@pytest.mark.extension
def test_the_kernel_s_number_of_a_request(mount: Mount) -> None:
    seen = []
    for number in range(3):
        (mount.path / f"absent{number}").exists()
        caller, unique = mount.ask("request")
        assert caller == os.getpid()
        seen.append(unique)
    assert 0 < seen[0] < seen[1] < seen[2] < 1 << 63


def test_plain_pyfuse3_is_right(new_shared_mount: Callable[[], Mount]) -> None:
    mount = new_shared_mount().without("extension", "fast-loop", "kernel-limits")
    states = mount.ask("features")
    assert {name for name, found in states.items() if not found["on"]} == {
        *("extension", "fast-loop", "kernel-limits", "git-folder", "handover-writes"),
        "offered-lookups",
        *CHANGES_LIBFUSE,
    }
    assert states["kernel-open"]["why"] == "needs extension"
    assert not mount.ask("fast")
    used(mount)
    assert mount.stderr() == ""  # it is as somebody wanted it


def test_limits_of_the_kernel(new_mount: Callable[..., Mount]) -> None:
    def limit(mount: Mount) -> int:
        device = session.mount_device(str(mount.path))
        assert device is not None
        return int(Path(f"/sys/fs/fuse/connections/{device[1]}/max_background").read_text())

    assert limit(new_mount().start()) == session.MAX_BACKGROUND
    assert limit(new_mount().without("kernel-limits")) < session.MAX_BACKGROUND


@pytest.mark.extension
@pytest.mark.parametrize(
    ("before", "why"),
    [
        ("import pyfuse3", "pyfuse3 does not call libfuse through it"),
        ("import sys; sys.modules['artifactfs.fs.kernel._interposer'] = None", "not compiled"),
        (
            "from artifactfs.fs.kernel import extension as e; e._loaded.COMPILED_FOR += 1",
            "was compiled for libfuse 3.",
        ),
    ],
)
def test_without_the_extension(
    new_shared_mount: Callable[[], Mount], before: str, why: str
) -> None:
    """pyfuse3 has bound its names before; the installation had no compiler; libfuse is older than
    the header: each is noticed, and the mount is right."""
    mount = new_shared_mount()
    mount.first = before
    mount.start()
    states = mount.ask("features")
    assert why in states["extension"]["why"]
    assert not any(states[name]["on"] for name in CHANGES_LIBFUSE)
    used(mount)
    (line,) = mount.stderr().splitlines()
    assert why in line and "kernel-open (needs extension)" in line


def test_an_unknown_name_is_refused(new_mount: Callable[..., Mount]) -> None:
    with pytest.raises(InvalidInput, match="no feature 'kernel-opne'") as raised:
        disabled_features("fsmonitor, kernel-opne")
    assert "kernel-open" in str(raised.value.hint)
    assert disabled_features(" fsmonitor,,kernel-open ") == {"fsmonitor", "kernel-open"}


def test_what_is_found_decides() -> None:
    features = Features(disabled=["fsmonitor"])
    features.learn(kernel=(4, 19), libfuse=(3, 12), git=(2, 43))
    off = {name: state.why for name, state in features.states().items() if not state.on}
    assert off == {
        "kernel-opendir": "needs kernel 5.1, this is 4.19",
        "keep-pages": "needs kernel 5.2, this is 4.19",
        "cached-symlinks": "needs kernel 4.20, this is 4.19",
        "set-id-bits": "needs libfuse 3.13, this is 3.12",
        "fsmonitor": "switched off by ARTIFACT_FS_DISABLE",
        "fsmonitor-diff": "needs fsmonitor",
        "handover": "needs kernel 6.9, this is 4.19",
        "handover-writes": "needs handover",
    }
    assert features.states()["handover"].expected
    want, drop = features.capabilities()
    assert want & drop == 0
    features.learn(capable=0)  # what is offered counts more than a version
    assert features.states()["kernel-open"].why == "the kernel or libfuse does not offer it"
    features.lacks("extension", "it is not there")
    assert not any(features.on(name) for name in CHANGES_LIBFUSE)
    assert Features(disabled=[]).states()["fsmonitor-diff"].on


def test_every_feature_is_in_the_documentation() -> None:
    text = (Path(__file__).parents[3] / "docs/configuration.md").read_text()
    assert [feature.name for feature in FEATURES if f"`{feature.name}`" not in text] == []
