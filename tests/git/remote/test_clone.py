"""Cloning in two phases: what git itself sees in the gitdir, and what it costs."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import pytest
import trio

from artifactfs.daemon.repositories.remotes import store_remote
from artifactfs.errors import (
    CorruptData,
    InvalidInput,
    RemoteError,
    RemoteNotFound,
    RemoteUnreachable,
)
from artifactfs.features import version_of
from artifactfs.git.objects.database import ObjectDatabase
from artifactfs.git.remote import fetch
from artifactfs.git.remote.arriving import ArrivingHistory
from artifactfs.git.remote.clone import fetch_history, fetch_refs
from artifactfs.git.remote.fetch import fetch_commit
from artifactfs.git.remote.remote import Remote
from artifactfs.git.repository.commit_graph import write_changed_paths
from artifactfs.git.repository.gitdir import history_complete
from artifactfs.git.repository.refs import read_head, read_refs
from artifactfs.git.wire.credentials import CredentialFile
from artifactfs.git.wire.protocol import RefAdvertisement
from tests.git.clones import Clone, make_clone
from tests.git.http_backend import Backend
from tests.git.sample_repository import Sample, git
from tests.git.static_server import static_server

T = TypeVar("T")


@pytest.fixture
def clone(tmp_path: Path, backend: Backend) -> Clone:
    return make_clone(tmp_path, f"{backend.url}/sample.git")


def leftovers(clone: Clone) -> list[str]:
    return [name for name in os.listdir(clone.layout.directory) if name != "git"]


def test_the_tip_is_here_after_one_fetch(clone: Clone, hosted: Sample, backend: Backend) -> None:
    tip = clone.run(clone.tip)
    assert tip.commit == hosted.oid("main")
    assert tip.tree == hosted.oid("main^{tree}")
    assert tip.ref == "refs/heads/main"
    assert tip.commit_time == int(git("log", "-1", "--format=%ct", "main", cwd=hosted.bare))
    # The first fetch names the ref, which this server does not understand.
    assert sorted(backend.commands()) == ["fetch", "fetch", "info/refs", "ls-refs"]
    assert "src/part0" in clone.git_offline("ls-tree", "-r", "-d", "--name-only", "HEAD")
    assert leftovers(clone) == []


def test_refs_with_names_that_unicode_would_cut(tmp_path: Path) -> None:
    git("init", "-q", "-b", "main", cwd=tmp_path)
    git("commit", "-q", "--allow-empty", "-m", "x", cwd=tmp_path)
    oid = bytes.fromhex(git("rev-parse", "HEAD", cwd=tmp_path))
    names = ("line\u2028end", "next\x85line", "space\u3000")
    for name in names:
        git("branch", name, cwd=tmp_path)
    git("symbolic-ref", "HEAD", f"refs/heads/{names[2]}", cwd=tmp_path)
    for _ in ("loose", "packed"):
        assert read_refs(tmp_path / ".git") == {f"refs/heads/{n}": oid for n in ("main", *names)}
        assert read_head(tmp_path / ".git").commit == oid
        git("pack-refs", "--all", cwd=tmp_path)


@pytest.mark.parametrize("ref", [None, "refs/heads/topic/one"])
def test_the_tip_comes_with_the_refs_where_the_server_takes_names(
    clone: Clone, hosted: Sample, backend: Backend, ref: str | None
) -> None:
    git("config", "uploadpack.allowRefInWant", "true", cwd=hosted.bare)
    clone.set(ref=ref)
    assert clone.run(clone.tip).commit == hosted.oid(ref or "main")
    assert sorted(backend.commands()) == ["fetch", "info/refs", "ls-refs"]
    assert "src/part0" in clone.git_offline("ls-tree", "-r", "-d", "--name-only", "HEAD")
    clone.run(clone.history)
    assert len(clone.git_offline("log", "--oneline").splitlines()) == int(
        git("rev-list", "--count", ref or "main", cwd=hosted.bare)
    )


def test_git_fetches_nothing_for_what_users_do_first(clone: Clone, hosted: Sample) -> None:
    clone.run(clone.tip)
    assert "* main" in clone.git_offline("branch", "-vv", "--no-abbrev")
    assert "origin/topic/one" in clone.git_offline("branch", "-a")
    assert clone.git_offline("tag") == "light\nv1"
    assert clone.git_offline("rev-parse", "HEAD") == hosted.oid("main").hex()
    assert clone.git_offline("rev-parse", "--abbrev-ref", "origin/HEAD") == "origin/main"
    assert clone.git_offline("rev-parse", "--abbrev-ref", "@{u}") == "origin/main"
    assert clone.git_offline("diff-index", "--cached", "--name-only", "HEAD", "--", "docs")
    assert clone.git_offline("stash", "list") == ""
    assert clone.git_offline("rev-parse", "--is-shallow-repository") == "false"


def test_git_alone_and_an_early_log(clone: Clone) -> None:
    """In a mount it waits for history (tests/e2e). Without one, git fetches what it misses, but
    since 2.40 no commit; what it then says is no short history."""
    clone.run(clone.tip)
    assert not history_complete(clone.gitdir)
    if version_of(git("--version", cwd=clone.gitdir)) < (2, 40):
        assert len(clone.git("log", "--oneline").splitlines()) == 12
    else:
        with pytest.raises(subprocess.CalledProcessError):
            clone.git("log", "--oneline")
        clone.run(clone.history)
        assert len(clone.git_offline("log", "--oneline").splitlines()) == 12
    assert clone.git("describe", "--tags", "main~3").startswith("v1-4-")


def test_history_gives_way_to_what_is_urgent_but_not_for_ever(
    clone: Clone, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("artifactfs.git.remote.history.PAUSES_S", 0.01)
    allowed: list[float] = []

    async def give_way(seconds: float) -> None:
        allowed.append(seconds)
        await trio.sleep(seconds)

    async def body(remote: Remote) -> None:
        await clone.tip(remote)
        await fetch_history(clone.layout, clone.settings, remote, give_way=give_way)

    clone.run(body)
    assert allowed[0] == 0.01
    assert sum(allowed) < 0.02
    assert len(clone.git_offline("log", "--oneline").splitlines()) == 12


def test_after_the_history_git_needs_the_remote_for_blobs_only(
    clone: Clone, hosted: Sample
) -> None:
    clone.run(clone.both)
    assert history_complete(clone.gitdir)
    assert sorted(clone.git_offline("log", "--format=%H", "--all").split()) == sorted(
        git("log", "--format=%H", "--all", cwd=hosted.bare).split()
    )
    assert clone.git_offline("cat-file", "-t", "v1") == "tag"
    assert clone.git_offline("rev-list", "--objects", "--all", "--missing=print").count("?") > 10
    assert clone.git("fsck") == ""
    assert clone.git("show", "HEAD:README.md") == git("show", "main:README.md", cwd=hosted.bare)
    clone.git("gc", "--quiet")
    assert clone.git("fsck") == ""


def test_history_is_fetched_once_and_again_after_an_interruption(
    clone: Clone, backend: Backend
) -> None:
    async def body(remote: Remote) -> None:
        await clone.tip(remote)
        before = sorted(os.listdir(clone.gitdir / "artifactfs"))
        backend.cut_after = 600
        with pytest.raises(RemoteUnreachable):
            await clone.history(remote)
        assert not history_complete(clone.gitdir)
        assert len(list((clone.gitdir / "objects/pack").glob("pack-*.idx"))) == 1
        assert sorted(os.listdir(clone.gitdir / "artifactfs")) == before
        backend.cut_after = None
        await clone.history(remote)
        requests = len(backend.seen)
        await clone.history(remote)
        assert len(backend.seen) == requests

    clone.run(body)
    assert len(clone.git_offline("log", "--oneline").splitlines()) == 12


def packed(clone: Clone) -> dict[str, list[str]]:
    """The oids in the packs of the gitdir, in each case with the kinds of the copies."""
    found: dict[str, list[str]] = {}
    for index in (clone.gitdir / "objects/pack").glob("pack-*.idx"):
        for line in git("verify-pack", "-v", str(index), cwd=clone.gitdir).splitlines():
            words = line.split()
            if len(words) >= 5 and len(words[0]) == 40:
                found.setdefault(words[0], []).append(words[1])
    return found


def test_history_comes_in_steps_and_nothing_twice(
    clone: Clone, hosted: Sample, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Commits, then trees in parts; a crash between the steps is right, and repeats none."""
    monkeypatch.setattr("artifactfs.git.remote.history.FIRST_PART", 2)
    clone.run(clone.tip)
    tip = packed(clone)

    class Crash(Exception):
        pass

    class Arriving(ArrivingHistory):
        def commits_are_here(self, *_: object) -> None:
            raise Crash

    async def crash(remote: Remote) -> None:
        arriving = Arriving(clone.gitdir, ObjectDatabase(clone.gitdir), complete=False)
        await fetch_history(clone.layout, clone.settings, remote, arriving=arriving)

    with pytest.raises(Crash):
        clone.run(crash)
    assert not history_complete(clone.gitdir)
    assert sorted(clone.git_offline("log", "--format=%H", "--all").split()) == sorted(
        git("log", "--format=%H", "--all", cwd=hosted.bare).split()
    )
    kinds = {kind for oid, copies in packed(clone).items() if oid not in tip for kind in copies}
    assert kinds <= {"commit", "tag"}
    assert clone.git("fsck", "--no-dangling") == ""
    hosted.commit("since.txt", "new", branch="main")
    hosted.push()
    clone.git("fetch", "-q")  # from the commits that are here, of which the trees are not
    assert clone.git("log", "-1", "--format=%H", "origin/main") == hosted.oid("main").hex()

    clone.run(clone.history)
    assert history_complete(clone.gitdir)
    commits = [oid for oid, copies in packed(clone).items() if set(copies) == {"commit"}]
    assert {len(copies) for oid, copies in packed(clone).items() if oid in commits} <= {1, 2}
    assert [oid for oid in commits if len(packed(clone)[oid]) > 1 and oid not in tip] == []
    listed = clone.git_offline("rev-list", "--objects", "--all", "--filter=blob:none")
    assert len(listed.splitlines()) > len(commits)
    found = clone.git_offline("log", "--format=%H", "--", "README.md")
    trio.run(write_changed_paths, clone.gitdir)
    graph = clone.gitdir / "objects" / "info" / "commit-graph"
    assert b"BIDX" in graph.read_bytes()[:256] and not graph.is_symlink()
    assert clone.git_offline("log", "--format=%H", "--", "README.md") == found
    assert clone.git_offline("commit-graph", "verify") == ""
    written = graph.stat().st_ino
    trio.run(write_changed_paths, clone.gitdir)
    assert graph.stat().st_ino == written
    assert clone.git("fsck", "--no-dangling") == ""


