"""The registry, used by several processes at once."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from artifactfs.config import RepoSettings
from artifactfs.daemon.repositories.registry import SCHEMA_VERSION, Registry
from artifactfs.errors import AlreadyExists, CorruptData, NotRegistered, StateError
from tests.e2e.processes import DaemonProcess, ServedRepository


def settings(name: str = "one") -> RepoSettings:
    return RepoSettings(
        name=name, remote="https://host/x.git", mount_point=name, hydrate_first=("*.proto",)
    )


def test_what_was_added_is_there_for_others(tmp_path: Path) -> None:
    with Registry(tmp_path / "registry.db") as registry:
        registry.add(settings())
    with Registry(tmp_path / "registry.db") as registry:
        (found,) = registry.all()
        assert found.settings == settings()
        assert found.enabled
        assert registry.get("one") == found


def test_changes(tmp_path: Path) -> None:
    with Registry(tmp_path / "registry.db") as registry:
        registry.add(settings())
        registry.update(replace(settings(), refresh_s=30.0))
        registry.set_enabled("one", False)
        found = registry.get("one")
        assert found.settings.refresh_s == 30.0
        assert not found.enabled
        registry.remove("one")
        assert registry.all() == []


def test_a_name_is_there_once(tmp_path: Path) -> None:
    with Registry(tmp_path / "registry.db") as registry:
        registry.add(settings())
        with pytest.raises(AlreadyExists, match="one"):
            registry.add(settings())


def test_unknown_names(tmp_path: Path) -> None:
    with Registry(tmp_path / "registry.db") as registry:
        for change in (registry.get, registry.remove):
            with pytest.raises(NotRegistered, match="nobody"):
                change("nobody")
        with pytest.raises(NotRegistered):
            registry.set_enabled("nobody", True)
        with pytest.raises(NotRegistered):
            registry.update(settings("nobody"))


ADD_MANY = """
import sys
from pathlib import Path
from artifactfs.config import RepoSettings
from artifactfs.daemon.repositories.registry import Registry
for number in range(20):
    with Registry(Path(sys.argv[1])) as registry:
        registry.add(RepoSettings(name=f"{sys.argv[2]}{number}", remote="/r", mount_point="m"))
