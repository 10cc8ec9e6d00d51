"""What a worker answers to its supervisor: one method for a request."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import trio

from artifactfs.config import RepoSettings
from artifactfs.daemon.background.jobs import Jobs
from artifactfs.daemon.control.messages import Message
from artifactfs.daemon.control.server import Command, Handler, Request
from artifactfs.daemon.host import logs
from artifactfs.daemon.repositories.heads import head_fields
from artifactfs.daemon.repositories.losses import kept_only_here
from artifactfs.daemon.repositories.registration import Secret
from artifactfs.daemon.repositories.remotes import (
    RemoteConnection,
    kept_files,
    restore,
    store_remote,
)
from artifactfs.daemon.switch.switching import Switched, Switching
from artifactfs.daemon.switch.target import Commits, resolve
from artifactfs.daemon.worker.content import ContentRequests
from artifactfs.daemon.writes.kinds import Kind
from artifactfs.fs.mount.filesystem import FileSystem
from artifactfs.fs.mount.operations import Unanswered
from artifactfs.git.configuration.kept import refresh, surroundings_of
from artifactfs.git.remote.clone import commit_name
from artifactfs.git.repository.gitdir import history_complete
from artifactfs.git.repository.refs import read_head
from artifactfs.git.surroundings import adopt
from artifactfs.hydration.hydrator import Hydrator
from artifactfs.paths import RepoLayout

CANCELLABLE = frozenset({"losses", "prefetch", "set-remote", "wait"})
"""What may be cut short at any point: it changes nothing, or takes back what it did."""

_OF_THE_TREE = ("changes", "prefetch", "fetch", "losses", "switch", "wait")

STUCK_AFTER_S = 15.0
"""A request that waits so much longer than for its repository's deadline waits for nothing."""

_LOOKS = frozenset({"getattr", "getxattr", "listxattr", "lookup", "readdir", "readlink", "statfs"})
"""Requests that copy nothing, however large the file is."""

DEADLINE_S = 24 * 3600.0  # the supervisor has its own, and its end cancels


