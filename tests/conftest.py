"""Fixtures of general use: the real server, the real daemon, and what lies between them."""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import pytest

from artifactfs.redact import forget_secrets
from tests.e2e.delay_proxy import DelayProxy
from tests.e2e.mount_table import clear_mounts
from tests.e2e.odd_repository import OddRepository, make_odd_repository
from tests.e2e.processes import (
    IMPATIENCE_S,
    ArtifactsProcess,
    DaemonProcess,
    ServedRepository,
)
from tests.e2e.spare_daemon import SpareDaemon

os.environ.update(GIT_CONFIG_GLOBAL=os.devnull, GIT_CONFIG_SYSTEM=os.devnull)
os.environ.update(
    GIT_AUTHOR_NAME="A. Author",
    GIT_AUTHOR_EMAIL="author@example.org",
    GIT_COMMITTER_NAME="C. Committer",
    GIT_COMMITTER_EMAIL="committer@example.org",
)

# How long an example takes says something about the machine.
hypothesis.settings.register_profile(
    "any-machine", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("any-machine")

# A shell starts what runs in its background with SIGINT ignored, and `nohup` with SIGHUP ignored.
# Children inherit that: then neither Ctrl-C nor a closed terminal could be tested.
for number in (signal.SIGINT, signal.SIGHUP):
    if signal.getsignal(number) == signal.SIG_IGN:
        signal.signal(number, signal.SIG_DFL)


_LONGEST_FIRST = ("server", "e2e", "workspaces", "cli", "ops", "daemon", "hydration", "fs")
_TESTS = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that take long come first, so that processes beside each other end together."""

    def turn(item: pytest.Item) -> int:
        floor = item.path.relative_to(_TESTS).parts[0]
        return _LONGEST_FIRST.index(floor) if floor in _LONGEST_FIRST else len(_LONGEST_FIRST)

    items.sort(key=turn)


@pytest.fixture(scope="session")
def odd_repository(tmp_path_factory: pytest.TempPathFactory) -> OddRepository:
    """A bare repository of some 350 files, everything that a tree can hold among them."""
    return make_odd_repository(tmp_path_factory.mktemp("odd") / "odd.git")


@pytest.fixture(scope="session")
def artifacts_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ArtifactsProcess]:
    """The bundled server in a process of its own, shared by all tests: name repos uniquely."""
    server = ArtifactsProcess(tmp_path_factory.mktemp("server"))
    server.start()
    try:
        yield server
    finally:
        server.stop()


_numbers = itertools.count(1)


@pytest.fixture
def remote_repo(
    artifacts_server: ArtifactsProcess, odd_repository: OddRepository
) -> Callable[..., ServedRepository]:
    """Call it to get a new repository on the server, filled from a bare repository."""

    def make(source: Path | None = odd_repository.path) -> ServedRepository:
        return artifacts_server.create(f"repo-{next(_numbers)}", source)

    return make


@pytest.fixture
def proxy(artifacts_server: ArtifactsProcess) -> Iterator[DelayProxy]:
    """A proxy before the server: it records requests, and can delay and break things."""
    with DelayProxy(("127.0.0.1", artifacts_server.port)) as running:
        yield running


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that other users may enter. Pytest's own are below folders of mode 0700, how many
    depends on whether tests run in parallel, and each pytest that starts closes the topmost."""
    folder = Path(tempfile.mkdtemp(prefix="afs-open-", dir="/tmp"))
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        clear_mounts(folder)
        shutil.rmtree(folder)


@pytest.fixture
def idle_daemon(request: pytest.FixtureRequest) -> Iterator[DaemonProcess]:
    """A daemon that was not started yet."""
    daemon = DaemonProcess()
    try:
        yield daemon
    finally:
        daemon.clean_up()
        print(daemon.log_tail(40))  # shown where the test failed
        shutil.rmtree(daemon.directory, ignore_errors=True)


@pytest.fixture
def open_device() -> Iterator[None]:
    """/dev/fuse as distributions ship it: for everybody, as long as any process of tests wants."""
    device = Path("/dev/fuse")
    with open("/tmp/artifact-fs-tests-fuse-mode", "a+") as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        mode = device.stat().st_mode & 0o777
        if mode != 0o666:
            file.truncate(0)
            file.write(f"{mode:o}")
            file.flush()
            device.chmod(0o666)
        try:
            yield
        finally:
            with contextlib.suppress(BlockingIOError):  # others do it when they are ready
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                file.seek(0)
                if before := file.read():
                    device.chmod(int(before, 8))


@pytest.fixture(scope="session")
def spare_daemon() -> Iterator[SpareDaemon]:
    spare = SpareDaemon()
    yield spare
    spare.end()


@pytest.fixture
def daemon(spare_daemon: SpareDaemon) -> Iterator[DaemonProcess]:
    """A running daemon without repositories."""
    daemon = spare_daemon.take()
    yield daemon
    spare_daemon.give_back(daemon)


@pytest.fixture
def mounted(
    daemon: DaemonProcess, proxy: DelayProxy, remote_repo: Callable[..., ServedRepository]
) -> Path:
    """The odd repository mounted as `odd` through the proxy, nothing hydrated."""
    return daemon.add_repo("odd", proxy.url(remote_repo().url))


@pytest.fixture
def impatient(
    daemon: DaemonProcess, proxy: DelayProxy, remote_repo: Callable[..., ServedRepository]
) -> Path:
    """The same with its whole history, and reads that give up after `IMPATIENCE_S`."""
    url = proxy.url(remote_repo().url)
    mount = daemon.add_repo("odd", url, "--deadline", str(IMPATIENCE_S))
    daemon.wait_for("odd", "history")
    return mount


@pytest.fixture(autouse=True)
def secrets_of_its_own() -> Iterator[None]:
    """No test finds its words masked for what another one has used as a password."""
    yield
    forget_secrets()