"""


def test_processes_that_start_at_once(tmp_path: Path) -> None:
    """They race for the creation of the schema, and then for every row."""
    path = tmp_path / "registry.db"
    adding = [
        subprocess.Popen([sys.executable, "-c", ADD_MANY, str(path), prefix])
        for prefix in ("a", "b", "c", "d")
    ]
    assert [process.wait(60) for process in adding] == [0, 0, 0, 0]
    with Registry(path) as registry:
        assert len(registry.all()) == 80


def test_a_newer_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "registry.db"
    Registry(path).close()
    with sqlite3.connect(path) as connection:
        connection.execute(f"PRAGMA user_version={SCHEMA_VERSION + 1}")
    with pytest.raises(StateError, match="newer version"):
        Registry(path)


def test_damage_is_named_and_nothing_is_created_anew(tmp_path: Path) -> None:
    path = tmp_path / "registry.db"
    path.write_bytes(b"this is not a database" * 100)
    with pytest.raises(CorruptData, match=r"registry\.db is damaged"):
        Registry(path)
    assert path.read_bytes().startswith(b"this is not")


def test_looking_writes_nothing(tmp_path: Path) -> None:
    """So it works on a disk that is full, or read-only."""
    path = tmp_path / "registry.db"
    with Registry(path) as registry:
        registry.add(settings())
    assert [file.name for file in tmp_path.iterdir()] == ["registry.db"]
    before = path.read_bytes()
    with Registry(path) as registry:
        assert registry.get("one").settings == settings()
        assert [file.name for file in tmp_path.iterdir()] == ["registry.db"]
    assert path.read_bytes() == before


def test_a_registry_in_wal_mode_is_taken_over(tmp_path: Path) -> None:
    path = tmp_path / "registry.db"
    with Registry(path) as registry:
        registry.add(settings())
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode=WAL")
        with Registry(path) as registry:  # in use meanwhile
            assert registry.get("one").settings == settings()
    with Registry(path) as registry:
        assert registry.get("one").settings == settings()
    assert path.read_bytes()[18:20] == b"\1\1"  # the file format's versions: no WAL


@pytest.mark.parametrize("damage", ["settings", "checksum", "no json", "another name"])
def test_a_damaged_row_concerns_its_repository_alone(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "registry.db"
    with Registry(path) as registry:
        for name in ("a", "b"):
            registry.add(RepoSettings(name=name, remote=f"https://x/{name}", mount_point=name))
    change = {
        "settings": "settings = replace(settings, 'https', 'httpr')",
        "checksum": "checksum = checksum + 1",
        "no json": "settings = substr(settings, 2), checksum = NULL",
        "another name": "settings = replace(settings, '\"a\"', '\"q\"'), checksum = NULL",
    }[damage]
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(f"UPDATE repos SET {change} WHERE name = 'a'")
        connection.commit()
    with Registry(path) as registry:
        a, b = registry.all()
        assert (a.name, b.name) == ("a", "b")
        assert a.damaged is not None
        assert str(path) in a.damaged.message
        assert "'a'" in a.damaged.message
        assert "add-repo" in (a.damaged.hint or "")
        assert b.damaged is None
        assert registry.get("b").settings.remote == "https://x/b"
        with pytest.raises(StateError, match="damaged"):
            registry.get("a")
        assert registry.get("a", whole=False).damaged
        with pytest.raises(AlreadyExists):
            registry.add(b.settings)
        registry.add(RepoSettings(name="a", remote="https://x/a", mount_point="a"))
        assert registry.get("a").damaged is None


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount")
def test_on_a_disk_that_cannot_be_written_any_more_it_can_be_read(tmp_path: Path) -> None:
    """As the kernel makes it after an error of the disk."""
    path = tmp_path / "registry.db"
    subprocess.run(["mount", "-t", "tmpfs", "none", tmp_path], check=True)
    try:
        settings = RepoSettings(name="a", remote="https://x/a", mount_point="a")
        with Registry(path) as registry:
            registry.add(settings)
        subprocess.run(["mount", "-o", "remount,ro", tmp_path], check=True)
        with Registry(path) as registry:
            assert [one.settings for one in registry.all()] == [settings]
            with pytest.raises(StateError, match=r"registry\.db"):
                registry.set_enabled("a", False)
    finally:
        subprocess.run(["umount", tmp_path], check=True)


def test_rows_of_an_earlier_version_have_no_checksum_yet(tmp_path: Path) -> None:
    path = tmp_path / "registry.db"
    with Registry(path) as registry:
        registry.add(RepoSettings(name="a", remote="https://x/a", mount_point="a"))
    with closing(sqlite3.connect(path)) as connection:
        for column in ("checksum", "mounted"):
            connection.execute(f"ALTER TABLE repos DROP COLUMN {column}")
        connection.execute("PRAGMA user_version = 1")
        connection.commit()
    with Registry(path) as registry:
        settings = registry.get("a").settings
        registry.update(replace(settings, refresh_s=5))
        assert registry.get("a").settings.refresh_s == 5


def test_what_a_lost_registry_has_forgotten_is_registered_again(
    idle_daemon: DaemonProcess, remote_repo: Callable[..., ServedRepository]
) -> None:
    daemon = idle_daemon
    daemon.start()
    url = remote_repo().url
    mount = daemon.add_repo("demo", url)
    (mount / "mine").write_text("mine\n")
    daemon.stop()
    (daemon.state / "registry.db").unlink()
    daemon.start()
    assert daemon.json("list-repos") == []
    (found,) = (
        finding
        for finding in json.loads(daemon.run("doctor", "--json", check=False).stdout)["findings"]
        if finding["code"] == "registry.repo-missing"
    )
    assert str(daemon.state / "repos/demo") in found["what"]
    assert "artifact-fs add-repo --name demo --remote http" in found["mend"]
    refused = daemon.run("add-repo", "--name", "demo", "--remote", url + "x", check=False)
    assert refused.returncode == 1
    assert "is not registered" in refused.stderr
    assert (daemon.state / "repos/demo/git").is_dir()
    daemon.add_repo("demo", url)
    assert (mount / "mine").read_text() == "mine\n"
    assert "registry." not in daemon.run("doctor", "--offline", check=False).stdout
