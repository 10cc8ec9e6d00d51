"""Remotes behind processes and sockets: local paths, ssh, git-daemon."""

from __future__ import annotations

import os
import shlex
import subprocess
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import pytest
import trio

from artifactfs.errors import (
    AuthenticationFailed,
    RemoteError,
    RemoteNotFound,
    RemoteUnreachable,
)
from artifactfs.git.remote.opening import open_remote
from artifactfs.git.remote.remote import Remote
from tests.e2e.processes import on_free_port
from tests.git.sample_repository import Sample, git

T = TypeVar("T")


def with_remote(url: str, body: Callable[[Remote], Awaitable[T]], *, deadline_s: float = 20.0) -> T:
    async def main() -> T:
        remote = await open_remote(url, None, deadline_s=deadline_s)
        try:
            return await body(remote)
        finally:
            await remote.aclose()

    return trio.run(main)


async def list_refs(remote: Remote) -> set[str]:
    return set((await remote.ls_refs(("refs/heads/",))).refs)


async def read_pack(remote: Remote, oid: bytes) -> bytes:
    async with remote.fetch_pack([oid]) as pack:
        return b"".join([chunk async for chunk in pack])


@pytest.fixture
def plain(hosted: Sample) -> Sample:
    """The hosted repository with git's default settings."""
    git("config", "--unset", "uploadpack.allowFilter", cwd=hosted.bare)
    git("config", "--unset", "transfer.advertiseObjectInfo", cwd=hosted.bare)
    return hosted


@pytest.mark.parametrize("form", ["{bare}", "file://{bare}", "{work}", "{short}"])
def test_a_local_repository_offers_everything_whatever_its_settings(
    plain: Sample, form: str
) -> None:
    short = str(plain.bare).removesuffix(".git")
    url = form.format(bare=plain.bare, work=plain.work, short=short)
    blob = plain.blobs()["README.md"]

    async def body(remote: Remote) -> None:
        assert remote.capabilities.limits == ()
        assert "refs/heads/main" in await list_refs(remote)
        assert await remote.object_sizes([blob]) == {blob: 20 * len("README.md as of 11\n")}
        assert (await read_pack(remote, blob)).startswith(b"PACK")

    with_remote(url, body)


def test_no_local_repository(tmp_path: Path) -> None:
    with pytest.raises(RemoteNotFound, match="does not exist"):
        with_remote(str(tmp_path / "absent"), list_refs)
    with pytest.raises(RemoteNotFound, match="not a Git repository"):
        with_remote(str(tmp_path), list_refs)


