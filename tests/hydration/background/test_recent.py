"""Recent history comes after the sweep, so that git need not fetch old versions one at a time."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from artifactfs.config import RepoSettings
from artifactfs.git.remote.clone import fetch_history
from artifactfs.git.remote.opening import open_remote
from artifactfs.git.wire.credentials import CredentialFile
from artifactfs.hydration.link import sizing
from benchmarks.fast_import import FILE, FastImport, quiet_git_environment
from tests.e2e.delay_proxy import DelayProxy
from tests.git.http_backend import http_backend
from tests.hydration.cold_mount import ColdMount, cold_mount

COMMITS = 30


@pytest.fixture
def history_line(tmp_path: Path) -> Iterator[DelayProxy]:
    """The line to a repository of 30 commits, each of which changes one of three files."""
    path = tmp_path / "served" / "history.git"
    path.parent.mkdir()
    with FastImport(path) as stream:
        for number in range(COMMITS):
            content = b"".join(b"line %d\n" % (line * (number + 1)) for line in range(50))
            stream.commit(
                f"Edit {number}\n", {b"f%d.py" % (number % 3): (FILE, stream.blob(content))}
            )
    for setting in ("uploadpack.allowFilter", "uploadpack.allowAnySHA1InWant"):
        subprocess.run(["git", "-C", path, "config", setting, "true"], check=True)
    subprocess.run(
        ["git", "-C", path, "config", "transfer.advertiseObjectInfo", "true"], check=True
    )
    with http_backend(path.parent) as backend, DelayProxy(("127.0.0.1", backend.port)) as line:
        yield line


async def bring_history(mount: ColdMount, url: str) -> None:
    settings = RepoSettings(name="r", remote=url, mount_point="/nowhere")
    remote = await open_remote(url, CredentialFile(mount.layout.credentials), deadline_s=20)
    await fetch_history(mount.layout, settings, remote)
    await remote.aclose()
    mount.odb.refresh()


def git(mount: ColdMount, *arguments: str) -> str:
    return subprocess.run(
        ["git", f"--git-dir={mount.layout.gitdir}", *arguments],
        check=True,
        capture_output=True,
        text=True,
        env=quiet_git_environment(),
    ).stdout


def test_git_log_reads_recent_history_without_the_remote(
    history_line: DelayProxy, tmp_path: Path
) -> None:
    url = f"http://127.0.0.1:{history_line.port}/history.git"

    async def main() -> None:
        async with cold_mount(url, tmp_path / "state", hydrate="source") as mount:
            await bring_history(mount, url)
            mount.hydrator.start_recent(mount.tip.commit)
            mount.hydrator.start_sweep(mount.tip.tree)
            with history_line.recording() as requests:
                await mount.until(lambda stats: stats.recent_state == "done")
                await mount.landed()
            fetches = [request for request in requests if request.command == "fetch"]
            assert [len(request.wants) for request in fetches] == [3, COMMITS - 3]
            with history_line.recording() as requests:
                text = await trio.to_thread.run_sync(git, mount, "log", "-p")
                assert text.count("\n+line 49") + text.count("\n+line ") > COMMITS
                await trio.to_thread.run_sync(git, mount, "diff", "HEAD~25")
            assert not requests

    trio.run(main)


def test_recent_history_is_off_with_the_sweep(history_line: DelayProxy, tmp_path: Path) -> None:
    url = f"http://127.0.0.1:{history_line.port}/history.git"

    async def main() -> None:
        async with cold_mount(url, tmp_path / "state", hydrate="none") as mount:
            await bring_history(mount, url)
            mount.hydrator.start_recent(mount.tip.commit)
            assert mount.hydrator.stats().recent_state == "off"

    trio.run(main)


def test_recent_history_that_failed_is_asked_for_again(
    history_line: DelayProxy, tmp_path: Path
) -> None:
    url = f"http://127.0.0.1:{history_line.port}/history.git"

    async def main() -> None:
        async with cold_mount(url, tmp_path / "state", hydrate="source", deadline_s=20) as mount:
            await bring_history(mount, url)
            mount.hydrator.start_sweep(mount.tip.tree)
            await mount.until(lambda stats: stats.sweep_state == "done")
            versions = git(mount, "log", "--raw", "--no-abbrev", "--format=").split()[3::6]
            await mount.hydrator.sizes(mount.tip.tree, [bytes.fromhex(oid) for oid in versions])
            history_line.truncate_after = 300
            mount.hydrator.start_recent(mount.tip.commit)
            await mount.until(lambda stats: stats.failures > 0)
            history_line.truncate_after = None
            await mount.until(lambda stats: stats.recent_state == "done")
            await mount.landed()
            with history_line.recording() as requests:
                await trio.to_thread.run_sync(git, mount, "log", "-p")
            assert not requests

    trio.run(main)


def test_a_remote_that_is_away_while_sizes_are_asked_for_is_asked_again(
    history_line: DelayProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sizing, "MAX_BACKOFF_S", 0.1)
    url = f"http://127.0.0.1:{history_line.port}/history.git"

    async def main() -> None:
        async with cold_mount(url, tmp_path / "state", hydrate="source") as mount:
            await bring_history(mount, url)
            mount.hydrator.start_sweep(mount.tip.tree)
            await mount.until(lambda stats: stats.sweep_state == "done")
            await trio.to_thread.run_sync(history_line.refuse)
            mount.hydrator.start_recent(mount.tip.commit)
            await mount.until(lambda _: mount.hydrator.parts.health.failures > 0)
            assert mount.hydrator.stats().recent_state == "waiting"
            await trio.to_thread.run_sync(history_line.accept)
            await mount.until(lambda stats: stats.recent_state == "done")
            assert mount.hydrator.stats().blobs_received == COMMITS

    trio.run(main)


def test_a_full_disk_under_the_sizes_is_survived(history_line: DelayProxy, tmp_path: Path) -> None:
    url = f"http://127.0.0.1:{history_line.port}/history.git"

    async def main() -> None:
        async with cold_mount(url, tmp_path / "state", hydrate="source") as mount:
            mount.hydrator.parts.stores.sizes.writer.execute("PRAGMA query_only=1")
            mount.hydrator.start_sweep(mount.tip.tree)
            await mount.until(lambda stats: stats.sweep_state == "done")
            assert mount.hydrator.stats().sizes_known == 3
            mount.hydrator.parts.stores.sizes.writer.execute("PRAGMA query_only=0")

    trio.run(main)
