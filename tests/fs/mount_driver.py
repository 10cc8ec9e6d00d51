"""Serves one file system in a process of its own: `python -m tests.fs.mount_driver CONFIG`.

Reads commands as JSON lines on stdin and answers on stdout. The hydrator is a stand-in over a
local repository, whose blobs arrive only while the gate is open.
"""

from __future__ import annotations

import functools
import json
import logging
import os
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import trio

from artifactfs.config import RepoSettings
from artifactfs.fs.inodes import seals
from artifactfs.fs.inodes.inode import Owner
from artifactfs.fs.kernel import fastloop, wakefulness
from artifactfs.fs.mount import filesystem as filesystem_module
from artifactfs.fs.mount import session
from artifactfs.fs.mount.filesystem import FileSystem
from artifactfs.fs.native.writes import create_native, is_native
from artifactfs.fs.overlay import smallfiles
from artifactfs.fs.tree import tree as tree_module
from artifactfs.fs.tree import walk
from artifactfs.git.objects.database import ObjectDatabase, Oid
from artifactfs.hydration.errors import HydrationFailed
from artifactfs.hydration.local.blobs import Blob, InPack, MemoryBlob, ReadContext
from artifactfs.paths import RepoLayout


@dataclass
class Tip:
    commit: Oid
    tree: Oid
    commit_time: int


class GatedBlobs:
    """Blobs of a repository. `gate`: nothing arrives while that file exists."""

    def __init__(self, odb: ObjectDatabase, config: dict[str, Any]) -> None:
        self._odb = odb
        self._gate = str(config["gate"])
        self._log = open(config["log"], "a", buffering=1, errors="surrogateescape")  # noqa: SIM115
        self._here: set[Oid] = set()
        self._sizes: set[Oid] = set()
        self._sizes_known: bool = config.get("sizes_known", True)
        self._wrong_by: int = config.get("wrong_by", 0)
        self.fails = False

    def _size(self, oid: Oid) -> int:
        size = self._odb.header_size(oid)
        assert size is not None
        return size if oid in self._here else max(0, size + self._wrong_by)

    def find(self, oid: Oid) -> Blob | None:
        if oid not in self._here:
            return None
        data = self._odb.blob(oid)
        assert data is not None
        return MemoryBlob(data)

    async def _arrive(self) -> None:
        while os.path.exists(self._gate):  # noqa: ASYNC110, ASYNC240 - opened by another process
            await trio.sleep(0.01)

    async def open(self, oid: Oid, context: ReadContext) -> Blob:
        return self.find(oid) or await self.hydrate(oid, context)

    async def open_here(self, oid: Oid) -> Blob | None:
        return self.find(oid)

    async def hydrate(self, oid: Oid, context: ReadContext, found: InPack | None = None) -> Blob:
        self._log.write(f"hydrate {os.fsdecode(context.path)} {context.pid}\n")
        await self._arrive()
        if self.fails:
            raise HydrationFailed("the remote is down")
        self._here.add(oid)
        blob = self.find(oid)
        assert blob is not None
        return blob

    def known_size(self, oid: Oid) -> int | None:
        if self._sizes_known or oid in self._here or oid in self._sizes:
            return self._size(oid)
        return None

    def known_sizes(self, oids: list[Oid]) -> dict[Oid, int]:
        return {oid: size for oid in oids if (size := self.known_size(oid)) is not None}

    async def sizes(self, tree: Oid, oids: list[Oid]) -> dict[Oid, int]:
        self._log.write(f"sizes {len(oids)}\n")
        await self._arrive()
        self._sizes.update(oids)
        return {oid: self._size(oid) for oid in oids}


