"""A mount beside `git clone` with the same settings: what a new repository has, and takes."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.processes import DaemonProcess

DATED = {"GIT_COMMITTER_DATE": "2024-01-01T00:00:00Z", "GIT_AUTHOR_DATE": "2024-01-01T00:00:00Z"}


class Pair:
    """A clone and a mount of one repository, made with one ``.gitconfig``."""

    def __init__(self, daemon: DaemonProcess, folder: Path) -> None:
        self.daemon = daemon
        self.folder = folder
        self.home = folder / "home"
        self.source = folder / "source"
        self.clone = folder / "clone"
        self.mount = daemon.mounts / "r"
        self.home.mkdir()
        config = self.home / "config"
        config.write_text("[user]\n\tname = Me\n\temail = me@example.org\n")
        daemon.extra_environment |= {"HOME": str(self.home), "GIT_CONFIG_GLOBAL": str(config)}
        self.git("init", "-q", "-b", "main", str(self.source), cwd=folder)
        (self.source / "a").write_text("a\n")
        (self.source / "d").mkdir()
        (self.source / "d" / "b").write_text("b\n")
        self.commit("one")
        self.git("config", "uploadpack.allowFilter", "true", cwd=self.source)

    def commit(self, message: str) -> None:
        self.git("add", ".", cwd=self.source)
        self.git("commit", "-q", "--allow-empty", "-m", message, cwd=self.source)

    def configure(self, text: str) -> None:
        with (self.home / "config").open("a") as file:
            file.write(text)

    def git(self, *arguments: str, cwd: Path, check: bool = True) -> str:
        done = self.tried(*arguments, cwd=cwd)
        assert done.returncode == 0 or not check, done.stderr
        return done.stdout

    def tried(self, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
        environment = self.daemon.environment | DATED
        for name in [name for name in environment if "COMMITTER_" in name or "AUTHOR_" in name]:
            if not name.endswith("_DATE"):
                del environment[name]
        command = ["git", *arguments]
        return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)

    def make(self, url: str | None = None) -> None:
        """Both of them, from a daemon that is started now."""
        url = url or f"file://{self.source}"
        self.git("clone", "-q", url, str(self.clone), cwd=self.folder)
        self.daemon.start()
        self.daemon.add_repo("r", url, "--refresh", "never")

    def gitdir(self, where: Path) -> Path:
        """A folder beside the mount for ordinary users."""
        return where / self.git("rev-parse", "--git-dir", cwd=where).strip()

    def same(self, *arguments: str) -> str:
        """What git prints in both, which is the same."""
        texts = [self.git(*arguments, cwd=where, check=False) for where in (self.clone, self.mount)]
        assert texts[1] == texts[0]
        return texts[1]


@pytest.fixture
def pair(idle_daemon: DaemonProcess, tmp_path: Path) -> Iterator[Pair]:
    yield Pair(idle_daemon, tmp_path)


@pytest.mark.parametrize("named_by", ["init.templateDir", "GIT_TEMPLATE_DIR", "the shell"])
def test_a_template_with_hooks(pair: Pair, named_by: str) -> None:
    template = pair.folder / "template"
    (template / "hooks").mkdir(parents=True)
    hook = template / "hooks" / "pre-commit"
    hook.write_text("#!/bin/sh\necho checked >checked\n")
    hook.chmod(0o755)
    (template / "info").mkdir()
    (template / "info" / "exclude").write_text("*.o\n")
    (template / "config").write_text(
        "[alias]\n\tlast = log -1 --format=%s\n[core]\n\tabbrev = 11\n"
    )
    (template / ".hidden").write_text("x")
    absent = pair.folder / "absent"
    (template / "description").symlink_to(absent)
    if named_by == "init.templateDir":
        pair.configure(f"[init]\n\ttemplateDir = {template}\n")
    elif named_by == "GIT_TEMPLATE_DIR":
        pair.daemon.extra_environment["GIT_TEMPLATE_DIR"] = str(template)
    else:
        pair.daemon.start()
        pair.daemon.extra_environment["GIT_TEMPLATE_DIR"] = str(template)
    url = f"file://{pair.source}"
    pair.git("clone", "-q", url, str(pair.clone), cwd=pair.folder)
    if named_by != "the shell":
        pair.daemon.start()
    pair.daemon.add_repo("r", url, "--refresh", "never")
    assert pair.same("last") == "one\n"
    assert pair.same("config", "core.abbrev") == "11\n"
    for where in (pair.clone, pair.mount):
        (where / "x.o").write_text("x")
        (where / "a").write_text("changed\n")
        pair.git("commit", "-qam", "two", cwd=where)
    assert pair.same("status", "--porcelain") == "?? checked\n"
    gitdir = pair.gitdir(pair.mount)
    assert sorted(os.listdir(gitdir / "hooks")) == ["pre-commit"]
    assert not (gitdir / ".hidden").exists() and (gitdir / "description").is_symlink()
    assert not os.path.lexists(absent)  # nothing is written where a link of a template leads


def test_gits_own_template(pair: Pair) -> None:
    pair.make()
    gitdirs = [pair.gitdir(where) for where in (pair.clone, pair.mount)]
    for name in ("hooks", "info"):
        found = [sorted(os.listdir(gitdir / name)) for gitdir in gitdirs]
        assert found[1] == found[0]
    texts = [(gitdir / "info" / "exclude").read_text() for gitdir in gitdirs]
    assert texts[1] == texts[0]


@pytest.mark.parametrize("logged", ["", "always", "false"])
def test_where_a_branch_began(pair: Pair, logged: str) -> None:
    pair.configure(f"[core]\n\tlogAllRefUpdates = {logged}\n" if logged else "")
    pair.make()
    for name in ("HEAD", "main", "origin/HEAD"):
        pair.same("log", "-g", "--format=%gd %gs %H", name)
    assert bool(pair.same("reflog")) == (logged != "false")
    pair.same("rev-parse", "main@{0}")
    for where in (pair.clone, pair.mount):
        pair.git("switch", "-qc", "topic", cwd=where)
        pair.git("switch", "-q", "-", cwd=where, check=False)
    pair.same("branch", "--show-current")


@pytest.mark.parametrize("when", ["always", "remote", "local", "never"])
def test_the_branch_that_is_checked_out_rebases(pair: Pair, when: str) -> None:
    pair.configure(f"[branch]\n\tautoSetupRebase = {when}\n")
    pair.make()
    pair.same("config", "--get-regexp", "^branch.main")


def test_packs_with_indexes_of_version_1(pair: Pair) -> None:
    """Made by git in the mount as well, and read by a daemon that is started later."""
    pair.configure("[pack]\n\tindexVersion = 1\n[fetch]\n\tunpackLimit = 1\n")
    pair.make()
    pair.daemon.wait_for("r", "history")
    (pair.source / "new").write_text("new\n")
    pair.commit("two")
    for where in (pair.clone, pair.mount):
        pair.git("pull", "-q", cwd=where)
        pair.git("repack", "-qad", cwd=where)
    packs = (pair.daemon.state / "repos/r/git/objects/pack").glob("*.idx")
    assert any(path.read_bytes()[:4] != b"\xfftOc" for path in packs)
    pair.daemon.run("remount", "--name", "r", "--restart")
    pair.same("log", "--format=%H")
    pair.same("status", "-sb")
    assert (pair.mount / "new").read_text() == "new\n"


def test_gc_where_bitmaps_are_wanted(pair: Pair) -> None:
    pair.configure("[repack]\n\twriteBitmaps = true\n")
    pair.make()
    pair.daemon.wait_for("r", "history")
    for where in (pair.clone, pair.mount):
        (where / "a").write_text("changed\n")
        pair.git("commit", "-qam", "two", cwd=where)
        pair.git("gc", "-q", cwd=where)
    pair.same("log", "--format=%H")


def faulty_commit(pair: Pair) -> str:
    """A commit on `main` that git's checks refuse; returns its oid."""
    tree = pair.git("rev-parse", "main^{tree}", cwd=pair.source).strip()
    parent = pair.git("rev-parse", "main", cwd=pair.source).strip()
    text = f"tree {tree}\nparent {parent}\nauthor A <a@b>1 +0000\ncommitter A <a@b> 1 +0000\n\nx\n"
    (pair.folder / "commit").write_text(text)
    arguments = ("hash-object", "-t", "commit", "-w", "--literally", str(pair.folder / "commit"))
    oid = pair.git(*arguments, cwd=pair.source).strip()
    pair.git("update-ref", "refs/heads/main", oid, cwd=pair.source)
    return oid


