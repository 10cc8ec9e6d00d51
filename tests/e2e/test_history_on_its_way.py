"""Git right after the mount: what needs history waits for it, and nothing else does.

`ARTIFACT_FS_TEST_GITS` names the folders of further gits (``/opt/git-2.47/bin:…``).
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from artifactfs.daemon.background.old_versions import ALONE
from benchmarks.fast_import import FILE, FastImport
from tests.e2e.delay_proxy import DelayProxy, Request
from tests.e2e.processes import DaemonProcess, ServedRepository, wait_until

COMMITS = 120
GITS = ["", *filter(None, os.environ.get("ARTIFACT_FS_TEST_GITS", "").split(":"))]
DEADLINE = 200.0


def make_history(path: Path, commits: int, every: int = 20) -> None:
    """Commits on one branch; some have an annotated tag and a branch of their own."""
    text = [f"line {number}" for number in range(60)]
    with FastImport(path) as stream:
        for number in range(commits):
            text[number % 60] = f"changed in {number}"
            lines = stream.blob("\n".join(text).encode())
            other = stream.blob(b"%d\n" % number)
            files = {b"src/lines.txt": (FILE, lines), b"d%d/f" % (number % 9): (FILE, other)}
            stream.commit(f"Change {number}", files)
    for back in range(10, commits, every):
        commit = f"main~{back}"
        run = ["git", "-C", str(path)]
        subprocess.run([*run, "tag", "-am", "release", f"v{back}", commit], check=True)
        tree = [*run, "commit-tree", "-p", commit, "-m", f"topic {back}", f"{commit}^{{tree}}"]
        topic = subprocess.run(tree, check=True, capture_output=True, text=True).stdout.strip()
        subprocess.run([*run, "branch", f"topic-{back}", topic], check=True)


@pytest.fixture(scope="module")
def history(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("history") / "history.git"
    make_history(path, COMMITS)
    return path


@pytest.fixture(params=GITS, ids=lambda folder: folder or "installed")
def shell(request: pytest.FixtureRequest) -> Shell:
    return Shell(request.param)


class Shell:
    """Runs command lines with one of the gits."""

    def __init__(self, folder: str) -> None:
        self.environment = dict(os.environ)
        if folder:
            self.environment["PATH"] = f"{folder}:{os.environ['PATH']}"

    def start(self, line: str, directory: Path) -> subprocess.Popen[str]:
        return subprocess.Popen(
            ["sh", "-c", line],
            cwd=directory,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, line: str, directory: Path) -> tuple[int, str]:
        """Exit code and output."""
        process = self.start(line, directory)
        return result(process)


def result(process: subprocess.Popen[str]) -> tuple[int, str]:
    output, errors = process.communicate(timeout=DEADLINE)
    return process.returncode, output if process.returncode == 0 else output + errors


def is_history(request: Request) -> bool:
    """Whether a request is for history, not for the tip or for blobs."""
    return b"filter " in request.text and b"deepen" not in request.text


@pytest.fixture
def early(
    history: Path,
    daemon: DaemonProcess,
    proxy: DelayProxy,
    remote_repo: Callable[..., ServedRepository],
) -> Iterator[Path]:
    """A mount whose history does not come until `proxy.release`."""
    proxy.hold(is_history)
    mount = daemon.add_repo("early", proxy.url(remote_repo(history).url), "--deadline", "10m")
    (mount / ".git" / "HEAD").read_bytes()  # waits for the index
    wait_until(lambda: any(map(is_history, proxy.requests)), "the fetch of history")
    try:
        yield mount
    finally:
        proxy.release()


READING = (
    "git log --format=%H",
    "git log --format=%s -- d3/f",
    "git branch -avv --no-abbrev | grep -v HEAD",
    "git status -sb; git rev-parse HEAD~50",
    "git blame -s --abbrev=40 src/lines.txt",
    "git describe; git name-rev --name-only HEAD~12",
    "git merge-base HEAD origin/topic-50; git rev-list --count origin/topic-30...HEAD",
    "git show -s {old}",
    "git show -s --format=%H {short}",
    "echo {old} | git cat-file --batch",
    "git show --format=%H --stat HEAD~3",
    "git for-each-ref --format='%(refname) %(*objecttype)' refs/tags",
    "git rev-list HEAD | git diff-tree --stdin --name-only -r | tail",
    "git fsck --no-dangling 2>&1; git gc -q",
    "git bundle create -q - HEAD~3..main 2>/dev/null | wc -c | xargs test 100 -lt",
)
WRITING = (
    "git checkout -q HEAD~30; cat src/lines.txt; git status --short; git switch -q topic-50",
    "git switch -qc w origin/topic-10; git rebase -q main; git log --format=%s -3; git diff main",
    "echo x > new; git add new; git commit -qm new; git status -sb; git stash list",
    "git bisect start -q HEAD HEAD~20 >/dev/null; git rev-parse HEAD; git bisect reset -q",
    "git revert --no-edit HEAD >/dev/null; git rev-parse HEAD^ HEAD^{{tree}}",
    "git merge -q -s ours -m merged origin/topic-70; git log --format=%s -2; git fetch -q",
    "git cherry-pick origin/topic-30 >/dev/null 2>&1; git status --short; git reset -q --hard",
)


def filled(line: str, history: Path) -> str:
    old = subprocess.run(
        ["git", "-C", history, "rev-parse", "main~77"], check=True, capture_output=True, text=True
    ).stdout.strip()
    return line.format(old=old, short=old[:9])


def test_what_reads_history_waits_for_it(
    early: Path, proxy: DelayProxy, shell: Shell, history: Path, tmp_path: Path
) -> None:
    subprocess.run(["git", "clone", "-q", history, tmp_path / "full"], check=True)
    lines = [filled(line, history) for line in READING]
    running = [shell.start(line, early) for line in lines]
    proxy.release()
    for line, process in zip(lines, running, strict=True):
        assert result(process) == shell.run(line, tmp_path / "full"), line
    commits = subprocess.run(
        ["git", "-C", history, "rev-list", "--all"], check=True, capture_output=True, text=True
    ).stdout.split()

    asked = [request for request in proxy.requests if not set(commits).isdisjoint(request.wants)]
    assert len(asked) == 1


@pytest.mark.parametrize(
    "line", [*WRITING[:2], *(pytest.param(line, marks=pytest.mark.long) for line in WRITING[2:])]
)
def test_what_changes_the_tree_waits_for_history(
    early: Path, proxy: DelayProxy, shell: Shell, history: Path, tmp_path: Path, line: str
) -> None:
    line = filled(line, history)
    subprocess.run(["git", "clone", "-q", history, tmp_path / "full"], check=True)
    process = shell.start(line, early)
    proxy.release()
    assert result(process) == shell.run(line, tmp_path / "full")


@pytest.mark.parametrize("when", ["at once", "with history"])
def test_a_checkout_is_brought_in_one_batch_and_git_fetches_nothing(
    early: Path, proxy: DelayProxy, daemon: DaemonProcess, shell: Shell, history: Path, when: str
) -> None:
    if when == "with history":
        proxy.release()
        daemon.wait_for("early", "history")
    moves = ["git checkout -q HEAD~30", "git reset -q --hard HEAD~9", "git switch -q topic-50"]
    process = shell.start(" && ".join(moves), early)
    proxy.release()
    assert result(process) == (0, "")
    assert shell.run("git status --short; git rev-parse HEAD", early)[1] == (
        subprocess.run(
            ["git", "-C", history, "rev-parse", "topic-50"],
            check=True,
            capture_output=True,
            text=True,
        ).stdout
    )
    assert not [request for request in proxy.requests if b"agent=git/2" in request.text]


def test_blame_at_once_waits_for_history_before_it_fetches_many_versions(
    early: Path, proxy: DelayProxy, shell: Shell, history: Path, tmp_path: Path
) -> None:
    subprocess.run(["git", "clone", "-q", history, tmp_path / "full"], check=True)
    line = "git blame -s --abbrev=40 src/lines.txt"
    process = shell.start(line, early)
    proxy.release()
    assert result(process) == shell.run(line, tmp_path / "full")
    assert len([r for r in proxy.requests if b"agent=git/2" in r.text]) <= ALONE


def test_what_needs_no_history_does_not_wait(
    early: Path, daemon: DaemonProcess, shell: Shell
) -> None:
    for line in (
        "echo new > new; git add new; git status --short",
        "git commit -qm new; git rev-parse HEAD^",
        "echo other | git hash-object -w --stdin",
        "echo y >> d1/f; git diff HEAD -- d1 | tail -1; git ls-files | wc -l",
        "git write-tree; git commit-tree -m x -p HEAD HEAD^{tree}",
        "git branch other; git switch -q other; git tag t; git tag -am t t2",
        "git cat-file -p HEAD | wc -l; git show HEAD:d1/f; git rev-parse HEAD^{tree}",
        "git count-objects; git pack-refs",
        "git cat-file -t $(git rev-parse --short HEAD)",
    ):
        status, output = shell.run(line, early)
        assert status == 0 and "rror" not in output, (line, output)
        assert not daemon.told("early")["history_complete"], line
    assert not [r for r in daemon.log_records() if r.get("job") == "history"], "it has failed"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_who_waits_for_history_can_be_stopped(
    early: Path, shell: Shell, number: signal.Signals
) -> None:
    process = shell.start("exec git log --format=%H", early)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(1.0)
    process.send_signal(number)
    assert process.wait(60) == -number


def test_the_wait_ends_with_the_fetch(
    early: Path, proxy: DelayProxy, daemon: DaemonProcess, shell: Shell
) -> None:
    process = shell.start("git log --format=%s", early)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(1.0)
    proxy.refuse()
    status, output = result(process)
    assert status != 0, output
    # Nobody waits for a remote that is down; git says itself what is missing.
    assert shell.run("git log --format=%s", early)[0] != 0
    assert shell.run("git cat-file -t HEAD", early) == (0, "commit\n")
    proxy.release()
    proxy.accept()
    daemon.wait_for("early", "history")
    assert shell.run("git rev-list --count HEAD", early) == (0, f"{COMMITS}\n")


def test_libgit2_waits_for_history_too(early: Path, proxy: DelayProxy) -> None:
    program = """
