"""The repositories that are known: to the daemon, or to the registry where none runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from artifactfs.cli.terminal.context import connect, state

if TYPE_CHECKING:
    from artifactfs.daemon.repositories.registry import Registration

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
    from artifactfs.daemon.control.messages import error_fields
    from artifactfs.daemon.repositories.registration import resolve_mount_point
    from artifactfs.daemon.repositories.registry import Registry

    layout = state()
    if not layout.registry_db.exists() and name is None:
        return []
    with Registry(layout.registry_db) as registry:
        known = [registry.get(name, whole=False)] if name is not None else registry.all()
    return [
        {
            "name": one.name,
            "state": _state(one),
            "mount_point": resolve_mount_point(one.settings, layout.mount_root()),
            "remote": one.settings.remote,
            "source_ref": one.settings.ref,
            "refresh_s": one.settings.refresh_s,
            "follow": one.settings.follow,
            "depth": one.settings.depth,
            "require_commit": one.settings.require_commit,
            "git_dir": one.settings.git_dir,
            "enabled": one.enabled,
            "created": one.created,
            "error": error_fields(one.damaged) if one.damaged is not None else None,
        }
        for one in known
    ]


def _state(one: Registration) -> str:
    if one.damaged is not None:
        return "failed"
    return "not running" if one.enabled else "unmounted"
