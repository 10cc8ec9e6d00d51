"""Runs the smudge commands of filter drivers (gitattributes(5), "filter").

A driver has a ``smudge`` command, started for each file, or a ``process`` command, which serves
one file after another (gitattributes(5), "Long Running Filter Process"). Commands are run as git
runs them: by the shell, with ``GIT_DIR`` set, in what the owner of this says is the top of the
working tree. Like every child of ours, they see nothing of a mount (`artifactfs.git.apart`).

A process is ended when it has been idle for a moment.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import trio

from artifactfs.errors import ArtifactFSError, ProtocolError
from artifactfs.git.apart import gitdir_environment
from artifactfs.git.command import GitFailed, PipedProcess, open_process, run_git
from artifactfs.git.identity import other_user_of
from artifactfs.git.pack.format import Oid
from artifactfs.pktline import FLUSH, MAX_PAYLOAD, Packet, PacketDecoder, encode

Write = Callable[[bytes], object]
"""Takes the next piece of the output."""

SILENCE_S = 600.0
"""A command that neither reads nor writes for so long is ended. (One may download.)"""
IDLE_S = 1.0
_CHUNK = 1 << 16
_AT_ONCE = 4
"""Commands that run at a time."""


class FilterFailed(ArtifactFSError):
    """A filter did not convert a file."""


@dataclass(frozen=True, slots=True)
class Driver:
    """The configuration of a driver as of now."""

    smudge: str = ""
    process: str = ""
    required: bool = False


class Filters:
    """The filters of one mount. `run` has to run while it is used."""

    def __init__(self, gitdir: Path, prepare: Callable[[str], Awaitable[Path]]) -> None:
        """`prepare` gives the folder to run a command in. It may raise OSError."""
        self._gitdir = gitdir
        self._prepare = prepare
        self._processes: dict[str, _FilterProcess] = {}
        self._locks: dict[str, trio.Lock] = {}
        self._slots = trio.CapacityLimiter(_AT_ONCE)

    @property
    def at_work(self) -> bool:
        """Whether a command converts a file now."""
        locked = any(lock.locked() for lock in self._locks.values())
        return locked or self._slots.borrowed_tokens > 0

    async def driver(self, name: str) -> Driver:
        """What the configuration says of the driver `name`. Raises: GitFailed."""
        found: dict[str, str] = {}
        arguments = ("config", "-z", "--get-regexp", r"^filter\.")
        try:
            listing = await run_git(*arguments, gitdir=self._gitdir)
        except GitFailed as error:
            if error.returncode != 1:
                raise
            listing = b""  # there is none
        for item in os.fsdecode(listing).split("\0"):
            key, newline, value = item.partition("\n")
            if key.startswith(f"filter.{name}."):
                found[key.removeprefix(f"filter.{name}.")] = value if newline else "true"
        required = found.get("required", "false").lower() in ("true", "yes", "on", "1")
        if "process" in found:
            return Driver("", found["process"], required)
        return Driver(found.get("smudge", ""), "", required)

    async def smudge(
        self, driver: Driver, path: bytes, oid: Oid, source: Iterable[bytes], write: Write
    ) -> None:
        """Send the content `source` of the blob `oid` through `driver`, and what comes to `write`.

        Cancelling it, and any failure, ends the command. Raises: FilterFailed, OSError (of
        `write`).
        """
        try:
            if driver.process:
                await self._by_process(driver.process, path, oid, source, write)
            else:
                async with self._slots:
                    await self._by_command(driver.smudge, path, source, write)
        except (GitFailed, ProtocolError) as error:
            raise FilterFailed(error.message) from error

    async def _open(self, command: str) -> PipedProcess:
        top = await self._prepare(command)
        extra = {
            "GIT_DIR": str(self._gitdir),
            "GIT_WORK_TREE": str(top),
            # Filters get the locale that they would get from the user's git.
            "LC_ALL": os.environ.get("LC_ALL", ""),
        }
        make = partial(gitdir_environment, self._gitdir, extra, may_fetch=True)
        environment = await trio.to_thread.run_sync(make)
        return await open_process(
            ["sh", "-c", command], environment, cwd=str(top), user=other_user_of(self._gitdir)
        )

    async def _by_command(
        self, command: str, path: bytes, source: Iterable[bytes], write: Write
    ) -> None:
        command = command.replace("%f", shlex.quote(os.fsdecode(path)))
        process = await self._open(command)

        async def receive() -> None:
            while chunk := await _receive(process):
                write(chunk)

        try:
            await _while_sending(process, source, receive, is_all=True)
            with trio.move_on_after(SILENCE_S):
                status = await process.wait()
                if status == 0:
                    return
                said = process.stderr_text().splitlines()[-1:] or [""]
                raise FilterFailed(f"external filter '{command}' failed {status} {said[0]}")
            raise FilterFailed(f"external filter '{command}' does not end")
        finally:
            await process.close(grace_s=0)

    # Long running processes

    async def _by_process(
        self, command: str, path: bytes, oid: Oid, source: Iterable[bytes], write: Write
    ) -> None:
        lock = self._locks.setdefault(command, trio.Lock())
        async with lock, self._process(command) as process:
            await process.smudge(path, oid, source, write)

    @asynccontextmanager
    async def _process(self, command: str) -> AsyncIterator[_FilterProcess]:
        """The process of `command`, started if need be; whatever goes wrong with it ends it."""
        process = self._processes.pop(command, None)
        if process is None:
            process = _FilterProcess(await self._open(command))
        try:
            yield process
        except BaseException:
            await process.close(grace_s=0)
            raise
        process.used_at = trio.current_time()
        self._processes[command] = process

    async def run(self) -> None:
        """End processes that nobody uses. Runs until cancelled; ends all of them then."""
        try:
            while True:
                await trio.sleep(IDLE_S / 2)
                await self._end(trio.current_time() - IDLE_S)
        finally:
            with trio.CancelScope(shield=True):
                await self._end(float("inf"))

    async def end_idle(self) -> None:
        """End every process that is not at work."""
        await self._end(float("inf"))

    async def _end(self, used_before: float) -> None:
        for command, process in list(self._processes.items()):
            if process.used_at < used_before and self._processes.get(command) is process:
                del self._processes[command]
                await process.close()


class _FilterProcess:
    """A process that speaks the protocol. Used by one file at a time."""

    def __init__(self, process: PipedProcess) -> None:
        self.used_at = 0.0
        self._process = process
        self._decoder = PacketDecoder()
        self._packets: list[Packet] = []
        self._greeted = False

    async def close(self, *, grace_s: float = 1.0) -> None:
        await self._process.close(grace_s=grace_s)

    async def smudge(self, path: bytes, oid: Oid, source: Iterable[bytes], write: Write) -> None:
        """Raises: FilterFailed, ProtocolError, GitFailed."""
        if not self._greeted:
            await self._greet()
        request = encode([b"command=smudge\n", b"pathname=%b\n" % path])
        request += encode([b"blob=%b\n" % oid.hex().encode(), FLUSH])

        async def receive() -> None:
            self._check(await self._list())
            while (packet := await self._next()) is not FLUSH:
                assert isinstance(packet, bytes)
                write(packet)
            self._check(await self._list())

        await _while_sending(self._process, _framed(request, source), receive)

    async def _greet(self) -> None:
        await _send_all(self._process, [encode(["git-filter-client\n", "version=2\n", FLUSH])])
        greeting = [await self._next(), await self._next(), await self._next()]
        if greeting != [b"git-filter-server\n", b"version=2\n", FLUSH]:
            raise ProtocolError("the filter does not speak version 2 of the protocol")
        wanted = encode(["capability=clean\n", "capability=smudge\n", FLUSH])
        await _send_all(self._process, [wanted])
        offered = []
        while (packet := await self._next()) is not FLUSH:
            offered.append(packet)
        if b"capability=smudge\n" not in offered:
            raise FilterFailed("the filter process cannot smudge")
        self._greeted = True

    async def _list(self) -> Mapping[bytes, bytes]:
        """Packets of the form KEY=VALUE up to a flush."""
        found = {}
        while (packet := await self._next()) is not FLUSH:
            assert isinstance(packet, bytes)
            key, _, value = packet.rstrip(b"\n").partition(b"=")
            found[key] = value
        return found

    def _check(self, answer: Mapping[bytes, bytes]) -> None:
        status = answer.get(b"status", b"success")
        if status != b"success":
            raise FilterFailed(f"the filter process says {status.decode('utf-8', 'replace')}")

    async def _next(self) -> Packet:
        while not self._packets:
            chunk = await _receive(self._process)
            if not chunk:
                raise FilterFailed("the filter process has ended")
            self._packets = self._decoder.feed(chunk)[::-1]
        return self._packets.pop()


def _framed(request: bytes, source: Iterable[bytes]) -> Iterable[bytes]:
    yield request
    for piece in source:
        for start in range(0, len(piece), MAX_PAYLOAD):
            yield encode([piece[start : start + MAX_PAYLOAD]])
    yield encode([FLUSH])


async def _while_sending(
    process: PipedProcess,
    pieces: Iterable[bytes],
    receive: Callable[[], Awaitable[None]],
    *,
    is_all: bool = False,
) -> None:
    """Send `pieces` while `receive` runs. `is_all`: then end the input; the process need not read
    all of it before `receive` is done."""
    failure: Exception | None = None

    async def send() -> None:
        await _send_all(process, pieces)
        if is_all:
            await process.stdin.aclose()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        try:
            await receive()
        except Exception as error:
            failure = error
        if failure is not None or is_all:
            nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure


async def _send_all(process: PipedProcess, pieces: Iterable[bytes]) -> None:
    """Send `pieces`, as far as the process wants them: git ignores it where it does not, too."""
    try:
        for piece in pieces:
            with trio.fail_after(SILENCE_S):
                await process.stdin.send_all(piece)
    except (trio.BrokenResourceError, trio.TooSlowError):
        return


async def _receive(process: PipedProcess) -> bytes:
    """The next of its output, nothing at its end. Raises: FilterFailed."""
    with trio.move_on_after(SILENCE_S):
        return bytes(await process.stdout.receive_some(_CHUNK))
    raise FilterFailed(f"a filter was silent for {SILENCE_S:g} s")