def test_history_goes_on_without_a_branch_that_the_remote_lost(
    clone: Clone, hosted: Sample, backend: Backend
) -> None:
    hosted.commit("only-here.txt", "x", branch="topic/one")
    clone.run(clone.tip)
    git("checkout", "-q", "main", cwd=hosted.work)
    git("branch", "-D", "topic/one", cwd=hosted.work)
    hosted.push()
    git("reflog", "expire", "--expire=now", "--all", cwd=hosted.bare)
    git("gc", "-q", "--prune=now", cwd=hosted.bare)
    clone.run(clone.history)
    assert history_complete(clone.gitdir)
    assert len(clone.git_offline("log", "--oneline", "main").splitlines()) == 12


@pytest.mark.parametrize(
    ("ref", "found", "head"),
    [
        ("topic/one", "refs/heads/topic/one", "refs/heads/topic/one"),
        ("refs/heads/topic/one", "refs/heads/topic/one", "refs/heads/topic/one"),
        ("v1", "refs/tags/v1", None),
        ("light", "refs/tags/light", None),
        ("refs/tags/v1", "refs/tags/v1", None),
        ("COMMIT", None, None),
        ("HEAD", "refs/heads/main", "refs/heads/main"),
        ("refs/changes/1", "refs/changes/1", None),
    ],
)
def test_refs_of_every_kind(
    clone: Clone, hosted: Sample, ref: str, found: str | None, head: str | None
) -> None:
    git("update-ref", "refs/changes/1", "main~2", cwd=hosted.bare)
    rev = "main~5" if ref == "COMMIT" else ref
    expected = git("rev-parse", f"{rev}^{{commit}}", cwd=hosted.bare)
    clone.set(ref=expected if ref == "COMMIT" else ref)
    tip = clone.run(clone.both)
    assert tip.commit.hex() == expected
    assert tip.ref == found
    assert read_head(clone.gitdir).ref == head
    assert clone.git_offline("rev-parse", "HEAD") == expected
    assert clone.git_offline("log", "-1", "--format=%H") == expected
    if head is None:
        assert clone.git_offline("branch", "--show-current") == ""


