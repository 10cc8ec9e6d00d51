"""The remote of a mount is changed while another one is waited for."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
import trio
import trio.testing

from artifactfs.daemon.repositories.remotes import RemoteConnection
from artifactfs.errors import RemoteError
from artifactfs.paths import StateLayout


def test_a_change_does_not_wait_for_a_remote_that_is_silent(
    state: StateLayout, small_repository: Path
) -> None:
    async def main(silent: str) -> None:
        remotes = RemoteConnection(state.repo("small"), silent, 60.0)

        async def open_silent() -> None:
            with pytest.raises(RemoteError):
                await remotes.shared()

        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(open_silent)
                await trio.testing.wait_all_tasks_blocked(0.2)
                await remotes.change(str(small_repository))
            refs = await (await remotes.shared()).ls_refs(("refs/heads/",))
            assert "refs/heads/main" in refs.refs
            await remotes.aclose()

    with socket.create_server(("127.0.0.1", 0)) as server:
        trio.run(main, f"git://127.0.0.1:{server.getsockname()[1]}/x.git")
