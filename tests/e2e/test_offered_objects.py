"""Git commands in a mount where no content is: what they download, and who fetches it."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.delay_proxy import DelayProxy
from tests.e2e.odd_repository import OddRepository
from tests.e2e.processes import IMPATIENCE_S, DaemonProcess, ServedRepository, wait_until
from tests.fs.mounting import ROOT


@pytest.fixture
def ready(mounted: Path, daemon: DaemonProcess) -> Path:
    """The mount with its index and all of history; no content but what git reads always."""
    (mounted / ".git" / "HEAD").read_bytes()
    daemon.wait_for("odd", "history")
    return mounted


class Traced:
    """A git command, what it printed, and how many fetches it began."""

    def __init__(self, mount: Path, *arguments: str, cwd: str = "") -> None:
        trace = mount.parent.parent / f"trace-{len(os.listdir(mount.parent.parent))}"
        done = subprocess.run(
            ["git", *arguments],
            cwd=mount / cwd,
            capture_output=True,
            text=True,
            errors="replace",
            env={**os.environ, "GIT_TRACE2_EVENT": str(trace), "PWD": str(mount / cwd)},
        )
        self.status, self.output, self.errors = done.returncode, done.stdout, done.stderr
        self.fetches = len(re.findall(r'"fetch_count"', trace.read_text()))


def blobs_wanted(
    proxy: DelayProxy, first: int, repository: OddRepository, tree: str = "main"
) -> set[str]:
    """The paths of the tree whose blobs were asked for since request number `first`."""
    paths = {oid: path for path, oid in repository.blobs(tree).items()}
    wanted = {oid for request in proxy.requests[first:] for oid in request.wants}
    return {paths[oid] for oid in wanted & paths.keys()}


def test_a_commit_downloads_nothing(
    ready: Path, proxy: DelayProxy, odd_repository: OddRepository
) -> None:
    (ready / "new.txt").write_text("new\n")
    first = len(proxy.requests)
    for arguments in (
        ("add", "new.txt"),
        ("commit", "-qm", "one"),
        ("stash", "list"),
        ("switch", "-qc", "other"),
        ("commit", "-q", "--amend", "--allow-empty", "-m", "two"),
        ("reset", "-q", "--hard", "HEAD"),
        ("merge", "-q", "main"),
        ("write-tree",),
    ):
        done = Traced(ready, *arguments)
        assert (done.status, done.fetches) == (0, 0), (arguments, done.errors)
    assert not blobs_wanted(proxy, first, odd_repository)
    assert Traced(ready, "status", "--porcelain").output == ""


def test_a_commit_right_after_a_switch_downloads_nothing(
    ready: Path, daemon: DaemonProcess, proxy: DelayProxy, odd_repository: OddRepository
) -> None:
    daemon.run("remount", "--name", "odd", "--writes", "fuse")  # else git itself switches
    daemon.run("switch", "--name", "odd", "--detach", "v1")
    index = daemon.state / "repos" / "odd" / "git" / "index"
    files = [path for path in ready.rglob("*") if ".git" not in path.relative_to(ready).parts]
    switched = max(int(path.lstat().st_mtime) for path in files)
    # Before that git reads what changed: it may be as new as the index.
    wait_until(lambda: index.stat().st_mtime >= switched + 1, "an index of the next second")
    first = len(proxy.requests)
    (ready / "new.txt").write_text("new\n")
    assert Traced(ready, "add", "new.txt").fetches == 0
    done = Traced(ready, "commit", "-qm", "one")
    assert (done.status, done.fetches, done.errors) == (0, 0, "")
    wanted = blobs_wanted(proxy, first, odd_repository, tree="v1")
    assert not {path for path in wanted if not path.startswith(".git")}
    assert Traced(ready, "cat-file", "blob", "v1:README.md").fetches == 0


def test_git_reads_through_the_mount(
    ready: Path, proxy: DelayProxy, odd_repository: OddRepository
) -> None:
    for path, oid in sorted(odd_repository.blobs().items())[:40]:
        done = Traced(ready, "cat-file", "blob", oid)
        assert (done.status, done.fetches) == (0, 0), (path, done.errors)
    first = len(proxy.requests)
    done = Traced(ready, "grep", "-c", "", "HEAD", "--", ":!assets")
    assert (done.status, done.fetches) == (0, 0), done.errors
    assert len(proxy.requests) - first < 25  # not one for each of 350 files


def test_what_is_in_memory_alone_is_brought_for_git(
    ready: Path, daemon: DaemonProcess, odd_repository: OddRepository
) -> None:
    """Read before, its pack evicted since: git cannot read it from the mount's memory."""
    for path in odd_repository.blobs():
        if not (ready / path).is_symlink():
            (ready / path).read_bytes()
    daemon.run("evict-cache", "--max-bytes", "0")
    before = daemon.status("odd")["hydration"]["requests"]
    done = Traced(ready, "archive", "--format=tar", "--output=/dev/null", "HEAD")
    assert (done.status, done.fetches) == (0, 0), done.errors
    assert daemon.status("odd")["hydration"]["requests"] - before < 40


