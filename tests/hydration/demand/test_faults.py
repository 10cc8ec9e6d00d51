"""A remote that is slow, cut, corrupt, gone, or refuses: readers get the truth or an error."""

from __future__ import annotations

import errno
import logging
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from artifactfs.git.wire.credentials import CredentialFile
from artifactfs.hydration.demand import flight
from artifactfs.hydration.errors import HydrationError, HydrationFailed
from artifactfs.hydration.link import health
from tests.e2e.delay_proxy import DelayProxy
from tests.git.http_backend import Backend, http_backend
from tests.hydration.cold_mount import ColdMount, cold_mount
from tests.hydration.tree_repository import TreeRepository, make_tree_repository

PATH = b"data/table.csv"
OTHER = b"src/p0/m0/f00.py"


@pytest.fixture(autouse=True)
def patient_readers(monkeypatch: pytest.MonkeyPatch) -> None:
    """A probe is a process of git, which may take seconds to begin."""
    monkeypatch.setattr(health, "READER_WAITS_S", 20.0)


def test_reads_fail_while_the_remote_is_down_and_work_when_it_is_back(
    url: str,
    line: DelayProxy,
    tree_repository: TreeRepository,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(health, "MAX_GRACE_S", 1.5)

    async def main() -> None:
        async with cold_mount(url, tmp_path, deadline_s=30.0) as mount:
            assert await mount.read(OTHER) == tree_repository.contents[OTHER]
            await trio.to_thread.run_sync(line.refuse)
            with caplog.at_level(logging.WARNING), pytest.raises(HydrationError) as failed:
                await mount.read(PATH)
            assert failed.value.errno in (errno.EIO, errno.ETIMEDOUT)
            lines = [r.getMessage() for r in caplog.records if "table.csv" in r.getMessage()]
            assert len(lines) == 1
            assert lines[0].startswith("r: reading data/table.csv failed: ")
            stats = mount.hydrator.stats()
            assert stats.remote == "down"
            assert stats.outage_cause
            assert await mount.read(OTHER) == tree_repository.contents[OTHER]
            started = trio.current_time()
            with pytest.raises(HydrationFailed):
                await mount.read(b"deep/a/b/c/d/leaf.txt")
            assert trio.current_time() - started < 20  # fails fast: no deadline is waited for
            await trio.to_thread.run_sync(line.accept)
            with trio.fail_after(60):
                while True:
                    try:
                        assert await mount.read(PATH) == tree_repository.contents[PATH]
                        break
                    except HydrationFailed:
                        await trio.sleep(0.1)
            assert mount.hydrator.stats().remote == "up"

    trio.run(main)


def test_a_damaged_configuration_ends_nothing_but_requests(
    url: str,
    tree_repository: TreeRepository,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def main() -> None:
        async with cold_mount(url, tmp_path, deadline_s=20.0, hydrate="all") as mount:
            config = tmp_path / "gitconfig"
            config.write_bytes(bytes(100))
            monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(config))
            mount.hydrator.start_sweep(mount.tip.tree)
            with pytest.raises(HydrationFailed, match=f"bad config line 1 in file {config}"):
                await mount.read(PATH)
            await mount.until(lambda stats: str(config) in stats.outage_cause)
            assert str(config) in caplog.text
            config.write_bytes(b"")
            await mount.until(lambda stats: stats.remote == "up")
            assert await mount.read(PATH) == tree_repository.contents[PATH]

    trio.run(main)


def test_the_first_read_after_a_short_pause_works_when_the_remote_is_back(
    url: str,
    line: DelayProxy,
    tree_repository: TreeRepository,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(health, "MAX_GRACE_S", 1.0)

    async def main() -> None:
        async with cold_mount(url, tmp_path, deadline_s=20.0) as mount:
            await trio.to_thread.run_sync(line.refuse)
            with pytest.raises(HydrationError):
                await mount.read(PATH)
            await trio.to_thread.run_sync(line.accept)
            await trio.sleep(1.0)
            assert await mount.read(PATH) == tree_repository.contents[PATH]

    trio.run(main)


def test_a_short_outage_is_not_felt(
    url: str, line: DelayProxy, tree_repository: TreeRepository, tmp_path: Path
) -> None:
    async def main() -> None:
        async with cold_mount(url, tmp_path, deadline_s=20.0) as mount:
            await trio.to_thread.run_sync(line.refuse)
            got: list[bytes] = []

            async def read() -> None:
                got.append(await mount.read(PATH))

            async with trio.open_nursery() as nursery:
                nursery.start_soon(read)
                await mount.until(lambda stats: stats.failures > 0)
                assert mount.hydrator.stats().readers[0].path == "data/table.csv"
                await trio.to_thread.run_sync(line.accept)
            assert got == [tree_repository.contents[PATH]]

    trio.run(main)


def test_a_stalled_request_is_given_up_and_tried_again(
    url: str,
    line: DelayProxy,
    tree_repository: TreeRepository,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(flight, "MAX_STALL_S", 6.0)

    async def main() -> None:
        async with cold_mount(url, tmp_path, deadline_s=40.0) as mount:
            await mount.read(OTHER)
            line.stall()
            got: list[bytes] = []

            async def read() -> None:
                got.append(await mount.read(PATH))

            async with trio.open_nursery() as nursery:
                nursery.start_soon(read)
                await mount.until(lambda stats: stats.failures > 0)
                await trio.to_thread.run_sync(line.resume)
            assert got == [tree_repository.contents[PATH]]

    trio.run(main)


def test_a_server_that_says_it_is_still_working_is_not_given_up(
    tree_repository: TreeRepository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = tmp_path / "slow"
    slow.write_text('#!/bin/sh\nsleep 11\nexec "$@"\n')
    slow.chmod(0o755)
    config = tmp_path / "gitconfig"
    config.write_text(f"[uploadpack]\n\tkeepAlive = 1\n\tpackObjectsHook = {slow}\n")

    async def main() -> None:
        async with cold_mount(
            str(tree_repository.path), tmp_path / "state", deadline_s=60.0
        ) as mount:
            monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(config))
            monkeypatch.setattr(flight, "MAX_STALL_S", 8.0)
            assert await mount.read(PATH) == tree_repository.contents[PATH]
            assert mount.hydrator.stats().failures == 0

    trio.run(main)


def test_a_remote_that_answers_nothing_is_a_timeout(
    url: str, line: DelayProxy, tmp_path: Path
) -> None:
    async def main() -> None:
        async with cold_mount(url, tmp_path, deadline_s=1.0) as mount:
            line.stall()
            with pytest.raises(HydrationError) as failed:
                await mount.read(PATH)
            assert failed.value.errno in (errno.ETIMEDOUT, errno.EIO)
            await trio.to_thread.run_sync(line.resume)

    trio.run(main)


@pytest.mark.parametrize("at", [300, 5_000])
def test_damaged_answers_are_never_shown(
    url: str, line: DelayProxy, tree_repository: TreeRepository, tmp_path: Path, at: int
) -> None:
    path = b"data/small.png"

    async def main() -> None:
        async with cold_mount(url, tmp_path, deadline_s=12.0) as mount:
            line.corrupt_at = at
            try:
                got = await mount.read(path)
            except HydrationError:
                line.corrupt_at = None
                with trio.fail_after(60):
                    while True:
                        try:
                            got = await mount.read(path)
                            break
                        except HydrationError:
                            await trio.sleep(0.1)
            assert got == tree_repository.contents[path]

    trio.run(main)


def test_a_cut_answer_is_fetched_again(
    url: str, line: DelayProxy, tree_repository: TreeRepository, tmp_path: Path
) -> None:
    async def main() -> None:
        async with cold_mount(url, tmp_path, deadline_s=30.0) as mount:
            line.truncate_after = 15_000
            got: list[bytes] = []

            async def read() -> None:
                got.append(await mount.read(b"data/large.bin"))

            async with trio.open_nursery() as nursery:
                nursery.start_soon(read)
                await mount.until(lambda stats: stats.failures > 0)
                line.truncate_after = None
            assert got == [tree_repository.contents[b"data/large.bin"]]
            await mount.landed()
            assert not list((tmp_path / "cache" / "objects" / "tmp").iterdir())

    trio.run(main)


def test_an_expired_token_fails_readers_until_the_credentials_change(
    url: str, backend: Backend, tree_repository: TreeRepository, tmp_path: Path
) -> None:
    async def main() -> None:
        async with cold_mount(url, tmp_path, deadline_s=40.0) as mount:
            backend.accept = {"x:fresh"}
            credentials = CredentialFile(mount.layout.credentials)
            credentials.set(url, "x", "stale")
            mount.hydrator.reset_remote()
            started = trio.current_time()
            with pytest.raises(HydrationFailed) as failed:
                await mount.read(PATH)
            assert trio.current_time() - started < 30
            assert failed.value.hint is not None
            assert "set-remote" in failed.value.hint
            assert "stale" not in str(failed.value)
            assert mount.hydrator.stats().outage_kind == "AuthenticationFailed"
            credentials.set(url, "x", "fresh")
            assert await mount.read(PATH) == tree_repository.contents[PATH]
            backend.accept = {"x:fresher"}
            with pytest.raises(HydrationFailed):
                await mount.read(OTHER)
            backend.accept = {"x:fresh"}
            mount.hydrator.reset_remote()
            assert await mount.read(OTHER) == tree_repository.contents[OTHER]

    trio.run(main)


@pytest.fixture
def holed(tmp_path: Path) -> Iterator[tuple[TreeRepository, Backend]]:
    """A server whose repository lost one blob, as loose objects."""
    repository = make_tree_repository(tmp_path / "served" / "tree.git")
    packs = list((repository.path / "objects" / "pack").glob("*.pack"))
    moved = [pack.rename(tmp_path / pack.name) for pack in packs]
    for index in (repository.path / "objects" / "pack").iterdir():
        index.unlink()
    for pack in moved:
        with pack.open("rb") as stream:
            subprocess.run(
                ["git", "-C", repository.path, "unpack-objects", "-q"], stdin=stream, check=True
            )
    name = repository.oids[OTHER].hex()
    (repository.path / "objects" / name[:2] / name[2:]).unlink()
    with http_backend(repository.path.parent) as running:
        yield repository, running


def test_an_object_that_the_remote_lacks_fails_only_its_own_reader(
    holed: tuple[TreeRepository, Backend], tmp_path: Path
) -> None:
    repository, backend = holed
    sibling = b"src/p0/m0/f01.py"

    async def main() -> None:
        async with cold_mount(backend.url + "/tree.git", tmp_path / "state") as mount:
            failures: list[HydrationError] = []
            got: list[bytes] = []

            async def read_lost() -> None:
                try:
                    await mount.read(OTHER, 1)
                except HydrationError as error:
                    failures.append(error)

            async def read_sibling() -> None:
                got.append(await mount.read(sibling, 2))

            async with trio.open_nursery() as nursery:
                nursery.start_soon(read_lost)
                nursery.start_soon(read_sibling)
            assert got == [repository.contents[sibling]]
            assert len(failures) == 1
            assert failures[0].errno == errno.EIO
            assert "does not have" in failures[0].message
            assert mount.hydrator.stats().remote == "up"

    trio.run(main)


def test_a_prefetch_brings_the_others_where_the_remote_lacks_one(
    holed: tuple[TreeRepository, Backend], tmp_path: Path
) -> None:
    repository, backend = holed
    others = [b"src/p0/m0/f01.py", b"src/p0/m0/f02.py"]

    async def main() -> None:
        async with cold_mount(backend.url + "/tree.git", tmp_path / "state") as mount:
            oids = [mount.oid(path) for path in (others[0], OTHER, others[1])]
            before = backend.commands().count("fetch")
            with trio.fail_after(60), pytest.raises(HydrationFailed, match="does not have"):
                await mount.hydrator.prefetch(oids)
            assert backend.commands().count("fetch") - before == 2
            for path in others:
                assert await mount.read(path) == repository.contents[path]

    trio.run(main)


def test_a_full_disk_is_reported_as_such(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_space(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    async def main() -> None:
        async with cold_mount(url, tmp_path) as mount:
            monkeypatch.setattr("artifactfs.git.pack.parser.write_bytes", no_space)
            with pytest.raises(HydrationFailed) as failed:
                await mount.read(PATH)
            assert failed.value.errno == errno.ENOSPC
            monkeypatch.undo()
            assert await mount.read(PATH)

    trio.run(main)


def test_a_large_file_may_take_longer_than_the_deadline(
    url: str, line: DelayProxy, tmp_path: Path, tree_repository: TreeRepository
) -> None:
    """What counts is that its bytes go on coming."""
    path, deadline_s = b"data/large.bin", 9.0  # in which git, on any machine, sends the first
    content = tree_repository.contents[path]

    async def main() -> None:
        async with cold_mount(url, tmp_path, deadline_s=deadline_s) as mount:
            line.chunk, line.bandwidth = 2_000, int(len(content) / (deadline_s + 1.5))
            began = trio.current_time()
            assert await mount.read(path) == content
            assert trio.current_time() - began > deadline_s

    trio.run(main)


def test_a_file_that_git_fetches_for_us_may_take_longer_than_a_stall(
    url: str,
    backend: Backend,
    line: DelayProxy,
    tmp_path: Path,
    tree_repository: TreeRepository,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of a server of protocol 0 git fetches it into a mirror, and no byte of that reaches us. Given
    up and begun anew, it would come several times, and be a failure of the remote each time."""
    monkeypatch.setattr(flight, "MAX_STALL_S", 1.0)
    backend.version_2 = False
    path = b"data/large.bin"
    content = tree_repository.contents[path]

    async def main() -> None:
        async with cold_mount(url, tmp_path) as mount:
            await mount.read(OTHER)
            assert mount.hydrator.stats().limits[0].startswith("the remote speaks Git protocol 0")
            line.bandwidth = len(content) // 4
            with line.recording() as requests:
                assert await mount.read(path) == content
            assert len([each for each in requests if mount.oid(path).hex() in each.wants]) == 1
            assert mount.hydrator.stats().failures == 0

    trio.run(main)


def test_bytes_are_progress_also_of_a_packet_that_is_not_complete(
    url: str, line: DelayProxy, tmp_path: Path, tree_repository: TreeRepository
) -> None:
    """A packet of a pack is 64 KB. Here they come 200 at a time, for longer than a stall may be."""
    path = b"data/small.png"
    size = len(tree_repository.contents[path])

    async def main() -> None:
        async with cold_mount(url, tmp_path, deadline_s=24.0) as mount:
            line.chunk, line.bandwidth = 200, size // 10
            assert await mount.read(path) == tree_repository.contents[path]
            assert mount.hydrator.stats().failures == 0

    trio.run(main)


def test_an_object_that_is_larger_than_its_size_is_refused(
    url: str, backend: Backend, tree_repository: TreeRepository, tmp_path: Path
) -> None:
    async def main() -> None:
        async with cold_mount(url, tmp_path) as mount:
            tree = mount.context(PATH).trees[0]
            await mount.hydrator.sizes(tree, [mount.oid(PATH)])
            backend.endless = True
            with pytest.raises(HydrationFailed, match="an object of 1099511627776 bytes"):
                await mount.read(PATH)
            backend.endless = False
            assert await mount.read(PATH) == tree_repository.contents[PATH]

    trio.run(main)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """What nobody waits for is given up soon; and no bound ends an object before."""
    monkeypatch.setattr(flight, "ABANDONED_S", 0.2)
    monkeypatch.setattr(flight, "MAX_OBJECT", 1 << 50)
    monkeypatch.setattr("artifactfs.git.pack.parser.free_bytes", lambda directory: 1 << 50)
    monkeypatch.setattr(flight.PackLimits, "check", lambda limits, size: None)


async def give_up(mount: ColdMount, backend: Backend, path: bytes) -> None:
    """Read some of what does not end, and return when the download has been given up."""
    backend.given_up.clear()
    backend.endless = True
    async with trio.open_nursery() as nursery:
        nursery.start_soon(mount.read, path)
        active = mount.hydrator.parts.control.active
        await mount.until(lambda _stats: any(flight.received for flight in active))
        nursery.cancel_scope.cancel()
    await trio.to_thread.run_sync(backend.given_up.wait, 60)
    assert backend.given_up.is_set()
    backend.endless = False
    await mount.landed()


@pytest.mark.usefixtures("impatient")
def test_a_download_ends_when_nobody_waits_for_it(
    url: str, backend: Backend, tmp_path: Path
) -> None:
    async def main() -> None:
        async with cold_mount(url, tmp_path, object_info=False) as mount:
            await give_up(mount, backend, PATH)
            assert not list((tmp_path / "cache" / "objects" / "tmp").iterdir())

    trio.run(main)


@pytest.mark.usefixtures("impatient")
def test_what_we_give_up_ourselves_is_no_failure_of_the_remote(
    url: str,
    backend: Backend,
    tmp_path: Path,
    tree_repository: TreeRepository,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Else two of them, some time apart, would be an outage, and the next reader would get EIO."""
    monkeypatch.setattr(health, "MAX_GRACE_S", 0.1)

    async def main() -> None:
        async with cold_mount(url, tmp_path, object_info=False) as mount:
            await give_up(mount, backend, PATH)
            await give_up(mount, backend, PATH)  # later than the grace
            stats = mount.hydrator.stats()
            assert (stats.remote, stats.failures) == ("up", 0)
            for path in (b"deep/a/b/c/d/leaf.txt", PATH):
                assert await mount.read(path) == tree_repository.contents[path]

    trio.run(main)


def test_a_process_that_was_stopped_goes_on_waiting(
    url: str, line: DelayProxy, tree_repository: TreeRepository, tmp_path: Path
) -> None:
    """As by SIGSTOP, or where a machine sleeps: no deadline passes in the time it did not run."""

    async def main() -> None:
        async with cold_mount(url, tmp_path, deadline_s=6.0) as mount:
            await mount.read(OTHER)
            line.stall()
            got: list[bytes] = []

            async def read() -> None:
                got.append(await mount.read(PATH))

            async with trio.open_nursery() as nursery:
                nursery.start_soon(read)
                await trio.sleep(0.3)
                threading.Thread(target=line.resume).start()
                time.sleep(8.0)  # noqa: ASYNC251 - this process does not run
            assert got == [tree_repository.contents[PATH]]

    trio.run(main)
