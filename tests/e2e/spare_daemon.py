"""One daemon for many tests, one after the other: to start one takes a second of the CPU.

A test gets the daemon of the test before where that has left it running, and whatever it did is
taken away first: repositories, cache, log. The daemon itself remembers none of it.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from artifactfs.daemon.control.client import ControlClient
from artifactfs.errors import ArtifactFSError
from artifactfs.paths import StateLayout
from tests.e2e.mount_table import mounts_below
from tests.e2e.processes import DaemonProcess
from tests.watching import check_trespasses


class SpareDaemon:
    """Of one process of tests."""

    def __init__(self) -> None:
        self._spare: DaemonProcess | None = None
        self._pid = 0
        self._as_new: set[Path] = set()

    def take(self) -> DaemonProcess:
        """A running daemon without repositories."""
        daemon, self._spare = self._spare, None
        if daemon is None:
            daemon = DaemonProcess()
            try:
                daemon.start()
            except BaseException:
                throw_away(daemon)
                raise
            self._as_new = files_of(daemon)
        self._pid = daemon.pid
        return daemon

    def give_back(self, daemon: DaemonProcess) -> None:
        """Raises: AssertionError where one of its processes has looked into one of its mounts."""
        print(daemon.log_tail(40))  # shown where the test failed
        kept = False
        try:
            kept = self._is_whole(daemon) and self._emptied(daemon)
        finally:
            if kept:
                self._spare = daemon
            else:
                throw_away(daemon)

    def _is_whole(self, daemon: DaemonProcess) -> bool:
        """Whether it is the process that was taken, with nothing that this does not know of."""
        process = daemon.process
        running = process is not None and process.poll() is None and process.pid == self._pid
        is_known = daemon.mounts == daemon.directory / "mnt" and not daemon.extra_environment
        return running and is_known and daemon.state.is_dir()

    def _emptied(self, daemon: DaemonProcess) -> bool:
        try:
            with ControlClient(StateLayout(daemon.state)) as client:
                for repo in client.request("list"):
                    client.request("remove", name=repo["name"], force=True)
        except ArtifactFSError:
            return False
        if mounts_below(daemon.directory) or list(daemon.mounts.iterdir()):
            return False
        check_trespasses(daemon.trespasses)
        for path in sorted(files_of(daemon) - self._as_new, reverse=True):
            path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
        known = {daemon.state, daemon.mounts, daemon.log, daemon.directory / "notify.sock"}
        for path in set(daemon.directory.iterdir()) - known:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        daemon.log.write_text("")  # it is written at its end
        return self._as_new == files_of(daemon)

    def end(self) -> None:
        if self._spare is not None:
            throw_away(self._spare)


def files_of(daemon: DaemonProcess) -> set[Path]:
    """What lies in its state root, but the sockets, which it makes when it is ready."""
    return {path for path in daemon.state.rglob("*") if not path.is_socket()}


def throw_away(daemon: DaemonProcess) -> None:
    try:
        daemon.clean_up()
    finally:
        shutil.rmtree(daemon.directory, ignore_errors=True)
