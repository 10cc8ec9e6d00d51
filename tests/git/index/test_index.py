"""The primed index, as real git sees it.

Where a test wants to know that git looked at nothing, the working tree lacks the files and has
others: whatever git looked at would show as deleted or untracked.
"""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from artifactfs.errors import CorruptData
from artifactfs.git.index.extensions import encode_ewah
from artifactfs.git.index.file import (
    IndexEntry,
    StatData,
    clean_entry_encoder,
    encode_entries,
    encode_index,
    parse_index,
)
from artifactfs.git.index.primed import (
    IndexExists,
    IndexLocked,
    PrimedIndex,
    Priming,
    locked_index,
)
from artifactfs.git.index.primer import encode_options
from artifactfs.git.objects.database import MissingObject
from artifactfs.hydration.local.sizes import checksum
from artifactfs.inode_numbers import ROOT_INO, derive_ino
from tests.git.pack_samples import SampleRepository, git

TIME_NS = 1_600_000_000_000_000_007
LONG = "l" * 255
DEEP = "/".join(["d" * 200] * 15) + "/file"


@dataclass
class Worktree:
    """A repository with a primed index to be, and a hook that answers from a file."""

    path: Path
    tree: bytes

    @property
    def gitdir(self) -> Path:
        return self.path / ".git"

    def prime(self, *, token: str = "token-1", sizes: Path | None = None) -> PrimedIndex:
        priming = Priming(
            self.gitdir,
            self.tree,
            worktree=self.path,
            sizes=sizes,
            uid=1234,
            gid=5678,
            time_ns=TIME_NS,
            token=token,
        )
        return priming.write()

    def hook_answers(self, token: str, *paths: bytes) -> None:
        answer = b"".join(item + b"\0" for item in (token.encode(), *paths))
        (self.gitdir / "answer").write_bytes(answer)

    def asked(self) -> list[str]:
        """The tokens that git asked the hook with."""
        log = self.gitdir / "asked"
        return log.read_text().split() if log.exists() else []

    def status(self) -> list[str]:
        return git(self.path, "status", "--porcelain").decode().splitlines()


def make_worktree(path: Path, source: Path | None = None) -> Worktree:
    """A repository without an index and without files."""
    if source is not None:
        git(path.parent, "clone", "-q", "--no-checkout", str(source), str(path))
    worktree = Worktree(path, bytes.fromhex(git(path, "rev-parse", "HEAD^{tree}").decode()))
    (path / ".git" / "index").unlink(missing_ok=True)
    gitdir = path / ".git"
    git(path, "config", "core.untrackedCache", "true")
    git(path, "config", "core.fsmonitor", f'echo "$2" >>{gitdir}/asked; cat {gitdir}/answer #')
    worktree.hook_answers("token-2")
    return worktree


