"""Starting, running and stopping a server."""

from __future__ import annotations

import gc
import logging
import os
import shutil
import signal
import socket
import ssl
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import trio

from artifactfs.errors import StateError
from artifactfs.server.app import Application
from artifactfs.server.connections import serve_connections
from artifactfs.server.context import Context
from artifactfs.server.events.access_log import AccessLog
from artifactfs.server.events.eventlog import EventLog
from artifactfs.server.events.metrics import Metrics
from artifactfs.server.events.webhooks import Webhooks
from artifactfs.server.git.process import run_bounded
from artifactfs.server.jobs.repositories import remove_tree
from artifactfs.server.metadata.catalog import Catalog
from artifactfs.server.metadata.database import Store, metadata_migrations
from artifactfs.server.metadata.limits import RateLimiter
from artifactfs.server.storage.gitdir import (
    create_gitdir,
    find_git,
    git_environment,
    mend_gitdir,
    write_git_config,
)
from artifactfs.server.storage.open_marks import OpenMarks, marked_ids
from artifactfs.server.storage.settings import DataLayout, Limits, ServerSettings
from artifactfs.system.locks import locked_at_once

log = logging.getLogger(__name__)

_OWN_FILES = 100
_FILES_OF_GIT = 10


@contextmanager
def locked(layout: DataLayout) -> Iterator[None]:
    """Hold the data folder: one server at a time. Raises: StateError."""
    with locked_at_once(layout.lock) as alone:
        if not alone:
            raise StateError(f"another server is using {layout.root}")
        yield


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
    ready: Callable[[Context], None],
) -> None:
    """Serve until SIGTERM or SIGINT; `ready` is called once when requests are accepted."""
    layout = settings.layout
    write_git_config(layout.git_config)
    git = find_git()
    shutdown = trio.Event()
    store = Store(layout.metadata_db, metadata_migrations)
    try:
        access_log = AccessLog(settings.access_log, oids=settings.log_oids)
    except OSError as error:
        store.close()
        raise StateError(f"{settings.access_log} cannot be written: {error.strerror}") from error
    catalog = Catalog(store)
    metrics = Metrics()
    webhooks = Webhooks(store, metrics, allow_private=settings.allow_private_networks)
    events = EventLog(layout.events_db, store, metrics, webhooks)
    access_log.also(metrics.request)
    try:
        async with trio.open_nursery() as services:
            services.start_soon(_until_signal, shutdown)
            await services.start(events.run)
            services.start_soon(webhooks.run)
            async with trio.open_nursery() as background:
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
                    marks=OpenMarks(layout.open),
                    control_limiter=RateLimiter(
                        settings.limits.control_requests, settings.limits.window_s
                    ),
                    git_limiter=RateLimiter(settings.limits.git_requests, settings.limits.window_s),
                    git_turns=trio.Semaphore(settings.limits.git_processes),
                    content_turns=trio.Semaphore(settings.limits.content_streams),
                    background=background,
                )
                _add_gauges(context)
                marks = _marks_of_last_run(layout)
                if not _was_clean(layout) or marks:
                    await trio.to_thread.run_sync(sweep, layout, store, marks)
                layout.open.mkdir(mode=0o700, exist_ok=True)
                for directory in layout.trash.iterdir():
                    background.start_soon(remove_tree, directory)
                services.start_soon(context.marks.run)
                application = Application(context)
                application.jobs.resume()
                gc.freeze()
                ready(context)
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
    if clean:
        await context.marks.sync()
        layout.clean.touch()


def _reserved_descriptors(limits: Limits) -> int:
    """What git processes (pipes, a pidfd, a file for stderr) and our own files need."""
    return _OWN_FILES + _FILES_OF_GIT * (limits.git_processes + limits.content_streams)


def _add_gauges(context: Context) -> None:
    def one(sql: str) -> float:
        row = context.store.row(sql)
        return 0.0 if row is None else float(row["n"] or 0)

    gauge = context.metrics.gauge
    gauge("artifacts_repos", "Repositories", lambda: one("SELECT count(*) AS n FROM repos"))
    gauge(
        "artifacts_repos_not_ready",
        "Repositories whose fork or import goes on",
        lambda: one("SELECT count(*) AS n FROM repos WHERE status <> 'ready'"),
    )
    gauge(
        "artifacts_stored_bytes",
        "Bytes of objects, each pool once",
        lambda: one(
            "SELECT (SELECT coalesce(sum(own_bytes), 0) FROM repos)"
            " + (SELECT coalesce(sum(bytes), 0) FROM pools) AS n"
        ),
    )
    gauge(
        "artifacts_git_processes",
        "Git processes that serve a request",
        lambda: context.limits.git_processes - context.git_turns.value,
    )
    gauge(
        "artifacts_webhook_queue",
        "Webhook deliveries that wait",
        lambda: one("SELECT count(*) AS n FROM deliveries"),
    )


def _was_clean(layout: DataLayout) -> bool:
    """Whether the last server left nothing to mend; from now on there may be something."""
    try:
        layout.clean.unlink()
    except FileNotFoundError:
        return False
    return True


async def _until_signal(shutdown: trio.Event) -> None:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async for _ in signals:
            shutdown.set()


def _marks_of_last_run(layout: DataLayout) -> list[str] | None:
    """What was being written to when the last server ended; None: an older one, or a backup that
    was put back, made no marks."""
    try:
        return os.listdir(layout.open)
    except FileNotFoundError:
        return None


def sweep(layout: DataLayout, store: Store, marks: list[str] | None) -> None:
    """Mend what a crash left: folders that no row names, quarantines, lock files, empty files.

    Of what `marks` name; without any, of everything.
    """
    if marks is None:
        gitdirs = list(layout.repos.glob("*/*.git"))
        pools = list(layout.pools.iterdir())
    else:
        repo_ids, pool_ids = marked_ids(marks)
        gitdirs = [path for each in repo_ids if (path := layout.gitdir(each)).exists()]
        pools = [path for each in pool_ids if (path := layout.pool(each)).exists()]
    for gitdir in gitdirs:
        _mend_repo(gitdir, store)
    for pool in pools:
        if store.row("SELECT 1 AS one FROM pools WHERE id = ?", (pool.name,)) is None:
            shutil.rmtree(pool, ignore_errors=True)
    layout.open.mkdir(mode=0o700, exist_ok=True)
    for mark in marks or ():
        (layout.open / mark).unlink(missing_ok=True)


def _mend_repo(gitdir: Path, store: Store) -> None:
    row = store.row(
        "SELECT default_branch FROM repos WHERE id = ? AND status <> 'importing'",
        (gitdir.name.removesuffix(".git"),),
    )
    if row is None:
        log.info("removing a repository folder that was never finished: %s", gitdir.name)
        shutil.rmtree(gitdir, ignore_errors=True)
        return
    for quarantine in (gitdir / "objects").glob("tmp_objdir-*"):
        shutil.rmtree(quarantine, ignore_errors=True)
    _remove_stale_locks(gitdir)
    if mend_gitdir(gitdir, row["default_branch"]):
        log.warning("mended %s", gitdir)


def _remove_stale_locks(gitdir: Path) -> None:
    """A killed git leaves ``.lock`` files; with the data folder locked, nobody holds them."""
    for lock in (gitdir / "packed-refs.lock", gitdir / "HEAD.lock", gitdir / "config.lock"):
        lock.unlink(missing_ok=True)
    for lock in (gitdir / "refs").rglob("*.lock"):
        lock.unlink(missing_ok=True)
