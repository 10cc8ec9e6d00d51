"""Every error a user can meet, as one small tree.

A command prints ``error: MESSAGE`` (and ``hint: HINT`` where there is one) on stderr and exits
with `exit_code`. Inside the mount, `artifactfs.fs` turns the same errors into an errno.
Messages never contain credentials: build them from `artifactfs.redact.redact` where a URL or the
output of another program is part of them.
"""

from __future__ import annotations


class ArtifactFSError(Exception):
    """Something went wrong that a user can understand. `hint` says what to do about it."""

    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class InvalidInput(ArtifactFSError):
    """An argument, a name or a file the user gave is not usable."""

    exit_code = 2


class StateError(ArtifactFSError):
    """The state root is missing, damaged, locked or of a newer version."""


class AlreadyExists(ArtifactFSError):
    """A repository of that name, or something at that path, is there already."""


class NameTaken(AlreadyExists):
    """A repository of that name is registered, or is being added."""


class NotRegistered(ArtifactFSError):
    """No repository of that name is registered."""


class MountError(ArtifactFSError):
    """The kernel, fusermount3 or the mount point refused."""


class DaemonError(ArtifactFSError):
    """The daemon does not run, or did not answer."""


class RemoteError(ArtifactFSError):
    """The Git remote failed. Base of everything the network can do to us."""


class RemoteUnreachable(RemoteError):
    """No connection, a connection cut short, or a deadline that passed."""


class RemoteBusy(RemoteUnreachable):
    """A failure that is likely to pass: 429, 5xx, a connection that broke, no answer of the name
    service. `retry_after_s` is how long the remote asks to wait, if it does."""

    retry_after_s: float | None = None


class AuthenticationFailed(RemoteError):
    """401 or 403: credentials missing, wrong or expired."""


class RemoteNotFound(RemoteError):
    """The remote answers, but has no such repository, ref or commit."""


class RemoteUnusable(RemoteError):
    """The remote was not asked: what says here how to reach it (git's configuration, a file of
    credentials) cannot be read."""


class ProtocolError(RemoteError):
    """The remote spoke something that is not the Git protocol, or said ``ERR``."""


class ObjectsMissing(RemoteError):
    """The remote lacks objects we wanted (``not our ref``). `oids` are the ones it named."""

    def __init__(self, message: str, oids: frozenset[bytes] = frozenset()) -> None:
        super().__init__(message)
        self.oids = oids


class CorruptData(ArtifactFSError):
    """A pack, an object or a database does not match its checksum or format."""


class MoreThanExpected(CorruptData):
    """A pack, or an object in it, is larger than whoever asked for it would take."""
