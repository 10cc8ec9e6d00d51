"""One real fault after the other; the doctor must name each, and the command that mends it."""

from __future__ import annotations

import fcntl
import http.server
import os
import signal
import socket
import sqlite3
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from email.utils import formatdate
from pathlib import Path

import pytest

from artifactfs.config import RepoSettings
from artifactfs.daemon.control.messages import encode
from artifactfs.daemon.host import redirects
from artifactfs.daemon.host.redirects import Tree
from artifactfs.doctor import examination, machine
from artifactfs.doctor.finding import Finding, Patient, Severity, ok
from artifactfs.fs.overlay.database import Overlay
from artifactfs.fs.overlay.pending import put_meta
from artifactfs.git.wire.credentials import CredentialFile
from artifactfs.paths import StateLayout
from tests.doctor.conftest import Sick, as_nobody, make_state, tiny_mount, tmpfs

MIB = 1 << 20


def is_problem(finding: Finding, *, mend: str) -> bool:
    return finding.severity is Severity.PROBLEM and mend in (finding.mend or "")


def test_a_sound_state_root_has_no_problem(sick: Sick) -> None:
    report = sick.examine(remotes=True)
    assert [f for f in report.findings if f.severity is Severity.PROBLEM] == []
    codes = {finding.code for finding in report.findings}
    assert {"gitdir.sound", "database.overlay", "remote.reachable", "git.version"} <= codes


def test_nothing_is_changed(sick: Sick) -> None:
    def everything() -> dict[str, tuple[int, int]]:
        # Reading a database in WAL mode leaves its (empty) shared memory behind.
        return {
            str(path): (path.stat().st_size, path.stat().st_mtime_ns)
            for path in sick.state.root.rglob("*")
            if path.is_file() and not path.name.endswith(("-shm", "-wal"))
        }

    before = everything()
    sick.examine(remotes=True)
    assert everything() == before


def test_no_state_root_is_no_problem(tmp_path: Path) -> None:
    absent = Sick(StateLayout(tmp_path / "none"), tmp_path, tmp_path)
    assert absent.found("state.absent").severity is Severity.NOTE
    assert not (tmp_path / "none").exists()


# -- the machine -----------------------------------------------------------------------------


def test_fuse_device_closed_to_the_user(sick: Sick) -> None:
    mode = machine.FUSE_DEVICE.stat().st_mode
    patient = Patient(sick.state, (), 1.0)
    machine.FUSE_DEVICE.chmod(0o600)
    try:
        found = as_nobody(lambda: list(machine.check_device(patient)))
    finally:
        machine.FUSE_DEVICE.chmod(mode & 0o777)
    assert found[0].code == "fuse.device-permission"
    assert is_problem(found[0], mend="chmod 0660 /dev/fuse")


@pytest.mark.parametrize(
    ("driver", "polling", "is_named"),
    [("haltpoll", "0", True), ("haltpoll", "200000", False), ("intel_idle", "0", False)],
)
def test_idle_cpus_that_halt_at_once(
    sick: Sick,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    driver: str,
    polling: str,
    is_named: bool,
) -> None:
    monkeypatch.setattr(machine, "IDLE_DRIVER", tmp_path / "driver")
    monkeypatch.setattr(machine, "HALT_POLLING", tmp_path / "polling")
    patient = Patient(sick.state, (), 1.0)
    assert list(machine.check_halt_polling(patient)) == []  # not there: no such guest
    (tmp_path / "driver").write_text(f"{driver}\n")
    (tmp_path / "polling").write_text(f"{polling}\n")
    found = list(machine.check_halt_polling(patient))
    assert [finding.code for finding in found] == ["cpu.halt-polling"] * is_named
    assert all("echo 200000" in (finding.mend or "") for finding in found)
    assert all(finding.severity is Severity.NOTE for finding in found)