class Commands:
    """What a test can ask of the running mount."""

    def __init__(self, filesystem: FileSystem, blobs: GatedBlobs) -> None:
        self.fs = filesystem
        self.blobs = blobs

    def __getitem__(self, name: str) -> Callable[..., Any]:
        found: Callable[..., Any] = getattr(self, "do_" + name)
        return found

    async def do_memory(self) -> dict[str, int]:
        objects = len(list(self.fs.tree.inodes()))
        return {"inodes": len(self.fs.tree), "objects": objects, "rss": _resident_bytes()}

    async def do_ready(self) -> None:
        self.fs.index_ready.set()

    async def do_fail(self, on: bool) -> None:
        self.blobs.fails = on

    async def do_switch(self, commit: str) -> dict[str, list[str]]:
        found = self.fs.odb.commit(bytes.fromhex(commit))
        result = self.fs.switch_tree(found.tree, found.oid)
        await self.fs.stale.flush()
        return {
            "changed": [os.fsdecode(path) for path in result.changed],
            "kept": [os.fsdecode(path) for path in result.kept],
        }

    async def do_compact(self, commit: str | None = None) -> int:
        head = self.fs.odb.commit(bytes.fromhex(commit)).tree if commit else None
        return await self.fs.compact(head)

    async def do_bring(self, path: str) -> None:
        """Have the blob of a path of the base here."""
        oid = self.fs.base.tree
        for name in os.fsencode(path).split(b"/"):
            oid = {entry.name: entry.oid for entry in self.fs.odb.tree(oid)}[name]
        await self.blobs.hydrate(oid, ReadContext())

    async def do_collect(self) -> None:
        await self.fs.collection.run()

    async def do_damage(self) -> list[dict[str, object]]:
        return self.fs.damage.as_json()

    async def do_ino_secret(self) -> str:
        return self.fs.ino_secret.hex()

    async def do_settle(self) -> None:
        """Wait until the work of the start is done."""
        await self.fs.looked_through.wait()

    async def do_seal(self) -> None:
        """Both rounds of it: what was not written in between gets its checksum."""
        await self.fs.sealing.run()
        await self.fs.sealing.run()

    async def do_miscount(self) -> None:
        self.fs.written.small.learn({number: -(1 << 30) for number in range(100)})

    async def do_requests(self) -> dict[str, int]:
        """What the kernel has asked for so far, by operation."""
        return dict(self.fs.operations.requests)

    async def do_ahead(self) -> int:
        """How many directories were listed ahead, and asked for then."""
        session = self.fs.operations.session
        return 0 if session is None else session.answered_ahead()

    async def do_stats(self) -> dict[str, int]:
        return asdict(self.fs.overlay_stats())

    async def do_measure(self) -> dict[str, int]:
        return asdict(await self.fs.measure())

    async def do_local_changes(self) -> list[list[str]]:
        return [[os.fsdecode(c.path), c.kind] for c in self.fs.local_changes()]

    async def do_stat(self, path: str) -> list[int | None]:
        found = self.fs.stat(os.fsencode(path))
        assert found is not None
        return [found.ino, found.mode, found.size, found.mtime_ns, found.ctime_ns]

    async def do_fsmonitor(self, sound: str | None = None) -> dict[str, str]:
        return {
            "command": self.fs.fsmonitor_command(sound),
            "initial": self.fs.journal.initial_token,
            "token": self.fs.journal.token(),
        }

    async def do_features(self) -> dict[str, dict[str, Any]]:
        return self.fs.features.as_json()

    async def do_request(self) -> list[int]:
        """Of the last request: for which process, and the kernel's number."""
        session = self.fs.operations.session
        assert session is not None and session.caller is not None and session.unique is not None
        return [session.caller(), session.unique()]

    async def do_fast(self) -> bool:
        import pyfuse3

        return hasattr(pyfuse3._wait_fuse_readable, "replaces")  # type: ignore[attr-defined]

    async def do_slow(self) -> None:
        import pyfuse3

        fastloop.remove(pyfuse3)

    async def do_stop(self) -> None:
        session.stop()


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