def test_what_checks_sees_only_what_is_here(
    ready: Path, proxy: DelayProxy, odd_repository: OddRepository
) -> None:
    first = len(proxy.requests)
    Traced(ready, "write-tree")  # the kernel knows the names by now
    for arguments in (
        ("fsck", "--no-dangling"),
        ("gc", "-q"),
        ("repack", "-adq"),
        ("count-objects", "-v"),
        ("cat-file", "--batch-all-objects", "--batch-check"),
    ):
        done = Traced(ready, *arguments)
        assert (done.status, done.fetches) == (0, 0), (arguments, done.errors)
        assert odd_repository.oid("assets/big.bin") not in done.output
    missing = Traced(ready, "rev-list", "--objects", "--missing=print", "HEAD").output
    assert f"?{odd_repository.oid('assets/big.bin')}" in missing
    assert not blobs_wanted(proxy, first, odd_repository)


def offered_by(daemon: DaemonProcess, url: str, without: str) -> str:
    """Mounts `url` with the feature `without` switched off, and waits for its index and history:
    the directory of the objects that git is offered."""
    daemon.extra_environment["ARTIFACT_FS_DISABLE"] = without
    daemon.start()
    mount = daemon.add_repo("odd", url)
    daemon.wait_for("odd", "history")
    daemon.wait_for("odd", "index")
    return (mount / ".git/artifactfs/offered/info/alternates").read_text().strip()


def import_bare(bare: Path, stream: str) -> None:
    """A bare repository of what git-fast-import(1) makes of `stream`."""
    subprocess.run(["git", "init", "-q", "--bare", "-b", "main", bare], check=True)
    importing = ["git", "-C", str(bare), "fast-import", "--quiet"]
    subprocess.run(importing, input=stream, text=True, check=True)


LOOKS = """
import os
places = open(os.environ["PLACES"]).read().split()
print(sum(os.path.lexists(place) for place in places), flush=True)
rest = os.environ["NEXT"].split()
if rest:
    os.environ["NEXT"] = " ".join(rest[1:])
    os.execv(os.environ["PYTHON"], rest[0].split(":"))
"""
"""A program that looks for objects, and then becomes another one."""


@pytest.mark.parametrize("without", ["", "offered-lookups"])
def test_who_looks_decides_each_time(
    idle_daemon: DaemonProcess,
    odd_repository: OddRepository,
    remote_repo: Callable[..., ServedRepository],
    without: str,
) -> None:
    """Whatever the same process was a moment ago, and whoever else looks meanwhile."""
    daemon = idle_daemon
    objects = offered_by(daemon, remote_repo().url, without)
    oids = set(odd_repository.blobs().values())
    scripts = daemon.directory / "scripts"
    scripts.mkdir()
    (scripts / "places").write_text("\n".join(f"{objects}/{oid[:2]}/{oid[2:]}" for oid in oids))
    for name in ("commit", "fetch"):
        (scripts / name).write_text(LOOKS)
    commands = ["git:commit", "git:fetch", "git:commit", "reader:commit", "git:commit"]
    environment = {
        **os.environ,
        "PLACES": "places",
        "NEXT": " ".join(commands[1:]),
        "PYTHON": sys.executable,
    }

    def look() -> subprocess.Popen[str]:
        return subprocess.Popen(
            commands[0].split(":"),
            executable=sys.executable,
            cwd=scripts,
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
        )

    for process in [look() for _ in range(3)]:
        printed, _ = process.communicate(timeout=60)
        assert [int(seen) for seen in printed.split()] == [len(oids), 0, len(oids), 0, len(oids)]
    found = daemon.status("odd")
    assert found["features"]["offered-lookups"]["on"] <= (not without)
    # Of each object, its folder and its name, whoever answers.
    assert found["kernel"]["requests"]["lookup"] >= 3 * 5 * 2 * len(oids) * 0.9


