"""What is read first in a new mount is here before anybody asks for it."""

from __future__ import annotations

from pathlib import Path

import trio

from artifactfs.git.objects.database import TreeEntry
from artifactfs.hydration.order.opening import MAX_FILES, opening_files
from tests.e2e.delay_proxy import DelayProxy
from tests.hydration.cold_mount import cold_mount
from tests.hydration.tree_repository import TreeRepository

FILE, FOLDER, GITLINK = 0o100644, 0o040000, 0o160000


def names(*entries: tuple[bytes, int], here: frozenset[bytes] = frozenset()) -> list[bytes]:
    tree = [TreeEntry(name, mode, name.ljust(20, b".")[:20]) for name, mode in entries]
    found = opening_files(lambda _oid: tree, b"r" * 20, lambda oid: oid.rstrip(b".") not in here)
    return [blob.path for blob in found]


def test_files_of_git_come_first_then_the_readme_then_manifests() -> None:
    entries = [b"LICENSE", b"README.rst", b".gitattributes", b"pyproject.toml", b"app.py", b"x.bin"]
    assert names(*((name, FILE) for name in entries)) == [
        b".gitattributes",
        b"README.rst",
        b"LICENSE",
        b"pyproject.toml",
    ]


def test_folders_submodules_and_what_is_here_are_left_out() -> None:
    entries = (b"README", FOLDER), (b"version", GITLINK), (b"LICENSE", FILE), (b"go.mod", FILE)
    assert names(*entries, here=frozenset([b"LICENSE"])) == [b"go.mod"]


def test_a_root_of_many_files_does_not_bring_them_all() -> None:
    assert len(names(*((b"%d.lock" % n, FILE) for n in range(1_000)))) == MAX_FILES


def test_they_come_in_one_request_and_are_read_without_another(
    url: str, line: DelayProxy, tree_repository: TreeRepository, tmp_path: Path
) -> None:
    async def main() -> None:
        async with cold_mount(url, tmp_path) as mount:
            with line.recording() as requests:
                mount.hydrator.fetch_first(mount.tip.tree)
                for path in (b"README.md", b".gitattributes", b"package.json"):
                    assert await mount.read(path) == tree_repository.contents[path]
            (request,) = [request for request in requests if request.command == "fetch"]
            expected = (b".gitattributes", b".gitignore", b"README.md", b"package.json")
            assert request.wants == [tree_repository.oids[path].hex() for path in expected]
            with line.recording() as requests:
                mount.hydrator.fetch_first(mount.tip.tree)
                await mount.landed()
            assert requests == []

    trio.run(main)
