"""Who waits for history that is on its way, and for what it waits itself."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio
import trio.testing

from artifactfs.errors import RemoteUnreachable
from artifactfs.git.objects.database import ObjectDatabase, Oid
from artifactfs.git.remote.arriving import MOST_ALONE, OF_GIT_S, ArrivingHistory, RootTrees
from tests.git.sample_repository import git


@pytest.fixture
def gitdir(tmp_path: Path) -> Path:
    git("init", "-q", "--bare", "arriving.git", cwd=tmp_path)
    return tmp_path / "arriving.git"


def arriving_at(gitdir: Path) -> ArrivingHistory:
    return ArrivingHistory(gitdir, ObjectDatabase(gitdir), complete=False)


def oid(number: int) -> Oid:
    return number.to_bytes(20, "big")


def run(test: object, gitdir: Path) -> None:
    trio.run(test, gitdir, clock=trio.testing.MockClock(autojump_threshold=0.01))  # type: ignore[arg-type]


def test_it_gives_way_to_what_git_fetches_unless_somebody_waits_for_it(gitdir: Path) -> None:
    async def body(gitdir: Path) -> None:
        history = arriving_at(gitdir)
        give_way = history.unless_awaited(None)
        started = trio.current_time()
        await give_way(10.0)
        assert trio.current_time() == started
        history.note_fetch()
        await give_way(10.0)
        assert OF_GIT_S <= trio.current_time() - started < OF_GIT_S + 1
        history.note_fetch()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(history.until_here, oid(1))
            await trio.testing.wait_all_tasks_blocked()
            assert history.is_awaited
            started = trio.current_time()
            await give_way(10.0)
            assert trio.current_time() == started
            history.fail()
        assert not history.on_its_way

    run(body, gitdir)


def test_only_expected_trees_are_waited_for_and_some_are_fetched_alone(gitdir: Path) -> None:
    fetched: list[Oid] = []

    async def fetch(tree: Oid) -> None:
        fetched.append(tree)
        raise RemoteUnreachable("down")

    async def body(gitdir: Path) -> None:
        history = arriving_at(gitdir)
        roots = RootTrees(b"".join(map(oid, range(500, 0, -1))))
        assert oid(1) in roots and oid(500) in roots and oid(501) not in roots
        history.roots_are_known(roots, fetch)
        history.expect([oid(7)])
        await history.until_here(oid(900))  # a blob, say
        await history.until_resolvable("0123")
        for number in range(100, 100 + MOST_ALONE):
            await history.until_here(oid(number))
        assert len(fetched) == MOST_ALONE
        async with trio.open_nursery() as nursery:
            for waiting in (oid(7), oid(300)):
                nursery.start_soon(history.until_here, waiting)
            await trio.testing.wait_all_tasks_blocked()
            assert history.is_awaited
            history.note_packs()
            await trio.testing.wait_all_tasks_blocked()
            assert history.is_awaited
            history.finish()
        assert len(fetched) == MOST_ALONE

    run(body, gitdir)


def test_two_who_need_one_tree_fetch_it_once(gitdir: Path) -> None:
    fetched: list[Oid] = []

    async def fetch(tree: Oid) -> None:
        fetched.append(tree)
        await trio.sleep(1.0)

    async def body(gitdir: Path) -> None:
        history = arriving_at(gitdir)
        history.roots_are_known(RootTrees(oid(1) + oid(2)), fetch)
        started = trio.current_time()
        async with trio.open_nursery() as nursery:
            for tree in (oid(1), oid(1), oid(2)):
                nursery.start_soon(history.until_here, tree)
        assert trio.current_time() - started >= 1.0
        assert sorted(fetched) == [oid(1), oid(2)]
        fetched.clear()
        async with trio.open_nursery() as nursery, trio.open_nursery() as first:
            first.start_soon(history.until_here, oid(1))
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(history.until_here, oid(1))
            await trio.testing.wait_all_tasks_blocked()
            first.cancel_scope.cancel()
        assert fetched == [oid(1), oid(1)]  # the second does not lose it with the first

    run(body, gitdir)


def test_who_needs_one_tree_waits_for_no_pack(gitdir: Path) -> None:
    fetched: list[Oid] = []

    async def fetch(tree: Oid) -> None:
        fetched.append(tree)

    async def body(gitdir: Path) -> None:
        history = arriving_at(gitdir)
        named: list[bool] = []

        async def ask(tree: Oid) -> None:
            named.append(await history.names(tree, tree=True))

        assert not await history.names(oid(7), tree=True)  # commits are not here: no wait
        history.commits_are_here()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask, oid(7))
            nursery.start_soon(ask, oid(900))
            await trio.testing.wait_all_tasks_blocked()
            assert named == []
            history.roots_are_known(RootTrees(oid(7)), fetch)
        assert sorted(named) == [False, True]
        assert history.is_root(oid(7)) and not history.is_root(oid(900))
        history.expect([oid(7)])
        await history.until_here(oid(7), alone=True)
        assert fetched == [oid(7)]
        history.finish()

    run(body, gitdir)
