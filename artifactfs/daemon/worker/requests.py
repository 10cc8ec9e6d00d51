"""What a worker answers to its supervisor: one method for a request."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import trio

from artifactfs.config import RepoSettings
from artifactfs.daemon.control.messages import Message
from artifactfs.daemon.control.server import Command, Request
from artifactfs.daemon.repositories.heads import head_fields
from artifactfs.daemon.repositories.losses import losses
from artifactfs.daemon.repositories.registration import Secret
from artifactfs.daemon.repositories.remotes import restore_secret, store_remote, stored_secret
from artifactfs.daemon.switch.target import resolve
from artifactfs.daemon.worker.content import ContentRequests
from artifactfs.git.repository.gitdir import history_complete, read_head

if TYPE_CHECKING:
    from artifactfs.daemon.worker.worker import Worker

CANCELLABLE = frozenset({"losses", "prefetch", "set-remote", "wait"})
"""What may be cut short at any point: it changes nothing, or takes back what it did."""

DEADLINE_S = 24 * 3600.0  # the supervisor has its own, and its end cancels


class Requests:
    """The handlers, over the state of a `Worker`."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker

    def table(self) -> Mapping[str, Command]:
        content = ContentRequests(self._worker)
        handlers = {
            "changes": content.changes,
            "evict": content.evict,
            "prefetch": content.prefetch,
            "trace": content.trace,
            "fetch": self.fetch,
            "losses": self.losses,
            "set-remote": self.set_remote,
            "settings": self.settings,
            "status": self.status,
            "stop": self.stop,
            "switch": self.switch,
            "unmount": self.unmount,
            "wait": self.wait,
        }
        return {
            name: Command(handler, DEADLINE_S, cancellable=name in CANCELLABLE)
            for name, handler in handlers.items()
        }

    # -- life --------------------------------------------------------------------------------

    async def stop(self, _request: Request) -> Message:
        self._worker.stop()
        return {}

    async def unmount(self, _request: Request) -> Message:
        await self._worker.unmount()
        return {}

    # -- looking -----------------------------------------------------------------------------

    async def status(self, _request: Request) -> Message:
        worker = self._worker
        head, counts = await worker.jobs.head()
        hydration = worker.hydrator.stats().as_json()
        hydration["limits"] = worker.remotes.limits
        return {
            **head_fields(head, counts),
            "commit": worker.filesystem.base.commit.hex(),
            "last_fetch": worker.jobs.last_fetch(),
            "history_complete": history_complete(worker.layout.gitdir),
            "index_primed": worker.jobs.index_primed,
            "hydrated": {
                "blobs": hydration["blobs_here"],
                "total_blobs": hydration["blobs_total"],
                "bytes": hydration["bytes_here"],
                "total_bytes": hydration["bytes_total"],
            },
            "hydration": hydration,
            "overlay": asdict(worker.filesystem.overlay_stats()),
            "kernel": {"requests": dict(worker.filesystem.operations.requests)},
        }

    async def losses(self, _request: Request) -> Message:
        worker = self._worker
        mounted = worker.filesystem.base.commit.hex()
        return await losses(worker.layout, worker.settings.mount_point, mounted)

    async def wait(self, request: Request) -> Message:
        """Until ``history`` is complete or the sweep has ``hydrated`` what it is to bring."""
        worker = self._worker
        if request.text("for") == "history":
            await worker.jobs.history_done.wait()
            return {"history_complete": True}
        while (stats := worker.hydrator.stats()).sweep_state in ("waiting", "running"):
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
        return {"name": self._worker.name, **await self._worker.jobs.fetch()}

    async def switch(self, request: Request) -> Message:
        """Move the working tree, the index and HEAD to ``target``."""
        worker, target = self._worker, request.text("target")
        await request.progress(stage="switching")
        changed: int | None
        if request.args.get("create"):
            changed = await worker.switching.create(target)
        else:
            goal = await resolve(worker, target, detach=bool(request.args.get("detach")))
            changed = await worker.switching.switch(goal)
        head = read_head(worker.layout.gitdir)
        return {
            "name": worker.name,
            "ref": head.ref.removeprefix("refs/heads/") if head.ref is not None else None,
            "commit": head.commit.hex() if head.commit is not None else None,
            "changed": changed,
        }

    async def set_remote(self, request: Request) -> Message:
        """Use another URL or other credentials; put back what was if the remote refuses them."""
        worker = self._worker
        url = request.text("remote")
        fields = request.args.get("secret")
        secret = Secret(fields["username"], fields["password"]) if fields else None
        old_url, old_secret = worker.settings.remote, stored_secret(worker.layout, url)
        try:
            await store_remote(worker.layout, old_url, url, secret)
            await worker.remotes.change(url)
            if request.args.get("check", True):
                await (await worker.remotes.shared()).ls_refs(("HEAD",))
        except BaseException:
            with trio.CancelScope(shield=True):
                if secret is not None:
                    restore_secret(worker.layout, url, old_secret)
                await store_remote(worker.layout, url, old_url, None)
                await worker.remotes.change(old_url)
            raise
        worker.settings = replace(worker.settings, remote=url)
        worker.hydrator.reset_remote()
        return {}

    async def settings(self, request: Request) -> Message:
        """New settings, of which the ones that can change while mounted take effect."""
        worker = self._worker
        worker.settings = RepoSettings.from_mapping(request.args["settings"])
        worker.jobs.refresh.set_interval(worker.settings.refresh_s)
        return {}
