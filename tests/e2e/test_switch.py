"""`artifact-fs switch` on a mount, beside `git switch` in a plain clone."""

from __future__ import annotations

import os
import random
import shutil
import signal
import sqlite3
import subprocess
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest

from benchmarks.fast_import import quiet_git_environment, run_git
from tests.e2e.comparison import tree
from tests.e2e.processes import PROGRAMS, DaemonProcess, ServedRepository, wait_until


@pytest.fixture(scope="module")
def history(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bare repository whose tags t0 … t4 differ in every way that trees can."""
    work = tmp_path_factory.mktemp("switch") / "work"
    rng = random.Random(7)
    run_git("init", "-q", "-b", "main", work)
    for number in range(300):
        path = work / f"d{number % 13}" / f"e{number % 5}" / f"file{number}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{number}\n" * rng.randrange(1, 40))
    (work / ".gitignore").write_text("*.o\nbuild/\n")
    (work / "README").write_text("readme\n")
    (work / "link").symlink_to("README")
    for step in range(5):
        change_everything(work, step, rng)
        run_git("-C", work, "add", "-A")
        run_git("-C", work, "commit", "-q", "-m", f"Step {step}")
        run_git("-C", work, "tag", "-a", "-m", "tag", f"t{step}")
    run_git("-C", work, "branch", "topic", "t1")
    run_git("-C", work, "branch", "other", "t3")
    bare = work.parent / "bare.git"
    run_git("clone", "-q", "--bare", work, bare)
    return bare


def change_everything(work: Path, step: int, rng: random.Random) -> None:
    files = sorted(path for path in work.glob("d*/**/*.txt"))
    for path in rng.sample(files, 40):
        path.write_text(f"step {step}\n" * rng.randrange(1, 40))
    for path in rng.sample(files, 10):
        path.unlink()
    for path in rng.sample([path for path in files if path.exists()], 5):
        path.chmod(path.stat().st_mode ^ 0o111)
    (work / f"new{step}" / "deep" / "er").mkdir(parents=True)
    for number in range(5):
        (work / f"new{step}" / "deep" / "er" / f"f{number}").write_text(f"{step} {number}\n")
    if step:
        shutil.rmtree(work / f"new{step - 1}")
    kinds = work / "kind"
    if kinds.is_symlink() or kinds.is_file():
        kinds.unlink()
    elif kinds.is_dir():
        shutil.rmtree(kinds)
    if step % 3 == 0:
        kinds.write_text("a file\n")
    elif step % 3 == 1:
        (kinds / "below").mkdir(parents=True)
        (kinds / "below" / "file").write_text("in a directory\n")
    else:
        kinds.symlink_to("README")
    if step == 2:
        (work / ".gitignore").write_text("*.o\nbuild/\n*.tmp\n")


@dataclass(slots=True)
class Sides:
    """The mount `ours` and the plain clone `plain`, which are to look the same."""

    daemon: DaemonProcess
    ours: Path
    plain: Path

    def git(self, top: Path, *arguments: str, check: bool = False) -> str:
        done = subprocess.run(
            ["git", "-C", str(top), *arguments],
            env=quiet_git_environment() | {"LC_ALL": "C.UTF-8"},
            capture_output=True,
            text=True,
            timeout=60,
            check=check,
        )
        return done.stdout + (done.stderr if done.returncode else "")

    def switch(self, *arguments: str) -> None:
        """Both, by the ways they have. Raises: AssertionError unless both do or refuse."""
        is_branch = "--create" in arguments or arguments[-1] in (
            "main",
            "topic",
            "other",
            "mine",
            "-",
        )
        plain = [] if is_branch else ["--detach"]
        theirs = subprocess.run(
            ["git", "-C", str(self.plain), "switch", "-q", *plain, *arguments],
            env=quiet_git_environment(),
            capture_output=True,
            text=True,
        )
        ours = self.daemon.run("switch", "--name", "work", *arguments, check=False)
        assert (ours.returncode == 0) == (theirs.returncode == 0), (ours.stderr, theirs.stderr)
        if theirs.returncode:
            first = theirs.stderr.splitlines()[0]
            assert first.removeprefix("error: ").removeprefix("fatal: ") in ours.stderr
        else:
            moved = ("reflog", "-1", "--format=%H %gs")
            assert self.git(self.ours, *moved) == self.git(self.plain, *moved)

    def both(self, change: Callable[[Path], object]) -> None:
        for top in (self.plain, self.ours):
            change(top)

    def assert_same(self) -> None:
        for arguments in (
            ("status", "--porcelain=v2", "--branch"),
            ("ls-files", "-s"),
            ("rev-parse", "--abbrev-ref", "HEAD"),
        ):
            expected = self.git(self.plain, *arguments)
            assert self.git(self.ours, *arguments) == expected, arguments
        assert tree(self.ours) == tree(self.plain)

    def downloaded(self) -> int:
        return int(self.daemon.status("work")["hydration"]["blobs_received"])


@pytest.fixture
def sides(
    tmp_path: Path,
    daemon: DaemonProcess,
    remote_repo: Callable[..., ServedRepository],
    history: Path,
) -> Sides:
    url = remote_repo(history).url
    run_git("clone", "-q", url, tmp_path / "plain")
    ours = daemon.add_repo("work", url, "--writes", "fuse")
    daemon.wait_for("work", "index")
    wait_until(lambda: is_idle(daemon), "what is fetched unasked at first")
    return Sides(daemon, ours, tmp_path / "plain")


def is_idle(daemon: DaemonProcess) -> bool:
    hydration = daemon.told("work")["hydration"]
    return not hydration["in_flight"] and not any(hydration["queue"].values())


def test_there_and_back_without_any_content(sides: Sides) -> None:
    before = sides.downloaded()
    for target in ("t3", "t0", "topic", "main", "-", "t2", "other", "main"):
        sides.switch(target)
        assert sides.git(sides.ours, "ls-files", "-s") == sides.git(sides.plain, "ls-files", "-s")
    assert sides.downloaded() == before
    for target in ("t3", "t0", "main"):
        sides.switch(target)
        status = ("status", "--porcelain=v2", "--branch")
        assert sides.git(sides.ours, *status) == sides.git(sides.plain, *status), target
    assert sides.downloaded() - before < 10, "git status reads .gitignore, and its siblings come"
    sides.assert_same()
    everything = ("-c", "core.fsmonitor=false", "-c", "core.untrackedCache=false")
    assert sides.git(sides.ours, *everything, "status", "--porcelain") == ""
    sides.git(sides.ours, "fsck", "--connectivity-only", check=True)


def test_a_switch_to_a_branch_that_was_there_asks_the_remote_for_nothing(sides: Sides) -> None:
    """Sizes of what branches and tags have are learnt when the history is here."""
    tips = ("t0", "t1", "t2", "t3", "t4", "main")  # a request each, in the background
    listed = [sides.git(sides.plain, "ls-tree", "-r", tip, check=True) for tip in tips]
    wanted = {bytes.fromhex(line.split()[2]) for tree in listed for line in tree.splitlines()}

    def known() -> bool:
        with closing(sqlite3.connect(sides.daemon.state / "cache" / "sizes.db")) as database:
            return wanted <= {oid for (oid,) in database.execute("SELECT oid FROM sizes")}

    sides.daemon.wait_for("work", "hydrated")
    wait_until(known, "the sizes of all tips")
    sides.daemon.wait_for("work", "sizes")
    before = sides.daemon.status("work")["hydration"]["requests"]
    sides.switch("t2")
    assert sides.daemon.status("work")["hydration"]["requests"] == before
    sides.assert_same()


def test_trees_are_the_same_after_each_switch(sides: Sides) -> None:
    for target in ("t0", "t4", "t1", "t3", "t2", "main"):
        sides.switch(target)
        sides.assert_same()
        written = sides.git(sides.ours, "write-tree").strip()
        assert written == sides.git(sides.ours, "rev-parse", "HEAD^{tree}").strip()


def test_git_sees_what_is_changed_right_after_a_switch(sides: Sides) -> None:
    sides.switch("t1")
    changed = sides.git(sides.ours, "diff", "--name-only", "t0", "t1").split()[0]
    for number in range(3):
        sides.switch("t0" if number % 2 else "t2")
        sides.switch("t1")

        def change(top: Path) -> None:
            path = top / changed
            if path.is_file():
                path.write_bytes(path.read_bytes()[::-1])  # same size, same second
            (top / "new1" / "deep" / "untracked").write_text("u\n")
            (top / "new1" / "ignored.o").write_text("o\n")

        sides.both(change)
        sides.assert_same()
        sides.both(lambda top: (top / "new1" / "deep" / "untracked").unlink())
        sides.both(lambda top: (top / "new1" / "ignored.o").unlink())
        sides.both(lambda top: sides.git(top, "checkout", "-q", "--", "."))
        sides.assert_same()


def test_local_changes_stay_or_refuse(sides: Sides) -> None:
    differs = sides.git(sides.ours, "diff", "--name-only", "--diff-filter=M", "t4", "t3").split()
    same = [
        path
        for path in sides.git(sides.ours, "ls-tree", "-r", "--name-only", "t4").split()
        if path not in sides.git(sides.ours, "diff", "--name-only", "t4", "t3").split()
        and path.endswith(".txt")
    ]
    sides.both(lambda top: (top / same[0]).write_text("kept\n"))
    sides.both(lambda top: (top / same[1]).unlink())
    sides.both(lambda top: (top / "untracked").write_text("u\n"))
    sides.switch("t3")
    sides.assert_same()
    sides.switch("main")
    sides.assert_same()
    sides.both(lambda top: (top / differs[0]).write_text("in the way\n"))
    sides.switch("t3")
    sides.assert_same()
    sides.both(lambda top: sides.git(top, "add", differs[0]))
    sides.switch("t3")
    sides.assert_same()
    sides.both(lambda top: sides.git(top, "reset", "-q", "--hard"))
    sides.both(lambda top: (top / "staged").write_text("s\n"))
    sides.both(lambda top: sides.git(top, "add", "staged"))
    sides.switch("t3")
    sides.assert_same()


def test_untracked_files_in_the_way_refuse(sides: Sides) -> None:
    sides.both(lambda top: (top / "new3").mkdir())
    sides.both(lambda top: (top / "new3" / "deep").write_text("mine\n"))
    sides.switch("t3")
    sides.assert_same()
    assert (sides.ours / "new3" / "deep").read_text() == "mine\n"


def test_commits_of_ones_own_and_back(sides: Sides) -> None:
    env = {"GIT_AUTHOR_DATE": "1700000000 +0000", "GIT_COMMITTER_DATE": "1700000000 +0000"}
    sides.switch("--create", "mine")
    for number in range(3):

        def commit(top: Path, number: int = number) -> None:
            (top / "README").write_text(f"mine {number}\n")
            (top / "made" / str(number)).mkdir(parents=True)
            (top / "made" / str(number) / "file").write_text(f"{number}\n")
            sides.git(top, "add", "-A")
            subprocess.run(
                ["git", "-C", str(top), "commit", "-qm", f"Mine {number}"],
                env=quiet_git_environment() | env,
                check=True,
            )

        sides.both(commit)
        sides.switch("main")
        sides.assert_same()
        sides.switch("topic")
        sides.assert_same()
        sides.switch("mine")
        sides.assert_same()


def test_a_branch_that_was_just_pushed(sides: Sides) -> None:
    (sides.plain / "README").write_text("pushed\n")
    sides.git(sides.plain, "switch", "-q", "-c", "fresh", check=True)
    sides.git(sides.plain, "commit", "-qam", "Fresh", check=True)
    sides.git(sides.plain, "push", "-q", "-u", "origin", "fresh", check=True)
    sides.daemon.run("switch", "--name", "work", "fresh")
    assert (sides.ours / "README").read_text() == "pushed\n"
    status = sides.git(sides.ours, "status", "-sb")
    assert status == "## fresh...origin/fresh\n"


def test_a_name_that_is_nothing(sides: Sides) -> None:
    done = sides.daemon.run("switch", "--name", "work", "nonesuch", check=False)
    assert done.returncode == 2
    assert "invalid reference: nonesuch" in done.stderr


def test_the_hook_runs_in_the_tree_whoever_switches(sides: Sides) -> None:
    """We, or git where the index holds what only git moves right: both in the user's process."""
    gitdir = Path(sides.git(sides.ours, "rev-parse", "--absolute-git-dir", check=True).strip())
    before = sides.git(sides.ours, "rev-parse", "HEAD", check=True).strip()
    hook = gitdir / "hooks" / "post-checkout"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text('#!/bin/sh\ntest -e README && echo "$@" >hook.o\n')
    hook.chmod(0o755)
    sides.daemon.run("switch", "--name", "work", "topic")
    after = sides.git(sides.ours, "rev-parse", "HEAD", check=True).strip()
    assert (sides.ours / "hook.o").read_text() == f"{before} {after} 1\n"
    (sides.ours / "hook.o").unlink()
    sides.git(sides.ours, "update-index", "--assume-unchanged", "README", check=True)
    answer = sides.daemon.json("switch", "--name", "work", "other")
    assert (answer["ref"], "left_to_git" in answer) == ("other", False)
    assert (sides.ours / "hook.o").read_text().startswith(f"{after} {answer['commit']}")
    failing = hook.read_text() + "echo no >&2; exit 3\n"
    hook.write_text(failing)
    sides.git(sides.ours, "update-index", "--no-assume-unchanged", "README", check=True)
    switched = sides.daemon.run("switch", "--name", "work", "topic")
    assert "post-checkout: no" in switched.stderr


def test_a_merge_that_is_not_finished_refuses(sides: Sides) -> None:
    (sides.ours / "README").write_text("ours\n")
    sides.git(sides.ours, "commit", "-qam", "Ours", check=True)
    sides.git(sides.ours, "switch", "-q", "-c", "theirs", "HEAD~1", check=True)
    (sides.ours / "README").write_text("theirs\n")
    sides.git(sides.ours, "commit", "-qam", "Theirs", check=True)
    sides.git(sides.ours, "merge", "main")
    done = sides.daemon.run("switch", "--name", "work", "t1", check=False)
    assert done.returncode == 1
    assert "cannot switch branch while merging" in done.stderr


@pytest.mark.timeout(480)
@pytest.mark.parametrize("seed", range(2))
def test_killed_in_the_middle(sides: Sides, seed: int) -> None:
    rng = random.Random(seed)
    commits = {
        target: sides.git(sides.ours, "rev-parse", f"{target}^{{commit}}").strip()
        for target in ("main", "t0", "t2")
    }
    for target in ("t0", "t2", "main"):
        switching = subprocess.Popen(
            [PROGRAMS / "artifact-fs", "switch", "--name", "work", target],
            env=sides.daemon.environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        worker = sides.daemon.worker(sides.ours)
        time.sleep(rng.uniform(0.05, 0.35))
        os.kill(worker, signal.SIGKILL)
        switching.wait(60)
        wait_until(lambda: sides.daemon.status("work")["state"] == "mounted", "mounted again")
        assert sides.git(sides.ours, "status", "--porcelain") == ""
        head = sides.git(sides.ours, "rev-parse", "HEAD").strip()
        assert head in commits.values()
        assert not (sides.daemon.state / "repos/work/git/index.lock").exists()
        sides.daemon.run("switch", "--name", "work", target)
        assert sides.git(sides.ours, "rev-parse", "HEAD").strip() == commits[target]
        sides.git(sides.plain, "switch", "-q", "--detach", commits[target])
        assert tree(sides.ours) == tree(sides.plain)


def push(sides: Sides, path: str, text: str) -> str:
    """Commit and push from the plain clone; the commit."""
    (sides.plain / path).write_text(text)
    sides.git(sides.plain, "add", path, check=True)
    sides.git(sides.plain, "commit", "-qm", text, check=True)
    sides.git(sides.plain, "push", "-q", check=True)
    return sides.git(sides.plain, "rev-parse", "HEAD").strip()


def test_follows_its_remote_branch(
    tmp_path: Path,
    daemon: DaemonProcess,
    remote_repo: Callable[..., ServedRepository],
    history: Path,
) -> None:
    url = remote_repo(history).url
    run_git("clone", "-q", url, tmp_path / "plain")
    ours = daemon.add_repo("work", url, "--follow", "main", "--refresh", "never")
    sides = Sides(daemon, ours, tmp_path / "plain")
    pushed = push(sides, "README", "one")
    daemon.run("fetch", "--name", "work")
    assert sides.git(ours, "rev-parse", "HEAD").strip() == pushed
    assert (ours / "README").read_text() == "one"
    assert sides.git(ours, "status", "-sb") == "## main...origin/main\n"
    (ours / "untracked").write_text("u")
    pushed = push(sides, "README", "two")
    daemon.run("fetch", "--name", "work")
    assert sides.git(ours, "rev-parse", "HEAD").strip() == pushed
    (ours / "link").unlink()
    push(sides, "README", "three")
    daemon.run("fetch", "--name", "work")
    assert (ours / "README").read_text() == "two"
    assert sides.git(ours, "status", "-s") == " D link\n?? untracked\n"
    sides.git(ours, "checkout", "-q", "--", "link", check=True)
    daemon.run("fetch", "--name", "work")
    assert (ours / "README").read_text() == "three"
