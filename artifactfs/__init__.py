"""ArtifactFS: mount Git repositories whose contents arrive when they are read.

>>> import artifactfs
>>> with artifactfs.workspace("https://host/org/hello.git") as ws:
...     ws.run("ls -l")

`workspace` and `fanout` are imported when they are used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from artifactfs.workspaces.asynchronous import AsyncWorkspace
    from artifactfs.workspaces.fanout import async_fanout, fanout
    from artifactfs.workspaces.opening import workspace
    from artifactfs.workspaces.results import UnsavedWork
    from artifactfs.workspaces.workspace import Workspace

__version__ = "0.1.0"

_HOMES = {
    "AsyncWorkspace": "asynchronous",
    "UnsavedWork": "results",
    "async_fanout": "fanout",
    "fanout": "fanout",
    "Workspace": "workspace",
    "workspace": "opening",
}
"""Name → its module of `artifactfs.workspaces`."""

__all__ = [
    "AsyncWorkspace",
    "UnsavedWork",
    "Workspace",
    "__version__",
    "async_fanout",
    "fanout",
    "workspace",
]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"artifactfs.workspaces.{home}"), name)
