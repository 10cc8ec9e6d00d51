"""Events on disk."""

from __future__ import annotations

from pathlib import Path

import trio

from artifactfs.server.events import Event, Notice


class EventLog:
    def __init__(self, path: Path) -> None:
        self._path = path

    def record(self, event: Event) -> None:
        return None

    def notify(self, notice: Notice) -> None:
        return None

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        task_status.started()
        await trio.sleep_forever()
