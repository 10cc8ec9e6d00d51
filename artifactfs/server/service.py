"""Starting, running and stopping a server."""

from __future__ import annotations

import gc
import logging
import os
import shutil
import signal
import socket
import ssl
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from artifactfs.errors import StateError
from artifactfs.server.app import Application
from artifactfs.server.cluster.fence import write_hook
from artifactfs.server.cluster.standing import Alone, Standing
from artifactfs.server.connections import serve_connections
from artifactfs.server.context import Context
from artifactfs.server.events.access_log import AccessLog
from artifactfs.server.events.eventlog import EventLog
from artifactfs.server.events.metrics import Metrics
from artifactfs.server.events.webhooks import Webhooks
from artifactfs.server.git.process import run_bounded
from artifactfs.server.git.repacking import Repacking
from artifactfs.server.jobs.jobs import Jobs
from artifactfs.server.jobs.repositories import remove_tree
from artifactfs.server.metadata.catalog import Catalog
from artifactfs.server.metadata.database import Store
from artifactfs.server.metadata.limits import Limiter, OwnLimit, SharedLimit
from artifactfs.server.storage.gitdir import (
    create_gitdir,
    find_git,
    git_environment,
    write_git_config,
)
from artifactfs.server.storage.installation import Installation
from artifactfs.server.storage.open_marks import OpenMarks
from artifactfs.server.storage.settings import DataLayout, Limits, ServerSettings
from artifactfs.server.storage.shared import check_shared
from artifactfs.server.storage.sweeping import marks_of_last_run, sweep, time_there

if TYPE_CHECKING:
    from artifactfs.server.cluster.membership import Member

log = logging.getLogger(__name__)

_OWN_FILES = 100
_SCRATCH_S = 7_200.0
_FILES_OF_GIT = 10


async def advertisement_v2(git: str, layout: DataLayout) -> bytes:
    """What this git says to a protocol v2 handshake. It does not depend on the repository."""
    probe = layout.trash / f"probe.{os.urandom(6).hex()}"
    create_gitdir(probe, "main")
    try:
        status, output, stderr = await run_bounded(
            [git, "upload-pack", "--http-backend-info-refs", str(probe)],
            environment=git_environment(layout.git_config, protocol="version=2"),
            deadline_s=30,
        )
    finally:
        shutil.rmtree(probe, ignore_errors=True)
    if status != 0:
        raise StateError(f"git upload-pack does not work: {stderr}")
    return output


async def run_server(
    settings: ServerSettings,
    sockets: Sequence[socket.socket],
    *,
    tls: ssl.SSLContext | None = None,
    ready: Callable[[bool], None],
) -> None:
    """Serve until SIGTERM or SIGINT; `ready` is called once when requests are accepted,
    with whether there are API tokens."""
    layout = settings.layout
    write_git_config(layout.git_config)
    git = find_git()
    told_to_stop, shutdown = trio.Event(), trio.Event()
    store, event_store = Installation(layout, settings.database).stores()
    try:
        access_log = AccessLog(settings.access_log, oids=settings.log_oids)
    except OSError as error:
        store.close()
        event_store.close()
        raise StateError(f"{settings.access_log} cannot be written: {error.strerror}") from error
    catalog = Catalog(store)
    metrics = Metrics()
    marks = OpenMarks(layout.open, in_threads=settings.database is not None)
    member = None if settings.database is None else _member(settings, store, marks)
    standing: Standing = member or Alone()
    webhooks = Webhooks(store, metrics, standing, allow_private=settings.allow_private_networks)
    events = EventLog(event_store, store, metrics, webhooks)
    access_log.also(metrics.request)

    def limiter(area: str, limit: int) -> Limiter:
        if settings.database is None:
            return OwnLimit(limit, settings.limits.window_s)
        return SharedLimit(store, area, limit, settings.limits.window_s)

    try:
        if member is None:
            await _mend(layout, store)
        else:
            await member.join()
        async with trio.open_nursery() as services:
            services.start_soon(_until_signal, told_to_stop)
            if member is not None:
                services.start_soon(member.run)
            await services.start(events.run)
            services.start_soon(webhooks.run)
            async with trio.open_nursery() as background:
                repacking = Repacking(git, layout, standing, marks, background)
                context = Context(
                    settings=settings,
                    git=git,
                    advertisement=await advertisement_v2(git, layout),
                    store=store,
                    catalog=catalog,
                    events=events,
                    webhooks=webhooks,
                    metrics=metrics,
                    access_log=access_log,
                    marks=marks,
                    standing=standing,
                    control_limiter=limiter("control", settings.limits.control_requests),
                    git_limiter=limiter("git", settings.limits.git_requests),
                    git_turns=trio.Semaphore(settings.limits.git_processes),
                    content_turns=trio.Semaphore(settings.limits.content_streams),
                    background=background,
                    look_at_packs=repacking.look,
                )
                _add_figures(context)
                layout.open.mkdir(mode=0o700, exist_ok=True)
                for directory in _trash(layout, young_s=_SCRATCH_S if standing.shared else 0):
                    background.start_soon(remove_tree, directory)
                services.start_soon(context.marks.run)
                if standing.shared:
                    services.start_soon(repacking.run)
                application = Application(context)
                await application.jobs.resume()
                if member is not None:
                    services.start_soon(_take_over, member, context, application.jobs)
                services.start_soon(_drain, context, told_to_stop, shutdown)
                gc.freeze()
                ready(await catalog.has_api_tokens())
                clean = await serve_connections(
                    application,
                    sockets,
                    tls=tls,
                    shutdown=shutdown,
                    grace_s=settings.stop_s,
                    idle_s=settings.limits.client_idle_s,
                    reserved=_reserved_descriptors(settings.limits),
                )
                background.cancel_scope.cancel()
            services.cancel_scope.cancel()
    finally:
        access_log.close()
        store.close()
    if clean and member is None:
        await context.marks.sync()
        layout.clean.touch()