@pytest.mark.parametrize(
    ("ref", "said"),
    [
        ("no-such-branch", "main, topic/one"),
        ("refs/heads/none", "main"),
        ("12" * 20, ""),
        ("TREE", "is not a commit"),
    ],
)
def test_a_ref_that_is_not_there_leaves_nothing(
    clone: Clone, hosted: Sample, ref: str, said: str
) -> None:
    clone.set(ref=hosted.oid("main^{tree}").hex() if ref == "TREE" else ref)
    with pytest.raises(RemoteNotFound) as caught:
        clone.run(clone.tip)
    assert said in f"{caught.value} {caught.value.hint}"
    assert not clone.gitdir.exists()
    assert leftovers(clone) == []


def test_an_empty_remote(clone: Clone, hosted: Sample) -> None:
    empty = hosted.bare.with_name("empty.git")
    git("init", "-q", "--bare", str(empty), cwd=hosted.work)
    clone.set(remote=str(empty))
    tip = clone.run(clone.tip)
    assert (tip.commit, tip.ref) == (bytes(20), f"refs/heads/{git_default_branch()}")
    assert read_head(clone.gitdir).ref == tip.ref
    clone.set(require_commit=hosted.oid("main").hex(), name="other")
    with pytest.raises(InvalidInput, match="no commits"):
        clone.run(clone.tip)


