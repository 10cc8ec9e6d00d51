"""Settings of a repository: what `add-repo` stores and a mount worker is started with."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from typing import Any, Self


@dataclass(frozen=True, slots=True, kw_only=True)
class RepoSettings:
    """One registered repository. JSON-serialisable; never holds credentials.

    `ref` is what the user asked for (branch, tag, full ref or commit), None for the remote's HEAD.
    `fetch_ref` is fetched into `git_dir`, from its own remote, before it is mounted.
    `refresh_s` is the interval of background fetches in seconds, None for never.
    `hydrate` is the reach of the background sweep: ``all``, ``source`` or ``none``.
    `writes` is who takes what programs write: ``kernel``, ``fuse``, or ``auto``, which is settled
    at the first mount.
    `hydrate_budget` and `hydrate_max_blob` are bytes, `deadline_s` seconds.
    """

    name: str
    remote: str
    mount_point: str
    ref: str | None = None
    depth: int | None = None
    refresh_s: float | None = None
    follow: str | None = None
    require_commit: str | None = None
    hydrate: str = "source"
    hydrate_first: tuple[str, ...] = ()
    hydrate_budget: int = 2 << 30
    hydrate_max_blob: int = 8 << 20
    deadline_s: float = 60.0
    allow_other: bool = False
    uid: int | None = None
    gid: int | None = None
    xattrs: bool = False
    recurse_submodules: bool = False
    git_dir: str | None = None
    writes: str = "auto"
    fetch_ref: str | None = None

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read what `to_json` wrote; keys of a newer version are ignored."""
        return cls.from_mapping(json.loads(text))

    @classmethod
    def from_mapping(cls, mapping: dict[str, Any]) -> Self:
        known = {f.name for f in fields(cls)}
        values = {key: value for key, value in mapping.items() if key in known}
        values["hydrate_first"] = tuple(values.get("hydrate_first", ()))
        return cls(**values)