@dataclass(frozen=True, slots=True)
class Requests:
    """The handlers of what a served mount is asked. `unmount` raises MountError."""

    layout: RepoLayout
    remotes: RemoteConnection
    commits: Commits
    filesystem: FileSystem
    hydrator: Hydrator
    jobs: Jobs
    switching: Switching
    content: ContentRequests
    unmount: Callable[[], Awaitable[None]]
    writes: Kind

    def table(self) -> dict[str, Command]:
        handlers: dict[str, Handler] = {
            "changes": self.content.changes,
            "evict": self.content.evict,
            "prefetch": self.content.prefetch,
            "trace": self.content.trace,
            "fetch": self.fetch,
            "losses": self.losses,
            "reload": self.reload,
            "set-remote": self.set_remote,
            "settings": self.settings,
            "status": self.status,
            "switch": self.switch,
            "unmount": self.release,
            "wait": self.wait,
        }
        for name in _OF_THE_TREE:
            handlers[name] = partial(self._when_whole, handlers[name])
        return {
            name: Command(handler, DEADLINE_S, cancellable=name in CANCELLABLE)
            for name, handler in handlers.items()
        }

    async def _when_whole(self, handler: Handler, request: Request) -> Any:
        """What reads trees waits until all are here."""
        if self.filesystem.arriving is not None:
            await self.filesystem.arriving.wait()
        return await handler(request)

    async def reload(self, request: Request) -> Message:
        """Another log level and cache limit (bytes, None: the default)."""
        logs.set_level(request.text("log_level"))
        limit = request.args.get("cache_limit")
        self.hydrator.set_cache_limit(limit if isinstance(limit, int) else None)
        return {}

    async def release(self, _request: Request) -> Message:
        """Unmount unless it is in use."""
        await self.unmount()
        return {}

    # -- looking -----------------------------------------------------------------------------

    async def status(self, _request: Request) -> Message:
        head, counts = await self.jobs.head()
        hydration = self.hydrator.stats().as_json()
        hydration["limits"] = self.remotes.limits
        hydration["git_because"] = self.remotes.git_because
        oldest = self.filesystem.operations.oldest()
        return {
            **head_fields(head, counts),
            "remote": self.remotes.shown_url,
            "commit": commit_name(self.filesystem.base.commit),
            "last_fetch": self.jobs.last_fetch(),
            "history_complete": history_complete(self.layout.gitdir),
            "index_primed": self.jobs.index_primed,
            "hydration": hydration,
            "writes": self.writes.as_json(),
            "served_at": self.filesystem.served_at,
            "overlay": asdict(await self.filesystem.measure()),
            "damage": self.filesystem.damage.as_json(),
            "features": self.filesystem.features.as_json(),
            "kernel": {
                "requests": self.filesystem.operations.sent(),
                "oldest": asdict(oldest) if oldest is not None else None,
            },
            **self._stuck(oldest),
        }

    def _stuck(self, oldest: Unanswered | None) -> Message:
        """What ``status`` says where a request waits for longer than anything may that we wait
        for: no answer of a remote, and no bytes of one, have come for the repository's deadline."""
        settings = self.jobs.settings
        if oldest is None or oldest.seconds < settings.deadline_s + STUCK_AFTER_S:
            return {}
        if oldest.operation not in _LOOKS:
            return {}
        expected = not (self.jobs.history_done.is_set() and self.jobs.index_primed)
        if expected or self.hydrator.stats().readers or self.filesystem.filters.at_work:
            return {}
        what = f"a {oldest.operation} of the process {oldest.pid} has no answer"
        return {
            "state": "not answering",
            "error": {
                "message": f"{what} for {oldest.seconds:.0f} s",
                "hint": f"artifact-fs remount --name {settings.name} --restart --force",
            },
        }

    async def losses(self, _request: Request) -> Message:
        mounted = commit_name(self.filesystem.base.commit)
        return await kept_only_here(self.layout, mounted)

    async def wait(self, request: Request) -> Message:
        """Until ``history`` is complete or the sweep has ``hydrated`` what it is to fetch."""
        if request.text("for") == "history":
            await self.jobs.history_done.wait()
            return {"history_complete": True}
        while (stats := self.hydrator.stats()).sweep_state in ("waiting", "running"):
            await request.progress(
                stage=stats.sweep_stage or stats.sweep_state,
                done=stats.blobs_here,
                total=stats.blobs_total,
                bytes=stats.bytes_here,
            )
            await trio.sleep(0.2)
        return {"hydrated": stats.blobs_here, "of": stats.blobs_total, "sweep": stats.sweep_state}

    # -- the remote --------------------------------------------------------------------------

    async def fetch(self, request: Request) -> Any:
        await request.progress(stage="fetching")
        return {"name": self.layout.directory.name, **await self.jobs.fetch()}

    async def switch(self, request: Request) -> Message:
        """Move the working tree, the index and HEAD to ``target``.

        ``left_to_git`` says what is to be run in the mount, and so not by us: the arguments of
        ``git switch``, if only git can do it, or of a hook.
        """
        target = request.text("target")
        await request.progress(stage="switching")
        if request.args.get("create"):
            done = Switched(0, git=("--create", target))
        else:
            goal = await resolve(
                self.commits,
                target,
                detach=bool(request.args.get("detach")),
                fetch=self.jobs.fetch,
                history_done=self.jobs.history_done,
            )
            done = await self.switching.switch(goal)
        head = read_head(self.layout.gitdir)
        return {
            "name": self.layout.directory.name,
            "ref": head.ref.removeprefix("refs/heads/") if head.ref is not None else None,
            "commit": head.commit.hex() if head.commit is not None else None,
            "changed": done.changed,
            "left_to_git": {
                "top": self.jobs.settings.mount_point,
                "switch": done.git,
                "hook": done.hook,
            },
        }

    async def set_remote(self, request: Request) -> Message:
        """Use another URL or other credentials; put back what was if the remote refuses them."""
        url = request.text("remote")
        secret = Secret.from_fields(request.args.get("secret"))
        old = self.jobs.settings
        files = await trio.to_thread.run_sync(kept_files, self.layout)
        try:
            await store_remote(self.layout, old, url, secret)
            await self._use_remote(replace(old, remote=url))
            if request.args.get("check", True):
                await (await self.remotes.shared()).ls_refs(("HEAD",))
        except BaseException:
            with trio.CancelScope(shield=True):
                await store_remote(self.layout, replace(old, remote=url), old.remote, None)
                await trio.to_thread.run_sync(restore, self.layout, files)
                await self._use_remote(old)
            raise
        self.jobs.use(replace(self.jobs.settings, remote=url))
        self.hydrator.reset_remote()
        return {}

    async def _use_remote(self, settings: RepoSettings) -> None:
        """What is stored now, for the next connection and for git in the mount."""
        adopt(await surroundings_of(self.layout, settings))
        await self.remotes.change(settings.remote)
        await refresh(self.layout, settings)

    async def settings(self, request: Request) -> Message:
        """New settings, of which the ones that can change while mounted take effect."""
        self.jobs.use(RepoSettings.from_mapping(request.args["settings"]))
        return {}
