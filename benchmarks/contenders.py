"""The ways to get a working tree that are measured side by side."""

from __future__ import annotations

import atexit
import os
import shutil
import signal
import subprocess
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from benchmarks.fast_import import quiet_git_environment
from tests.e2e.mount_table import clear_mounts, descendants, memory_kib, mounted_at
from tests.e2e.processes import PROGRAMS, DaemonProcess

GIVE_UP_S = 300
SETTLED_S = 2.0
"""A daemon that has run for so long has loaded all its modules."""


_discarded: list[Path] = []


def discard(directory: Path) -> None:
    """Remove it when this process ends. ext4 looks past each inode that was removed in the last
    five minutes (``recently_deleted``): after a tree of 7,000 files a new one takes up to 1 ms."""
    if directory.exists():
        gone = directory.with_name(f"{directory.name}-discarded-{len(_discarded)}")
        _discarded.append(directory.rename(gone))


@atexit.register
def _remove_discarded() -> None:
    for gone in _discarded:
        shutil.rmtree(gone, ignore_errors=True)


def run_to_the_end(
    command: Sequence[str], *, env: Mapping[str, str], cwd: Path | None = None
) -> int:
    """Run a silent command and return its status; it is killed after `GIVE_UP_S`.

    Not by `subprocess.run(timeout=…)`, which looks only after 1, 2, 4 … 32, 50 ms whether the
    process has ended: every time would be rounded up to one of those sums.
    """
    process = subprocess.Popen(
        command,
        cwd=cwd,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    limit = threading.Timer(GIVE_UP_S, process.kill)
    limit.start()
    try:
        return process.wait()
    finally:
        limit.cancel()


def disk_bytes(directory: Path) -> int:
    """Bytes on disk below `directory`, mounts not entered."""
    done = subprocess.run(
        ["du", "-sxk", str(directory)], capture_output=True, text=True, check=False
    )
    return int(done.stdout.split()[0]) * 1024 if done.stdout else 0


class Contender(ABC):
    """One way to get a working tree of a remote, from nothing, in a directory of its own."""

    name: str

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        directory.mkdir(parents=True)

    @abstractmethod
    def prepare(self) -> None:
        """What is done once before the clock starts: a daemon is started."""

    @abstractmethod
    def open(self, url: str) -> Path:
        """Make the working tree; return its path when it can be listed."""

    @abstractmethod
    def hydrate(self) -> None:
        """Fetch every blob of the tree."""

    def switch_command(self, ref: str) -> str:
        """The shell command that moves the tree to `ref`."""
        return f"git -c advice.detachedHead=false checkout -q {ref}"

    def memory(self) -> dict[str, int]:
        """Bytes of memory: resident and proportional share of everything that serves the tree."""
        return {}

    def disk(self) -> int:
        """Bytes on disk, working tree included."""
        return disk_bytes(self.directory)

    def settle(self) -> None:
        """Wait until what runs in the background after `open` is done."""
        return

    @abstractmethod
    def close(self) -> None:
        """Stop what runs and remove the directory."""


class PlainClone(Contender):
    """`git clone` with options."""

    options: tuple[str, ...] = ()
    name = "git clone"

    def prepare(self) -> None:
        return

    def open(self, url: str) -> Path:
        tree = self.directory / "tree"
        command = ["git", "clone", "--quiet", *self.options, url, str(tree)]
        if run_to_the_end(command, env=quiet_git_environment()):
            raise RuntimeError(f"{self.name} failed")
        return tree

    def hydrate(self) -> None:
        return

    def close(self) -> None:
        discard(self.directory)


class BloblessClone(PlainClone):
    options = ("--filter=blob:none",)
    name = "git clone --filter=blob:none"


class ShallowClone(PlainClone):
    options = ("--depth", "1")
    name = "git clone --depth 1"


class ArtifactFS(Contender):
    """A mount, by a daemon that runs already."""

    name = "artifact-fs"

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.daemon = DaemonProcess(directory, watched=False)

    def prepare(self) -> None:
        self.daemon.start("--log-level", "warning")
        time.sleep(SETTLED_S)

    def open(self, url: str) -> Path:
        return self.daemon.add_repo("bench", url)

    def hydrate(self) -> None:
        self.daemon.run("prefetch", "--name", "bench", "--wait", timeout=GIVE_UP_S)

    def switch_command(self, ref: str) -> str:
        program = PROGRAMS / "artifact-fs"
        return f"ARTIFACT_FS_ROOT={self.daemon.state} {program} switch --detach --name bench {ref}"

    def memory(self) -> dict[str, int]:
        worker = self.daemon.worker(self.daemon.mounts / "bench")
        return {
            "worker RSS": memory_kib(worker) * 1024,
            "worker PSS": memory_kib(worker, "Pss") * 1024,
        }

    def disk(self) -> int:
        return disk_bytes(self.daemon.state)

    def settle(self) -> None:
        self.daemon.wait_for("bench", "history", timeout=GIVE_UP_S)

    def close(self) -> None:
        self.daemon.clean_up()
        discard(self.directory)


class Unhydrated(ArtifactFS):
    """A mount that fetches no contents by itself."""

    def open(self, url: str) -> Path:
        return self.daemon.add_repo("bench", url, "--hydrate", "none")

    def settle(self) -> None:
        super().settle()
        self.daemon.wait_for("bench", "index", timeout=GIVE_UP_S)
        time.sleep(SETTLED_S)


class Peer(Contender):
    """Another program with the commands ``daemon --root`` and ``add-repo --name --remote``."""

    name = "peer"
    program: Path = Path()

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.mounts = directory / "mnt"
        self.mounts.mkdir()
        self.environment = quiet_git_environment() | {"ARTIFACT_FS_ROOT": str(directory / "state")}
        self._daemon: subprocess.Popen[bytes] | None = None

    def _start(self) -> None:
        with (self.directory / "daemon.log").open("wb") as log:
            self._daemon = subprocess.Popen(
                [self.program, "daemon", "--root", self.mounts],
                env=self.environment,
                stdout=log,
                stderr=log,
            )

    def prepare(self) -> None:
        return

    def open(self, url: str) -> Path:
        tree = self.mounts / "bench"
        subprocess.run(
            [self.program, "add-repo", "--name", "bench", "--remote", url],
            env=self.environment,
            check=True,
            timeout=GIVE_UP_S,
            capture_output=True,
        )
        self._start()
        end = time.monotonic() + GIVE_UP_S
        while not (mounted_at(tree) and os.listdir(tree)):
            if time.monotonic() > end:
                raise TimeoutError("the peer does not mount")
            time.sleep(0.005)
        return tree

    def hydrate(self) -> None:
        return

    def memory(self) -> dict[str, int]:
        assert self._daemon is not None
        pids = [self._daemon.pid, *descendants(self._daemon.pid)]
        return {"worker RSS": sum(memory_kib(pid) for pid in pids) * 1024}

    def close(self) -> None:
        if self._daemon is not None:
            self._daemon.send_signal(signal.SIGTERM)
            try:
                self._daemon.wait(20)
            except subprocess.TimeoutExpired:
                self._daemon.kill()
                self._daemon.wait()
        clear_mounts(self.directory)
        discard(self.directory)


@contextmanager
def opened(kind: type[Contender], directory: Path) -> Iterator[Contender]:
    """A prepared contender, closed whatever happens."""
    contender = kind(directory)
    try:
        contender.prepare()
        yield contender
    finally:
        contender.close()