@pytest.mark.parametrize("setting", ["fetch.fsckObjects", "transfer.fsckObjects"])
def test_a_faulty_commit_is_refused_where_git_shall_look(pair: Pair, setting: str) -> None:
    section, _, key = setting.partition(".")
    pair.configure(f"[{section}]\n\t{key} = true\n")
    pair.make()
    oid = faulty_commit(pair)
    assert pair.tried("fetch", "-q", cwd=pair.clone).returncode != 0
    refused = pair.daemon.run("fetch", "--name", "r", check=False)
    assert refused.returncode != 0
    assert oid in refused.stderr and "missingSpaceBeforeDate" in refused.stderr
    pair.same("rev-parse", "origin/main")
    url = f"file://{pair.source}"
    command = ("add-repo", "--name", "s", "--remote", url, "--hydrate", "none")
    refused = pair.daemon.run(*command, check=False)
    assert refused.returncode != 0
    assert "missingSpaceBeforeDate" in refused.stderr and "HEAD is missing" not in refused.stderr
    pair.configure("[fetch]\n\tfsckObjects = false\n")
    pair.daemon.run("fetch", "--name", "r")
    assert pair.git("rev-parse", "origin/main", cwd=pair.mount).strip() == oid


def test_a_faulty_commit_of_a_path_is_cloned(pair: Pair) -> None:
    """Git copies the files of such a repository, and looks at none."""
    pair.configure("[fetch]\n\tfsckObjects = true\n")
    faulty_commit(pair)
    pair.make(str(pair.source))
    pair.daemon.wait_for("r", "history")
    pair.same("log", "--format=%H")


