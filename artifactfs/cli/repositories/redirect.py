"""``artifact-fs redirect add|list|remove``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from artifactfs.cli.terminal import output
from artifactfs.cli.terminal.context import json_option, state
from artifactfs.cli.terminal.names import name_argument_or_here_option, name_or_here_option
from artifactfs.errors import MountError

if TYPE_CHECKING:
    from artifactfs.daemon.host.redirects import Redirect, Tree


@click.group()
def redirect() -> None:
    """Put folders of heavy, untracked writes on the local disk.

    A redirected folder is written at the disk's own speed and never enters the overlay. It is a
    bind mount where that is allowed (root), a symlink elsewhere; git does not see it; it is there
    again after every mount.

    \b
    Examples:
      artifact-fs redirect add node_modules --name web
      artifact-fs redirect list --name web
      artifact-fs redirect remove node_modules --name web --discard
    """


@redirect.command("add")
@click.argument("path")
@name_or_here_option
@click.option("--method", type=click.Choice(["bind", "symlink"]), help="[default: what works]")
@click.option("--move", is_flag=True, help="Take the files along that are there already.")
@json_option
def add(path: str, name: str, method: str | None, move: bool, as_json: bool) -> None:
    """Redirect the folder PATH (relative to the tree) to the local disk.

    \b
    Examples:
      artifact-fs redirect add node_modules --name web
      artifact-fs redirect add .venv --name web --method symlink --move
    """
    from artifactfs.daemon.host import redirects

    tree = _mounted_tree(name)
    made = redirects.add(tree, path, method=method, move=move)
    if as_json:
        output.print_json(_shown(tree, made))
    else:
        click.echo(f"{name}: {made.path} is at {tree.data(made)} ({made.method})")


@redirect.command("list")
@name_argument_or_here_option
@json_option
def list_redirects(name: str, as_json: bool) -> None:
    """List the redirected folders of a repository.

    \b
    Examples:
      artifact-fs redirect list --name web
    """
    from artifactfs.daemon.host import redirects

    tree = _tree(name)
    entries = [_shown(tree, one) for one in redirects.redirects_of(tree.layout)]
    if as_json:
        output.print_json(entries)
        return
    rows = [
        [str(e["path"]), str(e["method"]), "yes" if e["active"] else "no", str(e["data"])]
        for e in entries
    ]
    output.table(["PATH", "METHOD", "ACTIVE", "DATA"], rows)


@redirect.command("remove")
@click.argument("path")
@name_or_here_option
@click.option("--discard", is_flag=True, help="Delete what is in the folder.")
@click.option("--keep", is_flag=True, help="Move what is in the folder into the tree.")
@json_option
def remove(path: str, name: str, discard: bool, keep: bool, as_json: bool) -> None:
    """Undo the redirection of PATH.

    \b
    Examples:
      artifact-fs redirect remove node_modules --name web --discard
      artifact-fs redirect remove .venv --name web --keep
    """
    from artifactfs.daemon.host import redirects

    if discard and keep:
        raise click.UsageError("--discard and --keep exclude each other")
    gone = redirects.remove(_mounted_tree(name), path, discard=discard, keep=keep)
    if as_json:
        output.print_json({"name": name, "path": gone.path, "removed": True})
    else:
        click.echo(f"{name}: {gone.path} is in the tree again")


def _shown(tree: Tree, one: Redirect) -> dict[str, object]:
    from artifactfs.daemon.host import redirects

    return {
        "path": one.path,
        "method": one.method,
        "data": str(tree.data(one)),
        "active": redirects.active(tree, one),
    }


def _tree(name: str) -> Tree:
    """Of a registered repository. Raises: NotRegistered."""
    from artifactfs.daemon.host.redirects import Tree
    from artifactfs.daemon.repositories.registration import resolve_mount_point
    from artifactfs.daemon.repositories.registry import Registry

    layout = state()
    with Registry(layout.registry_db) as registry:
        settings = registry.get(name).settings
    repo = layout.repo(name)
    gitdir = Path(settings.git_dir) if settings.git_dir else repo.gitdir
    return Tree(repo, Path(resolve_mount_point(settings, layout.mount_root())), gitdir)


def _mounted_tree(name: str) -> Tree:
    """Raises: MountError where it is not mounted: the folder is part of its tree."""
    from artifactfs.daemon.host.mounts import mounts_at

    tree = _tree(name)
    if not mounts_at(str(tree.mount_point)):
        raise MountError(
            f"{name} is not mounted at {tree.mount_point}",
            hint=f"artifact-fs remount --name {name}",
        )
    return tree
