"""``artifact-fs unmount``, ``remount``, ``prepare`` and ``remove-repo``."""

from __future__ import annotations

import time
from typing import Any

import click

from artifactfs.cli.repositories import in_mount
from artifactfs.cli.repositories.adding import who_writes
from artifactfs.cli.terminal import output
from artifactfs.cli.terminal.context import connect, daemon, json_option, state
from artifactfs.cli.terminal.names import name_option
from artifactfs.daemon.control.client import ControlClient

_KEPT_S = 30.0
"""So long may a mount take to end that a daemon has left which was killed."""


@click.command()
@name_option
@click.option("--force", is_flag=True, help="Also while programs use it: they get errors.")
@json_option
def unmount(name: str, force: bool, as_json: bool) -> None:
    """Unmount a repository and leave it so, also after a restart of the daemon.

    Local changes stay: `artifact-fs remount` brings them back.

    \b
    Examples:
      artifact-fs unmount --name hello
      artifact-fs unmount --name hello --force
    """
    unmount_by_name(name, force=force)
    _report({"name": name, "state": "unmounted"}, as_json)


def unmount_by_name(name: str, *, force: bool) -> None:
    """By the daemon. Where none runs, clears a dead mount away; the next daemon makes none."""
    client = connect()
    if client is not None:
        with client:
            client.request("unmount", name=name, force=force)
        return
    from artifactfs.daemon.repositories.housekeeping import unmount_here
    from artifactfs.daemon.supervisor.keeper import stop_kept

    end = time.monotonic() + _KEPT_S
    while stop_kept(state().keeper_socket, name) and time.monotonic() < end:
        time.sleep(0.1)
    unmount_here(state(), name)


@click.command()
@name_option
@click.option("--restart", is_flag=True, help="Unmount it first where it is mounted.")
@click.option(
    "--force", is_flag=True, help="With --restart or --writes: also while programs use it."
)
@click.option(
    "--writes",
    type=click.Choice(["auto", "kernel", "fuse"]),
    help="Who takes what programs write from now on; what was written is moved, and a mounted "
    "repository unmounted for that. [default: as before]",
)
@json_option
def remount(name: str, restart: bool, force: bool, writes: str | None, as_json: bool) -> None:
    """Mount a repository that is unmounted; returns when its tree can be read.

    \b
    Examples:
      artifact-fs remount --name hello
      artifact-fs remount --name hello --restart
      artifact-fs remount --name hello --writes kernel
    """
    with daemon() as client, output.progress(name, quiet=as_json) as report:
        answer = client.request(
            "remount",
            on_progress=report,
            name=name,
            restart=restart,
            force=force,
            writes=writes,
        )
    _report(answer, as_json, writes)


@click.command()
@name_option
@json_option
def prepare(name: str, as_json: bool) -> None:
    """Try again, in the background, to clone and mount what has failed.

    The daemon tries by itself, too, but later and later. Who looks into the mount point from now on
    waits for this attempt. Without a daemon it is tried when one starts.

    \b
    Examples:
      artifact-fs prepare hello
      artifact-fs prepare hello && artifact-fs wait hello
    """
    client = connect()
    if client is not None:
        with client:
            answer = client.request("prepare", name=name)
    else:
        from artifactfs.daemon.repositories.registration import resolve_mount_point
        from artifactfs.daemon.repositories.registry import Registry

        with Registry(state().registry_db) as registry:
            settings = registry.get(name).settings
            registry.set_enabled(name, True)
        point = resolve_mount_point(settings, state().mount_root())
        answer = {"name": name, "mount_point": point, "state": "queued"}
    if as_json:
        output.print_json(answer)
    elif answer["state"] == "queued":
        click.echo(f"preparing {name}")
    else:
        click.echo(f"{name}: mounted at {answer['mount_point']} already")


@click.command("remove-repo")
@name_option
@click.option("--force", is_flag=True, help="Also with local changes or unpushed commits.")
@click.option("--dry-run", is_flag=True, help="Only say whether it would be removed.")
@json_option
def remove_repo(name: str, force: bool, dry_run: bool, as_json: bool) -> None:
    """Unmount a repository and delete it, its gitdir and its local changes.

    Refuses while there are local changes, unpushed commits or stashes, unless --force is given.
    Contents in the shared cache stay (see evict-cache).

    \b
    Examples:
      artifact-fs remove-repo hello
      artifact-fs remove-repo hello --dry-run
      artifact-fs remove-repo hello --force
    """
    client = connect()
    if client is not None:
        with client, output.progress(name, quiet=as_json) as report:
            changes = None if force else _changes_in_mount(client, name)
            answer = client.request(
                "remove",
                on_progress=report,
                name=name,
                force=force,
                dry_run=dry_run,
                changes=changes,
            )
    else:
        answer = _remove_without_daemon(name, force, dry_run)
    _report(answer, as_json)


def _changes_in_mount(client: ControlClient, name: str) -> list[str] | None:
    """What git says there; None where it is not mounted. Raises: DaemonError, StateError."""
    status = client.request("status", name=name)[0]
    if status["state"] != "mounted":
        return None
    return in_mount.local_changes(status["mount_point"])


def _remove_without_daemon(name: str, force: bool, dry_run: bool) -> dict[str, Any]:
    from pathlib import Path

    import trio

    from artifactfs.daemon.host import overlayfs
    from artifactfs.daemon.repositories import registration
    from artifactfs.daemon.repositories.losses import check_unmounted
    from artifactfs.daemon.repositories.registry import Registry
    from artifactfs.daemon.supervisor.supervisor import locked

    layout = state()
    with Registry(layout.registry_db) as registry:
        settings = registry.get(name, whole=False).settings
    with locked(layout):
        if not force:
            trio.run(check_unmounted, name, layout.repo(name))
        if dry_run:
            return {"name": name, "removed": False, "would_remove": True}
        mount_point = registration.resolve_mount_point(settings, layout.mount_root())
        overlayfs.clear_dead(mount_point, layout.repo(name))
        registration.delete(layout, name, Path(mount_point))
    return {"name": name, "removed": True}


def _report(answer: dict[str, Any], as_json: bool, writes: str | None = None) -> None:
    if as_json:
        output.print_json(answer)
        return
    name = answer["name"]
    if answer.get("would_remove"):
        click.echo(f"{name}: would be removed")
    elif answer.get("removed"):
        click.echo(f"{name}: removed")
    elif answer.get("mount_point"):
        line = f"{name}: {answer['state']} at {answer['mount_point']}"
        click.echo(line + (who_writes(answer, writes) if writes is not None else ""))
    else:
        click.echo(f"{name}: {answer['state']}")