def git_default_branch() -> str:
    return git("var", "GIT_DEFAULT_BRANCH", cwd=Path("/")).strip()


def test_a_required_commit(clone: Clone, hosted: Sample) -> None:
    clone.set(require_commit=hosted.oid("main~1").hex())
    with pytest.raises(InvalidInput, match=hosted.oid("main").hex()):
        clone.run(clone.tip)
    assert not clone.gitdir.exists()
    clone.set(require_commit=hosted.oid("main").hex())
    assert clone.run(clone.tip).commit == hosted.oid("main")


@pytest.mark.parametrize(("depth", "at_once"), [(1, 100), (3, 100), (3, 2), (50, 100)])
def test_a_depth_makes_a_shallow_clone_of_one_branch(
    clone: Clone, monkeypatch: pytest.MonkeyPatch, depth: int, at_once: int
) -> None:
    monkeypatch.setattr("artifactfs.git.remote.history.MAX_DEPTH_AT_ONCE", at_once)
    monkeypatch.setattr("artifactfs.git.remote.clone.MAX_DEPTH_AT_ONCE", at_once)
    clone.set(depth=depth)
    clone.run(clone.both)
    assert len(clone.git_offline("log", "--oneline").splitlines()) == min(depth, 12)
    assert clone.git_offline("branch", "-r").split() == [
        "origin/HEAD",
        "->",
        "origin/main",
        "origin/main",
    ]
    clone.git("fetch")
    assert len(clone.git_offline("log", "--oneline").splitlines()) == min(depth, 12)


@pytest.mark.parametrize("ref", ["v1", "COMMIT"])
def test_a_depth_at_a_tag_or_commit(clone: Clone, hosted: Sample, ref: str) -> None:
    clone.set(depth=1, ref=hosted.oid("main~3").hex() if ref == "COMMIT" else ref)
    clone.run(clone.both)
    hosted.commit("new.txt", "x")

    async def fetch(remote: Remote) -> int:
        return len((await fetch_refs(clone.layout, clone.settings, remote)).changes)

    assert clone.run(fetch) == 0
    clone.git("fetch")
    assert clone.git_offline("rev-list", "--count", "--all", "HEAD") == "1"
    assert clone.git("fsck", "--no-dangling") == ""


def test_what_a_crash_left_is_removed(clone: Clone) -> None:
    (clone.layout.directory / ".git.0123abcd/objects").mkdir(parents=True)
    clone.run(clone.tip)
    assert leftovers(clone) == []


