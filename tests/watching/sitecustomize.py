"""Writes down each request to a mount that comes from the daemon's own processes.

A child of a worker that asks for something in the worker's mount can wait for ever (see
``artifactfs/git/apart.py``). Python imports this module at its start where this folder is in
``PYTHONPATH``; it does something only in processes that serve a mount, and only where
``ARTIFACT_FS_TRESPASSES`` names the file to write to. A line is an operation and who asked for it,
with its ancestors.

It also makes faults that need a moment which nobody outside can find: where ``ARTIFACT_FS_STUCK``
names a file that is there, a look-up in ``.artifact-fs`` is never answered; where
``ARTIFACT_FS_DIES`` does, with the name of a request in it, the process that has done such a
request dies before it answers, and the file is gone.
"""

from __future__ import annotations

import functools
import os
import signal
import sys
import threading
import time
import traceback
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

SERVES = "artifactfs.fs.mount.operations"
FORK_SERVER = b"artifactfs.daemon.supervisor.forkserver"
MOUNTING = {"mount", "umount", "fusermount3", "fusermount"}
REMEMBERED_S = 1.0


def parent_and_name(pid: int) -> tuple[int, str]:
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            head, _, tail = file.read().rpartition(b") ")
    except OSError:
        return 0, "?"
    return int(tail.split()[1]), os.fsdecode(head.partition(b"(")[2])


def command_line(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return os.fsdecode(file.read().replace(b"\0", b" "))[:200]
    except OSError:
        return "?"


def command_name() -> str:
    """Of this process: which mount it serves."""
    return parent_and_name(os.getpid())[1]


def stack_of_thread(number: int) -> str:
    """Where it is, if it is a thread of this process: FUSE names the thread that asks."""
    for thread in threading.enumerate():
        if thread.native_id == number and thread.ident is not None:
            frames = traceback.extract_stack(sys._current_frames()[thread.ident])
            return "".join(
                f" in {frame.name} ({frame.filename}:{frame.lineno})" for frame in frames
            )
    return ""


class Watch:
    """Of one process that serves a mount."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._own = {os.getpid()}
        parent = os.getppid()
        with open(f"/proc/{parent}/cmdline", "rb") as file:
            if FORK_SERVER in file.read():
                self._own |= {parent, parent_and_name(parent)[0]}
        self._innocent: dict[int, float] = {}

    def note(self, operation: str, pid: int) -> None:
        now = time.monotonic()
        if pid <= 0 or now - self._innocent.get(pid, -REMEMBERED_S) < REMEMBERED_S:
            return
        chain = []
        ancestor = pid
        while ancestor > 1:
            chain.append(ancestor)
            if ancestor in self._own:
                break
            ancestor, name = parent_and_name(ancestor)
            if len(chain) == 1 and name in MOUNTING:
                return
        else:
            self._innocent[pid] = now
            return
        with open(self._path, "a") as file:
            asked = " < ".join(
                f"{parent_and_name(each)[1]}: {command_line(each)}" for each in chain
            )
            file.write(f"{operation} of {command_name()}: {pid} {asked}{stack_of_thread(pid)}\n")


def watched(method: Any, watch: Any) -> Any:
    @functools.wraps(method)
    async def answer(self: Any, *args: Any) -> Any:
        pid = getattr(args[-1], "pid", None) if args else None
        if pid is not None:
            watch().note(method.__name__, pid)
        return await method(self, *args)

    return answer


def get_stuck(virtual_files: Any, file: str) -> None:
    answered = virtual_files.before_lookup

    async def before_lookup(self: Any, parent: int, name: bytes, pid: int) -> None:
        if self.owns(parent) and os.path.exists(file):  # noqa: ASYNC240
            sys.modules["artifactfs.daemon.worker.requests"].STUCK_AFTER_S = 0.2  # type: ignore
            await sys.modules["trio"].sleep_forever()
        await answered(self, parent, name, pid)

    virtual_files.before_lookup = before_lookup


def mortal(method: Any, file: str) -> Any:
    @functools.wraps(method)
    async def answer(self: Any, *args: Any) -> Any:
        result = await method(self, *args)
        if os.path.exists(file):  # noqa: ASYNC240
            with open(file) as dies:  # noqa: ASYNC230
                dies_of = dies.read()
            if dies_of == method.__name__:
                os.unlink(file)
                os.kill(os.getpid(), signal.SIGKILL)
        return result

    return answer


class Loading(Loader):
    """Loads the operations, and puts a watch before each."""

    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        watches: dict[int, Watch] = {}

        def watch() -> Watch:  # of this process: the module was loaded before the fork
            pid = os.getpid()
            if pid not in watches:
                watches[pid] = Watch(os.environ["ARTIFACT_FS_TRESPASSES"])
            return watches[pid]

        if stuck := os.environ.get("ARTIFACT_FS_STUCK"):
            get_stuck(module.VirtualFiles, stuck)
        operations = module.Operations
        for name, method in list(vars(operations).items()):
            code = getattr(method, "__wrapped__", method)
            names = getattr(getattr(code, "__code__", None), "co_varnames", ())
            if not name.startswith("_") and "ctx" in names:
                method = watched(method, watch)
                if dies := os.environ.get("ARTIFACT_FS_DIES"):
                    method = mortal(method, dies)
                setattr(operations, name, method)


class Finding(MetaPathFinder):
    """Finds the operations as they always are found."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name != SERVES:
            return None
        spec = PathFinder.find_spec(name, path)
        if spec is not None and spec.loader is not None:
            spec.loader = Loading(spec.loader)
        return spec


if os.environ.get("ARTIFACT_FS_TRESPASSES"):
    sys.meta_path.insert(0, Finding())
