"""A remote decides what is in the tree, and nothing else."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from artifactfs.git.objects.format import is_refused, parse_tree
from tests.e2e.processes import DaemonProcess

OID = "ab" * 20


class Bare:
    """A bare repository whose objects are written as they are, however wrong."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._git("init", "-q", "--bare", "-b", "main", str(path))
        for name in ("allowFilter", "allowAnySHA1InWant"):
            self._git("-C", str(path), "config", f"uploadpack.{name}", "true")

    def _git(self, *arguments: str, content: bytes = b"") -> str:
        done = subprocess.run(["git", *arguments], input=content, check=True, capture_output=True)
        return done.stdout.decode().strip()

    def write(self, kind: str, content: bytes) -> str:
        arguments = ("hash-object", "-w", "-t", kind, "--stdin", "--literally")
        return self._git("-C", str(self.path), *arguments, content=content)

    def tree(self, *entries: tuple[bytes, bytes, str]) -> str:
        return self.write("tree", b"".join(raw_entry(*entry) for entry in entries))

    def commit(self, tree: str) -> None:
        who = "A <a@example.org> 1700000000 +0000"
        text = f"tree {tree}\nauthor {who}\ncommitter {who}\n\nHostile\n"
        oid = self.write("commit", text.encode())
        self._git("-C", str(self.path), "update-ref", "refs/heads/main", oid)


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