@pytest.fixture(scope="session")
def odd_source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Names, modes and kinds that an index has to cope with."""
    path = tmp_path_factory.mktemp("source") / "repo"
    path.mkdir()
    git(path, "init", "-q", "-b", "main")
    for name in ("a", "a.b", "a-b", "a0", "a/b", "ab/c", "a.b/x", LONG, DEEP, "exec"):
        file = (
            path
            / ("order" if name[0] == "a" else "")
            / (f"f{name}" if name in ("a", "a.b") else name)
        )
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"content of {name}\n")
    for name in (b"caf\xe9", b"\xff\xfe", b"new\nline", b"tab\t", b'quote"'):
        with open(os.fsencode(path) + b"/" + name, "wb") as odd:
            odd.write(name)
    (path / "exec").chmod(0o755)
    (path / "link").symlink_to("no/where")
    (path / "empty").touch()
    (path / ".gitignore").write_text("*.o\n")
    (path / "order" / ".gitignore").write_text("!keep.o\n")
    (path / "crlf").mkdir()
    (path / "crlf" / ".gitattributes").write_text("* text=auto\n")
    (path / "crlf" / ".gitignore").write_text("ignored\n")
    git(path, "add", "-A")
    gitlink = "160000,0123456789012345678901234567890123456789,module"
    git(path, "update-index", "--add", "--cacheinfo", gitlink)
    git(path, "commit", "-qm", "Odd names")
    return path


@pytest.fixture
def worktree(odd_source: Path, tmp_path: Path) -> Worktree:
    return make_worktree(tmp_path / "wt", odd_source)


def test_entries_are_those_of_git(worktree: Worktree) -> None:
    written = worktree.prime()
    listed = git(worktree.path, "ls-files", "-s", "-z")
    git(worktree.path, "read-tree", "--index-output=.git/other", "HEAD")
    (worktree.gitdir / "other").rename(worktree.gitdir / "index")
    assert listed == git(worktree.path, "ls-files", "-s", "-z")
    assert written == PrimedIndex(listed.count(b"\0"), 0)


def test_stat_data_is_what_the_mount_reports(worktree: Worktree) -> None:
    worktree.prime()
    printed = git(worktree.path, "ls-files", "--debug", "-z", "crlf/.gitignore").decode()
    ino = derive_ino(b"", derive_ino(b"", ROOT_INO, b"crlf"), b".gitignore") & 0xFFFFFFFF
    assert "ctime: 1600000000:7\n  mtime: 1600000000:7\n" in printed
    assert f"ino: {ino}\n  uid: 1234\tgid: 5678\n  size: 8\t" in printed


def test_the_first_status_looks_at_nothing(worktree: Worktree) -> None:
    worktree.prime()
    (worktree.path / "module").mkdir()  # gitlinks are never trusted
    (worktree.path / "not reported").touch()
    for name in (".gitignore", "order/.gitignore", "crlf/.gitignore"):
        (worktree.path / name).parent.mkdir(exist_ok=True)
        (worktree.path / name).write_bytes(git(worktree.path, "show", f"HEAD:{name}"))
    before = (worktree.gitdir / "index").read_bytes()
    assert worktree.status() == []
    assert worktree.asked() == ["token-1"]
    assert (worktree.gitdir / "index").read_bytes() == before


def test_git_does_not_open_directories(odd_source: Path, worktree: Worktree) -> None:
    git(worktree.path, "checkout", "-q", "-f", "HEAD")
    (worktree.gitdir / "index").unlink()
    worktree.prime()
    perf = worktree.gitdir / "perf"
    subprocess.run(
        ["git", "-C", str(worktree.path), "status"],
        env={**os.environ, "GIT_TRACE2_PERF": str(perf)},
        check=True,
        capture_output=True,
    )
    for counter in ("node-creation:0", "gitignore-invalidation:0", "opendir:0"):
        assert counter in perf.read_text()


def test_what_the_hook_names_is_looked_at(worktree: Worktree) -> None:
    git(worktree.path, "checkout", "-q", "-f", "HEAD")
    (worktree.gitdir / "index").unlink()
    worktree.prime()
    (worktree.path / "exec").write_text("changed\n")
    (worktree.path / "empty").unlink()
    (worktree.path / "order" / "new").touch()
    (worktree.path / "order" / "x.o").touch()
    (worktree.path / "order" / "keep.o").touch()
    (worktree.path / "crlf" / "unreported").touch()
    worktree.hook_answers("token-2", b"exec", b"empty", b"order/new", b"order/x.o", b"order/keep.o")
    assert worktree.status() == [" D empty", " M exec", "?? order/keep.o", "?? order/new"]
    assert worktree.status() == [" D empty", " M exec", "?? order/keep.o", "?? order/new"]
    assert worktree.asked()[-2:] == ["token-1", "token-2"]


def test_everything_may_have_changed(worktree: Worktree) -> None:
    git(worktree.path, "checkout", "-q", "-f", "HEAD")
    (worktree.gitdir / "index").unlink()
    worktree.prime()
    (worktree.path / "found").touch()
    worktree.hook_answers("token-2", b"/")
    assert worktree.status() == ["?? found"]


def test_unknown_sizes_are_trusted_until_the_hook_names_them(
    sample: SampleRepository, tmp_path: Path
) -> None:
    git(tmp_path, "clone", "-q", "--bare", "--filter=blob:none", f"file://{sample.path}", "b.git")
    git(tmp_path, "init", "-q", "wt")
    path = tmp_path / "wt"
    alternates = path / ".git" / "objects" / "info" / "alternates"
    alternates.write_text(f"{tmp_path}/b.git/objects\n")
    head = sample.resolve("main").hex()
    (path / ".git" / "refs" / "heads" / "master").write_text(f"{head}\n")
    worktree = make_worktree_here(path, sample)
    sizes = tmp_path / "sizes.db"
    with sqlite3.connect(sizes) as database:
        database.execute(
            "CREATE TABLE sizes(oid BLOB PRIMARY KEY, size INTEGER NOT NULL, crc INTEGER)"
            " WITHOUT ROWID"
        )
        text = sample.resolve("main:text")
        damaged = sample.resolve("main:zeros")
        for oid, size, crc in ((text, 4321, checksum(text, 4321)), (damaged, 7, 7)):
            database.execute("INSERT INTO sizes VALUES (?, ?, ?)", (oid, size, crc))
    database.close()
    written = worktree.prime(sizes=sizes)
    assert written.unknown_sizes == written.entries - 1
    assert "size: 4321\t" in git(path, "ls-files", "--debug", "text").decode()
    assert "size: 0\t" in git(path, "ls-files", "--debug", "zeros").decode()
    assert worktree.status() == []


def make_worktree_here(path: Path, sample: SampleRepository) -> Worktree:
    worktree = make_worktree_without_clone(path, sample.resolve("main^{tree}"))
    git(path, "symbolic-ref", "HEAD", "refs/heads/master")
    return worktree


def make_worktree_without_clone(path: Path, tree: bytes) -> Worktree:
    worktree = Worktree(path, tree)
    git(path, "config", "core.untrackedCache", "true")
    git(path, "config", "core.fsmonitor", f"cat {worktree.gitdir}/answer #")
    worktree.hook_answers("token-2")
    return worktree


def test_commit_after_it(worktree: Worktree) -> None:
    git(worktree.path, "checkout", "-q", "-f", "HEAD")
    expected = git(worktree.path, "ls-tree", "-r", "HEAD").splitlines()
    (worktree.gitdir / "index").unlink()
    worktree.prime()
    (worktree.path / "order" / "fa").write_text("edited\n")
    worktree.hook_answers("token-2", b"order/fa")
    git(worktree.path, "add", "order/fa")
    git(worktree.path, "commit", "-qm", "Edit one line")
    now = git(worktree.path, "ls-tree", "-r", "HEAD").splitlines()
    different = [line for line, old in zip(now, expected, strict=True) if line != old]
    assert [line.split(b"\t")[1] for line in different] == [b"order/fa"]
    assert worktree.status() == []
    git(worktree.path, "fsck", "--strict")


@pytest.mark.parametrize("command", ["diff", "diff --cached", "update-index --refresh", "stash"])
def test_commands_find_nothing(worktree: Worktree, command: str) -> None:
    worktree.prime()
    (worktree.path / "module").mkdir()
    printed = git(worktree.path, *command.split()).decode()
    assert printed in ("", "No local changes to save\n")


def test_the_cache_tree_is_that_of_git(worktree: Worktree) -> None:
    worktree.prime()
    assert git(worktree.path, "write-tree").decode().strip() == worktree.tree.hex()
    ours = dict(parse_index((worktree.gitdir / "index").read_bytes()).extensions)[b"TREE"]
    git(worktree.path, "read-tree", "HEAD")
    theirs = dict(parse_index((worktree.gitdir / "index").read_bytes()).extensions)[b"TREE"]
    assert _cache_tree(ours) == _cache_tree(theirs)


def _cache_tree(payload: bytes) -> dict[bytes, bytes]:
    """Path: counts and oid, whatever the order of subtrees."""
    found = {}
    position = 0

    def read(prefix: bytes) -> None:
        nonlocal position
        nul, newline = payload.index(b"\0", position), payload.index(b"\n", position)
        path = prefix + payload[position:nul] + b"/"
        counts = payload[nul + 1 : newline]
        position = newline + 21
        found[path] = counts + payload[newline + 1 : position]
        for _ in range(int(counts.split()[1])):
            read(path)

    read(b"")
    return found


def test_an_index_of_git_is_not_replaced(worktree: Worktree) -> None:
    git(worktree.path, "read-tree", "HEAD")
    before = (worktree.gitdir / "index").read_bytes()
    with pytest.raises(IndexExists):
        worktree.prime()
    assert (worktree.gitdir / "index").read_bytes() == before
    assert not (worktree.gitdir / "index.lock").exists()
    with locked_index(worktree.gitdir, force=True) as lock:
        with pytest.raises(IndexLocked):
            locked_index(worktree.gitdir, force=True)
        lock.commit(before)
    assert not (worktree.gitdir / "index.lock").exists()


def test_a_locked_index_is_left_alone(worktree: Worktree) -> None:
    lock = worktree.gitdir / "index.lock"
    lock.touch()
    with pytest.raises(IndexLocked):
        worktree.prime()
    assert lock.exists() and not (worktree.gitdir / "index").exists()


def test_a_failure_leaves_nothing(worktree: Worktree) -> None:
    worktree.tree = bytes(20)
    with pytest.raises(MissingObject):
        worktree.prime()
    assert not list(worktree.gitdir.glob("index*"))


def options_of(worktree: Worktree, tree: str) -> bytes:
    options = encode_options(
        gitdir=worktree.gitdir,
        tree=bytes.fromhex(tree),
        worktree=worktree.path,
        sizes=worktree.gitdir / "no-such.db",
        uid=0,
        gid=0,
        time_ns=5,
        token="t",
        ino_secret=b"",
    )
    return json.dumps(options).encode() + b"\n"


def run_module(worktree: Worktree, tree: str) -> dict[str, Any]:
    """What the process answers that writes the index."""
    command = [sys.executable, "-I", "-m", "artifactfs.git.index.primer"]
    lines = options_of(worktree, tree) + b'{"need_attributes": true}\n'
    done = subprocess.run(command, input=lines, capture_output=True, check=True)
    assert done.stderr == b""
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def test_as_a_program(worktree: Worktree) -> None:
    assert run_module(worktree, worktree.tree.hex())["written"] is True
    assert run_module(worktree, worktree.tree.hex())["written"] is False
    (worktree.gitdir / "index").unlink()
    missing = run_module(worktree, "00" * 20)
    assert missing == {"error": f"object {'00' * 20} is not here"}


def test_the_program_lists_before_it_is_told_to_write(worktree: Worktree) -> None:
    """Sizes come meanwhile: what it writes has those of the moment when it is told to."""
    sizes = worktree.gitdir / "no-such.db"
    command = [sys.executable, "-I", "-m", "artifactfs.git.index.primer"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(options_of(worktree, worktree.tree.hex()))
        process.stdin.flush()
        database = sqlite3.connect(sizes)
        database.execute("CREATE TABLE sizes(oid BLOB PRIMARY KEY, size INTEGER, crc INTEGER)")
        oid = bytes.fromhex(git(worktree.path, "rev-parse", "HEAD:exec").decode())
        row = (oid, 77, checksum(oid, 77))
        database.execute("INSERT INTO sizes VALUES(?, ?, ?)", row)
        database.commit()
        database.close()
        process.stdin.write(b'{"need_attributes": true}\n')
        process.stdin.flush()
        assert json.loads(process.stdout.readline())["written"] is True
        process.stdin.close()
        assert process.wait() == 0
    assert "size: 77\t" in git(worktree.path, "ls-files", "--debug", "exec").decode()


# The index file itself


@pytest.mark.parametrize("version", ["2", "3", "4"])
def test_indexes_of_git_are_read_and_written_alike(worktree: Worktree, version: str) -> None:
    git(worktree.path, "config", "index.version", version)
    git(worktree.path, "checkout", "-q", "-f", "HEAD")
    if version == "3":
        (worktree.path / "intended").touch()
        git(worktree.path, "add", "-N", "intended")
        git(worktree.path, "update-index", "--assume-unchanged", "exec")
    git(worktree.path, "update-index", f"--index-version={version}")
    content = (worktree.gitdir / "index").read_bytes()
    index = parse_index(content)
    assert index.version == int(version)
    printed = git(worktree.path, "ls-files", "-s", "-z").split(b"\0")[:-1]
    assert [
        b"%06o %s 0\t%s" % (entry.mode, entry.oid.hex().encode(), entry.path)
        for entry in index.entries
    ] == printed
    if version != "4":
        extensions = [sig + len(data).to_bytes(4, "big") + data for sig, data in index.extensions]
        assert encode_index(index.entries, extensions) == content


@given(
    st.binary(min_size=1, max_size=5_000),
    st.sampled_from((0o100644, 0o100755, 0o120000, 0o160000)),
    st.integers(0, 2**64 - 1),
    st.integers(0, 2**40),
    st.sampled_from((0, 0x4000)),
)
def test_a_clean_entry_is_encoded_as_any_other(
    path: bytes, mode: int, ino: int, size: int, extended: int
) -> None:
    path = path.replace(b"\0", b"x")
    oid = bytes(range(20))
    stat = StatData(TIME_NS, TIME_NS + 7, ino, 1000, 2**32 - 1, size, dev=5)
    whole = encode_entries([IndexEntry(path, mode, oid, stat, extended=extended)])
    encode = clean_entry_encoder(stat._replace(ino=0, size=0))
    assert encode(path, mode, oid, ino, size, extended) == whole


def test_broken_indexes(worktree: Worktree) -> None:
    git(worktree.path, "read-tree", "HEAD")
    content = (worktree.gitdir / "index").read_bytes()
    for broken in (b"", content[:40], b"X" + content[1:], content[:-1] + b"X", content[:-30]):
        with pytest.raises(CorruptData):
            parse_index(broken)


@given(st.sets(st.integers(0, 1000)), st.sets(st.integers(0, 12)))
def test_ewah_round_trip(bits: set[int], full_words: set[int]) -> None:
    bits = bits | {64 * word + bit for word in full_words for bit in range(64)}
    assert _decode_ewah(encode_ewah(bits, 2000)) == bits


def _decode_ewah(data: bytes) -> set[int]:
    """By the description in gitformat-bitmap."""
    count = int.from_bytes(data[4:8], "big")
    words = [int.from_bytes(data[8 + 8 * i : 16 + 8 * i], "big") for i in range(count)]
    bits = set()
    position = at = marker = 0
    while at < count:
        marker = at
        fill, run, literals = words[at] & 1, words[at] >> 1 & 0xFFFFFFFF, words[at] >> 33
        if fill:
            bits.update(range(64 * position, 64 * (position + run)))
        position += run
        for literal in words[at + 1 : at + 1 + literals]:
            bits.update(64 * position + bit for bit in range(64) if literal >> bit & 1)
            position += 1
        at += 1 + literals
    assert int.from_bytes(data[8 + 8 * count :], "big") == marker
    return bits


def test_the_process_that_writes_it_imports_little() -> None:
    """Where it is not forked, each mount starts one: trio alone would take half of its time."""
    script = (
        "import sys, artifactfs.git.index.primer; "
        "print(*{'trio', 'httpx', 'asyncio', 'pyfuse3'} & set(sys.modules))"
    )
    command = [sys.executable, "-I", "-c", script]
    assert subprocess.run(command, check=True, capture_output=True, text=True).stdout == "\n"
