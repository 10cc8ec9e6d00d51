"""``artifact-fs mount REMOTE [DIR]`` and ``umount DIR``."""

from __future__ import annotations

import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from artifactfs.cli.repositories.adding import (
    DEFAULT_REFRESH_S,
    depth_option,
    register,
    wanted_ref,
    who_writes,
)
from artifactfs.cli.repositories.mounting import unmount_by_name
from artifactfs.cli.terminal import output
from artifactfs.cli.terminal.context import connect, json_option, state, writes_option
from artifactfs.cli.terminal.known import known_repos
from artifactfs.cli.terminal.names import RepoName
from artifactfs.config import RepoSettings
from artifactfs.daemon.control.remote_argument import (
    RemoteArgument,
    read_remote,
    remote_of_environment,
)
from artifactfs.daemon.control.starting import ensure_daemon
from artifactfs.errors import DaemonError, InvalidInput, NameTaken, NotRegistered


@click.command()
@click.argument("remote", required=False)
@click.argument("directory", type=click.Path(path_type=Path), required=False)
@click.option("--branch", "-b", help="Branch to mount. [default: the remote's HEAD]")
@click.option("--ref", help="Tag, full ref or commit to mount instead of a branch.")
@depth_option
@click.option("--name", type=RepoName(), help="How it is called here. [default: as DIRECTORY]")
@writes_option
@click.option("--quiet", "-q", is_flag=True, help="Print errors only.")
@json_option
def mount(
    remote: str | None,
    directory: Path | None,
    branch: str | None,
    ref: str | None,
    depth: int | None,
    name: str | None,
    writes: str,
    quiet: bool,
    as_json: bool,
) -> None:
    """Mount REMOTE at DIRECTORY, as `git clone` would fetch it; starts a daemon if none runs.

    Returns when the tree can be read. What was unmounted with `artifact-fs umount` is mounted
    again with its local changes. A daemon started here logs to STATE/daemon.log and ends by
    itself ten minutes after its last mount was unmounted. Without REMOTE it is that of
    $ARTIFACTS_GIT_REMOTE.

    \b
    Examples:
      artifact-fs mount https://host/org/hello.git
      artifact-fs mount git@host:org/hello.git ~/src/hello --branch next
      artifact-fs mount -q https://host/org/hello.git /tmp/task-7 --name task-7
    """
    remote = remote or remote_of_environment()
    if remote is None:
        raise click.UsageError("Missing the REMOTE.")
    parsed = read_remote(remote)
    where = (directory or Path(_last_part(parsed.url))).absolute()
    ensure_daemon(state())
    known = _registered_at(where)
    if known is not None and known["remote"] == parsed.url:
        answer = _remount(known["name"], parsed, quiet=quiet or as_json)
    else:
        settings = RepoSettings(
            name=name or _free_name(where.name),
            remote=parsed.url,
            mount_point=os.path.normpath(where),
            ref=wanted_ref(branch, ref),
            depth=depth,
            refresh_s=DEFAULT_REFRESH_S,
            writes=writes,
        )
        answer = _register_by_any_name(
            settings, parsed, named=name is not None, quiet=quiet or as_json
        )
    if as_json:
        output.print_json(answer)
    elif not quiet:
        line = f"{answer['name']}: mounted at {answer['mount_point']}"
        click.echo(line + who_writes(answer, writes))


@click.command()
@click.argument("directory", type=click.Path(path_type=Path))
@click.option("--force", is_flag=True, help="Also while programs use it: they get errors.")
@json_option
def umount(directory: Path, force: bool, as_json: bool) -> None:
    """Unmount what is mounted at DIRECTORY; its local changes stay.

    `artifact-fs mount` with the same remote brings it back, `artifact-fs remove-repo` deletes it.

    \b
    Examples:
      artifact-fs umount ~/src/hello
    """
    known = _registered_at(directory.absolute())
    if known is None:
        raise NotRegistered(
            f"nothing of ours is mounted at {directory}",
            hint="artifact-fs list-repos shows the mount points",
        )
    unmount_by_name(known["name"], force=force)
    answer = {"name": known["name"], "state": "unmounted"}
    if as_json:
        output.print_json(answer)
    else:
        click.echo(f"{known['name']}: unmounted")


def _remount(name: str, remote: RemoteArgument, *, quiet: bool) -> dict[str, Any]:
    """With the credentials that were given now, if any: the stored ones may have expired."""
    client = connect()
    if client is None:
        raise DaemonError("the daemon ended", hint="start it again: artifact-fs daemon")
    with client, output.progress(name, quiet=quiet) as report:
        if remote.secret["password"] is not None:
            given = remote.secret
            client.request("set-remote", name=name, remote=remote.url, secret=given, no_check=True)
        answer: dict[str, Any] = client.request("remount", on_progress=report, name=name)
        return answer


def _register_by_any_name(
    settings: RepoSettings, remote: RemoteArgument, *, named: bool, quiet: bool
) -> dict[str, Any]:
    """Other mounts may take a name between the look at those that are free and this one's add."""
    while True:
        try:
            return register(settings, remote, in_background=False, quiet=quiet)
        except NameTaken:
            if named:
                raise
            settings = replace(settings, name=_free_name(settings.name, after=settings.name))


def _registered_at(where: Path) -> dict[str, Any] | None:
    from artifactfs.paths import real_path

    normal, real = os.path.normpath(where), real_path(str(where))
    repos = known_repos()
    for repo in repos:
        if repo["mount_point"] == normal:
            return repo
    return next((repo for repo in repos if real_path(repo["mount_point"]) == real), None)


def _last_part(url: str) -> str:
    """The directory that `git clone` would make. Raises: InvalidInput."""
    name = re.split(r"[/:]", url.rstrip("/"))[-1].removesuffix(".git")
    if not name or name in (".", ".."):
        raise InvalidInput("the remote has no name to call the directory by", hint="give DIRECTORY")
    return name


def _free_name(wanted: str, *, after: str | None = None) -> str:
    """`wanted` made a repository's name, with a number where it is taken.

    `after` was tried and is taken, though it may not be registered yet: the next number.
    """
    name = re.sub(r"[^A-Za-z0-9._-]+|\.\.+", "-", wanted).strip("-._")[:90] or "repo"
    taken = {repo["name"] for repo in known_repos()}
    number, found = 1, name
    if after is not None:
        taken.add(after)
        if match := re.fullmatch(r"(.*)-(\d+)", name):
            name, number = match[1], int(match[2])
    while found in taken:
        number += 1
        found = f"{name}-{number}"
    return found
