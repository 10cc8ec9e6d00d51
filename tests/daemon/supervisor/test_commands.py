"""Commands for one repository that come at the same time."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import trio

from artifactfs.config import RepoSettings
from artifactfs.daemon.control.server import Request
from artifactfs.daemon.repositories import registration
from artifactfs.daemon.supervisor.commands import Commands
from artifactfs.daemon.supervisor.repositories import Repositories
from artifactfs.errors import DaemonError


@dataclass
class Repository:
    """Stands for `Repositories` with the repository `a`, which is not mounted."""

    mount_point: Path
    mounts: dict[str, Any] = field(default_factory=dict)
    state: Any = None

    async def registration(self, name: str, *, whole: bool = True) -> Any:
        settings = RepoSettings(name=name, remote="r", mount_point=str(self.mount_point))
        return SimpleNamespace(name=name, settings=settings, mounted=None)

    def resolved(self, settings: RepoSettings) -> RepoSettings:
        return settings

    def supervise(self, settings: RepoSettings, *, was_mounted: bool) -> Any:
        self.mounts[settings.name] = SimpleNamespace(running=True)
        return self.mounts[settings.name]


def request(**args: Any) -> Request:
    return Request({"name": "a", **args}, 1, cast(Any, None))


def test_what_is_being_removed_is_not_mounted_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also while it is looked for what would be lost, which may take seconds: its data would go
    from under the mount."""
    deleted: list[str] = []
    monkeypatch.setattr(registration, "delete", lambda state, name, point: deleted.append(name))
    repository = Repository(tmp_path)

    async def main() -> None:
        repositories = cast(Repositories, repository)
        commands = Commands(repositories, 0.0, lambda again: None)
        looking, go_on = trio.Event(), trio.Event()

        async def look(*_: object) -> None:
            looking.set()
            await go_on.wait()

        monkeypatch.setattr(commands, "_check_nothing_is_lost", look)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(commands.remove, request())
            await looking.wait()
            for command in (commands.remount, commands.prepare, commands.remove):
                with pytest.raises(DaemonError, match="a is being removed"):
                    await command(request())
            go_on.set()
        assert deleted == ["a"] and not repository.mounts
        looking, go_on = trio.Event(), trio.Event()
        go_on.set()
        answer = await commands.remove(request(dry_run=True))
        assert answer["would_remove"] and deleted == ["a"]

    trio.run(main)
