"""Git asks before it moves a ref.

A push runs in processes of git that outlive a server which was killed, and that do not notice when
their server has lost its place. So the hook ``reference-transaction`` (githooks(5)), which git runs
when it has locked the refs and before it moves them, asks the server over a pipe. A server that is
gone does not answer, and git gives up.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import trio

from artifactfs.server.cluster.standing import Lost, Standing
from artifactfs.system.files import keep_file

_HOOK = """\
#!/bin/sh
# Written by artifacts-server.
[ "$1" = prepared ] || exit 0
echo ask >"/dev/fd/$ARTIFACTS_ASK" && read -r answer <"/dev/fd/$ARTIFACTS_ANSWER" &&
    [ "$answer" = go ]
"""


_FOLDER = hashlib.sha256(_HOOK.encode()).hexdigest()[:16]
"""Below the folder of hooks. Git does not ask where it finds no hook, so another version of it is
put beside it and not in its place: another machine may still know the file that was there."""


@dataclass(slots=True)
class Fence:
    """What a process of git is given so that it asks. `settings`: configuration of git."""

    settings: Mapping[str, str] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    descriptors: tuple[int, ...] = ()
    said_no: bool = False

    def check(self) -> None:
        """To be called where git failed. Raises: Lost, if that was because we told it no."""
        if self.said_no:
            raise Lost("git was not to publish it")


def write_hook(folder: Path) -> None:
    """Raises: OSError."""
    own = folder / _FOLDER
    for directory in (folder, own):
        directory.mkdir(mode=0o700, exist_ok=True)
    keep_file(own / "reference-transaction", _HOOK, mode=0o700)


@asynccontextmanager
async def fenced(standing: Standing, hooks: Path, owner: str | None) -> AsyncIterator[Fence]:
    """While this lasts, processes of git that get the fence ask whether they may publish."""
    if not standing.shared:
        yield Fence()
        return
    asked, ask = os.pipe2(os.O_CLOEXEC)
    answer, answers = os.pipe2(os.O_CLOEXEC)
    try:
        async with (
            trio.lowlevel.FdStream(asked) as questions,
            trio.lowlevel.FdStream(answers) as replies,
            trio.open_nursery() as nursery,
        ):
            fence = Fence(
                {"core.hooksPath": str(hooks / _FOLDER)},
                {"ARTIFACTS_ASK": str(ask), "ARTIFACTS_ANSWER": str(answer)},
                (ask, answer),
            )
            nursery.start_soon(_reply, fence, standing, owner, questions, replies)
            yield fence
            nursery.cancel_scope.cancel()
    finally:
        os.close(ask)
        os.close(answer)


async def _reply(
    fence: Fence,
    standing: Standing,
    owner: str | None,
    questions: trio.lowlevel.FdStream,
    replies: trio.lowlevel.FdStream,
) -> None:
    async for data in questions:
        for _ in range(data.count(b"\n")):
            may = await standing.may_publish(owner)
            fence.said_no = fence.said_no or not may
            await replies.send_all(b"go\n" if may else b"no\n")