LISTS = """
import os
from tests.getdents import names_in
objects = os.environ["OBJECTS"]
for number in range(256):
    folder = f"{number:02x}"
    for name in names_in(f"{objects}/{folder}", 1000):
        if name not in (".", ".."):
            print(folder + name)
"""


@pytest.mark.parametrize("without", ["", "offered-lookups"])
def test_folders_of_many_objects_are_listed(
    tmp_path: Path,
    idle_daemon: DaemonProcess,
    remote_repo: Callable[..., ServedRepository],
    without: str,
) -> None:
    """Of so many that the kernel has to ask more than once for a folder, in the smallest steps."""
    texts = [f"content {number}\n" for number in range(16_000)]
    entries = (f"M 100644 inline {n % 100}/{n}\ndata {len(t)}\n{t}" for n, t in enumerate(texts))
    head = "commit refs/heads/main\ncommitter A <a@example.org> 1700000000 +0000\ndata 0\n"
    bare = tmp_path / "bare.git"
    import_bare(bare, head + "\n".join(entries))
    objects = offered_by(idle_daemon, remote_repo(bare).url, without)
    blobs = (b"blob %d\0%s" % (len(text), text.encode()) for text in texts)
    expected = sorted(hashlib.sha1(blob).hexdigest() for blob in blobs)
    for name, seen in ("commit", expected), ("fsck", []), ("commit", expected):
        done = subprocess.run(
            ["git", name],
            executable=sys.executable,
            cwd=_scripts(tmp_path, name, LISTS),
            env={**os.environ, "OBJECTS": objects, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert sorted(done.stdout.split()) == seen, done.stderr


def _scripts(directory: Path, name: str, program: str) -> Path:
    """A folder with a file `name`, which Python runs where it is called as ``git NAME``."""
    folder = directory / "scripts"
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(program)
    return folder


def test_adding_what_the_remote_has_makes_an_object_of_our_own(ready: Path) -> None:
    content = (ready / "LICENSE").read_bytes()
    (ready / "copy").write_bytes(content)
    assert Traced(ready, "add", "copy").status == 0
    assert Traced(ready, "commit", "-qm", "copy").status == 0
    assert Traced(ready, "show", "HEAD:copy").output == content.decode()


@pytest.mark.long
def test_git_says_what_is_wrong_when_the_remote_is_down(
    ready: Path, proxy: DelayProxy, odd_repository: OddRepository
) -> None:
    (ready / "new.txt").write_text("new\n")
    proxy.refuse()
    assert Traced(ready, "add", "new.txt").status == 0
    assert Traced(ready, "commit", "-qm", "offline").status == 0
    done = Traced(ready, "cat-file", "blob", odd_repository.oid("src/hello.c"))
    assert done.status != 0
    assert "promisor remote" in done.errors
    proxy.accept()
    done = Traced(ready, "cat-file", "blob", odd_repository.oid("src/hello.c"))
    assert done.status == 0, done.errors


def test_nothing_is_left_where_there_is_no_mount(
    ready: Path, daemon: DaemonProcess, proxy: DelayProxy
) -> None:
    gitdir = daemon.state / "repos" / "odd" / "git"
    offered = gitdir / "artifactfs/offered/info/alternates"
    assert offered.exists()
    daemon.kill()
    daemon.run("daemon", "stop")  # what it has left
    assert not offered.exists()
    done = subprocess.run(
        ["git", "--git-dir", gitdir, "log", "-1", "--format=%s"], capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    daemon.start()
    wait_until(lambda: os.path.ismount(ready), "the mount")
    (ready / "new.txt").write_text("new\n")
    assert Traced(ready, "add", "new.txt").fetches == 0
    done = Traced(ready, "commit", "-qm", "one")
    assert (done.status, done.fetches, done.errors) == (0, 0, "")


def make_versions(work: Path, count: int) -> None:
    """Commits that each change a line of two files."""
    lines = [f"line {number}" for number in range(count)]
    (work / "sub").mkdir()
    for number in range(count):
        lines[number] = f"changed in {number}"
        for path in ("sub/long.txt", "other.txt"):
            (work / path).write_text("\n".join(lines) + f"\n{path}\n")
        subprocess.run(["git", "add", "-A"], cwd=work, check=True)
        subprocess.run(["git", "commit", "-qm", f"Change {number}"], cwd=work, check=True)


@pytest.fixture
def versions(
    tmp_path: Path,
    daemon: DaemonProcess,
    proxy: DelayProxy,
    remote_repo: Callable[..., ServedRepository],
) -> Path:
    """A mount of a repository in which two files have 40 versions, with its history."""
    work, bare = tmp_path / "work", tmp_path / "bare.git"
    work.mkdir()
    subprocess.run(["git", "init", "-qb", "main"], cwd=work, check=True)
    make_versions(work, 40)
    subprocess.run(["git", "clone", "-q", "--bare", work, bare], check=True)
    mount = daemon.add_repo("odd", proxy.url(remote_repo(bare).url))
    (mount / ".git" / "HEAD").read_bytes()  # waits for the index
    daemon.wait_for("odd", "history")
    daemon.wait_for("odd", "sizes")
    return mount


FILES = 900


@pytest.fixture
def two_releases(
    tmp_path: Path,
    daemon: DaemonProcess,
    proxy: DelayProxy,
    remote_repo: Callable[..., ServedRepository],
) -> Path:
    """A mount of `main`, with its history and without contents. Every third file, all over the
    tree, is another one than in `v1`."""
    bare = tmp_path / "bare.git"
    stream = []
    for number, name in enumerate(("v1", "v2")):
        stream.append(
            "commit refs/heads/main\ncommitter A <a@example.org> 1700000000 +0000\n"
            f"data {len(name)}\n{name}\n"
        )
        for file in range(FILES):
            if number == 0 or file % 3 == 0:
                text = f"{name} {file}\n"
                path = f"{file % 30}/{file}"
                stream.append(f"M 100644 inline {path}\ndata {len(text)}\n{text}\n")
        stream.append(f"reset refs/tags/{name}\nfrom refs/heads/main\n")
    import_bare(bare, "".join(stream))
    url = proxy.url(remote_repo(bare).url)
    mount = daemon.add_repo("odd", url, "--deadline", str(IMPATIENCE_S))
    (mount / ".git" / "HEAD").read_bytes()  # waits for the index
    daemon.wait_for("odd", "history")
    return mount


@pytest.mark.parametrize("outage", ["stall", "refuse"])
def test_what_is_written_while_the_remote_is_away(
    two_releases: Path, proxy: DelayProxy, monkeypatch: pytest.MonkeyPatch, outage: str
) -> None:
    """Nobody waits for ever, git says what is wrong, and does it when the remote is back."""
    assert Traced(two_releases, "checkout", "-q", "v1").status == 0
    getattr(proxy, outage)()
    with monkeypatch.context() as patch:
        patch.setenv("GIT_HTTP_LOW_SPEED_LIMIT", "1")  # else git itself waits for ever
        patch.setenv("GIT_HTTP_LOW_SPEED_TIME", "1")
        done = Traced(two_releases, "checkout", "-q", "main")
    assert done.status != 0
    assert "could not fetch" in done.errors or "unable to read" in done.errors, done.errors
    proxy.resume() if outage == "stall" else proxy.accept()
    wait_until(lambda: Traced(two_releases, "checkout", "-qf", "main").status == 0, "the remote")
    assert (two_releases / "0/0").read_text() == "v2 0\n"
    assert Traced(two_releases, "status", "--porcelain").output == ""


def test_git_says_that_the_remote_is_away_before_it_writes(
    two_releases: Path, proxy: DelayProxy
) -> None:
    proxy.refuse()
    done = Traced(two_releases, "checkout", "-q", "v1")
    assert done.status != 0
    assert "could not fetch" in done.errors, done.errors
    assert Traced(two_releases, "status", "--porcelain").output == ""
    proxy.accept()
    wait_until(lambda: Traced(two_releases, "checkout", "-q", "v1").status == 0, "the remote")
    assert (two_releases / "0/0").read_text() == "v1 0\n"


@pytest.mark.parametrize(
    "back",
    [
        ("checkout", "-q", "main"),
        ("checkout", "-q", "-"),
        ("checkout", "-q", "main", "--"),
        ("switch", "-q", "main"),
        ("reset", "-q", "--hard", "v2"),
        ("merge", "-q", "main"),
        ("rebase", "-q", "main"),
        ("-c", "checkout.workers=4", "-c", "checkout.thresholdForParallelism=1", "checkout", "v2"),
    ],
    ids=" ".join,
)
def test_what_is_written_comes_in_one_batch(
    two_releases: Path, proxy: DelayProxy, back: tuple[str, ...]
) -> None:
    """Also what the mount offers git all the time, of which git only opens one after the other."""
    mount = two_releases
    for arguments, name in (("checkout", "-q", "v1"), "v1"), (back, "v2"):
        first = len(proxy.requests)
        done = Traced(mount, *arguments)
        assert (done.status, done.fetches) == (0, 0), done.errors
        asked = [request.wants for request in proxy.requests[first:] if request.wants]
        assert len(set().union(*asked)) == FILES // 3
        assert len(asked) <= 4
        for file in range(FILES):
            expected = f"{name if file % 3 == 0 else 'v1'} {file}\n"
            if file % 3 == 0 or file < 30:
                assert (mount / f"{file % 30}/{file}").read_text() == expected
    assert Traced(mount, "status", "--porcelain").output == ""


def test_a_log_of_names_brings_no_contents(
    versions: Path, daemon: DaemonProcess, proxy: DelayProxy
) -> None:
    daemon.wait_for("odd", "hydrated")  # what comes in the background is not git's
    first = len(proxy.requests)
    for arguments in (
        ("log", "--oneline", "--", "sub/long.txt"),
        ("log", "--name-status", "-n", "30"),
        ("log", "--format=%h %s", "--raw", "sub"),
    ):
        done = Traced(versions, *arguments)
        assert (done.status, done.fetches) == (0, 0), done.errors
        assert len(done.output.splitlines()) >= 30
    assert len(proxy.requests) == first


@pytest.mark.parametrize(
    ("arguments", "cwd"),
    [
        (("blame", "sub/long.txt"), ""),
        (("blame", "-L1,30", "HEAD", "--", "long.txt"), "sub"),
        (("log", "-p", "--", "sub/long.txt"), ""),
        (("log", "-p", "-L1,20:sub/long.txt"), ""),
        (("log", "--stat", "sub"), ""),
        (("log", "-p", "-n", "30"), ""),
        (("-c", "alias.x=log -p", "log", "-p", "-G", "changed in"), ""),
    ],
)
def test_old_versions_come_in_one_batch(
    versions: Path, proxy: DelayProxy, arguments: tuple[str, ...], cwd: str
) -> None:
    first = len(proxy.requests)
    done = Traced(versions, *arguments, cwd=cwd)
    assert done.status == 0, done.errors
    assert "changed in" in done.output or "long.txt" in done.output
    fetched = [request for request in proxy.requests[first:] if request.wants]
    assert len(fetched) <= 3
    assert done.fetches <= 1
    # All came at once: the same again asks for nothing.
    first = len(proxy.requests)
    again = Traced(versions, *arguments, cwd=cwd)
    assert (again.output, again.fetches) == (done.output, 0)
    assert len(proxy.requests) == first
