"""What works in a clone works in a mount: archives, tools that look into `.git`, clones of it."""

from __future__ import annotations

import os
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.mount_table import mounted_at
from tests.e2e.processes import DaemonProcess, ServedRepository


def git(*arguments: str | Path, cwd: Path, env: dict[str, str] | None = None) -> str:
    done = subprocess.run(
        ["git", *map(str, arguments)],
        cwd=cwd,
        env=os.environ | (env or {}),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_files_of_a_commit_without_a_date_go_into_archives(
    daemon: DaemonProcess, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    git("init", "-q", "-b", "main", source, cwd=tmp_path)
    (source / "a").write_text("content\n")
    git("add", ".", cwd=source)
    undated = {"GIT_COMMITTER_DATE": "@0 +0000", "GIT_AUTHOR_DATE": "@0 +0000"}
    git("commit", "-qm", "Undated", cwd=source, env=undated)
    git("config", "uploadpack.allowFilter", "true", cwd=source)
    mount = daemon.add_repo("undated", source.as_uri())
    for zone in ("UTC", "UTC+12", "UTC-14"):
        script = f"import zipfile; zipfile.ZipFile('{tmp_path}/{zone}.zip', 'w').write('a')"
        subprocess.run(
            ["python3", "-c", script], cwd=mount, check=True, env=os.environ | {"TZ": zone}
        )
        with zipfile.ZipFile(tmp_path / f"{zone}.zip") as archive:
            assert archive.read("a") == b"content\n"


def test_git_is_a_folder_as_in_a_clone(mounted: Path, daemon: DaemonProcess) -> None:
    """Git waits in it until there is an index; then it is the gitdir, at the disk's speed."""
    assert git("rev-parse", "--git-dir", cwd=mounted) == ".git\n"
    assert git("status", "--short", cwd=mounted) == ""
    folder = next(path for path in mounted.iterdir() if path.is_dir() and path.name != ".git")
    assert git("rev-parse", "--show-toplevel", cwd=folder) == f"{mounted}\n"
    listed = git("worktree", "list", "--porcelain", cwd=mounted)
    assert listed.splitlines()[0] == f"worktree {mounted}"
    assert (mounted / ".git" / "HEAD").samefile(daemon.state / "repos" / "odd" / "git" / "HEAD")
    for change in (
        mounted.joinpath(".git").rmdir,
        lambda: (mounted / ".git").rename(mounted / "x"),
    ):
        with pytest.raises(OSError, match="busy"):
            change()
    subprocess.run(["rm", "-rf", mounted / ".git" / "hooks"], check=True)
    daemon.run("unmount", "--name", "odd")
    assert not mounted_at(mounted) and not mounted_at(mounted / ".git")
    daemon.run("remount", "--name", "odd")
    assert git("rev-parse", "--git-dir", cwd=mounted) == ".git\n"


def test_an_unmount_that_is_refused_leaves_everything_in_place(
    mounted: Path, daemon: DaemonProcess
) -> None:
    git("status", cwd=mounted)
    daemon.run("redirect", "add", "build", "--name", "odd", "--method", "bind")
    for folder in (mounted / ".git", mounted / "build", mounted):
        with subprocess.Popen(["sleep", "100"], cwd=folder) as user:
            refused = daemon.run("unmount", "--name", "odd", check=False)
            user.kill()
        assert refused.returncode == 1 and "busy" in refused.stderr
        (mounted / "build" / "made").write_text("x")
        assert (daemon.state / "repos/odd/redirects").glob("build-*/made")
        assert git("rev-parse", "--git-dir", cwd=mounted) == ".git\n"
    daemon.run("unmount", "--name", "odd")


def test_the_identity_of_a_folder_is_used_at_once(
    daemon: DaemonProcess, remote_repo: Callable[..., ServedRepository], tmp_path: Path
) -> None:
    (tmp_path / "work.config").write_text("[user]\n\temail = me@work.example\n")
    config = tmp_path / "gitconfig"
    work = tmp_path / "work"
    config.write_text(f'[includeIf "gitdir:{work}/"]\n\tpath = {tmp_path}/work.config\n')
    daemon.run("mount", remote_repo().url, work / "odd")
    said = git("config", "user.email", cwd=work / "odd", env={"GIT_CONFIG_GLOBAL": str(config)})
    assert said == "me@work.example\n"


def test_a_gitfile_where_the_gitdir_cannot_be_mounted(
    idle_daemon: DaemonProcess, remote_repo: Callable[..., ServedRepository], tmp_path: Path
) -> None:
    """mount(8) refuses: git waits for the index all the same, and finds a gitfile."""
    mount_program = tmp_path / "bin" / "mount"
    mount_program.parent.mkdir()
    mount_program.write_text("#!/bin/sh\necho refused >&2; exit 32\n")
    mount_program.chmod(0o755)
    path = {"PATH": f"{mount_program.parent}:{os.environ['PATH']}"}
    for how in (path, {"ARTIFACT_FS_DISABLE": "git-folder"}):
        idle_daemon.extra_environment = how
        idle_daemon.start()
        name = f"odd-{len(how)}-{next(iter(how)).lower().replace('_', '-')}"
        mount = idle_daemon.add_repo(name, remote_repo().url)
        assert git("status", "--short", cwd=mount) == ""
        assert (mount / ".git").read_text() == f"gitdir: {idle_daemon.state}/repos/{name}/git\n"
        idle_daemon.stop()
    assert "gitfile: the gitdir cannot be mounted" in idle_daemon.log.read_text()


@pytest.fixture
def cold(daemon: DaemonProcess, tmp_path: Path) -> Path:
    """A mount of two branches with other contents, a commit of its own, and nothing hydrated."""
    source = tmp_path / "source"
    git("init", "-q", "-b", "main", source, cwd=tmp_path)
    for version in ("one", "two"):
        for number in range(20):
            (source / f"file{number}").write_text(f"{version} {number}\n" * 30)
        git("add", ".", cwd=source)
        git("commit", "-qm", version, cwd=source)
    git("branch", "old", "HEAD~", cwd=source)
    git("config", "uploadpack.allowFilter", "true", cwd=source)
    mount = daemon.add_repo("cold", source.as_uri(), "--refresh", "never")
    (mount / "mine").write_text("mine\n")
    git("add", "mine", cwd=mount)
    git("commit", "-qm", "mine", cwd=mount)
    git("branch", "old", "origin/old", cwd=mount)
    return mount


@pytest.mark.parametrize(
    "how",
    ["MOUNT", "file://MOUNT", "--no-local MOUNT", "--no-hardlinks MOUNT", "--bare MOUNT"],
)
def test_a_clone_of_a_cold_mount_is_whole_and_stands_alone(
    how: str, cold: Path, daemon: DaemonProcess, tmp_path: Path
) -> None:
    clone = tmp_path / "clone"
    git("clone", "-q", *how.replace("MOUNT", str(cold)).split(), clone, cwd=tmp_path)
    daemon.run("remove-repo", "--name", "cold", "--force")
    (tmp_path / "source").rename(tmp_path / "gone")
    assert "two 3\n" in git("show", "HEAD:file3", cwd=clone)
    assert "one 3\n" in git("show", "HEAD~2:file3", cwd=clone)
    assert git("log", "-p", "--all", "--format=", "--", "file3", cwd=clone).count("+two 3\n") == 30
    objects = git("rev-list", "--objects", "--all", "--missing=print", cwd=clone)
    assert "?" not in objects
    if "--bare" not in how:
        assert git("status", "--short", cwd=clone) == ""


@pytest.mark.parametrize("how", ["--shared MOUNT", "--reference MOUNT SOURCE"])
def test_a_clone_that_borrows_from_a_cold_mount(how: str, cold: Path, tmp_path: Path) -> None:
    given = how.replace("MOUNT", str(cold)).replace("SOURCE", str(tmp_path / "source")).split()
    git("clone", "-q", *given, tmp_path / "clone", cwd=tmp_path)
    assert git("status", "--short", cwd=tmp_path / "clone") == ""
    assert "one 3\n" in git("show", "origin/old:file3", cwd=tmp_path / "clone")


def test_what_is_sent_from_a_cold_mount(cold: Path, tmp_path: Path) -> None:
    """A shallow clone, a partial one, a bundle and a fetch."""
    url = f"file://{cold}"
    git("clone", "-q", "--depth=1", url, tmp_path / "shallow", cwd=tmp_path)
    assert (tmp_path / "shallow" / "file3").read_text().startswith("two 3\n")
    git("config", "uploadpack.allowFilter", "true", cwd=cold)
    git("clone", "-q", "--filter=blob:none", url, tmp_path / "partial", cwd=tmp_path)
    assert "one 3\n" in git("show", "origin/old:file3", cwd=tmp_path / "partial")
    git("bundle", "create", "-q", tmp_path / "all.bundle", "--all", cwd=cold)
    git("clone", "-q", tmp_path / "all.bundle", tmp_path / "unbundled", cwd=tmp_path)
    git("init", "-q", tmp_path / "empty", cwd=tmp_path)
    git("fetch", "-q", cold, "old", cwd=tmp_path / "empty")
    assert "one 3\n" in git("show", "FETCH_HEAD:file3", cwd=tmp_path / "empty")
