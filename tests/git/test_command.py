"""How git processes of ours run."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import trio

from artifactfs.git.command import GitFailed, run_git
from tests.e2e.processes import wait_until
from tests.e2e.test_crashes import has_ended

AUTOGROUP = Path("/proc/self/autogroup")


@pytest.mark.skipif(not AUTOGROUP.exists(), reason="the kernel groups no sessions")
def test_the_background_leaves_the_cpu_to_programs_of_other_sessions() -> None:
    async def main() -> bytes:
        alias = f"alias.priorities=!cat {AUTOGROUP}; nice"
        return await run_git("-c", alias, "priorities", background=True)

    shown = trio.run(main).decode().split()
    assert shown[1:] == ["nice", "10", "19"], shown


@pytest.mark.parametrize("background", [False, True])
@pytest.mark.parametrize("how", ["cancelled", "deadline"])
def test_what_is_given_up_ends_with_its_children(
    tmp_path: Path, how: str, background: bool
) -> None:
    """As `git fetch`, whose `git-remote-https` would go on receiving."""
    pid_file = tmp_path / "pid"
    alias = f"alias.hang=!sh -c 'echo $$ > {pid_file}; exec sleep 600' & wait"

    async def hang(deadline_s: float) -> None:
        await run_git("-c", alias, "hang", deadline_s=deadline_s, background=background)

    async def main() -> None:
        if how == "deadline":
            with pytest.raises(GitFailed, match="did not end within 3 s"):
                await hang(3.0)
            return
        async with trio.open_nursery() as nursery:
            nursery.start_soon(hang, 600.0)
            wait = partial(wait_until, lambda: pid_file.exists() and pid_file.read_text(), "it")
            await trio.to_thread.run_sync(wait)
            nursery.cancel_scope.cancel()

    trio.run(main)
    child = int(pid_file.read_text())
    wait_until(lambda: has_ended(child), "the end of its child", deadline=30)
