"""Commands: serve on an empty folder, stop, fsck, gc, backup and restore while serving, TLS."""

from __future__ import annotations

import json
import os
import ssl
import stat
import subprocess
from pathlib import Path
from typing import Any, Protocol

import httpx
import pytest

from artifactfs.server.cli import run
from artifactfs.server.storage import backup
from artifactfs.server.storage.settings import DataLayout
from tests.server.running import ACCOUNT, SERVER, Git, Server, ServerFactory, with_token


def test_an_empty_folder_is_served_and_the_first_token_explained(tmp_path: Path) -> None:
    data = tmp_path / "new" / "data"
    process = subprocess.Popen(
        [*SERVER, "serve", "--data", str(data), "--listen", "127.0.0.1:0"],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    lines = [process.stdout.readline() for _ in range(3)]
    assert lines[0].startswith("listening on http://127.0.0.1:")
    assert lines[2].strip() == f"artifacts-server token create --data {data}"
    assert stat.S_IMODE(data.stat().st_mode) == 0o700
    assert stat.S_IMODE((data / "metadata.db").stat().st_mode) == 0o600
    second = subprocess.run(
        [*SERVER, "serve", "--data", str(data), "--listen", "127.0.0.1:0"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert second.returncode == 1 and "another server" in second.stderr
    process.terminate()
    assert process.wait(timeout=90) == 0
    process.stdout.close()


class Fails(Protocol):
    def __call__(self, *words: object) -> str: ...


@pytest.fixture
def fails(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Fails:
    """Run a command that must fail with one line of error, and perhaps one of hint; that error."""
    monkeypatch.setattr("artifactfs.server.cli.resource.setrlimit", lambda *_: None)

    def run_it(*words: object) -> str:
        assert run([str(word) for word in words]) > 0
        first, *more = capsys.readouterr().err.splitlines()
        assert first.startswith("error: ") and len(more) <= 1, (first, more)
        assert all(line.startswith("hint: ") for line in more), more
        return first

    return run_it


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--listen", "nonsense"], "HOST:PORT"),
        (["--listen", "1.2.3.4:1"], "cannot listen"),
        (["--tls-cert", __file__], "go together"),
        (["--tls-cert", __file__, "--tls-key", __file__], "cannot be used"),
        (["--public-url", "nonsense"], "not an origin"),
        (["--access-log", "/nowhere/log"], "cannot be written"),
        (["--max-git-processes", "0"], "0 is not in the range"),
        (["--max-repo-bytes", "much"], "not a size"),
        (["--client-timeout", "-1"], "not in the range"),
        (["--nonsense"], "--nonsense"),
    ],
)
def test_bad_options_of_serve_are_one_line(
    tmp_path: Path, fails: Fails, words: list[str], text: str
) -> None:
    assert text in fails("serve", "--data", tmp_path, "--listen", "127.0.0.1:0", *words)


def test_commands_on_folders_that_are_none(tmp_path: Path, fails: Fails) -> None:
    empty = tmp_path / "empty"
    for words in (["usage"], ["fsck"], ["gc"], ["token", "list"], ["token", "revoke", "x"]):
        assert "is not a data folder" in fails(*words, "--data", empty)
    assert "is not a backup" in fails("restore", tmp_path, "--data", empty)
    assert not empty.exists()
    assert "nonsense" in fails("nonsense")


def test_a_backup_never_goes_into_the_data_folder(
    start_server: ServerFactory, git: Git, work: Path, fails: Fails
) -> None:
    server = start_server()
    remote = filled(server, git, work, "whole")
    for place in (server.data, server.data / "backup", server.root):
        assert "outside the data folder" in fails("backup", place, "--data", server.data)
    git("ls-remote", remote)


def test_every_command_speaks_json(start_server: ServerFactory, git: Git, work: Path) -> None:
    server = start_server("--max-repo-bytes", "1G")
    filled(server, git, work, "one")

    def objects(*words: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in server.command(*words, "--json").splitlines()]

    (made,) = objects("token", "create", "--name", "robot", "--account", ACCOUNT)
    assert made["token"].startswith("aft_") and made["permission"] == "edit"
    assert [each["state"] for each in objects("token", "list")] == ["active", "active"]
    assert objects("token", "revoke", made["id"]) == [{"revoked": made["id"]}]
    assert objects("fsck") == [{"checked": 1, "problems": []}]
    (collected,) = objects("gc")
    assert (collected["what"], collected["error"]) == ("team/one", None)
    place = str(server.root / "backup")
    assert objects("backup", place) == [{"repositories": 1, "destination": place}]
    assert {each["account"] for each in objects("usage")} <= {ACCOUNT}
    script = subprocess.run([*SERVER, "completion", "bash"], capture_output=True, text=True)
    assert "_ARTIFACTS_SERVER_COMPLETE" in script.stdout


def filled(server: Server, git: Git, work: Path, name: str) -> str:
    made = server.create(name)
    remote = with_token(made["remote"], made["token"])
    git("push", "-q", remote, "main", cwd=work)
    return remote


def test_gc_keeps_what_forks_need(start_server: ServerFactory, git: Git, work: Path) -> None:
    server = start_server()
    remote = filled(server, git, work, "parent")
    children = []
    for number in range(3):
        (work / "more.txt").write_text(f"{number}\n")
        git("add", "-A", cwd=work)
        git("commit", "-q", "-m", f"More {number}", cwd=work)
        git("push", "-q", remote, "main", cwd=work)
        made = server.result("POST", "/namespaces/team/repos/parent/fork", {"name": f"c-{number}"})
        children.append(with_token(made["remote"], made["token"]))
    # The ancestor forgets its history; what the forks have of it must stay.
    git("checkout", "-q", "--orphan", "fresh", cwd=work)
    git("commit", "-q", "-m", "Fresh", cwd=work)
    git("push", "-q", "--force", remote, "fresh:main", cwd=work)
    assert "team/parent: " in server.command("gc", "--grace", "0")
    for number, child in enumerate(children):
        git("clone", "-q", child, work.parent / f"copy{number}")
        count = git("rev-list", "--count", "HEAD", cwd=work.parent / f"copy{number}")
        assert int(count) == 3 + number
    assert "0 problems" in server.command("fsck", "--full")
    for number in range(3):
        server.result("DELETE", f"/namespaces/team/repos/c-{number}")
    server.result("DELETE", "/namespaces/team/repos/parent")
    assert server.command("gc", "--grace", "0").count("removed") == 3
    assert list((server.data / "pools").iterdir()) == []


def test_a_long_line_of_forks_is_cut(start_server: ServerFactory, git: Git, work: Path) -> None:
    """git follows only a few nested alternates: ours are flat, and gc makes them few again."""
    server = start_server()
    filled(server, git, work, "gen-0")
    for number in range(12):
        made = server.result(
            "POST", f"/namespaces/team/repos/gen-{number}/fork", {"name": f"gen-{number + 1}"}
        )
        remote = with_token(made["remote"], made["token"])
        git("commit", "-q", "--allow-empty", "-m", f"Generation {number}", cwd=work)
        git("push", "-q", remote, "main", cwd=work)
    server.command("gc", "--grace", "0")
    git("clone", "-q", remote, "last")
    assert git("rev-list", "--count", "HEAD", cwd=work.parent / "last") == "14\n"
    alternates = list(server.data.glob("repos/*/*/objects/info/alternates"))
    assert alternates and all(len(a.read_text().splitlines()) <= 8 for a in alternates)
    assert "0 problems" in server.command("fsck")


def test_fsck_finds_damage(start_server: ServerFactory, git: Git, work: Path) -> None:
    server = start_server()
    filled(server, git, work, "whole")
    filled(server, git, work, "broken")
    repo_id = server.result("GET", "/namespaces/team/repos/broken")["id"]
    pack = next((server.data / "repos" / repo_id[:2] / f"{repo_id}.git").rglob("*.pack"))
    pack.chmod(0o600)
    pack.write_bytes(pack.read_bytes()[:-40])
    done = subprocess.run(
        [*SERVER, "fsck", "--data", str(server.data)],
        env=server.environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "team/broken: " in done.stderr and "team/whole" not in done.stderr


def test_backup_while_serving_and_restore(
    start_server: ServerFactory, git: Git, work: Path, tmp_path: Path
) -> None:
    server = start_server()
    remote = filled(server, git, work, "kept")
    server.result("POST", "/namespaces/team/repos/kept/fork", {"name": "child"})
    copy = tmp_path / "backup"
    assert "2 repositories" in server.command("backup", str(copy))
    git("commit", "-q", "--allow-empty", "-m", "Later", cwd=work)
    git("push", "-q", remote, "main", cwd=work)
    server.result("DELETE", "/namespaces/team/repos/child")
    assert "1 repositories" in server.command("backup", str(copy))
    server.stop()

    data = tmp_path / "restored" / "data"
    words = [*SERVER, "restore", "--data", str(data), str(copy)]
    assert subprocess.run(words, capture_output=True, check=False).returncode == 0
    again = subprocess.run(words, capture_output=True, text=True, check=False)
    assert again.returncode == 2 and "in use" in again.stderr
    (tmp_path / "restored").joinpath("access.log").touch()
    restored = Server(tmp_path / "restored", url=server.url, api_token=server.api_token).start()
    try:
        git("clone", "-q", remote, tmp_path / "copy")
        assert git("log", "-1", "--format=%s", cwd=tmp_path / "copy") == "Later\n"
        assert [r["name"] for r in restored.result("GET", "/namespaces/team/repos")] == ["kept"]
        assert "0 problems" in restored.command("fsck")
    finally:
        restored.kill()


def test_a_backup_during_which_everything_changes(
    start_server: ServerFactory, git: Git, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the database and the objects: a fork, gc, a push to the fork, and a deletion."""
    server = start_server()
    filled(server, git, work, "moved")
    filled(server, git, work, "gone")
    copied = backup.copy_objects
    changes = iter([True])

    def change_and_copy(source: Path, target: Path) -> None:
        if next(changes, False):
            server.result("POST", "/namespaces/team/repos/moved/fork", {"name": "late"})
            server.command("gc", "--grace", "0")
            server.result("DELETE", "/namespaces/team/repos/gone")
        copied(source, target)

    monkeypatch.setattr(backup, "copy_objects", change_and_copy)
    source, target = DataLayout(server.data), DataLayout(server.root / "backup")
    database = server.installation.open()
    try:
        files = None if server.database is None else database
        assert backup.back_up(source, target, files) == 1
    finally:
        database.close()
    done = subprocess.run(
        [*SERVER, "fsck", "--data", str(target.root), "--json"], capture_output=True, text=True
    )
    assert json.loads(done.stdout) == {"checked": 1, "problems": []}
    assert len(list(target.pools.iterdir())) == 1
    restored = Server(server.root.with_name("again"), url="", api_token=server.api_token)
    restored.root.mkdir()
    backup.restore(target, DataLayout(restored.data))
    restored.start()
    try:
        assert len(restored.result("GET", "/namespaces/team/repos/moved/log")) == 2
        restored.command("gc", "--grace", "0")
        assert "0 problems" in restored.command("fsck")
    finally:
        restored.kill()


def test_tls(start_server: ServerFactory, git: Git, work: Path, tmp_path: Path) -> None:
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    subprocess.run(
        [
            *["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"],
            *["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"],
            *["-keyout", str(key), "-out", str(certificate)],
        ],
        check=True,
        capture_output=True,
    )
    server = start_server("--tls-cert", str(certificate), "--tls-key", str(key))
    assert server.url.startswith("https://")
    context = ssl.create_default_context(cafile=str(certificate))
    headers = {"Authorization": f"Bearer {server.api_token}"}
    with httpx.Client(verify=context, http2=True, headers=headers, timeout=60) as client:
        url = f"{server.url}{server.base}/namespaces/team/repos"
        answer = client.post(url, json={"name": "secure"})
        assert answer.status_code == 201 and answer.http_version == "HTTP/2"
        made = answer.json()["result"]
    assert made["remote"].startswith("https://")
    remote = with_token(made["remote"], made["token"])
    trust = f"http.sslCAInfo={certificate}"
    git("-c", trust, "push", "-q", remote, "main", cwd=work)
    git("-c", trust, "clone", "-q", remote, tmp_path / "copy")
    assert (tmp_path / "copy" / "README.md").exists()


def test_no_secret_in_the_process_list(server: Server) -> None:
    """Repository tokens never get to a command line, and the API token is only ever printed."""
    assert server.process is not None
    for pid in (server.process.pid, os.getpid()):
        line = Path(f"/proc/{pid}/cmdline").read_bytes()
        assert server.api_token.encode() not in line


def test_a_data_folder_that_is_open_is_closed(tmp_path: Path, start_server: ServerFactory) -> None:
    data = tmp_path / "server0" / "data"
    for folder in (data, data / "repos"):
        folder.mkdir(parents=True)
        folder.chmod(0o755)
    start_server()
    for path in (data, *data.iterdir()):
        assert stat.S_IMODE(os.stat(path).st_mode) & 0o077 == 0, path