async def _converse(commands: Commands) -> None:
    stdin = trio.lowlevel.FdStream(os.dup(0))
    buffer = b""
    while True:
        chunk = await stdin.receive_some(65536)
        if not chunk:
            return
        buffer += chunk
        while b"\n" in buffer:
            line, _, buffer = buffer.partition(b"\n")
            request = json.loads(line)
            try:
                answer = {"result": await commands[request["do"]](**request.get("args", {}))}
            except Exception as error:
                logging.exception("command failed")
                answer = {"error": f"{type(error).__name__}: {error}"}
            _say(answer)


def _say(answer: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


async def _run(config: dict[str, Any]) -> None:
    odb = ObjectDatabase(Path(config["gitdir"]))
    blobs = GatedBlobs(odb, config)
    tip = None
    if config.get("commit"):
        commit = odb.commit(bytes.fromhex(config["commit"]))
        tip = Tip(commit.oid, commit.tree, commit.commit_time)
    settings = RepoSettings(
        name="test", remote="", mount_point=config["mount"], **config.get("settings", {})
    )
    layout = RepoLayout(Path(config["layout"]))
    native = config.get("native", False)
    if native and not is_native(layout):
        create_native(layout, Owner(os.getuid(), os.getgid()), 0o755)
        layout.lower.mkdir()
    made_of = {"layout": layout, "settings": settings, "odb": odb, "hydrator": blobs, "tip": tip}
    filesystem = FileSystem(**made_of, native=native)
    if config.get("index_ready", True):
        filesystem.index_ready.set()
    try:
        async with trio.open_nursery() as nursery:
            serving = functools.partial(_serve, keep_awake=config.get("keep_awake", False))
            await nursery.start(serving, filesystem, filesystem.served_at, nursery.cancel_scope)
            _say({"mounted": True})
            if "collect_s" in config:
                nursery.start_soon(_collect, filesystem, config["collect_s"])
            await _converse(Commands(filesystem, blobs))
            nursery.cancel_scope.cancel()
    finally:
        filesystem.close()


async def _collect(filesystem: FileSystem, pause_s: float) -> None:
    """Collect segments all the time; in real life it happens rarely."""
    while True:
        await trio.sleep(pause_s)
        await filesystem.collection.run()


async def _serve(
    filesystem: FileSystem,
    mount: str,
    scope: trio.CancelScope,
    *,
    keep_awake: bool,
    task_status: trio.TaskStatus[None],
) -> None:
    await session.serve(filesystem, mount, keep_awake=keep_awake, task_status=task_status)
    scope.cancel()


def _give_one_number(one: bytes, other: bytes) -> None:
    """As if somebody had found two names that have the same inode number."""
    derive = tree_module.derive_ino

    def weak(secret: bytes, parent: int, name: bytes) -> int:
        return derive(secret, parent, one if name == other else name)

    tree_module.derive_ino = walk.derive_ino = weak


def main() -> None:
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING)
    config = json.loads(sys.argv[1])
    if "segment_bytes" in config:
        smallfiles.SEGMENT_BYTES = smallfiles.WASTE_BYTES = config["segment_bytes"]
    wakefulness.DEVICE = config.get("latency_device", wakefulness.DEVICE)
    if "burst_s" in config:
        wakefulness.WITHIN_S = config["burst_s"]
        wakefulness.QUIET_S = 0.2  # somebody may look at all mounts of the machine
    if "maintenance_s" in config:
        filesystem_module._MAINTENANCE_S = config["maintenance_s"]
    if "boot" in config:  # as after a loss of power
        seals.boot_id = lambda: bytes([config["boot"]]) * 16
    if "same_number" in config:
        _give_one_number(*map(os.fsencode, config["same_number"]))
    try:
        trio.run(_run, config)
    except Exception as failure:
        error: BaseException = failure
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        logging.exception("failed")
        _say({"failed": f"{type(error).__name__}: {error}"})
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
