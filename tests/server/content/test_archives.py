"""Archives of a ref or a folder."""

from __future__ import annotations

import gzip
import io
import tarfile
import zipfile
from pathlib import Path

import pytest

from tests.server.running import Git, Server, with_token


@pytest.fixture
def path(server: Server, git: Git, work: Path, name: str) -> str:
    made = server.create(name)
    git("push", "-q", with_token(made["remote"], made["token"]), "main", "main:a/b", cwd=work)
    return f"/namespaces/team/repos/{name}"


def test_tarball(server: Server, path: str, git: Git, work: Path, tmp_path: Path) -> None:
    answer = server.api("GET", f"{path}/archive", ref="a/b")
    assert answer.headers["content-type"] == "application/gzip"
    commit = git("rev-parse", "main", cwd=work).strip()
    top = f"{path.rpartition('/')[2]}-{commit[:10]}"
    assert f'filename="{top}.tar.gz"' in answer.headers["content-disposition"]
    with tarfile.open(fileobj=io.BytesIO(answer.content)) as tar:
        tar.extraction_filter = getattr(tarfile, "data_filter", None)
        tar.extractall(tmp_path / "out")
    unpacked = tmp_path / "out" / top
    assert (unpacked / "src" / "app.py").read_text() == "print('two')\n"
    assert (unpacked / "run.sh").stat().st_mode & 0o100
    assert (unpacked / "link").readlink() == Path("README.md")
    assert server.api("GET", f"{path}/archive", ref=commit).content == answer.content
    plain = server.api("GET", f"{path}/archive", ref="a/b", format="tar").content
    assert gzip.decompress(answer.content) == plain


def test_a_folder_as_zip(server: Server, path: str) -> None:
    answer = server.api("GET", f"{path}/archive", path="src/", format="zip")
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        names = [name for name in archive.namelist() if not name.endswith("/")]
        assert [name.partition("/")[2] for name in names] == ["src/app.py"]
        assert archive.read(names[0]) == b"print('two')\n"


@pytest.mark.parametrize(
    ("params", "status"),
    [
        ({"ref": "absent"}, 404),
        ({"path": "absent"}, 404),
        ({"path": "README.md"}, 404),
        ({"path": "../.."}, 404),
        ({"ref": "--output=/tmp/x"}, 404),
        ({"format": "rar"}, 400),
    ],
)
def test_what_has_no_archive(
    server: Server, path: str, params: dict[str, str], status: int
) -> None:
    assert server.api("GET", f"{path}/archive", None, **params).status_code == status


def test_head_and_an_empty_repository(server: Server, path: str, name: str) -> None:
    with server.client() as client:
        answer = client.head(f"{server.base}{path}/archive")
        assert answer.status_code == 200 and answer.content == b""
    server.create(f"{name}-e")
    assert server.api("GET", f"/namespaces/team/repos/{name}-e/archive").status_code == 404
