"""The repositories that are known: to the daemon, or to the registry where none runs."""

from __future__ import annotations

from typing import Any

from artifactfs.cli.terminal.context import connect, state

Fields = dict[str, Any]


def known_repos() -> list[Fields]:
    """Every repository, as the daemon lists them, or the registry where none runs."""
    client = connect()
    if client is None:
        return registered()
    with client:
        repos: list[Fields] = client.request("list")
    return repos


def registered(name: str | None = None) -> list[Fields]:
    """What the registry knows, without a daemon."""
    from artifactfs.daemon.repositories.registration import resolve_mount_point
    from artifactfs.daemon.repositories.registry import Registry

    layout = state()
    if not layout.registry_db.exists() and name is None:
        return []
    with Registry(layout.registry_db) as registry:
        known = [registry.get(name)] if name is not None else registry.all()
    return [
        {
            "name": one.name,
            "state": "not running" if one.enabled else "unmounted",
            "mount_point": resolve_mount_point(one.settings, layout.mount_root()),
            "remote": one.settings.remote,
            "refresh_s": one.settings.refresh_s,
            "follow": one.settings.follow,
            "depth": one.settings.depth,
            "require_commit": one.settings.require_commit,
            "git_dir": one.settings.git_dir,
            "enabled": one.enabled,
            "created": one.created,
        }
        for one in known
    ]