def _member(settings: ServerSettings, store: Store, marks: OpenMarks) -> Member:
    from artifactfs.server.cluster.membership import Member  # SQLAlchemy takes 0.1 s to load

    assert settings.database is not None
    layout = settings.layout
    check_shared(layout)
    write_hook(layout.hooks)
    return Member(settings.database, store, marks, layout.open)


async def _take_over(member: Member, context: Context, jobs: Jobs) -> None:
    from artifactfs.server.cluster.takeover import Takeover

    await Takeover(member, context.store, context.layout, jobs.resume).run()


async def _mend(layout: DataLayout, store: Store) -> None:
    """What the last server of this folder left."""
    marks = marks_of_last_run(layout)
    if not _was_clean(layout) or marks:
        await store.read(partial(sweep, layout, marks=marks))


def _trash(layout: DataLayout, *, young_s: float) -> list[Path]:
    """What can be removed from the trash: not what other servers may be trying something in, or
    be reading."""
    there = list(layout.trash.iterdir())
    if not young_s:
        return there
    before = time_there(layout.trash) - young_s
    others = ("scratch.", "probe.", "packs.")
    return [p for p in there if not p.name.startswith(others) or _is_older(p, before)]


def _is_older(path: Path, than: float) -> bool:
    try:
        return path.stat().st_mtime < than
    except FileNotFoundError:  # another server has removed it
        return False


def _reserved_descriptors(limits: Limits) -> int:
    """What git processes (pipes, a pidfd, a file for stderr) and our own files need."""
    return _OWN_FILES + _FILES_OF_GIT * (limits.git_processes + limits.content_streams)


def _add_figures(context: Context) -> None:
    context.metrics.gauge(
        "artifacts_git_processes",
        "Git processes that serve a request",
        lambda: context.limits.git_processes - context.git_turns.value,
    )
    figure = context.metrics.figure
    figure("artifacts_repos", "Repositories", "SELECT count(*) AS n FROM repos")
    figure(
        "artifacts_repos_not_ready",
        "Repositories whose fork or import goes on",
        "SELECT count(*) AS n FROM repos WHERE status <> 'ready'",
    )
    figure(
        "artifacts_stored_bytes",
        "Bytes of objects, each pool once",
        "SELECT (SELECT coalesce(sum(own_bytes), 0) FROM repos)"
        " + (SELECT coalesce(sum(bytes), 0) FROM pools) AS n",
    )
    figure(
        "artifacts_webhook_queue",
        "Webhook deliveries that wait",
        "SELECT count(*) AS n FROM deliveries",
    )


def _was_clean(layout: DataLayout) -> bool:
    """Whether the last server left nothing to mend; from now on there may be something."""
    try:
        layout.clean.unlink()
    except FileNotFoundError:
        return False
    return True


async def _drain(context: Context, told_to_stop: trio.Event, shutdown: trio.Event) -> None:
    """First the balancer is told, and given the time to ask."""
    await told_to_stop.wait()
    context.draining = True
    await trio.sleep(context.settings.drain_s)
    shutdown.set()


async def _until_signal(shutdown: trio.Event) -> None:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async for _ in signals:
            shutdown.set()
