"""What the daemon answers on its control socket: one method for a command."""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import trio

from artifactfs import __version__
from artifactfs.config import RepoSettings
from artifactfs.daemon.control.messages import Message, error_fields
from artifactfs.daemon.control.server import Command, Request
from artifactfs.daemon.control.starting import STARTER_VARIABLE
from artifactfs.daemon.repositories import housekeeping, registration
from artifactfs.daemon.repositories.registration import Reservation, Secret
from artifactfs.daemon.repositories.registry import Registration, name_taken
from artifactfs.daemon.supervisor.repositories import Repositories
from artifactfs.daemon.supervisor.supervision import Supervision
from artifactfs.errors import (
    DaemonError,
    InvalidInput,
    StateError,
)

log = logging.getLogger(__name__)

QUICK_S = 30.0
LONG_S = 24 * 3600.0  # has progress or deadlines of its own; a client that leaves cancels it
RELOAD_S = 10.0
STATUS_S = 3.0  # a worker that answers later is shown as not answering
ROLL_BACK_S = 30.0
ASK_AGAIN_S = 1.0


READY_WORDS = {
    "mounted": "mounted",
    "hydrated": "hydrated",
    "history": "there with its whole history",
}


class NotYet(DaemonError):
    """A wait is over before what it waited for."""

    exit_code = 124  # as timeout(1)


