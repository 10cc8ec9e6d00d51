"""``artifact-fs add-repo``."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from artifactfs.cli.terminal import output
from artifactfs.cli.terminal.context import (
    Duration,
    Size,
    connect,
    json_option,
    state,
    writes_option,
)
from artifactfs.cli.terminal.names import RepoName
from artifactfs.config import RepoSettings
from artifactfs.daemon.control.remote_argument import (
    RemoteArgument,
    read_remote,
    remote_of_environment,
)
from artifactfs.daemon.control.starting import ensure_daemon
from artifactfs.errors import InvalidInput

DEFAULT_REFRESH_S = 300.0


depth_option = click.option(
    "--depth",
    type=click.IntRange(min=0),
    callback=lambda _context, _option, value: value or None,
    help="Only so many commits of history; 0: all of it.",
)


@click.command("add-repo")
@click.option("--name", required=True, type=RepoName(), help="How the repository is called here.")
@click.option(
    "--remote",
    help="https, http, ssh, git or file URL, a path or a bundle; - reads it from standard input. "
    "Credentials in it are taken out and kept in a 0600 file. [env: ARTIFACTS_GIT_REMOTE]",
)
@click.option("--branch", help="Branch to mount. [default: the remote's HEAD]")
@click.option("--ref", help="Tag, full ref or commit to mount instead of a branch.")
@click.option(
    "--mount-root",
    type=click.Path(file_okay=False, path_type=Path),
    help="Mounted at DIR/NAME. [default: the daemon's --root]",
)
@depth_option
@click.option(
    "--async",
    "in_background",
    is_flag=True,
    help="Do not wait for the clone: who looks into the mount point waits until it is there, and "
    "gets EIO after a failure, until `artifact-fs prepare`. Without a daemon it is only queued.",
)
@click.option(
    "--refresh",
    type=Duration(never=True),
    default=DEFAULT_REFRESH_S,
    metavar="INTERVAL|never",
    help="Fetch the remote's refs in the background (the working tree stays). [default: 5m]",
)
@click.option(
    "--follow",
    metavar="BRANCH",
    help="Mount BRANCH, and move forward with it after each fetch while nothing is changed here.",
)
@click.option(
    "--hydrate",
    type=click.Choice(["all", "source", "none"]),
    default="source",
    show_default=True,
    help="What is fetched in the background once the mount is quiet.",
)
@click.option(
    "--hydrate-first", multiple=True, metavar="GLOB", help="Fetched before others. Repeatable."
)
@click.option("--hydrate-budget", type=Size(), default=2 << 30, help="At most so much. [2G]")
@click.option("--hydrate-max-blob", type=Size(), default=8 << 20, help="No larger files. [8M]")
@click.option(
    "--deadline",
    type=Duration(),
    default=60.0,
    help="How long a read waits for the remote before it fails. [default: 60s]",
)
@click.option("--allow-other", is_flag=True, help="Let other users in (permissions are checked).")
@click.option("--uid", type=click.IntRange(min=0), help="Owner of the files. [default: you]")
@click.option("--gid", type=click.IntRange(min=0), help="Group of the files. [default: yours]")
@click.option("--xattrs", is_flag=True, help="Offer user.* extended attributes (slower).")
@writes_option
@click.option(
    "--require-commit",
    metavar="OID",
    help="Fail unless --ref (or --branch) is this commit.",
)
@click.option(
    "--git-dir",
    type=click.Path(file_okay=False, exists=True, path_type=Path),
    help="Mount HEAD of a gitdir that other tools made, instead of a clone. It stays where it is; "
    "--remote is by default its origin. With --ref or --branch, that is fetched first, by the "
    "gitdir's own remote and credentials, and HEAD is put on it.",
)
@click.option("--prepared-gitdir", is_flag=True, help="Insist on --git-dir: never clone.")
@click.option("--fetch-ref", metavar="REF", help="With --git-dir: fetch this. [default: --ref]")
@json_option
def add_repo(
    name: str,
    remote: str | None,
    branch: str | None,
    ref: str | None,
    mount_root: Path | None,
    in_background: bool,
    refresh: float | None,
    follow: str | None,
    require_commit: str | None,
    git_dir: Path | None,
    prepared_gitdir: bool,
    fetch_ref: str | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Register a repository and mount it; returns when its tree can be read.

    Where no daemon runs, one is started if --mount-root says where to mount; a `daemon` that comes
    later goes on with it. Else it is cloned and registered, and the daemon mounts it at its start.
    If anything fails, nothing is left behind. What is registered already, from the same remote,
    takes over the other options and what the credentials are now, and is mounted if it was not.

    \b
    Examples:
      artifact-fs add-repo --name hello --remote https://host/org/hello.git
      artifact-fs add-repo --name hello --remote git@host:org/hello.git --branch next
      ARTIFACTS_TOKEN=… artifact-fs add-repo --name hello --remote https://host/org/hello.git
      artifact-fs add-repo --name live --remote /srv/hello.git --follow main --refresh 30s
      artifact-fs add-repo --name ready --prepared-gitdir --git-dir /srv/ready.git
      artifact-fs add-repo --name v1 --remote /srv/hello.git --ref v1.0 --refresh never
    """
    if prepared_gitdir and git_dir is None:
        raise click.UsageError("--git-dir is required with --prepared-gitdir")
    if fetch_ref is not None and git_dir is None:
        raise click.UsageError("--fetch-ref needs --git-dir DIR")
    if git_dir is not None and follow:
        raise click.UsageError("--follow and --git-dir cannot be used together")
    wanted = wanted_ref(followed(follow, branch), ref)
    if require_commit is not None and wanted is None and git_dir is None:
        raise click.UsageError("--require-commit requires an explicit --ref or --branch")
    required = checked_commit(require_commit)
    parsed = read_remote(remote if remote is not None else origin_of(git_dir))
    settings = RepoSettings(
        name=name,
        remote=parsed.url,
        mount_point=mount_point_for(name, mount_root),
        ref=wanted,
        refresh_s=refresh,
        follow=follow,
        git_dir=str(git_dir.absolute()) if git_dir is not None else None,
        fetch_ref=(fetch_ref or wanted) if git_dir is not None else None,
        require_commit=required,
        hydrate_first=tuple(options.pop("hydrate_first")),
        deadline_s=options.pop("deadline"),
        **options,
    )
    answer = register(settings, parsed, in_background=in_background, again=True, quiet=as_json)
    if as_json:
        output.print_json(answer)
        return
    if answer["state"] == "queued":
        click.echo(f"queued {name}")
        return
    duration = f" ({answer['seconds']} s)" if answer.get("seconds") is not None else ""
    where = "at" if answer["state"] == "mounted" else "and will be at"
    again = ", as before" if answer.get("again") else ""
    line = f"{name}: {answer['state']} {where} {answer['mount_point']}{duration}{again}"
    click.echo(line + who_writes(answer, options["writes"]))