def test_credentials_in_the_settings_do_not_reach_the_config(
    clone: Clone, backend: Backend
) -> None:
    clone.set(remote=f"http://x:S3CRET@127.0.0.1:{backend.port}/sample.git")
    clone.run(clone.tip)
    assert clone.git("remote", "get-url", "origin") == f"{backend.url}/sample.git"


def test_a_cut_answer_leaves_nothing(clone: Clone, backend: Backend) -> None:
    async def body(remote: Remote) -> None:
        backend.cut_after = 300
        with pytest.raises(RemoteError):
            await clone.tip(remote)
        assert not clone.gitdir.exists()
        assert leftovers(clone) == []
        backend.cut_after = None
        await clone.tip(remote)

    clone.run(body)


@pytest.mark.parametrize("what", ["tip", "refs"])
def test_an_object_that_inflates_without_end_is_given_up(
    clone: Clone, hosted: Sample, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """Its pack is small: 20 KB for a commit's message of 20 MB."""
    monkeypatch.setattr(fetch, "MAX_PIECE", 16 << 20)
    if what == "refs":
        clone.run(clone.tip)
    packs = set(clone.gitdir.glob("objects/pack/*"))
    (hosted.work / "message").write_text("x" * (20 << 20))
    git("commit", "--allow-empty", "-qF", "message", cwd=hosted.work)
    git("push", "-q", "origin", "HEAD:main", cwd=hosted.work)

    async def body(remote: Remote) -> None:
        with pytest.raises(CorruptData, match="an object of more than 16777216 bytes"):
            if what == "tip":
                await clone.tip(remote)
            else:
                await fetch_refs(clone.layout, clone.settings, remote)
        assert set(clone.gitdir.glob("objects/pack/*")) == packs
        assert leftovers(clone) == []

    clone.run(body)


@pytest.mark.parametrize("what", ["tip", "history", "refs", "commit"])
@pytest.mark.parametrize(
    ("version", "message"), [(2, "more than 1000000 bytes"), (9, "pack version 9 unsupported")]
)
def test_a_pack_without_end_is_given_up(
    clone: Clone,
    hosted: Sample,
    backend: Backend,
    monkeypatch: pytest.MonkeyPatch,
    what: str,
    version: int,
    message: str,
) -> None:
    monkeypatch.setattr(fetch, "MAX_HISTORY", 1_000_000)
    monkeypatch.setattr(fetch, "MAX_COMMIT", 1_000_000)
    backend.pack_version = version

    async def body(remote: Remote) -> None:
        if what != "tip":
            await clone.tip(remote)
        packs = set(clone.gitdir.glob("objects/pack/*"))
        ours = sorted(path.name for path in clone.gitdir.glob("artifactfs/*"))
        git("commit", "--allow-empty", "-qm", "new", cwd=hosted.work)
        git("push", "-q", "origin", "HEAD:main", cwd=hosted.work)
        backend.endless = True
        with pytest.raises(CorruptData, match=message):
            match what:
                case "tip":
                    await clone.tip(remote)
                case "history":
                    await clone.history(remote)
                case "refs":
                    await fetch_refs(clone.layout, clone.settings, remote)
                case "commit":
                    await fetch_commit(clone.gitdir, remote, hosted.oid("main"))
        assert await trio.to_thread.run_sync(backend.given_up.wait, 20)
        assert set(clone.gitdir.glob("objects/pack/*")) == packs
        assert leftovers(clone) == []
        assert what == "tip" or sorted(os.listdir(clone.gitdir / "artifactfs")) == ours

    clone.run(body)


def test_one_commit_may_be_fetched_twice_at_once(
    clone: Clone, backend: Backend, hosted: Sample
) -> None:
    async def body(remote: Remote) -> None:
        await clone.tip(remote)
        git("commit", "--allow-empty", "-qm", "new", cwd=hosted.work)
        git("push", "-q", "origin", "HEAD:main", cwd=hosted.work)
        backend.stall = threading.Event()
        async with trio.open_nursery() as nursery:
            for _ in range(2):
                nursery.start_soon(fetch_commit, clone.gitdir, remote, hosted.oid("main"))
            for _ in range(2):
                await trio.to_thread.run_sync(backend.stalled.acquire)
            backend.stall.set()
        assert ObjectDatabase(clone.gitdir).contains(hosted.oid("main"))
        assert leftovers(clone) == []

    clone.run(body)


def test_a_pack_for_which_there_is_no_room_is_given_up(
    clone: Clone, backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a remote without filters, which may send blobs of any size."""
    monkeypatch.setattr(fetch, "SHARE_OF_DISK", 0.0)

    async def body(remote: Remote) -> None:
        with pytest.raises(CorruptData, match="there is no room for more"):
            await clone.tip(remote)
        assert leftovers(clone) == []

    clone.run(body)


def test_fetch_follows_branches_and_adds_tags(
    clone: Clone, hosted: Sample, backend: Backend
) -> None:
    clone.run(clone.both)
    old = hosted.oid("main")
    new = hosted.commit("new.txt", "x")
    git("tag", "-a", "-m", "two", "v2", cwd=hosted.work)
    git("tag", "-f", "light", "main", cwd=hosted.work)
    git("branch", "topic/two", cwd=hosted.work)
    git("branch", "-D", "topic/one", cwd=hosted.work)
    git("branch", "topic/one/below", cwd=hosted.work)
    git("push", "-q", "--force", "--prune", "origin", "+refs/*:refs/*", cwd=hosted.work)

    async def fetch(remote: Remote) -> dict[str, tuple[bytes | None, bytes | None]]:
        result = await fetch_refs(clone.layout, clone.settings, remote)
        return {change.name: (change.old, change.new) for change in result.changes}

    topic = read_refs(clone.gitdir)["refs/remotes/origin/topic/one"]
    assert clone.run(fetch) == {
        "refs/remotes/origin/main": (old, new),
        "refs/remotes/origin/topic/one": (topic, None),
        "refs/remotes/origin/topic/one/below": (None, new),
        "refs/remotes/origin/topic/two": (None, new),
        "refs/tags/v2": (None, hosted.oid("v2")),
    }
    assert clone.git_offline("rev-parse", "main", "light") == "\n".join(
        [old.hex(), git("rev-parse", "main~8", cwd=hosted.bare)]
    )
    assert clone.git_offline("log", "--oneline", "main..origin/main").count("\n") == 0
    assert clone.git_offline("cat-file", "-t", "v2") == "tag"
    assert clone.git("fsck") == ""
    seen = len(backend.seen)
    assert clone.run(fetch) == {}
    assert backend.commands()[seen:].count("fetch") == 0


def test_fetch_before_the_history_is_here(clone: Clone, hosted: Sample) -> None:
    async def body(remote: Remote) -> None:
        await clone.tip(remote)
        new = hosted.commit("new.txt", "x")
        hosted.commit("other.txt", "y", branch="topic/one")
        await fetch_refs(clone.layout, clone.settings, remote)
        assert read_refs(clone.gitdir)["refs/remotes/origin/main"] == new
        await clone.history(remote)

    clone.run(body)
    assert sorted(clone.git_offline("log", "--format=%H", "--all").split()) == sorted(
        git("log", "--format=%H", "--all", cwd=hosted.bare).split()
    )
    assert clone.git("fsck") == ""


def test_fetch_with_a_depth_stays_shallow(clone: Clone, hosted: Sample) -> None:
    clone.set(depth=2)
    clone.run(clone.both)
    new = hosted.commit("new.txt", "x")

    async def fetch(remote: Remote) -> int:
        return len((await fetch_refs(clone.layout, clone.settings, remote)).changes)

    assert clone.run(fetch) == 1
    assert clone.git_offline("rev-parse", "origin/main") == new.hex()
    assert len(clone.git_offline("log", "--oneline", "origin/main").splitlines()) == 3


def test_git_itself_fetches_and_pushes_with_the_stored_token(
    clone: Clone, hosted: Sample, backend: Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A helper of the user that holds another token for the host does not come first."""
    wrong = tmp_path / "gitconfig"
    wrong.write_text('[credential]\n\thelper = "!f() { echo username=x; echo password=no; }; f"\n')
    token = "art_v1_0123456789abcdef0123456789abcdef01234567?expires=1"
    file = CredentialFile(clone.layout.credentials)
    file.set(clone.settings.remote, "x", token)
    backend.accept = {f"x:{token}"}
    clone.run(clone.both)
    stored = clone.layout.credentials.read_bytes()
    hosted.commit("new.txt", "x")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(wrong))
    clone.git("fetch")
    assert clone.layout.credentials.read_bytes() == stored
    assert token.partition("?")[0] not in "".join(
        path.read_text(errors="replace") for path in clone.gitdir.rglob("*") if path.is_file()
    )


def test_set_remote_tells_git_where_the_new_token_is(
    clone: Clone, backend: Backend, hosted: Sample
) -> None:
    clone.run(clone.both)
    backend.accept = {"x:new"}
    CredentialFile(clone.layout.credentials).set(backend.url, "x", "new")
    hosted.bare.rename(hosted.bare.with_name("moved.git"))
    url = f"{backend.url}/moved.git"
    trio.run(store_remote, clone.layout, clone.settings, url, None)
    clone.git("fetch")
    assert clone.git("remote", "get-url", "origin") == url


def test_a_server_without_filters_works(clone: Clone, hosted: Sample) -> None:
    git("config", "--unset", "uploadpack.allowFilter", cwd=hosted.bare)
    clone.run(clone.both)
    assert len(clone.git_offline("log", "--oneline", "-p").splitlines()) > 100
    assert clone.git("fsck") == ""


def test_a_dumb_server_works(clone: Clone, hosted: Sample) -> None:
    git("update-server-info", cwd=hosted.bare)
    with static_server(hosted.bare.parent) as url:
        clone.set(remote=f"{url}/sample.git")
        tip = clone.run(clone.both)
    assert tip.commit == hosted.oid("main")
    assert len(clone.git_offline("log", "--oneline", "-p").splitlines()) > 100
    assert clone.git_offline("fsck") == ""


def test_names_that_a_server_must_not_send_are_left_out(clone: Clone, hosted: Sample) -> None:
    packed = hosted.bare / "packed-refs"
    git("pack-refs", "--all", cwd=hosted.bare)
    lines = packed.read_text().splitlines()
    oid = hosted.oid("main").hex()
    packed.write_text("\n".join([lines[0], f"{oid} refs/heads/a..b", *lines[1:]]) + "\n")
    clone.run(clone.tip)
    assert all(".." not in name for name in read_refs(clone.gitdir))


OUTSIDE = "refs/heads/../../../../outside"


@pytest.mark.parametrize(
    ("named", "names", "ref"),
    [
        (True, ["refs/heads/main", OUTSIDE], "refs/heads/main"),
        (True, [OUTSIDE], None),
        (False, [OUTSIDE], None),
    ],
)
def test_a_head_that_a_server_must_not_send_is_passed_over(
    clone: Clone,
    hosted: Sample,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    named: bool,
    names: list[str],
    ref: str | None,
) -> None:
    """It would lead out of the repository, to a file of whoever mounts it."""
    said_by_an_evil_server(monkeypatch, hosted, OUTSIDE if named else None, names)
    tip = clone.run(clone.tip)
    assert not list(tmp_path.rglob("outside"))
    assert (tip.ref, read_head(clone.gitdir).ref) == (ref, ref)


def test_a_branch_that_a_server_must_not_have_is_not_there(
    clone: Clone, hosted: Sample, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said_by_an_evil_server(monkeypatch, hosted, "refs/heads/main", ["refs/heads/main", OUTSIDE])
    for name in (OUTSIDE, OUTSIDE.removeprefix("refs/heads/")):
        clone.set(ref=name)
        with pytest.raises(RemoteNotFound):
            clone.run(clone.tip)
    assert not clone.gitdir.exists() and not list(tmp_path.rglob("outside"))


def said_by_an_evil_server(
    monkeypatch: pytest.MonkeyPatch, hosted: Sample, head: str | None, names: list[str]
) -> None:
    oid = hosted.oid("main")
    said = RefAdvertisement(head, {"HEAD": oid, **dict.fromkeys(names, oid)})

    async def ls_refs(_remote: Remote, _prefixes: Sequence[str] = ()) -> RefAdvertisement:
        return said

    monkeypatch.setattr(Remote, "ls_refs", ls_refs)
