"""The credential file, and credential helpers."""

from __future__ import annotations

import os
import stat
import subprocess
from pathlib import Path

import pytest
import trio

from artifactfs.errors import InvalidInput
from artifactfs.git.wire.credentials import Credential, CredentialFile, credential_for

TOKEN = "art_v1_0123456789abcdef0123456789abcdef01234567?expires=1700000000"
URL = "https://example.org/ns/repo.git"


@pytest.fixture
def file(tmp_path: Path) -> CredentialFile:
    return CredentialFile(tmp_path / "credentials")


def test_a_token_comes_back_as_it_was(file: CredentialFile) -> None:
    file.set(URL, "x", TOKEN)
    assert file.get(URL) == Credential("x", TOKEN)
    assert file.get("https://example.org/other") == Credential("x", TOKEN)
    assert file.get("http://example.org/ns/repo.git") is None
    assert file.get("https://example.org:8443/ns/repo.git") is None
    assert TOKEN not in repr(file.get(URL))


@pytest.mark.parametrize("password", ["", "a b", "p/w@:#%", "ü\u2603", TOKEN])
def test_the_store_helper_of_git_reads_the_file(file: CredentialFile, password: str) -> None:
    file.set(URL, "us er", password)
    request = "protocol=https\nhost=example.org\n\n"
    done = subprocess.run(
        ["git", "credential-store", "--file", str(file.path), "get"],
        input=request,
        text=True,
        capture_output=True,
        check=True,
    )
    assert done.stdout.splitlines() == ["username=us er", f"password={password}"]


def test_only_the_owner_can_read_it_whatever_the_umask(file: CredentialFile) -> None:
    previous = os.umask(0)
    try:
        file.set(URL, "x", "1")
        file.set(URL, "x", "2")
    finally:
        os.umask(previous)
    assert stat.S_IMODE(file.path.stat().st_mode) == 0o600
    assert os.listdir(file.path.parent) == ["credentials"]


def test_set_replaces_and_remove_forgets_one_origin(file: CredentialFile) -> None:
    file.set("http://other:99/", "o", "other")
    file.set(URL, "x", "old")
    file.set(URL, "y", "new")
    assert file.get(URL) == Credential("y", "new")
    file.remove(URL)
    assert file.get(URL) is None
    assert file.get("http://other:99/z") == Credential("o", "other")
    assert len(file.path.read_text().splitlines()) == 1


def test_nothing_is_stored_for_ssh(file: CredentialFile) -> None:
    with pytest.raises(InvalidInput):
        file.set("git@example.org:r", "x", "y")


def test_a_file_that_is_missing_or_has_other_lines_is_no_error(file: CredentialFile) -> None:
    assert file.get(URL) is None
    file.remove(URL)
    file.path.write_text("# a comment\nnonsense\nhttps://u:p@example.org\n")
    assert file.get(URL) == Credential("u", "p")


def helper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Make `script` the user's only credential helper."""
    config = tmp_path / "gitconfig"
    config.write_text(f'[credential]\n\thelper = "!f() {{ {script}; }}; f"\n')
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(config))


def test_a_helper_is_asked_where_the_file_knows_nothing(
    file: CredentialFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    helper(tmp_path, monkeypatch, "echo username=h; echo password=from-helper")
    assert trio.run(credential_for, URL, file) == Credential("h", "from-helper")
    file.set(URL, "x", "from-file")
    assert trio.run(credential_for, URL, file) == Credential("x", "from-file")


def test_what_was_refused_is_not_given_again(
    file: CredentialFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    helper(tmp_path, monkeypatch, "echo username=x; echo password=from-helper")
    file.set(URL, "x", "expired")

    async def ask() -> None:
        rejected = Credential("x", "expired")
        fresh = await credential_for(URL, file, rejected=rejected)
        assert fresh == Credential("x", "from-helper")
        assert await credential_for(URL, None, rejected=fresh) is None

    trio.run(ask)


def test_nobody_is_prompted(file: CredentialFile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSH_ASKPASS", "/bin/false")
    monkeypatch.setenv("DISPLAY", ":0")
    assert trio.run(credential_for, URL, file) is None