def who_writes(answer: dict[str, Any], asked: str) -> str:
    """What a line on a mount says of its writes: nothing where that was asked for, or where it is
    not known yet."""
    writes = answer.get("writes")
    if writes is None:
        return ""
    if writes["kind"] == "kernel":
        return "; the kernel takes the writes"
    return f"; writes go through our process: {writes['why']}" if asked == "auto" else ""


def origin_of(git_dir: Path | None) -> str:
    """The remote where --remote is not given. Raises: InvalidInput, UsageError."""
    if git_dir is None:
        if (named := remote_of_environment()) is not None:
            return named
        raise click.UsageError("--remote is required")
    import trio

    from artifactfs.daemon.repositories.prepared import remote_of

    url = trio.run(remote_of, git_dir)
    if not url:
        raise InvalidInput(f"{git_dir} has no origin", hint="give its --remote")
    return url


def mount_point_for(name: str, mount_root: Path | None) -> str:
    """Without a mount root it is relative: below the root of whichever daemon mounts it."""
    if mount_root is None:
        return name
    return os.path.normpath(mount_root.absolute() / name)


def wanted_ref(branch: str | None, ref: str | None) -> str | None:
    """Raises: InvalidInput."""
    if branch is not None and ref is not None:
        raise InvalidInput("--ref and --branch cannot be used together", hint="give one of them")
    if branch is not None:
        branch = branch.removeprefix("refs/heads/")
        if not branch or branch.startswith("-"):
            raise InvalidInput(f"{branch!r} is not a branch name")
        return f"refs/heads/{branch}"
    if ref is not None and (not ref or ref.startswith("-")):
        raise InvalidInput(f"{ref!r} is not a ref")
    return ref


def followed(follow: str | None, branch: str | None) -> str | None:
    """The branch to mount. Raises: InvalidInput where another one is to be followed."""
    if follow is not None and branch not in (None, follow):
        raise InvalidInput("--follow and --branch name different branches", hint="give --follow")
    return branch if follow is None else follow


def checked_commit(oid: str | None) -> str | None:
    """Raises: InvalidInput unless it is a full object id."""
    if oid is None:
        return None
    if len(oid) != 40 or any(char not in "0123456789abcdefABCDEF" for char in oid):
        raise InvalidInput(f"--require-commit must be a full commit id of 40 digits, not {oid!r}")
    return oid.lower()


def _can_be_mounted_now(settings: RepoSettings) -> bool:
    """Whether it is known where: below a --mount-root, not below the root of a daemon to come.
    Raises: ArtifactFSError."""
    from artifactfs.daemon.repositories.registry import Registry

    path = state().registry_db
    known: list[RepoSettings] = []
    if path.exists():
        with Registry(path) as registry:
            known = [one.settings for one in registry.all() if one.damaged is None]
    return all(os.path.isabs(one.mount_point) for one in (settings, *known))


def register(
    settings: RepoSettings,
    remote: RemoteArgument,
    *,
    in_background: bool,
    quiet: bool,
    again: bool = False,
) -> dict[str, Any]:
    """By the daemon where one runs, else here. `again`: what is registered already, from the same
    remote, is brought up to date. Raises: ArtifactFSError."""
    client = connect()
    if client is None and not in_background and _can_be_mounted_now(settings):
        ensure_daemon(state(), wanted_by="add-repo")
        client = connect()
    if client is None:
        from artifactfs.daemon.repositories.offline import register_here

        with output.progress(settings.name, quiet=quiet) as report:
            answer = register_here(
                state(), settings, remote.secret, report, again=again, clone=not in_background
            )
        client = connect()  # one may have started meanwhile, and read the registry too early
        if client is None:
            return answer
        with client:
            command = "prepare" if in_background else "remount"
            mounted: dict[str, Any] = client.request(command, name=settings.name)
            return mounted
    with client, output.progress(settings.name, quiet=quiet) as report:
        added: dict[str, Any] = client.request(
            "add",
            on_progress=report,
            settings=asdict(settings),
            secret=remote.secret,
            again=again,
            **{"async": in_background},
        )
        return added
