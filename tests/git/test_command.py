"""How git processes of ours run."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from artifactfs.git.command import run_git

AUTOGROUP = Path("/proc/self/autogroup")


@pytest.mark.skipif(not AUTOGROUP.exists(), reason="the kernel groups no sessions")
def test_the_background_leaves_the_cpu_to_programs_of_other_sessions() -> None:
    async def main() -> bytes:
        alias = f"alias.priorities=!cat {AUTOGROUP}; nice"
        return await run_git("-c", alias, "priorities", background=True)

    shown = trio.run(main).decode().split()
    assert shown[1:] == ["nice", "10", "19"], shown
