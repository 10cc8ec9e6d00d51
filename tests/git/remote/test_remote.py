"""What a remote answers, whatever kind of server it is."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

import pytest
import trio

from artifactfs.errors import (
    AuthenticationFailed,
    ObjectsMissing,
    RemoteNotFound,
    RemoteUnreachable,
)
from artifactfs.git.remote.opening import open_remote, probe_remote
from artifactfs.git.remote.remote import Remote
from artifactfs.git.wire.credentials import CredentialFile
from artifactfs.git.wire.greeting import CLONE_PREFIXES, TipWish
from tests.git.http_backend import Backend
from tests.git.sample_repository import Sample, git
from tests.git.static_server import static_server

T = TypeVar("T")


def with_remote(
    url: str,
    body: Callable[[Remote], Awaitable[T]],
    *,
    expect_refs: bool = False,
    expect_tip: TipWish | None = None,
    mirror: Path | None = None,
    file: CredentialFile | None = None,
) -> T:
    async def main() -> T:
        remote = await open_remote(
            url,
            file,
            deadline_s=20,
            expect_refs=expect_refs,
            expect_tip=expect_tip,
            mirror=mirror,
        )
        try:
            return await body(remote)
        finally:
            await remote.aclose()

    return trio.run(main)


async def fetch(remote: Remote, wants: list[bytes], **options: object) -> bytes:
    async with remote.fetch_pack(wants, **options) as pack:  # type: ignore[arg-type]
        return b"".join([chunk async for chunk in pack])


def objects(pack: bytes, directory: Path) -> dict[bytes, str]:
    """Kinds of the objects of a pack by oid."""
    file = directory / "got.pack"
    file.write_bytes(pack)
    git("init", "-q", "--bare", str(directory / "empty"), cwd=directory)
    git("index-pack", str(file), cwd=directory / "empty")
    listed = git("verify-pack", "-v", str(file.with_suffix(".idx")), cwd=directory / "empty")
    found = {}
    for line in listed.splitlines():
        words = line.split()
        if len(words) >= 5 and len(words[0]) == 40:
            found[bytes.fromhex(words[0])] = words[1]
    return found


def url_of(backend: Backend) -> str:
    return f"{backend.url}/sample.git"


def test_refs_with_head_and_peeled_tags(backend: Backend, hosted: Sample) -> None:
    async def body(remote: Remote) -> None:
        found = await remote.ls_refs()
        assert found.head == "refs/heads/main"
        assert found.refs == {
            "HEAD": hosted.oid("main"),
            "refs/heads/main": hosted.oid("main"),
            "refs/heads/topic/one": hosted.oid("topic/one"),
            "refs/tags/light": hosted.oid("light"),
            "refs/tags/v1": hosted.oid("v1"),
        }
        assert found.peeled == {"refs/tags/v1": hosted.oid("v1^{commit}")}
        assert set((await remote.ls_refs(("refs/heads/topic/",))).refs) == {"refs/heads/topic/one"}

    with_remote(url_of(backend), body)


def test_expected_refs_are_asked_for_at_the_same_time_and_once(backend: Backend) -> None:
    async def body(remote: Remote) -> None:
        assert remote.requests.by_kind == {"capabilities": 1, "ls-refs": 1}
        assert (await remote.ls_refs(CLONE_PREFIXES)).head == "refs/heads/main"
        assert remote.requests.requests == 2
        await remote.ls_refs(CLONE_PREFIXES)
        assert remote.requests.requests == 3

    with_remote(url_of(backend), body, expect_refs=True)
    assert backend.seen[0].connection != backend.seen[1].connection


WISH = TipWish("refs/heads/main", "blob:none", 1)


def test_the_tip_comes_with_the_first_answers_where_refs_can_be_wanted(
    backend: Backend, hosted: Sample, tmp_path: Path
) -> None:
    git("config", "uploadpack.allowRefInWant", "true", cwd=hosted.bare)
    main = hosted.oid("main")

    async def body(remote: Remote) -> None:
        assert remote.requests.by_kind == {"capabilities": 1, "ls-refs": 1, "fetch": 1}
        async with remote.fetch_pack([main], filter="blob:none", depth=1) as pack:
            got = objects(b"".join([chunk async for chunk in pack]), tmp_path)
            assert pack.shallow == {main}
        assert remote.requests.requests == 3
        assert got[main] == "commit"
        assert "blob" not in got.values()
        assert await fetch(remote, [main], filter="blob:none", depth=1)
        assert remote.requests.requests == 4

    with_remote(url_of(backend), body, expect_refs=True, expect_tip=WISH)


@pytest.mark.parametrize("wish", [WISH, TipWish("refs/heads/absent", "blob:none", 1)])
def test_a_hope_for_the_tip_that_fails_costs_nothing(
    backend: Backend, hosted: Sample, wish: TipWish
) -> None:
    async def body(remote: Remote) -> None:
        assert await fetch(remote, [hosted.oid("main")], filter="blob:none", depth=1)
        assert remote.requests.by_kind["fetch"] == 2

    with_remote(url_of(backend), body, expect_refs=True, expect_tip=wish)


@pytest.mark.parametrize(
    ("branch", "depth"), [("topic/one", 1), ("main", 2)], ids=["another commit", "another depth"]
)
def test_a_tip_that_is_not_what_is_wanted_is_not_used(
    backend: Backend, hosted: Sample, branch: str, depth: int
) -> None:
    """As where a push came between the answers about the refs and the tip."""
    git("config", "uploadpack.allowRefInWant", "true", cwd=hosted.bare)

    async def body(remote: Remote) -> None:
        assert await fetch(remote, [hosted.oid(branch)], filter="blob:none", depth=depth)
        assert remote.requests.by_kind["fetch"] == 2

    with_remote(url_of(backend), body, expect_tip=WISH)


def test_wants_may_be_blobs_trees_and_commits(
    backend: Backend, hosted: Sample, tmp_path: Path
) -> None:
    blobs = hosted.blobs()

    async def body(remote: Remote) -> tuple[bytes, bytes, bytes]:
        one = await fetch(remote, [blobs["README.md"]], urgent=True)
        tree = await fetch(remote, [hosted.oid("main:src")])
        commit = await fetch(remote, [hosted.oid("main")], filter="blob:none", depth=1)
        return one, tree, commit

    packs = with_remote(url_of(backend), body)
    found = []
    for number, pack in enumerate(packs):
        (tmp_path / str(number)).mkdir()
        found.append(objects(pack, tmp_path / str(number)))
    assert found[0] == {blobs["README.md"]: "blob"}
    assert {blob for path, blob in blobs.items() if path.startswith("src/")} <= set(found[1])
    assert "commit" not in found[1].values()
    assert sorted(set(found[2].values())) == ["commit", "tree"]
    assert list(found[2].values()).count("commit") == 1


def test_shallow_commits_are_told(backend: Backend, hosted: Sample) -> None:
    async def body(remote: Remote) -> frozenset[bytes]:
        async with remote.fetch_pack([hosted.oid("main")], filter="blob:none", depth=3) as pack:
            assert [chunk async for chunk in pack]
            return pack.shallow

    assert with_remote(url_of(backend), body) == {hosted.oid("main~2")}


def test_haves_leave_out_what_is_here(backend: Backend, hosted: Sample, tmp_path: Path) -> None:
    async def body(remote: Remote) -> bytes:
        return await fetch(
            remote, [hosted.oid("main")], filter="blob:none", haves=[hosted.oid("main~1")]
        )

    kinds = list(objects(with_remote(url_of(backend), body), tmp_path).values())
    assert kinds.count("commit") == 1


def test_an_object_the_remote_lacks_is_named(backend: Backend, hosted: Sample) -> None:
    absent = b"\x12" * 20

    async def body(remote: Remote) -> None:
        with pytest.raises(ObjectsMissing) as caught:
            await fetch(remote, [hosted.blobs()["README.md"], absent])
        assert caught.value.oids == {absent}
        assert await fetch(remote, [hosted.blobs()["README.md"]])

    with_remote(url_of(backend), body)


def test_sizes(backend: Backend, hosted: Sample, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("artifactfs.git.remote.remote.SIZES_PER_REQUEST", 5)
    blobs = hosted.blobs()
    true = {oid: int(git("cat-file", "-s", oid.hex(), cwd=hosted.bare)) for oid in blobs.values()}

    async def body(remote: Remote) -> None:
        assert await remote.object_sizes([*true, b"\x12" * 20]) == true
        assert remote.requests.by_kind["object-info"] == 3

    with_remote(url_of(backend), body)


def test_a_server_with_default_settings_says_what_is_slower(
    backend: Backend, hosted: Sample, tmp_path: Path
) -> None:
    git("config", "--unset", "uploadpack.allowFilter", cwd=hosted.bare)
    backend.object_info = False

    async def body(remote: Remote) -> bytes:
        capabilities = remote.capabilities
        assert (capabilities.filter, capabilities.object_info) == (False, False)
        assert len(capabilities.limits) == 2
        assert await remote.object_sizes([b"\x12" * 20]) == {}
        return await fetch(remote, [hosted.oid("main")], filter="blob:none", depth=1)

    found = objects(with_remote(url_of(backend), body), tmp_path)
    assert set(hosted.blobs().values()) <= set(found)


async def works_like_any_other(remote: Remote, hosted: Sample) -> None:
    """Refs, a filtered fetch, a blob by oid."""
    found = await remote.ls_refs(CLONE_PREFIXES)
    assert found.head == "refs/heads/main"
    assert found.refs["refs/heads/topic/one"] == hosted.oid("topic/one")
    assert found.peeled == {"refs/tags/v1": hosted.oid("v1^{commit}")}
    assert await fetch(remote, [hosted.oid("main")], filter="blob:none", depth=1)
    for blob in hosted.blobs().values():
        assert await fetch(remote, [blob])


def test_a_dumb_server_is_mirrored(hosted: Sample, tmp_path: Path) -> None:
    git("update-server-info", cwd=hosted.bare)
    mirror = tmp_path / "mirror.git"
    blob = hosted.blobs()["README.md"]

    async def first(remote: Remote) -> None:
        assert remote.capabilities.protocol == "dumb"
        assert "static" in remote.capabilities.limits[0]
        assert remote.alternate == mirror / "objects"
        await works_like_any_other(remote, hosted)
        assert await remote.object_sizes([blob]) == {blob: 380}

    async def again(remote: Remote) -> None:
        assert remote.requests.by_kind.get("git") is None
        new = hosted.commit("README.md", "new\n")
        git("update-server-info", cwd=hosted.bare)
        assert (await remote.ls_refs()).refs["refs/heads/main"] == new
        assert await fetch(remote, [hosted.blobs()["README.md"]])

    with static_server(hosted.bare.parent) as url:
        with_remote(f"{url}/sample.git", first, mirror=mirror)
        with_remote(f"{url}/sample.git", again, mirror=mirror)


def test_an_old_server_is_mirrored_whole(backend: Backend, hosted: Sample) -> None:
    backend.version_2 = False

    async def body(remote: Remote) -> Path:
        assert remote.capabilities.protocol == 0
        assert "protocol 0" in remote.capabilities.limits[0]
        await works_like_any_other(remote, hosted)
        with pytest.raises(ObjectsMissing):
            await fetch(remote, [b"\x12" * 20])
        assert remote.alternate is not None
        return remote.alternate

    # Without a place to keep it, the mirror is gone with the remote.
    assert not with_remote(url_of(backend), body, expect_refs=True).exists()


def test_an_old_server_with_filters_is_mirrored_without_blobs(
    backend: Backend, hosted: Sample, tmp_path: Path
) -> None:
    backend.version_2 = False
    git("config", "uploadpack.allowAnySHA1InWant", "true", cwd=hosted.bare)
    mirror = tmp_path / "mirror.git"

    async def body(remote: Remote) -> None:
        assert not remote.capabilities.object_info
        missing = git("rev-list", "--objects", "--all", "--missing=print", cwd=mirror)
        assert missing.count("?") >= len(hosted.blobs())
        await works_like_any_other(remote, hosted)
        with pytest.raises(ObjectsMissing):
            await fetch(remote, [b"\x12" * 20])

    with_remote(url_of(backend), body, mirror=mirror)


def test_an_old_server_with_a_token(backend: Backend, hosted: Sample, tmp_path: Path) -> None:
    backend.version_2 = False
    token = "art_v1_0123456789abcdef0123456789abcdef01234567?expires=1"
    backend.accept = {f"x:{token}"}
    file = CredentialFile(tmp_path / "it's credentials")
    with pytest.raises(AuthenticationFailed):
        with_remote(url_of(backend), Remote.ls_refs, file=file)
    file.set(url_of(backend), "x", token)
    assert with_remote(url_of(backend), Remote.ls_refs, file=file).head == "refs/heads/main"


def test_an_old_server_that_goes_away(hosted: Sample, tmp_path: Path, backend: Backend) -> None:
    backend.version_2 = False

    async def body(remote: Remote) -> None:
        await remote.ls_refs()
        hosted.bare.rename(hosted.bare.with_name("gone"))
        with pytest.raises(RemoteNotFound):
            await remote.ls_refs()

    with_remote(url_of(backend), body, mirror=tmp_path / "mirror.git")


def test_an_old_server_that_stalls_meets_the_deadline(backend: Backend, tmp_path: Path) -> None:
    backend.version_2 = False
    gate = backend.stall = threading.Event()
    mirror = tmp_path / "mirror.git"

    async def open_it() -> None:
        with pytest.raises(RemoteUnreachable):
            await open_remote(url_of(backend), None, deadline_s=1, mirror=mirror)
        backend.stall = None
        gate.set()
        remote = await open_remote(url_of(backend), None, deadline_s=60, mirror=mirror)
        assert (await remote.ls_refs()).head == "refs/heads/main"
        await remote.aclose()

    trio.run(open_it)


def test_probing_an_old_server_makes_no_mirror(
    backend: Backend, hosted: Sample, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "absent"))
    url = url_of(backend)
    assert trio.run(partial(probe_remote, url, None, deadline_s=20)).limits == ()
    backend.version_2 = False
    old = trio.run(partial(probe_remote, url, None, deadline_s=20))
    assert (old.protocol, old.filter, len(old.limits)) == (0, True, 1)
    git("update-server-info", cwd=hosted.bare)
    with static_server(hosted.bare.parent) as static:
        dumb = trio.run(partial(probe_remote, f"{static}/sample.git", None, deadline_s=20))
    assert dumb.protocol == "dumb"


def test_importing_the_remote_does_not_import_httpx() -> None:
    script = "import sys, artifactfs.git.remote.remote; sys.exit('httpx' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script]).returncode == 0