class Commands:
    """The handlers of a daemon that began at `started` (seconds since the epoch)."""

    def __init__(
        self,
        repositories: Repositories,
        started: float,
        end: Callable[[bool], None],
        *,
        adopt: Callable[[Path], None] | None = None,
    ) -> None:
        """`end` lets the daemon end soon; with True it starts again. `adopt` lets one that ends
        when idle stay, with another mount root."""
        self._adopt = adopt
        self._repositories = repositories
        self._started = started
        self._end = end
        self._deleting = trio.Lock()  # gc walks through what remove deletes
        self._removing: set[str] = set()

    def table(self) -> Mapping[str, Command]:
        quick = {
            "ping": self.ping,
            "adopt": self.adopt,
            "end": self.end,
            "reload": self.reload,
            "list": self.list_repos,
            "status": self.status,
            "set-refresh": self.set_refresh,
        }
        long = {
            "add": self.add,
            "unmount": self.unmount,
            "prepare": self.prepare,
            "remount": self.remount,
            "first-attempts": self.first_attempts,
            "remove": self.remove,
            "set-remote": self.set_remote,
            "worker": self.worker,
            "wait": self.wait,
            "evict": self.evict,
            "gc": self.gc,
        }
        return {
            **{name: Command(handler, QUICK_S) for name, handler in quick.items()},
            **{name: Command(handler, LONG_S) for name, handler in long.items()},
            "attend": Command(self.attend, math.inf),
        }

    # -- looking -----------------------------------------------------------------------------

    async def ping(self, _request: Request) -> Message:
        repositories = self._repositories
        return {
            "version": __version__,
            "pid": os.getpid(),
            "uptime_s": time.time() - self._started,
            "state_root": str(repositories.state.root),
            "mount_root": str(repositories.mount_root),
            "exit_when_idle": True if self._adopt is not None else None,
            "started_for": os.environ.get(STARTER_VARIABLE, "mount") if self._adopt else None,
        }

    async def adopt(self, request: Request) -> Message:
        """Become the daemon that a user has asked for by hand. Raises: StateError where mounts are
        below another mount root."""
        if self._adopt is None:
            raise DaemonError("somebody has started it by hand")
        root = Path(request.text("mount_root"))
        if root != self._repositories.mount_root:
            here = [
                one.name
                for one in await self._repositories.registrations()
                if one.damaged is None and not os.path.isabs(one.settings.mount_point)
            ]
            if here:
                raise StateError(
                    f"{here[0]} is mounted below {self._repositories.mount_root} by a daemon that"
                    " `artifact-fs mount` has started",
                    hint="artifact-fs daemon stop, then start the one with another --root",
                )
        limit = request.args.get("cache_limit")
        level = request.text("log_level")
        self._repositories.configure(level, limit if isinstance(limit, int) else None)
        self._adopt(root)
        self._adopt = None
        return {"pid": os.getpid()}

    async def attend(self, _request: Request) -> None:
        """For as long as whoever asks wants: a `daemon` in the foreground that goes on with this
        one. When it is gone, however it ended, this one ends as if it were that."""
        try:
            await trio.sleep_forever()
        finally:
            self._end(False)

    async def first_attempts(self, request: Request) -> list[Message]:
        """The summaries, once everything is mounted or has failed, or ``timeout_s`` are over."""
        with trio.move_on_after(float(request.args.get("timeout_s") or QUICK_S)):
            for supervision in tuple(self._repositories.mounts.values()):
                await supervision.wait_first_attempt()
        return await self.list_repos(request)

    async def end(self, request: Request) -> Message:
        """Unmount everything and end; with ``again`` the daemon then starts anew."""
        self._end(bool(request.args.get("again")))
        return {"pid": os.getpid()}

    async def reload(self, request: Request) -> Message:
        """Take over a log level and a cache limit (bytes, None: the default), in workers too."""
        level, limit = request.text("log_level"), request.args.get("cache_limit")
        self._repositories.configure(level, limit if isinstance(limit, int) else None)
        reached: list[str] = []

        async def tell(name: str, supervision: Supervision) -> None:
            try:
                args = {"log_level": level, "cache_limit": limit}
                await supervision.request("reload", args, deadline_s=RELOAD_S)
            except DaemonError as error:  # the next process of that mount begins with them
                log.warning("not reached: %s", error.message, extra={"repo": name})
            else:
                reached.append(name)

        async with trio.open_nursery() as nursery:
            for name, supervision in self._repositories.mounts.items():
                if supervision.state == "mounted":
                    nursery.start_soon(tell, name, supervision)
        return {"log_level": level, "cache_limit": limit, "repos": sorted(reached)}

    async def list_repos(self, _request: Request) -> list[Message]:
        return [self._summary(known) for known in await self._repositories.registrations()]

    async def status(self, request: Request) -> list[Message]:
        """Of one repository (``name``) or all: the summary, and what each worker says."""
        name = request.args.get("name")
        known = await self._repositories.registrations()
        if name is not None:
            known = [await self._repositories.registration(str(name), whole=False)]
        return await self.statuses(known)

    async def statuses(self, known: list[Registration]) -> list[Message]:
        """The summary of each, and what its worker says."""
        answers: list[Message] = [self._summary(one) for one in known]
        async with trio.open_nursery() as nursery:
            for answer in answers:
                nursery.start_soon(self._add_worker_status, answer)
        return answers

    def _summary(self, known: Registration) -> Message:
        settings = self._repositories.resolved(known.settings)
        supervision = self._repositories.mounts.get(known.name)
        error = supervision.error if supervision else None
        if known.damaged is not None and supervision is None:
            error = error_fields(known.damaged)
        return {
            "name": known.name,
            "state": supervision.state if supervision else "failed" if error else "unmounted",
            "mount_point": settings.mount_point,
            "remote": settings.remote,
            "source_ref": settings.ref,
            "refresh_s": settings.refresh_s,
            "follow": settings.follow,
            "depth": settings.depth,
            "require_commit": settings.require_commit,
            "git_dir": settings.git_dir,
            "enabled": known.enabled,
            "created": known.created,
            "pid": supervision.pid if supervision else None,
            "restarts": supervision.restarts if supervision else 0,
            "error": error,
        }

    async def _add_worker_status(self, answer: Message) -> None:
        supervision = self._repositories.mounts.get(answer["name"])
        if supervision is None or supervision.state != "mounted":
            return
        try:
            answer.update(await supervision.request("status", deadline_s=STATUS_S))
        except DaemonError as error:
            if supervision.error is not None:  # it ended meanwhile, and has said why
                answer.update(state=supervision.state, error=supervision.error)
                return
            answer["state"] = "not answering"
            hint = f"artifact-fs remount --name {answer['name']} --restart --force"
            answer["error"] = {"message": error.message, "hint": hint}

    # -- adding and removing -----------------------------------------------------------------

    async def add(self, request: Request) -> Message:
        """Reserve, clone, mount, register; take everything back if any of that fails.

        With ``async`` it is registered and answered at once, and mounted when that can be done.
        """
        started = trio.current_time()
        settings = _settings(request.args.get("settings"))
        secret = Secret.from_fields(request.args.get("secret"), here=os.environ)
        repositories = self._repositories
        if request.args.get("again") and settings.name not in repositories.adding:
            find = partial(registration.registered, repositories.state, settings.name)
            known = await trio.to_thread.run_sync(find)
            if known is not None:
                return await self._add_again(known, settings, request)
        if settings.name in repositories.adding or settings.name in repositories.mounts:
            raise name_taken(settings.name)
        mount_point = repositories.resolved(settings).mount_point
        self._check_unused(mount_point)
        repositories.adding.add(settings.name)
        try:
            registration.check_fuse()
            reserve = partial(Reservation, repositories.state, settings, Path(mount_point))
            reservation = await trio.to_thread.run_sync(reserve)
            try:
                await trio.to_thread.run_sync(reservation.store, secret)
                if request.args.get("async"):
                    await trio.to_thread.run_sync(reservation.commit)
                    await repositories.supervise(settings).wait_there()
                    return {"name": settings.name, "mount_point": mount_point, "state": "queued"}
                supervision = repositories.supervise(settings, behind_an_entrance=False)
                await supervision.wait_ready(request.progress)
                await trio.to_thread.run_sync(partial(reservation.commit, mounted=True))
            except BaseException:
                with trio.CancelScope(shield=True):
                    await self._take_back(settings.name, reservation)
                raise
        finally:
            repositories.adding.discard(settings.name)
        seconds = trio.current_time() - started
        return {"name": settings.name, **supervision.mounted, "seconds": round(seconds, 3)}

    async def _add_again(
        self, known: Registration, settings: RepoSettings, request: Request
    ) -> Message:
        """Take over the options, and what the credentials are now; mount it if it is not.

        Raises: AlreadyExists.
        """
        settings = registration.once_more(known.settings, settings)
        secret = request.args.get("secret") or {}
        if secret.get("password") is not None:
            given = {"remote": settings.remote, "secret": secret, "no_check": True}
            await self.set_remote(request.about(name=known.name, **given))
        supervision = self._repositories.mounts.get(known.name)
        point = self._repositories.resolved(settings).mount_point
        moved = supervision is not None and supervision.settings.mount_point != point
        if supervision is not None and supervision.running and moved:
            await supervision.unmount(force=False)
        await self._apply(settings)
        command = self.prepare if request.args.get("async") else self.remount
        answer = await command(request.about(name=known.name))
        return {**answer, "mount_point": point, "again": True}

    def _check_unused(self, mount_point: str) -> None:
        for other in self._repositories.mounts.values():
            registration.check_apart(Path(mount_point), other.name, other.settings.mount_point)

    async def _take_back(self, name: str, reservation: Reservation) -> None:
        supervision = self._repositories.mounts.pop(name, None)
        if supervision is not None:
            await supervision.unmount(force=True)
        with trio.move_on_after(ROLL_BACK_S):
            await trio.to_thread.run_sync(reservation.roll_back, abandon_on_cancel=True)

    async def remove(self, request: Request) -> Message:
        """Unmount and delete; unless forced, only where nothing is lost. ``dry_run``: only look.

        ``changes`` are the paths that `git status` names in the mount: see `losses`.
        """
        name, force = request.text("name"), bool(request.args.get("force"))
        known = await self._repositories.registration(name, whole=False)
        if name in self._removing:
            raise DaemonError(f"{name} is being removed")
        self._removing.add(name)  # from here on nobody mounts it again
        try:
            supervision = self._repositories.mounts.get(name)
            if not force:
                await self._check_nothing_is_lost(known, supervision, request.args.get("changes"))
            if request.args.get("dry_run"):
                return {"name": name, "removed": False, "would_remove": True}
            if supervision is not None:
                await supervision.unmount(force=force)
                self._repositories.mounts.pop(name, None)
            mount_point = Path(self._repositories.resolved(known.settings).mount_point)
            delete = partial(registration.delete, self._repositories.state, name, mount_point)
            async with self._deleting:
                with trio.CancelScope(shield=True):
                    await trio.to_thread.run_sync(delete)
        finally:
            self._removing.discard(name)
        return {"name": name, "removed": True}

    async def _check_nothing_is_lost(
        self, known: Registration, supervision: Supervision | None, changes: object
    ) -> None:
        """Raises: StateError that says what would be lost."""
        from artifactfs.daemon.repositories.losses import check_unmounted, refuse

        if supervision is not None and supervision.state == "mounted":
            if not isinstance(changes, list):
                raise StateError(
                    f"{known.name} is mounted, and nobody said what git status says in it",
                    hint=f"artifact-fs remove-repo --name {known.name}",
                )
            kept = await supervision.request("losses", deadline_s=LONG_S)
            refuse(known.name, {"changes": [str(path) for path in changes], **kept})
        else:
            layout = self._repositories.state.repo(known.name)
            await check_unmounted(known.name, layout)

    # -- mounting ----------------------------------------------------------------------------

    async def unmount(self, request: Request) -> Message:
        """Unmount, and leave it unmounted at the next start."""
        name = request.text("name")
        await self._repositories.registration(name)
        supervision = self._repositories.mounts.get(name)
        if supervision is not None and supervision.running:
            await supervision.unmount(force=bool(request.args.get("force")))
        await self._repositories.set_enabled(name, False)
        return {"name": name, "state": "unmounted"}

    async def remount(self, request: Request) -> Message:
        """Mount what is unmounted; with ``restart``, unmount it first where it is mounted; so it
        is with ``writes``, where that is another setting than before."""
        name = request.text("name")
        known = await self._repositories.registration(name)
        supervision = self._repositories.mounts.get(name)
        writes = request.args.get("writes") or known.settings.writes
        restart = request.args.get("restart") or writes != known.settings.writes
        if supervision is not None and supervision.running and restart:
            await supervision.unmount(force=bool(request.args.get("force")))
        if writes != known.settings.writes:
            known = replace(known, settings=replace(known.settings, writes=str(writes)))
            await self._repositories.save(known.settings)
        if supervision is None or supervision.state != "mounted":
            mount_point = Path(self._repositories.resolved(known.settings).mount_point)
            registration.check_fuse()
            await trio.to_thread.run_sync(registration.make_mount_point, mount_point)
        supervision = await self._start_again(name)
        supervision.retry_now()
        await self._repositories.set_enabled(name, True)
        await supervision.wait_ready(request.progress)
        return {"name": name, "state": supervision.state, **supervision.mounted}

    async def prepare(self, request: Request) -> Message:
        """Try at once what has failed, or is not mounted, and do not wait for it."""
        name = request.text("name")
        await self._repositories.registration(name)
        supervision = await self._start_again(name)
        supervision.retry_now()
        await self._repositories.set_enabled(name, True)
        await supervision.wait_there()
        state = "mounted" if supervision.state == "mounted" else "queued"
        return {"name": name, "mount_point": supervision.settings.mount_point, "state": state}

    async def _start_again(self, name: str) -> Supervision:
        """Unless another command was faster: two would fight for one mount. Raises: DaemonError."""
        known = await self._repositories.registration(name)
        if name in self._removing:
            raise DaemonError(f"{name} is being removed")
        supervision = self._repositories.mounts.get(name)
        if supervision is not None and supervision.running:
            return supervision
        was_mounted = known.mounted is not None
        return self._repositories.supervise(known.settings, was_mounted=was_mounted)

    async def wait(self, request: Request) -> Message:
        """Until it is ``mounted``, ``hydrated`` or has its ``history``, whatever happens meanwhile.

        Raises: DaemonError when ``timeout_s`` is over, or it is not to be mounted at all.
        """
        name, goal = request.text("name"), request.text("for")
        timeout_s = request.args.get("timeout_s")
        await self._repositories.registration(name)
        with trio.move_on_after(float("inf") if timeout_s is None else float(timeout_s)):
            while True:
                supervision = await self._mounted(name)
                if goal == "mounted":
                    return {"name": name, "for": goal, **supervision.mounted}
                try:
                    answer = await supervision.request(
                        "wait", {"for": goal}, deadline_s=LONG_S, progress=request.progress
                    )
                except DaemonError:  # it crashed: it will be mounted again
                    with trio.move_on_after(ASK_AGAIN_S):
                        await supervision.changed.wait()
                else:
                    return {"name": name, "for": goal, **answer}
        raise NotYet(f"{name} is not {READY_WORDS[goal]} after {timeout_s:g} s")

    async def _mounted(self, name: str) -> Supervision:
        """The mount, once it is there, however many attempts that takes. Raises: DaemonError."""
        while True:
            supervision = self._repositories.mounts.get(name)
            if supervision is None or not supervision.running:
                raise DaemonError(
                    f"{name} is not mounted", hint=f"artifact-fs remount --name {name}"
                )
            if supervision.state == "mounted":
                return supervision
            await supervision.changed.wait()

    # -- settings ----------------------------------------------------------------------------

    async def set_refresh(self, request: Request) -> Message:
        known = await self._repositories.registration(request.text("name"))
        refresh_s = request.args.get("refresh_s")
        if refresh_s is not None and not (isinstance(refresh_s, (int, float)) and refresh_s > 0):
            raise InvalidInput("the refresh interval is a number of seconds")
        await self._apply(replace(known.settings, refresh_s=refresh_s))
        return {"name": known.name, "refresh_s": refresh_s}

    async def set_remote(self, request: Request) -> Message:
        """A new URL or new credentials, checked by the worker while it is mounted."""
        known = await self._repositories.registration(request.text("name"))
        settings = replace(known.settings, remote=request.text("remote"))
        supervision = self._repositories.mounts.get(known.name)
        args = {"remote": settings.remote, "secret": request.args.get("secret")}
        if supervision is not None and supervision.state == "mounted":
            args["check"] = not request.args.get("no_check")
            await supervision.request("set-remote", args, deadline_s=QUICK_S * 4)
            await self._repositories.save(settings)
            supervision.settings = replace(supervision.settings, remote=settings.remote)
            return {"name": known.name, "remote": settings.remote, "checked": args["check"]}
        from artifactfs.daemon.repositories.remotes import store_remote

        layout = self._repositories.state.repo(known.name)
        secret = Secret.from_fields(request.args.get("secret"), here=os.environ)
        await store_remote(
            layout, self._repositories.resolved(known.settings), settings.remote, secret
        )
        await self._repositories.save(settings)
        if supervision is not None:
            supervision.settings = replace(supervision.settings, remote=settings.remote)
            supervision.retry_now()
        return {"name": known.name, "remote": settings.remote, "checked": False}

    async def _apply(self, settings: RepoSettings) -> None:
        await self._repositories.save(settings)
        supervision = self._repositories.mounts.get(settings.name)
        if supervision is None:
            return
        supervision.settings = self._repositories.resolved(settings)
        if supervision.state == "mounted":
            args = {"settings": asdict(supervision.settings)}
            await supervision.request("settings", args, deadline_s=STATUS_S)

    # -- the cache that all share -------------------------------------------------------------

    async def evict(self, request: Request) -> Message:
        """Shrink the cache: by a worker, whose open blobs stay, or here where none runs."""
        max_bytes = int(request.args.get("max_bytes") or 0)
        for supervision in self._repositories.mounts.values():
            if supervision.state == "mounted":
                args = {"max_bytes": max_bytes}
                answer: Message = await supervision.request("evict", args, deadline_s=LONG_S)
                return answer
        evict = partial(housekeeping.evict_here, self._repositories.state, max_bytes)
        return await trio.to_thread.run_sync(evict)

    async def gc(self, request: Request) -> Message:
        await request.progress(stage="collecting garbage")
        adding = tuple(self._repositories.adding)
        only = request.text("name") if request.args.get("name") is not None else None
        state = self._repositories.state
        collect = partial(housekeeping.collect_garbage, state, adding=adding, only=only)
        async with self._deleting:
            return await trio.to_thread.run_sync(collect)

    # -- everything a worker does by itself --------------------------------------------------

    async def worker(self, request: Request) -> Any:
        """Pass ``request`` with ``args`` on to the worker of ``name``, and its progress back."""
        name = request.text("name")
        await self._repositories.registration(name)
        supervision = self._repositories.mounts.get(name)
        if supervision is None or not supervision.running:
            raise DaemonError(f"{name} is not mounted", hint=f"artifact-fs remount --name {name}")
        if supervision.state != "mounted":
            raise DaemonError(
                f"{name} is not mounted yet ({supervision.state})",
                hint=f"artifact-fs wait --name {name}",
            )
        args = request.args.get("args") or {}
        return await supervision.request(
            request.text("request"), args, deadline_s=LONG_S, progress=request.progress
        )


def _settings(fields: object) -> RepoSettings:
    """Raises: InvalidInput."""
    try:
        if not isinstance(fields, dict):
            raise TypeError("settings are an object")
        return RepoSettings.from_mapping(fields)
    except TypeError as error:
        raise InvalidInput(f"unusable settings: {error}") from error