@pytest.fixture
def ssh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stands for ssh: logs its arguments, and runs the command here. Returns the log."""
    log = tmp_path / "ssh.log"
    script = tmp_path / "ssh"
    script.write_text(
        "#!/bin/sh\n"
        f'printf "%s\\n" "$*" >> {shlex.quote(str(log))}\n'
        'while [ $# -gt 2 ]; do shift; done\nexec sh -c "$2"\n'
    )
    script.chmod(0o755)
    monkeypatch.setenv("GIT_SSH_COMMAND", str(script))
    return log


def test_ssh_speaks_version_2_on_one_kept_connection(hosted: Sample, ssh: Path) -> None:
    blob = hosted.blobs()["README.md"]

    async def body(remote: Remote) -> None:
        assert remote.capabilities.protocol == 2
        assert "refs/heads/main" in await list_refs(remote)
        for _ in range(3):
            assert await read_pack(remote, blob)

    with_remote(f"ssh://git@example.org:2200{hosted.bare}", body)
    calls = ssh.read_text().splitlines()
    assert len(calls) == 1
    assert f"-p 2200 git@example.org git-upload-pack '{hosted.bare}'" in calls[0]
    assert "BatchMode=yes" in calls[0]
    assert "SendEnv=GIT_PROTOCOL" in calls[0]


def test_ssh_takes_the_short_form_and_quotes_paths(hosted: Sample, ssh: Path) -> None:
    odd = hosted.bare.with_name("it's !odd.git")
    hosted.bare.rename(odd)
    assert with_remote(f"git@example.org:{odd}", list_refs)


def test_ssh_requests_at_the_same_time_get_connections_of_their_own(
    hosted: Sample, ssh: Path
) -> None:
    blobs = list(hosted.blobs().values())

    async def body(remote: Remote) -> None:
        async with trio.open_nursery() as nursery:
            for blob in blobs:
                nursery.start_soon(read_pack, remote, blob)

    with_remote(f"ssh://example.org{hosted.bare}", body)
    assert len(ssh.read_text().splitlines()) <= 4


def test_a_connection_given_up_is_not_used_again(hosted: Sample, ssh: Path) -> None:
    async def body(remote: Remote) -> None:
        async with remote.fetch_pack([hosted.oid("main")]):
            pass  # the pack is not read
        assert "refs/heads/main" in await list_refs(remote)

    with_remote(f"ssh://example.org{hosted.bare}", body)


def test_a_custom_ssh_of_another_kind_gets_no_options(
    hosted: Sample, ssh: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIT_SSH_VARIANT", "simple")
    assert with_remote(f"ssh://example.org{hosted.bare}", list_refs)
    assert ssh.read_text().startswith("example.org git-upload-pack")


@pytest.mark.parametrize(
    ("said", "error"),
    [
        ("git@example.org: Permission denied (publickey).", AuthenticationFailed),
        ("Host key verification failed.", AuthenticationFailed),
        ("ssh: Could not resolve hostname example.org: Name unknown", RemoteUnreachable),
        ("ssh: connect to host example.org port 22: Connection refused", RemoteUnreachable),
        ("fatal: '/x' does not appear to be a git repository", RemoteNotFound),
        ("ERROR: Repository not found.", RemoteNotFound),
        ("no such identity: /k: No such file or directory", RemoteUnreachable),
        ('Load key "/k": Permission denied\nConnection reset by peer', RemoteUnreachable),
        ("no such identity: /k: No such file\nERROR: Repository not found.", RemoteNotFound),
        ('Load key "/k": No such file\nPermission denied (publickey).', AuthenticationFailed),
    ],
)
def test_what_ssh_says_is_understood(
    monkeypatch: pytest.MonkeyPatch, said: str, error: type[RemoteError]
) -> None:
    monkeypatch.setenv("GIT_SSH_COMMAND", f"echo {shlex.quote(said)} >&2; exit 255;")
    with pytest.raises(error):
        with_remote("ssh://example.org/x", list_refs)


def test_a_line_that_drops_is_no_refusal_whatever_ssh_noted_before(
    hosted: Sample, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The repository was there, and asking again may help."""
    noted = "echo /etc/motd: No such file, or permission denied >&2"
    serve = f"git upload-pack {shlex.quote(str(hosted.bare))} < /dev/null | head -c 100"
    monkeypatch.setenv("GIT_SSH_COMMAND", f"{noted}; {serve}; exit 255;")
    with pytest.raises(RemoteUnreachable, match="ended the connection"):
        with_remote(f"ssh://example.org{hosted.bare}", list_refs)


def test_a_repository_of_another_user_needs_git_s_trust(
    hosted: Sample, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    if subprocess.run(["git", "ls-remote", hosted.bare], capture_output=True).returncode == 0:
        assert with_remote(str(hosted.bare), list_refs)  # git 2.55 sends from it all the same
        return
    with pytest.raises(AuthenticationFailed, match="another user") as caught:
        with_remote(str(hosted.bare), list_refs)
    assert caught.value.hint is not None
    assert caught.value.hint.endswith(f"git config --global --add safe.directory {hosted.bare}")


def test_a_silent_ssh_meets_the_deadline_and_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pid = tmp_path / "pid"
    monkeypatch.setenv("GIT_SSH_COMMAND", f"echo $$ > {pid}; sleep 60;")
    with pytest.raises(RemoteUnreachable, match=r"\b6 s"):
        with_remote("ssh://example.org/x", list_refs, deadline_s=6.0)
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)


@contextmanager
def git_daemon(base: Path) -> Iterator[str]:
    """git-daemon(1) serving everything below `base`; yields the URL."""
    started: list[subprocess.Popen[str]] = []

    def start(port: int) -> None:
        process = subprocess.Popen(
            [
                *("git", "daemon", "--reuseaddr", "--export-all", "--listen=127.0.0.1"),
                *("--verbose", f"--port={port}", f"--base-path={base}", str(base)),
            ],
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        started.append(process)
        assert process.stderr is not None
        said = process.stderr.readline()
        if "Ready to rumble" not in said:
            raise RuntimeError(said)

    try:
        yield f"git://127.0.0.1:{on_free_port(start)}"
    finally:
        for process in started:
            process.terminate()
            process.communicate()


def test_git_daemon(hosted: Sample) -> None:
    blob = hosted.blobs()["README.md"]

    async def body(remote: Remote) -> None:
        assert remote.capabilities.protocol == 2
        assert "refs/heads/main" in await list_refs(remote)
        assert await read_pack(remote, blob)

    with git_daemon(hosted.bare.parent) as url:
        with_remote(f"{url}/sample.git", body)
        with pytest.raises(RemoteNotFound, match="not exported"):
            with_remote(f"{url}/absent.git", list_refs)
    with pytest.raises(RemoteUnreachable):
        with_remote(f"{url}/sample.git", list_refs)