import pygit2, sys
pygit2.settings.set_extensions(["partialclone"])  # else it opens no partial clone
repository = pygit2.Repository(sys.argv[1])
print(sum(1 for _ in repository.walk(repository.head.target)))
print(repository.ahead_behind(repository.head.target, repository.revparse_single("HEAD~7").id))
"""
    process = subprocess.Popen(
        [sys.executable, "-c", program, early], stdout=subprocess.PIPE, text=True
    )
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(1.0)
    proxy.release()
    assert result(process) == (0, f"{COMMITS}\n(7, 0)\n")


def test_the_daemon_does_not_wait_for_itself(
    early: Path, daemon: DaemonProcess, shell: Shell
) -> None:
    """A commit of ours: `remove-repo` looks for its like with git, in the gitdir of the mount."""
    assert shell.run("git commit -q --allow-empty -m mine", early)[0] == 0
    waiting = shell.start("exec git log --format=%H", early)
    with pytest.raises(subprocess.TimeoutExpired):
        waiting.wait(1.0)
    done = daemon.run("remove-repo", "--name", "early", check=False, timeout=120)
    assert done.returncode != 0 and "commit" in done.stdout + done.stderr
    assert daemon.status("early")["state"] == "mounted"
    waiting.kill()
    waiting.wait()


MOMENTS = 20
MANY_COMMITS = 5_200
SLOW = 250_000
"""Bytes per second of each connection: the history takes some five seconds."""
AT_A_MOMENT = (
    "git log --format=%H",
    "git status -sb; git rev-parse HEAD~40",
    "git branch -avv --no-abbrev | grep -v HEAD",
    "git blame -s --abbrev=40 src/lines.txt",
    "git switch -qc w origin/topic-10 && git rebase -q main && git rev-parse HEAD^{tree}"
    " && git log --format=%s -3 && git status --short",
)


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_git_is_right_at_every_moment_of_the_start(
    tmp_path: Path,
    daemon: DaemonProcess,
    proxy: DelayProxy,
    remote_repo: Callable[..., ServedRepository],
    shell: Shell,
) -> None:
    make_history(tmp_path / "many.git", MANY_COMMITS, every=500)
    subprocess.run(["git", "clone", "-q", tmp_path / "many.git", tmp_path / "full"], check=True)
    expected = [shell.run(line, tmp_path / "full") for line in AT_A_MOMENT]
    assert {status for status, _ in expected} == {0}
    url = proxy.url(remote_repo(tmp_path / "many.git").url)
    proxy.rtt, proxy.bandwidth = 0.05, SLOW
    early = 0
    for moment in range(MOMENTS):
        # Git in one mount reads while git in the other rebases.
        mounts = [daemon.add_repo(f"{use}-{moment}", url) for use in ("read", "write")]
        time.sleep(moment * 0.4)
        early += not daemon.status(f"read-{moment}")["history_complete"]
        where = [mounts[0]] * (len(AT_A_MOMENT) - 1) + [mounts[1]]
        running = [shell.start(*pair) for pair in zip(AT_A_MOMENT, where, strict=True)]
        for line, process, right in zip(AT_A_MOMENT, running, expected, strict=True):
            assert result(process) == right, (moment, line)
        for use in ("read", "write"):
            daemon.run("remove-repo", "--name", f"{use}-{moment}", "--force")
    assert early >= MOMENTS // 4, "the link was too fast to say anything"
