"""Every kind of file of a used state root, damaged in every way.

What programs read is right or EIO, the other repository is untouched, and where anything cannot be
had, log, ``status`` and ``doctor`` name the repository and the file. A kind of file that has no
case here fails `test_every_kind_of_file_has_a_case`.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import random
import re
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from benchmarks.fast_import import FILE, FastImport
from tests.e2e.mount_table import clear_mounts, descendants
from tests.e2e.processes import ArtifactsProcess, DaemonProcess, ServedRepository, wait_until

PAGE = 4096

# Kinds of files, by the first pattern that fits the path below the state root. What is said to be
# `of one` is damaged in repository a; the rest is shared.
KINDS = {
    "registry": r"registry\.db",
    "lock": r"(daemon|.*/worker)\.lock|cache/objects/(store|consolidate)\.lock"
    r"|repos/./redirects/lock",
    "socket": r"control\.sock",
    "mount root": r"mount-root",
    "sizes": r"cache/sizes\.db",
    "sizes, wal": r"cache/sizes\.db-(wal|shm)",
    "sweep": r"cache/sweeps/.*",
    "cache, pack": r"cache/objects/pack/.*\.pack",
    "cache, index of a pack": r"cache/objects/pack/.*\.idx",
    "cache, mark of a pack": r"cache/objects/pack/.*\.promisor",
    "large blob": r"cache/blobs/../[0-9a-f]{38}",
    "checksums of a large blob": r"cache/blobs/../.*\.sums",
    "large blob that is being unpacked": r"cache/blobs/tmp-.*",
    "HEAD": r"repos/./git/HEAD",
    "config": r"repos/./git/config",
    "packed refs": r"repos/./git/packed-refs",
    "ref": r"repos/./git/refs/.*",
    "index": r"repos/./git/index",
    "gitdir, pack": r"repos/./git/objects/pack/.*\.pack",
    "gitdir, index of a pack": r"repos/./git/objects/pack/.*\.(idx|rev)",
    "gitdir, mark of a pack": r"repos/./git/objects/pack/.*\.promisor",
    "loose object": r"repos/./git/objects/../.{38}",
    "alternates": r"repos/./git/objects/info/alternates",
    "offered objects": r"repos/./git/artifactfs/.*",
    "reflog": r"repos/./git/logs/.*",
    "commit graph": r"repos/./git/objects/info/commit-graph(s/.*)?",
    "git's own": r"repos/./git/(info/.*|description|hooks/.*|COMMIT_EDITMSG|FETCH_HEAD|ORIG_HEAD"
    r"|objects/info/.*|artifactfs.*|shallow)",
    "overlay": r"repos/./overlay\.db",
    "overlay, wal": r"repos/./overlay\.db-(wal|shm)",
    "log of changes": r"repos/./overlay\.db-changes-\d+",
    "what was synced": r"repos/./overlay\.db-synced",
    "checksums of the overlay": r"repos/./overlay\.db-sums",
    "reserve": r"repos/./reserve",
    "upper file": r"repos/./upper/../\d+",
    "segment": r"repos/./small/\d+",
    "credentials": r"repos/./credentials",
    "environment of git": r"repos/./git-(environment|settings)",
    "conversion": r"repos/./conversion\.json",
    "attributes": r"repos/./attributes/[0-9a-f]{40}",
    "converted": r"repos/./converted/[0-9a-f]{64}",
    "checksums of a converted file": r"repos/./converted/.*\.sums",
    "listings": r"repos/./listings",
    "last fetch": r"repos/./(last-)?fetch.*\.json",
    "redirects": r"repos/./redirects/list\.json",
    "redirected data": r"repos/./redirects/data/.*",
}


def kind_of(path: str) -> str | None:
    return next((kind for kind, pattern in KINDS.items() if re.fullmatch(pattern, path)), None)


def overwrite(path: Path, at: int, content: bytes) -> None:
    """As a disk does it: the times of the file stay."""
    before = path.stat()
    with path.open("r+b") as file:
        file.seek(at)
        file.write(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def flip(path: Path) -> None:
    at = path.stat().st_size * 2 // 3
    if path.stat().st_size:
        overwrite(path, at, bytes([path.read_bytes()[at] ^ 4]))


def zero(path: Path) -> None:
    size = path.stat().st_size
    at = max(0, (size // 2) // PAGE * PAGE)
    overwrite(path, at, bytes(min(PAGE, size - at)))


WAYS: dict[str, Callable[[Path], None]] = {
    "missing": lambda path: path.unlink(),
    "empty": lambda path: os.truncate(path, 0),
    "cut": lambda path: os.truncate(path, path.stat().st_size * 2 // 3),
    "one bit": flip,
    "zeroed page": zero,
}


@dataclass
class Used:
    """A state root that two repositories were used in, and what their trees hold."""

    daemon: DaemonProcess
    ended: Path
    """As the daemon left it when it ended."""
    killed: Path
    """The same after one more start, and the death of every process."""
    contents: dict[str, bytes]
    git_status: str

    def restore(self, template: Path) -> None:
        shutil.rmtree(self.daemon.state, ignore_errors=True)
        subprocess.run(["cp", "-a", template, self.daemon.state], check=True)
        self.daemon.log.unlink(missing_ok=True)

    def end(self) -> None:
        if self.daemon.process is not None and self.daemon.process.poll() is None:
            self.daemon.stop()
        clear_mounts(self.daemon.directory)

    def of_kind(self, kind: str) -> tuple[Path, list[str]]:
        """A state root that has files of that kind, and these; those of one are of a."""
        for template in (self.ended, self.killed):
            of_kind = [path for path in files_of(template) if kind_of(path) == kind]
            found = [path for path in of_kind if not path.startswith("repos/b/")]
            if found:
                return template, found
        return self.ended, []


def files_of(template: Path) -> list[str]:
    return sorted(
        str(path.relative_to(template))
        for path in template.rglob("*")
        if path.is_file() and not path.is_symlink()
    )


LARGE = os.urandom(3 << 20)
SOURCE = {
    b".gitattributes": b"*.bat text eol=crlf\n*.rot filter=rot13\n",
    b"run.bat": b"one\ntwo\n",
    b"secret.rot": b"Hello\n" * 1000,
    b"large.bin": LARGE,
    b"README": b"hello\n",
    **{b"d%d/f%02d.txt" % (n % 5, n): b"%d\n" % n * (n + 1) for n in range(60)},
}


@pytest.fixture(scope="module")
def used(
    artifacts_server: ArtifactsProcess, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Used]:
    base = tmp_path_factory.mktemp("damage")
    source = base / "source.git"
    with FastImport(source) as stream:
        files = {name: (FILE, stream.blob(content)) for name, content in SOURCE.items()}
        stream.commit("One\n", files)
    config = base / "gitconfig"
    rot13 = "tr 'A-Za-z' 'N-ZA-Mn-za-m'"
    config.write_text(f'[filter "rot13"]\n\tsmudge = "{rot13}"\n\tclean = "{rot13}"\n')
    daemon = DaemonProcess()
    daemon.extra_environment["GIT_CONFIG_GLOBAL"] = str(config)
    setting = {"COUNT": "1", "KEY_0": "protocol.version", "VALUE_0": "2"}
    daemon.extra_environment |= {f"GIT_CONFIG_{key}": value for key, value in setting.items()}
    try:
        daemon.start()
        contents = {}
        for name in ("a", "b"):
            remote = artifacts_server.create(f"damage-{name}-{os.getpid()}", source)
            mount = daemon.add_repo(name, remote.url, "--hydrate", "all", "--writes", "fuse")
            for state in ("history", "index", "hydrated"):
                daemon.wait_for(name, state)
            contents = use(daemon, name, mount)
        wait_until(lambda: settled(daemon), "settled")
        daemon.run("fetch", "--name", "a")
        status = git_status(daemon)
        daemon.stop()
        ended, killed = base / "ended", base / "killed"
        subprocess.run(["cp", "-a", daemon.state, ended], check=True)
        daemon.start()
        for name in ("a", "b"):
            write(daemon.mounts / name / "new-small", b"small\n" * 50)
        kill_all(daemon)
        subprocess.run(["cp", "-a", daemon.state, killed], check=True)
        yield Used(daemon, ended, killed, contents, status)
    finally:
        daemon.clean_up()
        shutil.rmtree(daemon.directory, ignore_errors=True)


def use(daemon: DaemonProcess, name: str, mount: Path) -> dict[str, bytes]:
    """Do what people do; returns what the tree holds then."""
    contents = {os.fsdecode(path): content for path, content in SOURCE.items()}
    contents["run.bat"] = b"one\r\ntwo\r\n"
    contents["secret.rot"] = b"Uryyb\n" * 1000
    for path, content in contents.items():
        assert (mount / path).read_bytes() == content
    written = {"README": b"changed\n", "new-small": b"small\n" * 50, "new-large": LARGE[:200_000]}
    for path, content in written.items():
        write(mount / path, content)
    git(daemon, name, "add", "README")
    git(daemon, name, "commit", "-qm", "Two")
    git(daemon, name, "pack-refs", "--all")
    git(daemon, name, "branch", "other")
    daemon.run("redirect", "add", "--name", name, "build")
    os.rename(mount / "d0", mount / "moved")
    os.remove(mount / "d1/f01.txt")
    del contents["d1/f01.txt"]
    moved = {path.replace("d0/", "moved/"): content for path, content in contents.items()}
    return moved | written


def write(path: Path, content: bytes) -> None:
    with open(path, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def settled(daemon: DaemonProcess) -> bool:
    """Large blobs have their names."""
    return bool(list((daemon.state / "cache/blobs").rglob("*.sums")))


def git(daemon: DaemonProcess, name: str, *arguments: str) -> str:
    done = subprocess.run(
        ["git", "-C", daemon.mounts / name, *arguments],
        env=daemon.environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    return done.stdout + done.stderr


def git_status(daemon: DaemonProcess) -> str:
    return git(daemon, "b", "status", "--porcelain")


def kill_all(daemon: DaemonProcess) -> None:
    children = descendants(daemon.pid)
    daemon.kill()
    for child in children:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
    wait_until(lambda: not daemon.orphans(), "the workers are gone")
    clear_mounts(daemon.directory)


def test_every_kind_of_file_has_a_case(used: Used) -> None:
    files = {*files_of(used.ended), *files_of(used.killed)}
    kinds = {path: kind_of(path) for path in files}
    assert not [path for path, kind in kinds.items() if kind is None]
    assert len(set(kinds.values())) > 25


def look(used: Used, name: str) -> list[str]:
    """The paths of which nothing can be had; everything else is right."""
    top = used.daemon.mounts / name
    failed = []
    names: set[str] = set()
    for folder, folders, files in os.walk(top, onerror=lambda error: failed.append(eio(error))):
        here = os.path.relpath(folder, top)
        folders[:] = [one for one in folders if one != ".git"]
        names |= {os.path.normpath(os.path.join(here, one)) for one in files if one != ".git"}
    for path, content in used.contents.items():
        try:
            if (top / path).read_bytes() != content:  # what a lost change of the log has left
                assert path == "new-small"
                assert used.daemon.status(name)["damage"]
        except OSError as error:
            failed.append(eio(error))
    if not failed:
        assert names == set(used.contents)
    folders_of = {path.rpartition("/")[0] for path in used.contents}
    assert names <= {*used.contents, *folders_of}  # those that nothing is known of count as files
    return failed


def eio(error: OSError) -> str:
    assert error.errno == errno.EIO, error
    return str(error.filename)


def check(used: Used, kind: str, files: list[Path]) -> str:
    """Everything that is promised; returns in a word what became of repository a."""
    daemon = used.daemon
    shared = any(not str(file).startswith(f"{daemon.state}/repos") for file in files)
    try:
        daemon.start()
    except RuntimeError as error:
        assert kind == "registry", error
        assert "registry.db" in str(error)
        doctor = daemon.run("doctor", "--offline", check=False)
        assert doctor.returncode == 1 and "registry.db" in doctor.stdout
        return "refused"
    statuses = {status["name"]: status for status in daemon.json("status")}
    doctor = daemon.run("doctor", "--offline", check=False).stdout
    log = daemon.log.read_text()
    if "b" not in statuses:
        assert kind == "registry"
        assert "registry.repo-missing" in doctor
        return "forgotten"
    outcome = "served"
    for name in ("b", "a"):
        mine = name == "a" or shared
        status = statuses[name]
        if status["state"] != "mounted":
            assert mine, status
            said = json.dumps(status["error"])
            assert any(path.name in said for path in files), said
            assert any(path.name in log for path in files)
            assert any(path.name in doctor for path in files), doctor
            outcome = "failed"
            continue
        failed = look(used, name)
        if name == "b" and not shared:
            assert not failed
            assert not status.get("damage")
            assert git_status(daemon) == used.git_status
        if failed:
            status = daemon.status(name)
            said = json.dumps(status.get("damage"))
            assert any(path.name in said for path in files), (failed, said)
            again = daemon.run("doctor", "--offline", check=False).stdout
            assert any(path.name in again for path in files), again
            assert any(path.name in daemon.log.read_text() for path in files)
            outcome = f"EIO for {len(failed)}"
    if outcome == "failed":
        while_it_is_tried_again(daemon, files)
        return outcome
    return "; ".join([outcome, *said_of(daemon, files), fetch(daemon, files)])


def while_it_is_tried_again(daemon: DaemonProcess, files: list[Path]) -> None:
    """At every moment of an attempt, status and doctor name the file; and without a daemon, doctor
    does."""
    for _ in range(3):
        for command in (("status", "--json"), ("doctor", "--offline")):
            said = daemon.run(*command, check=False).stdout
            assert any(path.name in said for path in files), said
    daemon.stop()
    said = daemon.run("doctor", "--offline", check=False).stdout
    assert any(path.name in said for path in files), said


def said_of(daemon: DaemonProcess, files: list[Path]) -> list[str]:
    """What users are told of the damage without having asked for anything that is lost by it."""
    said = []
    names = {str(path) for path in files}
    for damage in daemon.status("a").get("damage") or ():
        if damage["file"] in names:
            said.append("mended" if damage["mended"] else "status names it")
    doctor = daemon.run("doctor", "--offline", check=False).stdout
    problems = re.findall(r"^(?:problem|warning).*", doctor, re.MULTILINE)
    if any(name in line for line in problems for name in names):
        said.append("doctor names it")
    return sorted(set(said))


def fetch(daemon: DaemonProcess, files: list[Path]) -> str:
    """What the next fetch says. The other repository's works in any case, unless they share it."""
    done = daemon.run("fetch", "--name", "a", check=False)
    if any(not str(file).startswith(f"{daemon.state}/repos") for file in files):
        return "fetches" if done.returncode == 0 else f"fetch: {done.stderr.splitlines()[0]}"
    assert daemon.run("fetch", "--name", "b", check=False).returncode == 0
    if done.returncode == 0:
        return "fetches"
    said = re.findall(r"^(?:error|hint): .*", done.stderr, re.MULTILINE)
    assert [line.partition(":")[0] for line in said] == ["error", "hint"], done.stderr
    return f"fetch says {said[0]!r}, {said[1]!r}"


