"""What git calls things that nobody has named."""

from __future__ import annotations

from artifactfs.errors import InvalidInput
from artifactfs.git.configuration.listing import read_configuration
from artifactfs.git.repository.refs import valid_ref
from artifactfs.git.repository.refspecs import DEFAULT_NAME


async def default_remote_name() -> str:
    """``clone.defaultRemoteName``, else origin. Raises: InvalidInput."""
    name = (await read_configuration()).last("clone.defaultremotename")
    if name is None:
        return DEFAULT_NAME
    if not valid_ref(f"refs/remotes/{name}/HEAD") or name.startswith("-"):
        raise InvalidInput(f"clone.defaultRemoteName is {name!r}, which cannot name a remote")
    return name


async def default_branch() -> str:
    """The first branch of a new repository (``init.defaultBranch``). Raises: InvalidInput."""
    return (await read_configuration()).last("init.defaultbranch") or "master"