@pytest.mark.parametrize("scheme", ["path", "file"])
def test_a_shallow_remote_that_is_here(pair: Pair, scheme: str) -> None:
    pair.commit("two")
    shallow = pair.folder / "shallow"
    url = f"file://{pair.source}"
    pair.git("clone", "-q", "--bare", "--depth=1", url, str(shallow), cwd=pair.folder)
    pair.make(str(shallow) if scheme == "path" else f"file://{shallow}")
    pair.same("log", "--format=%H")
    pair.same("rev-parse", "--is-shallow-repository")
    pair.daemon.wait_for("r", "history")
    pair.same("log", "--format=%H", "--all")
    pair.configure("[clone]\n\trejectShallow = true\n")
    command = ("add-repo", "--name", "s", "--remote", f"file://{shallow}")
    refused = pair.daemon.run(*command, check=False)
    assert refused.returncode != 0 and "clone.rejectShallow" in refused.stderr


@pytest.mark.parametrize("mode", ["0", "10644", "100664", "40755", "120777", "160755"])
def test_a_mode_that_git_does_not_write(pair: Pair, mode: str) -> None:
    names = {name: pair.git("rev-parse", f"main:{name}", cwd=pair.source) for name in ("a", "d")}
    target = names["d" if mode.startswith("40") else "a"]
    if mode.startswith("160"):
        target = pair.git("rev-parse", "main", cwd=pair.source)
    content = b"100644 a\0" + bytes.fromhex(names["a"].strip())
    content += b"%b odd\0" % mode.encode() + bytes.fromhex(target.strip())
    (pair.folder / "tree").write_bytes(content)
    arguments = ("hash-object", "-t", "tree", "-w", "--literally", str(pair.folder / "tree"))
    tree = pair.git(*arguments, cwd=pair.source).strip()
    commit = pair.git("commit-tree", tree, "-m", "odd", "-p", "main", cwd=pair.source).strip()
    pair.git("update-ref", "refs/heads/main", commit, cwd=pair.source)
    pair.make()
    pair.same("status", "--porcelain")
    pair.same("ls-files", "-s")
    found = [(where / "odd").lstat() for where in (pair.clone, pair.mount)]
    assert found[1].st_mode == found[0].st_mode
    assert found[1].st_size == found[0].st_size or mode.startswith(("0", "1064", "40", "160"))


def test_a_symlink_for_head(pair: Pair) -> None:
    """So git has it where ``core.preferSymlinkRefs`` is set; old versions always had."""
    pair.configure("[core]\n\tpreferSymlinkRefs = true\n")
    pair.make()
    for where in (pair.clone, pair.mount):
        pair.git("switch", "-qc", "topic", cwd=where)
    assert (pair.gitdir(pair.mount) / "HEAD").is_symlink()
    assert pair.daemon.status("r")["ref"] == "topic"
    pair.commit("two")
    pair.git("fetch", "-q", cwd=pair.clone)
    pair.daemon.run("fetch", "--name", "r")
    pair.daemon.run("remount", "--name", "r", "--restart")
    pair.same("status", "-sb")
    pair.git("switch", "-q", "main", cwd=pair.clone)
    pair.daemon.run("switch", "main", "--name", "r")
    pair.same("status", "-sb")
    pair.same("log", "--format=%H %D", "--all", "--decorate-refs-exclude=refs/remotes/origin/HEAD")
    assert not pair.daemon.status("r")["damage"]


@pytest.mark.parametrize(
    "setting",
    [
        *("clone.defaultRemoteName=team/x", "checkout.guess=false", "checkout.defaultRemote=y"),
        *("branch.autoSetupMerge=false", "branch.autoSetupMerge=simple"),
        *("branch.autoSetupRebase=always", "branch.autoSetupMerge=always"),
    ],
)
def test_a_switch_to_a_branch_of_the_remote(pair: Pair, setting: str) -> None:
    key, _, value = setting.partition("=")
    section, _, name = key.partition(".")
    pair.configure(f"[{section}]\n\t{name} = {value}\n")
    pair.git("branch", "other", cwd=pair.source)
    pair.commit("two")
    pair.make()
    theirs = pair.tried("switch", "-q", "other", cwd=pair.clone)
    ours = pair.daemon.run("switch", "other", "--name", "r", check=False)
    assert (ours.returncode == 0) == (theirs.returncode == 0)
    pair.same("status", "-sb")
    pair.same("config", "--get-regexp", "^branch")


def test_two_remotes_that_have_the_branch(pair: Pair) -> None:
    pair.git("branch", "other", cwd=pair.source)
    pair.make()
    for where in (pair.clone, pair.mount):
        pair.git("remote", "add", "fork", str(pair.source), cwd=where)
        pair.git("fetch", "-q", "fork", cwd=where)
    refused = pair.daemon.run("switch", "other", "--name", "r", check=False)
    assert refused.returncode != 0 and "fork/other" in refused.stderr
    pair.configure("[checkout]\n\tdefaultRemote = fork\n")
    pair.git("switch", "-q", "other", cwd=pair.clone)
    pair.daemon.run("switch", "other", "--name", "r")
    pair.same("status", "-sb")