SHORT = {
    ("cache, index of a pack", "one bit"),
    ("commit graph", "one bit"),
    ("gitdir, index of a pack", "missing"),
    ("overlay", "zeroed page"),
    ("registry", "zeroed page"),
}
"""Those that every run tries; the others are for the long tests."""


def cases() -> Iterator[object]:
    for kind in KINDS:
        for way in WAYS:
            marks = () if (kind, way) in SHORT else (pytest.mark.long,)
            yield pytest.param(kind, way, marks=marks, id=f"{kind}, {way}")


@pytest.mark.parametrize(("kind", "way"), list(cases()))
def test_what_can_be_read_is_right(
    used: Used, kind: str, way: str, capsys: pytest.CaptureFixture[str]
) -> None:
    template, of_kind = used.of_kind(kind)
    if not of_kind:
        pytest.skip("this use leaves none")
    used.restore(template)
    files = [used.daemon.state / path for path in of_kind]
    for file in files:
        WAYS[way](file)
    try:
        outcome = check(used, kind, files)
        with capsys.disabled():
            print(f"{kind}, {way}: {outcome}")
    except AssertionError:
        print(used.daemon.log_tail(60))
        raise
    finally:
        used.end()


ALONE = {"registry", "lock", "socket"}
"""What is said of them is not said of files."""


