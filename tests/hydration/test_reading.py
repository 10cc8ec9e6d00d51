"""Reading cold files: what comes, in how many requests, and what is shared."""

from __future__ import annotations

from pathlib import Path

import trio

from tests.e2e.delay_proxy import DelayProxy, Request
from tests.hydration.cold_mount import cold_mount
from tests.hydration.tree_repository import TreeRepository


def fetches(requests: list[Request]) -> list[Request]:
    return [request for request in requests if request.command == "fetch"]


def test_one_cold_read_is_one_request_that_names_the_file_first(
    url: str, line: DelayProxy, tree_repository: TreeRepository, tmp_path: Path
) -> None:
    path = b"src/p3/m2/f07.py"

    async def main() -> None:
        async with cold_mount(url, tmp_path) as mount:
            with line.recording() as requests:
                assert await mount.read(path) == tree_repository.contents[path]
                assert await mount.read(path) == tree_repository.contents[path]
            asked = fetches(requests)
            assert len(asked) == 1
            assert asked[0].wants[0] == tree_repository.oids[path].hex()

    trio.run(main)


def test_a_scan_of_a_cold_tree_takes_few_requests(
    url: str, line: DelayProxy, tree_repository: TreeRepository, tmp_path: Path
) -> None:
    async def main() -> None:
        async with cold_mount(url, tmp_path) as mount:
            with line.recording() as requests:
                for path in mount.files():
                    if path.startswith(b"src/"):
                        assert await mount.read(path) == tree_repository.contents[path]
            assert len(fetches(requests)) <= 12

    trio.run(main)
