"""A remote decides what is in the tree, and nothing else."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from artifactfs.git.checkout.refused_names import Protection, is_refused
from artifactfs.git.objects.format import parse_tree
from tests.e2e.processes import DaemonProcess

OID = "ab" * 20


class Bare:
    """A bare repository whose objects are written as they are, however wrong."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.git("init", "-q", "--bare", "-b", "main", str(path))
        for name in ("allowFilter", "allowAnySHA1InWant"):
            self.git("-C", str(path), "config", f"uploadpack.{name}", "true")

    def git(self, *arguments: str, content: bytes = b"") -> str:
        done = subprocess.run(["git", *arguments], input=content, check=True, capture_output=True)
        return done.stdout.decode().strip()

    def write(self, kind: str, content: bytes) -> str:
        arguments = ("hash-object", "-w", "-t", kind, "--stdin", "--literally")
        return self.git("-C", str(self.path), *arguments, content=content)

    def tree(self, *entries: tuple[bytes, bytes, str]) -> str:
        return self.write("tree", b"".join(raw_entry(*entry) for entry in entries))

    def commit(self, tree: str) -> None:
        who = "A <a@example.org> 1700000000 +0000"
        text = f"tree {tree}\nauthor {who}\ncommitter {who}\n\nHostile\n"
        oid = self.write("commit", text.encode())
        self.git("-C", str(self.path), "update-ref", "refs/heads/main", oid)


def raw_entry(mode: bytes, name: bytes, oid: str) -> bytes:
    return mode + b" " + name + b"\0" + bytes.fromhex(oid)


def test_a_repository_inside_the_tree_runs_nothing(daemon: DaemonProcess) -> None:
    """``git clone`` refuses such paths: a folder named .git whose config names a program."""
    bare = Bare(daemon.directory / "hostile.git")
    proof = daemon.directory / "proof"
    blob = bare.write("blob", b"content\n")
    config = f"[core]\n\trepositoryformatversion = 0\n\tfsmonitor = touch {proof}\n"
    refs = bare.tree((b"100644", b"keep", blob))
    inside = bare.tree(
        (b"100644", b"HEAD", bare.write("blob", b"ref: refs/heads/main\n")),
        (b"100644", b"config", bare.write("blob", config.encode())),
        (b"40000", b"objects", refs),
        (b"40000", b"refs", refs),
    )
    bare.commit(
        bare.tree(
            (b"40000", b".GIT", inside),
            (b"100644", b".gitignore", blob),
            (b"100644", b"good", blob),
            (b"40000", b"odd", bare.tree((b"100644", b"..", blob), (b"100644", b"x/y", blob))),
            (b"40000", b"sub", bare.tree((b"40000", b".git", inside), (b"100644", b"x", blob))),
        )
    )
    mount = daemon.add_repo("hostile", bare.path.as_uri())
    daemon.wait_for("hostile", "index")
    assert sorted(os.listdir(mount)) == [".git", ".gitignore", "good", "odd", "sub"]
    assert os.listdir(mount / "sub") == ["x"]
    assert os.listdir(mount / "odd") == []
    assert not (mount / "sub" / ".git").exists()
    assert not (mount / ".GIT").exists()
    for folder in (mount / "sub", mount / "odd", mount):
        top = subprocess.run(
            ["git", "-C", folder, "rev-parse", "--show-toplevel"], capture_output=True, text=True
        )
        assert top.stdout.strip() == str(mount)
        subprocess.run(["git", "-C", folder, "status"], check=True, capture_output=True)
    assert not proof.exists()


@pytest.mark.parametrize("name", [b".git", b".GIT", b".gIt", b".", b"..", b"a/b", b"/", b""])
def test_refused_names(name: bytes) -> None:
    assert is_refused(name)
    raw = raw_entry(b"100644", name, OID) + raw_entry(b"100644", b"good", OID)
    assert [entry.name for entry in parse_tree(raw)] == [b"good"]


@pytest.mark.parametrize("name", [b".gitignore", b".github", b"...", b"git", b"x.git", b"\xff"])
def test_names_that_are_fine(name: bytes) -> None:
    assert not is_refused(name)
    assert [entry.name for entry in parse_tree(raw_entry(b"100644", name, OID))] == [name]


