"""The real programs under test as processes: the Artifacts server and the daemon."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx

from artifactfs.daemon.control.client import ControlClient, DaemonNotRunning
from artifactfs.paths import StateLayout
from benchmarks.fast_import import quiet_git_environment
from tests.e2e.mount_table import clear_mounts, descendants, mounts_below, serving_process
from tests.forking import ForkedProcess, programs, servers
from tests.watching import check_trespasses, watch_environment

PROGRAMS = Path(sys.executable).parent
START_DEADLINE = 90.0
STOP_DEADLINE = 60.0
IMPATIENCE_S = 9
"""Deadline of reads where the remote is made to fail, in seconds."""
IN_USE = "Address already in use"


def free_port() -> int:
    """Return a TCP port of the loopback that nobody uses: for now, see `on_free_port`."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def on_free_port(start: Callable[[int], object]) -> int:
    """Call `start` with a port, for what cannot say which one it has got; return the port.

    Another one is tried where somebody else was faster: `start` raises RuntimeError then.
    """
    while True:
        port = free_port()
        try:
            start(port)
        except RuntimeError as error:
            if IN_USE not in str(error):
                raise
        else:
            return port


@contextlib.contextmanager
def refusing_port() -> Iterator[int]:
    """A TCP port of the loopback that is taken, so that nobody else gets it, and nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield int(taken.getsockname()[1])


def wait_until(condition: Callable[[], Any], what: str, *, deadline: float = START_DEADLINE) -> Any:
    """Return the first true value of `condition`. Raises: TimeoutError."""
    end = time.monotonic() + deadline
    while not (value := condition()):
        if time.monotonic() > end:
            raise TimeoutError(f"{what}: not within {deadline:.0f} s")
        time.sleep(0.02)
    return value


def end_daemon_of(state: Path) -> None:
    """End the daemon that `mount` has started: the one with this state root in its arguments."""
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        words: list[bytes] = []
        with contextlib.suppress(OSError):  # it has ended
            words = (entry / "cmdline").read_bytes().split(b"\0")
        if b"daemon" in words and os.fsencode(state) in words:
            os.kill(int(entry.name), signal.SIGTERM)
            wait_until(partial(_is_gone, entry / "exe"), "the daemon's end")


def _is_gone(path: Path) -> bool:
    return not path.exists()


@dataclass(frozen=True, slots=True)
class ServedRepository:
    """A repository on the server, as the create call returned it."""

    name: str
    remote: str
    token: str

    @property
    def url(self) -> str:
        """The remote with the token in it, as users paste it."""
        return self.remote.replace("://", f"://x:{quote(self.token, safe='')}@", 1)


class ArtifactsProcess:
    """`artifacts-server serve` on the loopback, with a data folder of its own."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.data = directory / "data"
        self.log = directory / "server.log"
        self.port = 0
        """From the first start on; the same for all others."""
        self.namespace = "tests"
        self._process: ForkedProcess | None = None
        self.api_token = ""
        self.account = ""

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def origin(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start serving; returns when requests are answered."""
        self.directory.mkdir(parents=True, exist_ok=True)
        while not self._started():
            time.sleep(0.1)  # somebody has the port for the moment
        if not self.api_token:
            self._make_api_token()

    def _started(self) -> bool:
        with self.log.open("ab") as log:
            begun = log.tell()
            self._process = servers().start(
                *("serve", "--data", str(self.data), "--listen", f"127.0.0.1:{self.port}"),
                environment=os.environ,
                stderr=log,
                stdout_too=True,
            )
        try:
            wait_until(partial(self._answers, begun), f"artifacts-server (see {self.log})")
        except RuntimeError as error:
            if self.port and IN_USE in str(error):
                return False
            raise
        return True

    def _answers(self, begun: int) -> bool:
        """Raises: RuntimeError where it has ended, with what it has said since `begun`."""
        assert self._process is not None
        has_ended = self._process.poll() is not None
        said = self.log.read_bytes()[begun:].decode(errors="replace")
        if has_ended:
            raise RuntimeError(f"artifacts-server ended: {said[-2000:]}")
        found = re.search(r"^listening on \S+:(\d+)$", said, re.MULTILINE)
        if found is None:
            return False
        self.port = int(found[1])
        with contextlib.suppress(httpx.HTTPError):
            return httpx.get(f"{self.origin}/healthz", timeout=60).status_code < 500
        return False

    def _make_api_token(self) -> None:
        made = subprocess.run(
            [PROGRAMS / "artifacts-server", "token", "create", "--data", self.data, "--json"],
            check=True,
            capture_output=True,
            text=True,
        )
        fields = json.loads(made.stdout)
        self.api_token, self.account = fields["token"], fields["account"]

    def stop(self) -> None:
        """End it with SIGTERM, or SIGKILL if it does not listen."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        self._end(signal.SIGKILL)

    def _end(self, number: signal.Signals) -> None:
        if self._process is None:
            return
        self._process.send_signal(number)
        try:
            self._process.wait(STOP_DEADLINE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

    def api(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        """Call the control plane and return the result. Raises: httpx.HTTPStatusError."""
        answer = httpx.request(
            method,
            f"{self.origin}/v1/api/namespaces/{self.namespace}{path}",
            json=body,
            headers={"Authorization": f"Bearer {self.api_token}"},
            timeout=60,
        )
        answer.raise_for_status()
        return answer.json()["result"]

    def create(self, name: str, source: Path | None = None) -> ServedRepository:
        """Create a repository; push every branch and tag of the bare repository `source`."""
        made = self.api("POST", "/repos", {"name": name})
        served = ServedRepository(name, made["remote"], made["token"])
        if source is not None:
            push_all(source, served.url)
        return served

    def fork(self, name: str, new_name: str) -> ServedRepository:
        """Fork `name`; returns when the fork can be cloned."""
        made = self.api("POST", f"/repos/{name}/fork", {"name": new_name})
        wait_until(
            lambda: self.api("GET", f"/repos/{new_name}").get("status", "ready") == "ready",
            f"fork {new_name}",
        )
        return ServedRepository(new_name, made["remote"], made["token"])

    def token(self, repo: str, *, scope: str = "write", ttl: int = 86400) -> dict[str, Any]:
        """Make a repository token: id, plaintext, scope, expires_at."""
        result: dict[str, Any] = self.api(
            "POST", "/tokens", {"repo": repo, "scope": scope, "ttl": ttl}
        )
        return result

    def revoke(self, token_id: str) -> None:
        self.api("DELETE", f"/tokens/{token_id}")


def push_all(source: Path, url: str) -> None:
    """Push every branch and tag of `source` to `url`."""
    subprocess.run(
        [
            *("git", "-C", str(source), "push", "--quiet", url),
            *("refs/heads/*:refs/heads/*", "refs/tags/*:refs/tags/*"),
        ],
        check=True,
        env=quiet_git_environment(),
    )


def _answer(found: dict[str, Any]) -> dict[str, Any] | None:
    return None if found["state"] == "not answering" else found


_SIZES = "blobs of other branches and tags are known"


class DaemonProcess:
    """`artifact-fs daemon` with a state root and a mount root of its own.

    The state root has a short path: a Unix socket's must fit into 107 bytes. `watched`: each
    request is looked at for whether it comes from the daemon itself, which takes its time.
    """

    def __init__(self, directory: Path | None = None, *, watched: bool = True) -> None:
        self.watched = watched
        self.directory = directory or Path(tempfile.mkdtemp(prefix="afs-", dir="/tmp"))
        self.state = self.directory / "state"
        self.mounts = self.directory / "mnt"
        self.log = self.directory / "daemon.log"
        self.process: subprocess.Popen[bytes] | None = None
        self.trespasses = self.directory / "trespasses"
        self.extra_environment: dict[str, str] = {}
        self._logged = 0
        """Where the log of the repository begins that was added last."""

    @property
    def environment(self) -> dict[str, str]:
        own = {
            "ARTIFACT_FS_ROOT": str(self.state),
            "ARTIFACT_FS_MOUNT_ROOT": str(self.mounts),
        }
        return quiet_git_environment() | own | self.extra_environment

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def _watch(self) -> dict[str, str]:
        if not self.watched:
            return {}
        return watch_environment(self.trespasses, self.extra_environment.get("PYTHONPATH", ""))

    def start(self, *arguments: str) -> None:
        """Start the daemon; returns when it says READY=1."""
        self.mounts.mkdir(exist_ok=True)
        address = self.directory / "notify.sock"
        address.unlink(missing_ok=True)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify, self.log.open("ab") as log:
            notify.bind(str(address))
            self.process = subprocess.Popen(
                [PROGRAMS / "artifact-fs", "daemon", "--root", self.mounts, *arguments],
                env=self.environment | self._watch() | {"NOTIFY_SOCKET": str(address)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
            end = time.monotonic() + START_DEADLINE
            notify.settimeout(0.2)
            while time.monotonic() < end:
                if self.process.poll() is not None:
                    raise RuntimeError(f"the daemon ended: {self.log.read_text()[-3000:]}")
                with contextlib.suppress(TimeoutError):
                    if b"READY=1" in notify.recv(4096):
                        return
        raise TimeoutError(f"the daemon is not ready: {self.log.read_text()[-3000:]}")

    def run(
        self, *arguments: str | Path, check: bool = True, timeout: float = 120
    ) -> subprocess.CompletedProcess[str]:
        """Run `artifact-fs …` as a user of this state root."""
        done = subprocess.run(
            [PROGRAMS / "artifact-fs", *map(str, arguments)],
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
        )
        return self._checked(done) if check else done

    def _checked(self, done: subprocess.CompletedProcess[str]) -> subprocess.CompletedProcess[str]:
        if done.returncode:
            raise AssertionError(
                f"{' '.join(map(str, done.args))} → {done.returncode}\n"
                f"{done.stdout}{done.stderr}\n{self.log_tail()}"
            )
        return done

    def json(self, *arguments: str | Path, timeout: float = 120) -> Any:
        """Run `artifact-fs … --json` and return what it printed."""
        return json.loads(self.run(*arguments, "--json", timeout=timeout).stdout)

    def status(self, name: str) -> dict[str, Any]:
        """Return the status of one repository, once its worker has had the time to answer."""
        return dict(wait_until(lambda: _answer(self._status(name)), f"{name} answers"))

    def _status(self, name: str) -> dict[str, Any]:
        found = self.json("status", "--name", name)
        if isinstance(found, list):
            found = found[0]
        if "repos" in found:
            found = found["repos"][0]
        return dict(found)

    def told(self, name: str) -> dict[str, Any]:
        """The same from the daemon itself, without a process: for whoever asks again and again."""
        return dict(wait_until(lambda: _answer(self.told_now(name)), f"{name} answers"))

    def told_now(self, name: str) -> dict[str, Any]:
        """The same, be it that its worker is "not answering": it may have much to do."""
        try:
            with ControlClient(StateLayout(self.state)) as client:
                return dict(client.request("status", name=name)[0])
        except DaemonNotRunning:
            return self._status(name)

    def add_repo(self, name: str, remote: str, *options: str) -> Path:
        """Add and mount a repository, without a background sweep unless `options` ask for one."""
        if "--hydrate" not in options:
            options = (*options, "--hydrate", "none")
        self._logged = self.log.stat().st_size if self.log.exists() else 0
        words = ["add-repo", "--name", name, "--remote", remote, *options]
        if self.process is None or "PYTHONPATH" in self.extra_environment:
            self.run(*words)  # it may become the daemon; or it is another version
        else:
            self._checked(programs().run(*words, environment=self.environment, timeout=120))
        return self.mounts / name

    def wait_for(self, name: str, state: str, *, timeout: float = 120) -> None:
        """Wait until the repository has its ``history``, or ``index``, or is ``hydrated``, or has
        the ``sizes`` of what other branches and tags have: then we ask the remote for nothing."""

        def reached() -> bool:
            if state == "sizes":
                with self.log.open() as log:
                    log.seek(self._logged)
                    return any(_SIZES in line and f'"{name}"' in line for line in log)
            found = self.told_now(name)
            if found["state"] == "not answering":
                return False  # for now
            assert not found.get("error"), f"{found['error']}\n{self.log_tail()}"
            if state == "hydrated":
                states = [found.get("hydration", {}).get(f"{n}_state") for n in ("sweep", "recent")]
                return all(states) and not {"waiting", "running"} & set(states)
            field = {"history": "history_complete", "index": "index_primed"}[state]
            return bool(found.get(field))

        wait_until(reached, f"{name}: {state}", deadline=timeout)

    def worker(self, mount: Path) -> int:
        """Return the process id of the worker that serves `mount`, or is about to.

        Where the kernel takes the writes, much can be read while nobody does.
        """
        return int(wait_until(lambda: self._worker(mount), "somebody serves the mount"))

    def _worker(self, mount: Path) -> int | None:
        lower = self.state / "repos" / mount.name / "lower"  # where the kernel takes the writes
        mounts = mounts_below(mount) + mounts_below(lower)
        minors = [minor for point, minor in mounts if point in (mount, lower)]
        return serving_process(self.pid, minors[0]) if minors else None

    def log_tail(self, lines: int = 20) -> str:
        text = self.log.read_text() if self.log.exists() else ""
        return "\n".join(text.splitlines()[-lines:])

    def log_records(self) -> list[dict[str, Any]]:
        """Return the JSON log lines so far."""
        records = []
        for line in self.log.read_text().splitlines():
            with contextlib.suppress(ValueError):
                records.append(json.loads(line))
        return records

    def stop(self) -> int:
        """End the daemon with SIGTERM; return its exit status."""
        assert self.process is not None
        self.process.terminate()
        return self.process.wait(STOP_DEADLINE)

    def kill(self) -> None:
        """SIGKILL the daemon alone; its workers are left to themselves."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def clean_up(self) -> None:
        """Leave no process and no mount behind, whatever happened.

        Raises: AssertionError where one of its processes has looked into one of its mounts.
        """
        children: list[int] = []
        if self.process is not None and self.process.poll() is None:
            children = descendants(self.process.pid)
            self.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(STOP_DEADLINE)
        clear_mounts(self.directory)
        children += self.orphans()
        if self.process is not None and self.process.poll() is None:
            children.append(self.process.pid)
        for child in children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        if self.process is not None:
            self.process.wait()
        check_trespasses(self.trespasses)

    def orphans(self) -> list[int]:
        """Processes with our state root in their environment."""
        mark = f"ARTIFACT_FS_ROOT={self.state}\0".encode()
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and int(entry.name) != os.getpid():
                with contextlib.suppress(OSError):
                    if mark in (entry / "environ").read_bytes() + b"\0":
                        found.append(int(entry.name))
        return found
