"""A mount in a process of its own, as tests use it."""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from artifactfs.daemon.host import overlayfs
from artifactfs.features import VARIABLE
from artifactfs.paths import RepoLayout
from tests.forgetting import kernel_forgets
from tests.forking import ForkedProcess, mounts
from tests.watching import check_trespasses, watch_environment

ROOT = Path(__file__).resolve().parents[2]
DRIVER = "import runpy; runpy.run_module('tests.fs.mount_driver', run_name='__main__')"


class MountFailed(Exception):
    """The process could not mount."""


class Mount:
    """One state directory, and the process that serves it on `path`."""

    def __init__(self, directory: Path, gitdir: Path, commit: str) -> None:
        self.directory = directory
        self.path = directory / "mnt"
        self.layout = directory / "state"
        self.gate = directory / "gate"
        self.log_file = directory / "log"
        self.trespasses = directory / "trespasses"
        self.gitdir = gitdir
        self.commit: str | None = commit
        self.config: dict[str, Any] = {}
        self.environment: dict[str, str] = {}
        """Of the process, beside ours."""
        self.first = ""
        """Python that the process runs before anything of ours."""
        self.process: subprocess.Popen[bytes] | ForkedProcess | None = None
        self.native = False
        """The kernel's overlayfs takes the writes, above the mount that the process serves."""
        self.path.mkdir(parents=True, exist_ok=True)
        self.layout.mkdir(exist_ok=True)

    def start(self, **config: Any) -> Mount:
        self.config.update(config)
        full = {
            "gitdir": str(self.gitdir),
            "commit": self.commit,
            "mount": str(self.path),
            "layout": str(self.layout),
            "gate": str(self.gate),
            "log": str(self.log_file),
            "native": self.native,
            **self.config,
        }
        environment = {**os.environ, **self.environment, **watch_environment(self.trespasses)}
        with open(self.directory / "stderr", "ab") as stderr:
            if self.first or self.environment:  # which decide about what is loaded
                self.process = subprocess.Popen(
                    [sys.executable, "-c", f"{self.first}\n{DRIVER}", json.dumps(full)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=stderr,
                    cwd=ROOT,
                    env=environment,
                )
            else:
                self.process = mounts().start(
                    json.dumps(full), environment=environment, stderr=stderr
                )
        answer = self._hear()
        if "mounted" not in answer:
            self.process.wait()
            raise MountFailed(answer.get("failed", self.stderr()))
        if self.native:
            layout = RepoLayout(self.layout)
            overlayfs.mount_above(layout)
            overlayfs.put_in_place(layout, str(self.path))
        return self

    def without(self, *features: str) -> Mount:
        """Start it with `features` switched off, besides those that are off in all tests."""
        off = ",".join((os.environ.get(VARIABLE, ""), *features))
        self.environment[VARIABLE] = off
        return self.start()

    def ask(self, command: str, **args: Any) -> Any:
        """Run a command of `mount_driver.Commands` in the serving process."""
        self.send(command, **args)
        answer = self._hear()
        if "error" in answer:
            raise AssertionError(answer["error"])
        return answer["result"]

    def send(self, command: str, **args: Any) -> None:
        assert self.process is not None and self.process.stdin is not None
        self.process.stdin.write(json.dumps({"do": command, "args": args}).encode() + b"\n")
        self.process.stdin.flush()

    def _hear(self) -> dict[str, Any]:
        assert self.process is not None and self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            return {"failed": self.stderr()}
        answer: dict[str, Any] = json.loads(line)
        return answer

    def stop(self) -> None:
        """Unmount cleanly: the process ends by itself."""
        if self.process is None:
            return
        assert self.process.stdin is not None
        if self.native:
            subprocess.run(["umount", self.path], check=True)
        self.process.stdin.close()
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.kill()
            raise
        self.process = None
        check_trespasses(self.trespasses)

    def kill(self) -> None:
        """SIGKILL, and clear the dead mount away."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None
        for place in (self.path, RepoLayout(self.layout).lower):
            subprocess.run(["umount", "-l", place], stderr=subprocess.DEVNULL)

    def kernel_forgets(self) -> None:
        """Have the kernel forget this mount's names, attributes and pages."""
        lower = [RepoLayout(self.layout).lower] if self.native else []
        kernel_forgets(self.path, *lower)

    def restart_with(self, **config: Any) -> Mount:
        self.stop()
        return self.start(**config)

    def restart(self, *, kill: bool = False) -> Mount:
        if kill:
            self.kill()
        else:
            self.stop()
        return self.start()

    def database(self) -> Path:
        """The database of the overlay, to be changed while nobody serves it."""
        (self.layout / "overlay.db-sums").unlink(missing_ok=True)
        return self.layout / "overlay.db"

    def upper_files(self) -> list[Path]:
        """The data of written files, as it is on disk."""
        return [path for path in (self.layout / "upper").rglob("*") if path.is_file()]

    def log(self) -> list[str]:
        """What was asked of the hydrator, one line each."""
        return (
            self.log_file.read_text(errors="surrogateescape").splitlines()
            if self.log_file.exists()
            else []
        )

    def stderr(self) -> str:
        return (self.directory / "stderr").read_text()

    def close_gate(self) -> None:
        self.gate.touch()

    def open_gate(self) -> None:
        self.gate.unlink(missing_ok=True)

    def make_gitdir(self) -> None:
        """Give the mount a gitdir with the history of its origin and an index."""
        gitdir = self.layout / "git"
        git("clone", "-q", "--bare", str(self.gitdir), str(gitdir), cwd=self.directory)
        git("config", "core.bare", "false", cwd=gitdir)
        git("config", "core.worktree", str(self.path), cwd=gitdir)
        answer = self.ask("fsmonitor")
        git("config", "core.fsmonitor", answer["command"], cwd=gitdir)
        git("config", "core.untrackedCache", "true", cwd=gitdir)
        git("reset", "-q", cwd=self.path)


def git(*args: str, cwd: Path, **env: str) -> str:
    environment = {
        **os.environ,
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_CONFIG_SYSTEM": os.devnull,
        "GIT_AUTHOR_NAME": "A",
        "GIT_AUTHOR_EMAIL": "a@example.org",
        "GIT_COMMITTER_NAME": "C",
        "GIT_COMMITTER_EMAIL": "c@example.org",
        **env,
    }
    done = subprocess.run(["git", *args], cwd=cwd, env=environment, check=True, capture_output=True)
    return done.stdout.decode("utf-8", "surrogateescape")


def renameat2(old: Path, new: Path, flags: int) -> None:
    """``renameat2(2)``, which Python does not have."""
    result = _libc.renameat2(-100, os.fsencode(old), -100, os.fsencode(new), flags)
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


_libc = ctypes.CDLL(None, use_errno=True)