@pytest.mark.long
@pytest.mark.parametrize("seed", range(20))
def test_two_damages_at_once(used: Used, seed: int, capsys: pytest.CaptureFixture[str]) -> None:
    choose = random.Random(seed)
    kinds = [kind for kind in KINDS if kind not in ALONE and used.of_kind(kind)[1]]
    template, _ = used.of_kind(choose.choice(kinds))
    here = [kind for kind in kinds if any(kind_of(path) == kind for path in files_of(template))]
    used.restore(template)
    files, done = [], []
    for kind in choose.sample(here, 2):
        way = choose.choice(list(WAYS))
        done.append(f"{kind}, {way}")
        found = [path for path in files_of(template) if kind_of(path) == kind]
        some = [used.daemon.state / path for path in found if not path.startswith("repos/b/")]
        for file in some:
            WAYS[way](file)
        files += some
    try:
        outcome = check(used, "two", files)
        with capsys.disabled():
            print(f"{'; '.join(done)}: {outcome}")
    finally:
        used.end()


READ_IN_PLACE = (
    *("cache, pack", "large blob", "checksums of a large blob", "HEAD", "config", "packed refs"),
    *("index", "gitdir, pack", "loose object", "upper file", "segment", "credentials", "sizes"),
    *("converted", "checksums of a converted file", "attributes", "conversion", "alternates"),
)
"""What a mount reads while it is there. (Of its overlay, it has what it needs in memory.)"""


