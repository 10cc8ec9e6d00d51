"""What users paste as a remote."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from artifactfs.errors import InvalidInput
from artifactfs.git.wire.url import RemoteURL, parse_remote

TOKEN = "art_v1_" + "0123456789abcdef0123456789abcdef01234567" + "?expires=1700000000"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "https://example.org/ns/repo.git",
            RemoteURL(
                "https", "https://example.org/ns/repo.git", host="example.org", path="/ns/repo.git"
            ),
        ),
        (
            "HTTP://Example.org:8080/a/",
            RemoteURL("http", "http://Example.org:8080/a", None, None, "Example.org", 8080, "/a"),
        ),
        (
            f"https://x:{TOKEN}@example.org/ns/repo.git",
            RemoteURL(
                "https",
                "https://example.org/ns/repo.git",
                "x",
                TOKEN,
                "example.org",
                None,
                "/ns/repo.git",
            ),
        ),
        (
            f"http://x:{TOKEN.replace('?', '%3F')}@127.0.0.1:9/a",
            RemoteURL("http", "http://127.0.0.1:9/a", "x", TOKEN, "127.0.0.1", 9, "/a"),
        ),
        (
            "https://us%40er:p%2Fw%3A@[::1]:44/r",
            RemoteURL("https", "https://[::1]:44/r", "us@er", "p/w:", "::1", 44, "/r"),
        ),
        (
            "https://user:with@at@example.org/r",
            RemoteURL(
                "https", "https://example.org/r", "user", "with@at", "example.org", None, "/r"
            ),
        ),
        (
            "https://token@example.org/@scope/r",
            RemoteURL(
                "https",
                "https://example.org/@scope/r",
                "token",
                None,
                "example.org",
                None,
                "/@scope/r",
            ),
        ),
        (
            "ssh://git@example.org:2222/srv/a b.git",
            RemoteURL(
                "ssh",
                "ssh://git@example.org:2222/srv/a%20b.git",
                "git",
                None,
                "example.org",
                2222,
                "/srv/a b.git",
            ),
        ),
        (
            "ssh://git:secret@example.org/~me/r",
            RemoteURL(
                "ssh", "ssh://git@example.org/~me/r", "git", "secret", "example.org", None, "~me/r"
            ),
        ),
        (
            "git@example.org:ns/repo.git",
            RemoteURL(
                "ssh",
                "git@example.org:ns/repo.git",
                "git",
                None,
                "example.org",
                None,
                "ns/repo.git",
            ),
        ),
        (
            "example.org:repo",
            RemoteURL("ssh", "example.org:repo", None, None, "example.org", None, "repo"),
        ),
        (
            "git@[::1]:r",
            RemoteURL("ssh", "git@[::1]:r", "git", None, "::1", None, "r"),
        ),
        (
            "[example.org:2200]:r",
            RemoteURL("ssh", "[example.org:2200]:r", None, None, "example.org", 2200, "r"),
        ),
        (
            "git://example.org/r.git",
            RemoteURL("git", "git://example.org/r.git", host="example.org", path="/r.git"),
        ),
        (
            "file:///srv/a%20b.git",
            RemoteURL("file", "file:///srv/a%20b.git", path="/srv/a b.git"),
        ),
        ("/srv/r.git", RemoteURL("file", "/srv/r.git", path="/srv/r.git")),
        ("/srv/a:b", RemoteURL("file", "/srv/a:b", path="/srv/a:b")),
    ],
)
def test_what_git_understands_is_understood(text: str, expected: RemoteURL) -> None:
    assert parse_remote(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "  ",
        "https://",
        "https:///path",
        "https://host:port/path",
        "https://host:99999/p",
        "https://host?x=1",
        "https://host/p?x=1",
        "https://user:pa/ss@host/p",
        "https://exa mple/p",
        "git://host/repo%0ahost=other",
        "ssh://host/repo%00",
        "ssh://us%0aer@host/repo",
        "file:///srv/%0a",
        "host:-path",
        "host:--upload-pack=x",
        "https://host/a\nb",
        "ftp://host/path",
        "ext::sh -c true",
        "ssh://host",
        "ssh://-oProxyCommand=x/path",
        "ssh://-x@host/path",
        "-oProxyCommand=x:path",
        "git://user@host/path",
        "file://host/path",
        "user@:path",
        "host:",
    ],
)
def test_nonsense_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput):
        parse_remote(text)


@pytest.mark.parametrize(
    "text",
    [
        *("https://x:S3CRET/y@host/p", "https://x:S3CRET@ho st/p", "https://x:S3CRET@h:0/p"),
        *(
            "https:/S3CRET@host/x",
            "https:S3CRET@host/x",
            "http//x:S3CRET@host/x",
            "://x:S3CRET@h/p",
        ),
        *("git:S3CRET@host:x.git", "x:S3CRET@example.org/ns/r", "ssh:/git:S3CRET@h/x"),
        *("'https://x:S3CRET@h/p'", "url=https://x:S3CRET@h/p", "git://x:S3CRET@h/p"),
    ],
)
def test_a_refused_url_is_not_repeated(text: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        parse_remote(text)
    assert "S3CRET" not in f"{caught.value} {caught.value.hint}"


@pytest.mark.parametrize("text", ["host:dir@2", "git@host:a/b@c", "git:repo.git", "me@host:~/a"])
def test_an_address_for_ssh_is_no_malformed_url(text: str) -> None:
    assert parse_remote(text).url == text


def test_a_path_that_exists_is_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("git:me@host:x.git", "a/b:c@d"):
        (tmp_path / name).mkdir(parents=True)
        assert parse_remote(name).path == str(tmp_path / name)


@pytest.mark.parametrize("text", ["ssh://h/caf\udce9.git", "file:///caf\udce9", "file:///caf%E9"])
def test_paths_need_not_be_utf_8(text: str) -> None:
    remote = parse_remote(text)
    assert os.fsencode(remote.path).startswith(b"/caf\xe9")
    assert "%E9" in remote.url
    assert parse_remote(remote.url) == remote


def test_a_home_directory_of_nobody_is_a_path() -> None:
    assert parse_remote("~no-such-user/repo").path.endswith("/~no-such-user/repo")


def test_the_password_is_not_shown() -> None:
    assert "S3CRET" not in repr(parse_remote("https://x:S3CRET@host/p"))


def test_a_relative_path_becomes_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert parse_remote("../x/r").url == os.path.abspath(tmp_path.parent / "x/r")


def test_an_existing_path_with_a_colon_is_a_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a:b").mkdir()
    assert parse_remote("a:b").path == str(tmp_path / "a:b")


def test_credentials_belong_to_an_origin() -> None:
    assert parse_remote("https://u:p@host:8443/a/b").origin == "https://host:8443"
    assert parse_remote("https://[::1]/a").origin == "https://[::1]"