_SPELLED = r"""
    .git .GIT .git. .git\x20 .git:x .git\\x .gitx .git~1 git~1 GIT~1 git~1.\x20 git~1:y git~2 git~10
    xgit~1 .gitmodules .GITMODULES .gitmodules\x20. .gitmodules:z .gitmodulesx gitmod~1 gitmod~4
    gitmod~5 GITMOD~2. gi7eba~1 gi7eb~10 GI7EB~99 g~123456 ~1234567 gi7eba~0 gi7ebax~1 gi7d29~1
    .g\u200cit .GI\u206fT\ufeff .gi\u2060t .gitmod\u200dules \u200c.git .gitmodules\u202e a~1
    caf\u00e9
""".split()  # noqa: SIM905 - a list of 40 strings is 40 lines
SPELLINGS = [text.encode().decode("unicode_escape").encode() for text in _SPELLED]
PROTECTIONS = [Protection(ntfs=ntfs, hfs=hfs) for ntfs in (True, False) for hfs in (True, False)]


@pytest.mark.parametrize("protection", PROTECTIONS)
def test_names_are_refused_as_by_git(protection: Protection, tmp_path: Path) -> None:
    bare = Bare(tmp_path / "bare.git")
    blob = bare.write("blob", b"content\n")
    for kind in ("ntfs", "hfs"):
        value = str(getattr(protection, kind)).lower()
        bare.git("-C", str(bare.path), "config", f"core.protect{kind}", value)
    for name in SPELLINGS:
        for mode in (0o100644, 0o120000):
            added = subprocess.run(
                [
                    *("git", "-C", bare.path, "update-index", "--add"),
                    *("--cacheinfo", f"{mode:o}", blob, os.fsdecode(name)),
                ],
                capture_output=True,
            )
            refused = is_refused(name, mode, protection)
            assert refused == (added.returncode != 0), (name, oct(mode))


def odd_tree(bare: Bare) -> str:
    """Names that git refuses or no file system takes, and directories that hold no file."""
    blob = bare.write("blob", b"content\n")
    empty = bare.tree()
    hollow = bare.tree((b"40000", b"inner", empty))
    folder = bare.tree((b"100644", b"git~1", blob), (b"100644", b"x", blob))
    return bare.tree(
        (b"120000", b".gitmodules", blob),
        (b"100644", b"a", blob),
        (b"40000", b"empty", empty),
        (b"40000", b"folder", folder),
        (b"100644", b"git~1", blob),
        (b"40000", b"hollow", hollow),
        (b"100644", b"n" * 256, blob),
        (b"100644", b"n" * 5000, blob),
    )


def test_what_no_working_tree_has_is_not_shown_and_not_lost(daemon: DaemonProcess) -> None:
    bare = Bare(daemon.directory / "odd.git")
    before = odd_tree(bare)
    bare.commit(before)
    mount = daemon.add_repo("odd", bare.path.as_uri())
    daemon.wait_for("odd", "index")

    def git(*arguments: str) -> str:
        command = ["git", "-C", mount, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    assert sorted(os.listdir(mount)) == [".git", "a", "folder"]
    assert os.listdir(mount / "folder") == ["x"]
    assert git("status", "--short", "--ignored") == ""
    (mount / "a").write_text("changed\n")
    (mount / "hollow").mkdir()
    (mount / "hollow" / "new").write_text("new\n")
    assert git("status", "--short") == " M a\n?? hollow/\n"
    git("commit", "--quiet", "-am", "Change a")
    assert git("diff", "--name-only", "HEAD~", "HEAD") == "a\n"
    assert git("status", "--short") == "?? hollow/\n"
    assert "are not shown" in daemon.log.read_text()


def test_git_is_told_to_refuse_less(daemon: DaemonProcess, tmp_path: Path) -> None:
    """The user's setting at the first mount counts, and is kept."""
    bare = Bare(daemon.directory / "odd.git")
    blob = bare.write("blob", b"content\n")
    bare.commit(bare.tree((b"100644", b"a", blob), (b"100644", b"git~1", blob)))
    config = tmp_path / "gitconfig"
    config.write_text("[core]\n\tprotectNTFS = false\n")
    clone_config = {"GIT_CONFIG_GLOBAL": str(config)}
    daemon.stop()
    daemon.extra_environment = clone_config
    daemon.start()
    mount = daemon.add_repo("odd", bare.path.as_uri())
    assert sorted(os.listdir(mount)) == [".git", "a", "git~1"]
    daemon.stop()
    daemon.extra_environment = {}
    daemon.start()
    assert (mount / "git~1").read_text() == "content\n"