@pytest.mark.long
@pytest.mark.parametrize("way", ["missing", "one bit", "zeroed page"])
@pytest.mark.parametrize("kind", READ_IN_PLACE)
def test_while_it_is_mounted(
    used: Used, kind: str, way: str, capsys: pytest.CaptureFixture[str]
) -> None:
    template, of_kind = used.of_kind(kind)
    if not of_kind:
        pytest.skip("this use leaves none")
    used.restore(template)
    daemon = used.daemon
    files = [daemon.state / path for path in of_kind]
    try:
        daemon.start()
        assert {status["state"] for status in daemon.json("status")} == {"mounted"}
        for file in files:
            WAYS[way](file)
        failed = look(used, "a")
        assert not look(used, "b") or not str(files[0]).startswith(f"{daemon.state}/repos")
        if failed:
            said = json.dumps(daemon.status("a").get("damage"))
            assert any(path.name in said for path in files), (failed, said)
        with capsys.disabled():
            print(f"{kind}, {way}, while mounted: EIO for {len(failed)}")
    except AssertionError:
        print(daemon.log_tail(60))
        raise
    finally:
        used.end()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount an overlayfs")
def test_a_lost_database_where_the_kernel_writes(
    daemon: DaemonProcess, remote_repo: Callable[..., ServedRepository]
) -> None:
    """Nobody knows then which commit lies below what was written."""
    mount = daemon.add_repo("odd", remote_repo().url, "--writes", "kernel")
    (mount / "new").write_text("new\n")
    daemon.run("unmount", "--name", "odd")
    database = daemon.state / "repos/odd/overlay.db"
    kept = database.with_name("kept")
    database.rename(kept)
    for command in ("remove-repo", "remount"):
        refused = daemon.run(command, "odd", check=False)
        assert refused.returncode != 0
        assert f"{database} is missing" in refused.stderr
    assert f"{database} is missing" in daemon.run("doctor", "--offline", check=False).stdout
    kept.rename(database)
    daemon.run("remount", "odd")
    assert (mount / "new").read_text() == "new\n"