def test_fusermount3_is_not_setuid(
    sick: Sick, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "fusermount3"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    tmp_path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    found = sick.found("fuse.fusermount3-not-setuid")
    assert found.severity is Severity.WARNING  # root mounts without it
    assert f"chmod 4755 {program}" in (found.mend or "")


@pytest.mark.parametrize(
    ("script", "code", "mend"),
    [
        ("echo git version 2.17.1", "git.old", "--only-upgrade git"),
        ("exit 127", "git.broken", "--reinstall git"),
    ],
)
def test_git_is_unusable(
    sick: Sick, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, code: str, mend: str
) -> None:
    program = tmp_path / "git"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert is_problem(sick.found(code), mend=mend)


def test_git_is_older_than_any_that_is_tested(
    sick: Sick, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "git"
    program.write_text("#!/bin/sh\necho git version 2.34.1\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    found = sick.found("git.untested")
    assert found.severity is Severity.NOTE
    assert "older than 2.39" in found.what


def test_git_is_missing(sick: Sick, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    found = list(machine.check_git(Patient(sick.state, (), 1.0)))
    assert found[0].code == "git.missing"
    assert is_problem(found[0], mend="install git")


def test_allow_other_without_user_allow_other(
    sick: Sick, open_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    conf = open_folder / "fuse.conf"
    conf.write_text("#user_allow_other\n")
    monkeypatch.setattr(machine, "FUSE_CONF", conf)
    repo = RepoSettings(name="demo", remote="/r", mount_point="/m", allow_other=True)
    patient = Patient(sick.state, (repo,), 1.0)
    found = as_nobody(lambda: list(machine.check_fuse_conf(patient)))
    assert found[0].code == "fuse.no-user-allow-other"
    assert is_problem(found[0], mend="user_allow_other")
    conf.write_text("user_allow_other\n")
    assert as_nobody(lambda: list(machine.check_fuse_conf(patient)))[0].code == "fuse.allow-other"


# -- the state root --------------------------------------------------------------------------


def test_disk_is_full(tmp_path: Path, upstream: Path) -> None:
    with tmpfs(tmp_path / "small", "size=8m"):
        state = make_state(tmp_path / "small" / "state", tmp_path / "mnt", upstream)
        fill = (tmp_path / "small" / "fill").open("wb", buffering=0)
        with fill, pytest.raises(OSError, match="No space"):
            while True:
                fill.write(b"\0" * MIB)
        found = Sick(state, tmp_path / "mnt", upstream).found("disk.full")
    assert is_problem(found, mend="evict-cache")


def test_inodes_are_used_up(tmp_path: Path, upstream: Path) -> None:
    with tmpfs(tmp_path / "small", "size=200m,nr_inodes=300"):
        state = make_state(tmp_path / "small" / "state", tmp_path / "mnt", upstream)
        while os.statvfs(state.root).f_favail > 100:
            (state.root / f"file-{os.statvfs(state.root).f_favail}").touch()
        found = Sick(state, tmp_path / "mnt", upstream).found("disk.no-inodes")
    assert found.severity is Severity.PROBLEM


def test_state_root_open_to_others(sick: Sick) -> None:
    sick.state.root.chmod(0o755)
    assert is_problem(sick.found("state.open-to-others"), mend="chmod 0700")


def test_credentials_open_to_others(sick: Sick) -> None:
    credentials = sick.state.repo("demo").credentials
    CredentialFile(credentials).set("https://example.org/x.git", "x", "s3cret")
    credentials.chmod(0o644)
    found = sick.found("credentials.open-to-others")
    assert is_problem(found, mend="chmod 0600")
    assert "s3cret" not in found.what


@pytest.mark.parametrize(
    ("seconds", "code", "severity"),
    [
        (-60, "credentials.expired", Severity.PROBLEM),
        (600, "credentials.expire-soon", Severity.WARNING),
        (86400, "credentials.valid", Severity.OK),
        (10**18, "credentials.valid", Severity.OK),
    ],
)
def test_token_expiry(sick: Sick, seconds: int, code: str, severity: Severity) -> None:
    token = f"art_v1_{'0a' * 20}?expires={int(time.time()) + seconds}"
    CredentialFile(sick.state.repo("demo").credentials).set("https://example.org/x.git", "x", token)
    found = sick.found(code)
    assert found.severity is severity
    assert severity is Severity.OK or "set-remote --name demo" in (found.mend or "")
    assert "art_v1" not in found.what


def damage(database: Path) -> None:
    size = database.stat().st_size
    with database.open("r+b") as file:
        file.seek(size // 2 - size // 4)
        file.write(b"\xa5" * (size // 2))


@pytest.mark.parametrize("name", ["overlay", "sizes", "registry"])
def test_database_is_damaged(sick: Sick, name: str) -> None:
    paths = {
        "overlay": sick.state.repo("demo").overlay_db,
        "sizes": sick.state.sizes_db,
        "registry": sick.state.registry_db,
    }
    if name == "registry":
        with sqlite3.connect(paths[name]) as database:
            database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    damage(paths[name])
    found = sick.found(f"database.{name}-damaged")
    assert found.severity is Severity.PROBLEM
    assert str(paths[name]) in found.what
    assert found.mend


def lose(database: Path) -> None:
    database.unlink()


def empty(database: Path) -> None:
    os.truncate(database, 0)


def change_a_page(database: Path) -> None:
    """The last one, in a row that SQLite's own check takes for any other."""
    content = database.read_bytes()
    at = content.rindex(b"x" * 50)
    database.write_bytes(content[:at] + b"y" + content[at + 1 :])


def lose_a_change(database: Path) -> None:
    """Of the log, in the middle; as after the death of the process."""
    overlay = Overlay(database)
    for n in range(3):
        overlay.apply([put_meta(f"change-{n}", b"y" * 5000)])
    overlay.sync()
    left = {path: path.read_bytes() for path in database.parent.glob("overlay.db*")}
    overlay.close()
    for path, content in left.items():
        is_log = "-changes-" in path.name
        path.write_bytes(content[:6000] + bytes(2000) + content[8000:] if is_log else content)


@pytest.mark.parametrize("way", [lose, empty, change_a_page, lose_a_change])
def test_overlay_that_sqlite_finds_nothing_wrong_with(
    sick: Sick, way: Callable[[Path], None]
) -> None:
    """No daemon runs that could say so."""
    database = sick.state.repo("demo").overlay_db
    way(database)
    found = sick.found("database.overlay-damaged")
    assert is_problem(
        found, mend="from a backup" if way is not lose_a_change else "from one backup"
    )
    assert str(database) in found.what
    assert found.repo == "demo"


def test_repository_that_was_never_mounted(sick: Sick) -> None:
    for path in sick.state.repo("demo").directory.glob("overlay.db*"):
        path.unlink()
    sick.state.repo("demo").upper.mkdir()
    report = sick.examine()
    assert "database.overlay-damaged" not in {finding.code for finding in report.findings}


def test_gitdir_without_head(sick: Sick) -> None:
    (sick.state.repo("demo").gitdir / "HEAD").write_text("ref: refs/heads/gone\n")
    assert is_problem(sick.found("gitdir.head-broken"), mend="fetch --all")


def test_alternate_is_gone(sick: Sick) -> None:
    (sick.state.shared_objects / "pack").rmdir()
    sick.state.shared_objects.rmdir()
    assert is_problem(sick.found("gitdir.alternate-missing"), mend="mkdir -p")


def test_pack_is_cut_short(sick: Sick) -> None:
    (pack,) = (sick.state.repo("demo").gitdir / "objects" / "pack").glob("*.pack")
    pack.chmod(0o644)
    with pack.open("r+b") as file:
        file.truncate(pack.stat().st_size - 7)
    assert is_problem(sick.found("gitdir.pack-damaged"), mend="fetched again")


# -- what should run -------------------------------------------------------------------------


def test_socket_of_a_dead_daemon(sick: Sick) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(sick.state.control_socket))
    assert is_problem(sick.found("daemon.stale-socket"), mend="artifact-fs daemon")


def test_daemon_that_hangs(sick: Sick) -> None:
    with socket.socket(socket.AF_UNIX) as listener, sick.state.lock.open("w") as lock:
        listener.bind(str(sick.state.control_socket))
        listener.listen()
        fcntl.flock(lock, fcntl.LOCK_EX)
        found = sick.found("daemon.stuck", deadline_s=1.5)
    assert is_problem(found, mend="restart")


@pytest.mark.parametrize("state", ["failed", "starting", "cloning", "mounting", "restarting"])
def test_repository_that_cannot_be_mounted(sick: Sick, state: str) -> None:
    """At each moment: it is tried again and again, and for some of them it is not `failed`."""
    repo = {"name": "demo", "state": state, "error": {"message": "overlay.db is damaged"}}
    with daemon_that_says(sick.state, [repo]):
        found = sick.found("daemon.mount-failed")
    assert is_problem(found, mend="remount --name demo")
    assert "overlay.db is damaged" in found.what


def test_repository_that_is_being_mounted(sick: Sick) -> None:
    with daemon_that_says(sick.state, [{"name": "demo", "state": "mounting", "error": None}]):
        codes = {finding.code for finding in sick.examine().findings}
    assert "daemon.running" in codes
    assert "daemon.mount-failed" not in codes


@contextmanager
def daemon_that_says(state: StateLayout, repos: list[object]) -> Iterator[None]:
    """One that answers ``status`` with `repos`, once."""

    def answer(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(1 << 16)
            connection.sendall(encode({"id": 1, "result": repos}))

    with socket.socket(socket.AF_UNIX) as listener, state.lock.open("w") as lock:
        listener.bind(str(state.control_socket))
        listener.listen()
        fcntl.flock(lock, fcntl.LOCK_EX)
        thread = threading.Thread(target=answer, args=(listener,))
        thread.start()
        yield
        thread.join(60)


def test_daemon_that_is_not_there(sick: Sick) -> None:
    assert sick.found("daemon.not-running").severity is Severity.WARNING


def test_dead_mount(sick: Sick) -> None:
    with tiny_mount(sick.mount_point) as process:
        assert sick.found("mount.alive").severity is Severity.OK
        process.kill()
        process.wait()
        found = sick.found("mount.dead")
        assert is_problem(found, mend=f"umount -l {sick.mount_point}")
        assert found.repo == "demo"


def test_stuck_worker(sick: Sick) -> None:
    with tiny_mount(sick.mount_point) as process:
        process.send_signal(signal.SIGSTOP)
        found = sick.found("mount.stuck", deadline_s=1.5)
        process.send_signal(signal.SIGCONT)
    assert is_problem(found, mend="abort")


def test_mount_point_in_use(sick: Sick) -> None:
    (sick.mount_point / "notes.txt").write_text("mine")
    assert is_problem(sick.found("mount.point-not-empty"), mend="mv ")


def test_redirection_is_gone(sick: Sick) -> None:
    with tmpfs(sick.mount_point, "size=1m"):
        layout = sick.state.repo("demo")
        tree = Tree(layout, sick.mount_point, layout.gitdir)
        made = redirects.add(tree, "target", method="bind")
        redirects.release(tree)
        assert is_problem(sick.found("redirect.absent"), mend=f"mount --bind {tree.data(made)}")


# -- the remotes -----------------------------------------------------------------------------


@contextmanager
def http_server(status: int, *, clock_ahead_s: float = 0.0) -> Iterator[str]:
    """A server that answers everything with `status` and a Date of its own."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response_only(status)
            self.send_header("Date", formatdate(time.time() + clock_ahead_s, usegmt=True))
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_HEAD = do_POST = do_GET

        def log_message(self, format: str, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}/demo.git"
        finally:
            server.shutdown()


def test_remote_is_down(sick: Sick) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        sick.change(remote=f"http://127.0.0.1:{free.getsockname()[1]}/demo.git")
        found = sick.found("remote.unreachable", remotes=True)
    assert is_problem(found, mend="set-remote")


def test_remote_that_never_answers(sick: Sick) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        sick.change(remote=f"http://127.0.0.1:{silent.getsockname()[1]}/demo.git")
        found = sick.found("remote.unreachable", remotes=True, deadline_s=0.5)
    assert found.severity is Severity.PROBLEM


@pytest.mark.parametrize(
    ("status", "code"), [(403, "remote.refused-credentials"), (404, "remote.not-found")]
)
def test_remote_that_refuses(sick: Sick, status: int, code: str) -> None:
    with http_server(status) as url:
        sick.change(remote=url)
        assert is_problem(sick.found(code, remotes=True), mend="set-remote --name demo")


@pytest.mark.parametrize(
    ("seconds", "code", "severity"),
    [
        (3600, "clock.wrong", Severity.PROBLEM),
        (-60, "clock.skewed", Severity.WARNING),
        (0, "clock.right", Severity.OK),
    ],
)
def test_clock(sick: Sick, seconds: int, code: str, severity: Severity) -> None:
    with http_server(404, clock_ahead_s=seconds) as url:
        sick.change(remote=url)
        found = sick.found(code, remotes=True)
    assert found.severity is severity
    assert severity is Severity.OK or "set-ntp" in (found.mend or "")


def test_remote_that_is_gone(sick: Sick) -> None:
    sick.change(remote=str(sick.upstream.parent / "gone.git"))
    report = sick.examine(remotes=True)
    remote = [finding for finding in report.findings if finding.code.startswith("remote.")]
    assert [finding.severity for finding in remote] == [Severity.PROBLEM]


def test_subprocesses_end(sick: Sick) -> None:
    sick.examine(remotes=True)
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    names = [Path("/proc", pid, "comm").read_text().strip() for pid in children]
    assert "git" not in names
    assert subprocess.run(["true"], check=True).returncode == 0


def test_a_check_that_fails_costs_no_other(sick: Sick, monkeypatch: pytest.MonkeyPatch) -> None:
    def check_nothing(_patient: Patient) -> Iterator[Finding]:
        yield ok("nothing.first", "this is said")
        raise KeyError("a mistake")

    monkeypatch.setattr(examination, "LOCAL_CHECKS", (check_nothing, *examination.LOCAL_CHECKS))
    found = {finding.code: finding for finding in sick.examine().findings}
    assert found["nothing.failed"].severity is Severity.PROBLEM
    assert "KeyError" in found["nothing.failed"].what
    assert {"nothing.first", "database.registry"} <= set(found)
